"""Numbers as people write them: pure functions of text, none of which raises."""

import re
from fractions import Fraction

from nrt_cli.grading.plain import plain, result, told

_SPACED = re.compile(r"(?<![\w.,/])[1-9]\d{0,2}(?: \d{3})+(?![\d/]| /)")
_POWER_OF_TEN = re.compile(
    r"(?:(?<=\d) ?(?:[*x\u00d7\u00b7]|\\times|\\cdot) ?|(?<![\w.,^])(?=10))10 ?\^ ?\{? ?(-?\d{1,3})\b ?\}?"
)
_SMALL_POWER = re.compile(r"(?<![\w.,^/])(\d{1,6})\^(?:(\d{1,2})|\{ ?(-?\d{1,2}) ?\})(?![\d.])")
_FRACTION = re.compile(r"\\[dt]?frac ?(?:\{ ?(-?\d+) ?\} ?\{ ?(\d+) ?\}|(\d) ?(\d))")
_SPOKEN_MINUS = re.compile(r"(?i)(?<![\d%)])(?<![\d%)]\s)\b(?:minus|negative)\s(?=[\d.$])")
_APART = re.compile(r"(?<![\w.)\n])(?<![\w.)%] )- (?=[\d.])")  # neither a subtraction nor a list's mark
_CURRENCY = "$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9\u20ba\u20aa\u0e3f\u20ab\u20b4\u20a6\u20b1"
_SCALES = {
    "%": Fraction(1, 100),
    "percent": Fraction(1, 100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
}
_SCALE = r"\s?(?:%|(?i:per\s?cent|thousand|million|billion)\b)"
# 1.234.567 and 1.234,5; 12,5 (but neither 1,234 nor a list such as 1,2,3); 1,234.5 and 12,34,567.
_DOTTED = r"[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?:,\d+)?|(?:\.\d{3})+,\d+)(?!\d|[.,]\d)"
_DECIMAL_COMMA = r"(?<!\d,)\d+,\d+(?!\d|[.,]\d)"
_COMMAS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3})(?!\d)(?:\.\d+)?"
_POWER = r"(?:[eE][-+]?\d{1,3}(?!\d))?"
_UNSIGNED = (
    rf"(?:\d+\s{{1,2}})?\d+\s?/\s?\d+|{_DOTTED}|(?:{_COMMAS}|{_DECIMAL_COMMA}|\d+(?:\.\d+)?){_POWER}|\.\d+{_POWER}"
)
_NUMERAL = re.compile(rf"(?:(?<![\w.)])-(?=[\d.]))?(?<![A-Za-z\d])(?:{_UNSIGNED})(?:{_SCALE})?")
_UNIT = r"[^\W\d]+[.]?(?:[ /][^\W\d]+\.?){0,2}"
_ONLY_NUMBER = re.compile(rf"[-+]?\s?[{_CURRENCY}]?\s?-?(?:{_UNSIGNED})\s?(?:%|\u00b0\s?(?:{_UNIT})?|{_UNIT})?\.?")
_PURE_NUMBER = re.compile(rf"(?!0\d)-?\s?(?:{_UNSIGNED})")
_FINAL_NUMBER = re.compile(rf"####\s*[-+]?[{_CURRENCY}]?\s?-?[\d.][\d,.]*\s*\Z")


def ready(text: str) -> str:
    """A text in plain signs whose numbers are digits with their sign and their thousands together; powers of units and
    indices, which are no numbers, are gone, and powers of numbers worked out."""
    text = _SPACED.sub(lambda found: found[0].replace(" ", ""), plain(text))
    text = _FRACTION.sub(lambda part: f" {part[1] or part[3]}/{part[2] or part[4]}", text)
    text = re.sub(r"\^ ?\{? ?\\circ ?\}?", "\u00b0", text)
    text = _POWER_OF_TEN.sub(lambda power: f"{'1' if power[0].startswith('10') else ''}e{power[1]}", text)
    text = _SMALL_POWER.sub(lambda power: _raised(int(power[1]), int(power[2] or power[3])), text)
    # The 2 of m^2 is no number, nor that of 101_2.
    text = re.sub(r"(?<=[\w)}])(?:\^ ?\{? ?-?|_\{?)\d+(?: ?\})?", "", text)
    text = re.sub(rf"-?\s?[{_CURRENCY}]\s?-?", lambda sign: " -" if "-" in sign[0] else " ", text)
    return _APART.sub("-", _SPOKEN_MINUS.sub("-", text))


def _raised(base: int, power: int) -> str:
    return str(base**power) if power >= 0 else f"1/{base**-power}"


def last_number(text: str) -> str | None:
    """The last number in a text, as it is written there but for what groups its thousands and its currency."""
    found = _NUMERAL.findall(ready(text))
    return str(found[-1]) if found else None


def numeral(text: str) -> str | None:
    """The number that a text ends up with: the first of what it says its answer is; else what alone is its first line,
    but for what follows in brackets; else its last."""
    said = next(iter(told(text)), "").partition("\n")[0]
    if found := _NUMERAL.findall(ready(result(said))):
        return str(found[0])
    first = text.strip().partition("\n")[0]
    head, bracket, tail = first.rpartition("(")
    if bracket and re.fullmatch(r"[^()]*\)\W*", tail):
        first = head
    if only_number(first) and "\n- " not in text:  # a list's first line is none
        return str(_NUMERAL.findall(ready(first))[0])
    return last_number(text)


def only_number(text: str) -> bool:
    """Whether a text is a number, maybe with its unit and marked as Markdown or LaTeX mark it, and nothing else."""
    return _ONLY_NUMBER.fullmatch(ready(text.strip("*_`$ \n")).strip()) is not None


def pure_number(text: str) -> bool:
    """Whether a text is a number and nothing else; a code that begins with 0 is none."""
    return _PURE_NUMBER.fullmatch(text) is not None


def is_numeral(text: str) -> bool:
    """Whether a reference answer is a number: alone, maybe with its unit, or at its end after `####`."""
    return bool(_FINAL_NUMBER.search(text) or (only_number(text) and _value(numeral(text) or "")[0] is not None))


def same_number(one: str | None, other: str | None) -> bool:
    """Whether two numerals say the same number: 18 is 18.00, and 1/2 is 0.5.

    What only one of them says in percent or in thousands may be meant either way, since the question may name the unit.
    """
    if one is None or other is None:
        return False
    (left, left_scale), (right, right_scale) = _value(one), _value(other)
    if left is None or right is None:
        return one == other
    scaled = left * (left_scale or 1) == right * (right_scale or 1)
    return scaled or (left == right and (left_scale == right_scale or None in (left_scale, right_scale)))


def _value(numeral: str) -> tuple[Fraction | None, Fraction | None]:
    """A numeral's number, None where it is none, and what it is to be multiplied by as its words say, None for nothing.

    Python refuses to read integers of thousands of digits; such a number is compared as text.
    """
    scale = re.search(rf"{_SCALE}\Z", numeral)
    plain = numeral[: scale.start()] if scale else numeral
    factor = _SCALES["".join(scale.group().casefold().split())] if scale else None
    if len(plain) > 300:
        return None, factor
    if re.fullmatch(rf"-?\s?(?:{_DOTTED})", plain):
        plain = plain.replace(".", "").replace(",", ".")
    elif not re.fullmatch(rf"-?\s?(?:{_COMMAS}){_POWER}", plain):
        plain = plain.replace(",", ".")
    sign = -1 if plain.startswith("-") else 1
    parts = re.sub(r"\s*/\s*", "/", plain.replace(",", "").removeprefix("-")).split()
    try:
        return sign * sum((Fraction(part) for part in parts), Fraction(0)), factor
    except (ValueError, ZeroDivisionError):
        return None, factor
