"""Whether a reply is right: the graders of the whole program, by name, and which of them suits a set of answers.

A grader reads the reference answer and the reply, never a trace. Nothing in here raises, whatever the text, except for
a grader of the user's own.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

from nrt_cli.errors import ConfigError
from nrt_cli.grading import graders
from nrt_cli.grading.mathematics import Verifier
from nrt_cli.methods import load_hook


class Row(Protocol):
    """What a grader is given of a question: its reference answer and the name of its grader."""

    @property
    def answer(self) -> str: ...

    @property
    def grader(self) -> str: ...


@dataclass(frozen=True)
class Pair:
    """A question, its reference answer and how replies to it are graded."""

    question: str
    answer: str
    grader: str


@dataclass(frozen=True)
class Grade:
    """What was found in each reply (None: nothing), and its scores, each in [0, 1]; the first is the one that counts.

    There is one reply but for benchmarks that sample several; there are no scores where nothing was graded.
    """

    extracted: tuple[str | None, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The score that counts; NaN where nothing was graded."""
        return next(iter(self.scores.values()), math.nan)


def grade(row: Row, reply: str) -> Grade:
    """How good a reply is by the row's own grader."""
    return find(row.grader)(row, reply)


def find(name: str) -> Callable[[Row, str], Grade]:
    """The grader of a name. Raises ConfigError where there is none, or where it lacks a package."""
    if ":" not in name:
        if name not in GRADERS:
            raise ConfigError(f"grader {name!r} is unknown; choose one of {', '.join(GRADERS)} or module:function.")
        if name == "math" and find_spec("math_verify") is None:
            raise ConfigError("grader 'math' needs the package math-verify: pip install 'nrt-cli[eval]'.")
        return GRADERS[name]

    # A user's function of (row, reply): a score in [0, 1], True or False, or a `Grade`.
    function = load_hook(name, "grader", ("grader",))
    if not callable(function):
        raise ConfigError(f"grader {name!r} is no function of (row, reply).")

    def graded(row: Row, reply: str) -> Grade:
        found: Any = None
        try:
            found = function(row, reply)
            score = found.score if isinstance(found, Grade) else float(found)
        except Exception as error:
            raise ConfigError(f"grader {name!r} fails on a reply ({type(error).__name__}: {error}).") from None
        if not 0 <= score <= 1:
            raise ConfigError(f"grader {name!r} must return a score in [0, 1]; it returned {found!r}.")
        if isinstance(found, Grade):
            return found if found.extracted else replace(found, extracted=(reply,))
        return Grade((reply,), {"accuracy": score})

    return graded


def guess(answers: Sequence[str]) -> str:
    """The grader that suits a set of reference answers; `none` where they are not all of one short kind.

    Graded by the grader that is returned, each of the answers is right.
    """
    kinds = {_kind(answer) for answer in answers}
    if kinds == {"number"} or kinds == {"choice"}:
        return kinds.pop()
    if kinds <= {"number", "math"} and kinds:
        return "math"
    if kinds <= {"number", "choice", "exact"} and kinds:
        return "exact"
    return "none"


def _kind(answer: str) -> str:
    """What one reference answer looks like: number, choice, math, exact, or none for prose."""
    text = answer.strip().strip("*_`").strip()
    if _FINAL_NUMBER.search(text) or (_only_number(text) and _value(_numeral(text) or "")[0] is not None):
        return "number"
    if _ONLY_OPTION.fullmatch(text):
        return "choice"
    if graders.boxed(text) or _ONLY_MATH.fullmatch(text) or (re.search(r"\\[A-Za-z]+", text) and len(text) <= 80):
        return "math"
    short = len(_bare(text)) > 0 and len(text) <= 40 and "\n" not in text and len(text.split()) <= 4
    return "exact" if short else "none"


# What a reply says its answer is: the rest of the line after the last of these.
_TOLD = re.compile(r"####|(?i:<answer>|\banswer\b[*_]*(?:\s+is\b(?!\s+not\b)|\s*[:=])[*_:=\s]*)")
_GROUPED = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f'\u2019_]|\\[,!; ]|\{,\})(?=\d{3}(?!\d))")
_SPACED = re.compile(r"(?<![\w.,/])[1-9]\d{0,2}(?: \d{3})+(?![\d/]| /)")
_POWER_OF_TEN = re.compile(
    r"(?:(?<=\d)\s*(?:[*x\u00d7\u00b7]|\\times|\\cdot)\s*|(?<![\w.,^])(?=10))10\s*\^\s*\{?\s*(-?\d{1,3})\b\s*\}?"
)
_RAISED = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b", "0123456789-")
_FRACTION = re.compile(r"\s*\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_MINUS = str.maketrans(
    {**dict.fromkeys("\u2212\u2013\u2010\u2011\u2012", "-"), "\u2044": "/", "\u066c": ",", "\u066b": "."}
)
_SPOKEN_MINUS = re.compile(r"(?i)(?<![\d%)])(?<![\d%)]\s)\b(?:minus|negative)\s+(?=[\d.$])")
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
_NUMERAL = re.compile(rf"(?:(?<![\w.)])-\s?(?=[\d.]))?(?<![A-Za-z\d])(?:{_UNSIGNED})(?:{_SCALE})?")
_UNIT = r"[^\W\d]+[.\u00b2\u00b3]?(?:[ /][^\W\d]+\.?){0,2}"
_ONLY_NUMBER = re.compile(rf"[-+]?\s?[{_CURRENCY}]?\s?-?(?:{_UNSIGNED})\s?(?:%|\u00b0\s?(?:{_UNIT})?|{_UNIT})?\.?")
_PURE_NUMBER = re.compile(rf"(?!0\d)-?\s?(?:{_UNSIGNED})")
_FINAL_NUMBER = re.compile(rf"####\s*[-+]?[{_CURRENCY}]?\s?-?[\d.][\d,.]*\s*\Z")
_LETTER = r"[A-Za-z]"
_ONLY_OPTION = re.compile(rf"[(\[]?{_LETTER}[)\]]?[.:]?|[(\[]?{_LETTER}[)\].]\s.*|(?i:yes|no|true|false)\.?")
_ONLY_MATH = re.compile(r"\$[^$]+\$\.?")
_HEAD_LETTER = re.compile(r"[\s(\[*_\"'$]*(?:([A-Z])(?!\w|['\u2019]\w)|([a-z])(?=[\s*_\"'$]*(?:[)\].:,]|\Z)))")
_LETTER_ELSEWHERE = (
    re.compile(r"\(([A-Za-z])\)"),
    re.compile(r"(?i:\b(?:option|choice|choose|pick|select)\s+)([A-Za-z])\b"),
    re.compile(r"\b([A-Z])\)?\s+is\s+(?:the\s+)?(?:correct|right)"),
    re.compile(r"(?<![\w'\u2019])(?<!\bnot\s)([B-HJ-Z]|A(?!\s+[a-z])|I(?=\W*\Z))(?!\w|['\u2019]\w)"),
)
_BETWEEN_LETTERS = re.compile(r"[\s(\[*_\"'$]*[A-Z]\W{0,3}\s*(?:\b(?:or|and)\b|/|&)\s*\W{0,3}[A-Z](?!\w)")


def _plain(text: str) -> str:
    """A text whose numbers are ASCII digits with thousands together, LaTeX's and Unicode's ways of writing undone."""
    text = _SPACED.sub(lambda found: found.group().replace(" ", ""), _GROUPED.sub("", text))
    text = re.sub(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)  # 1½ is 1 1/2
    raised = r"[\u00b2\u00b3\u00b9\u2070-\u2079\u207b]+"
    text = re.sub(rf"(?<![\w.,])10({raised})", lambda power: "10^" + power[1].translate(_RAISED), text)
    text = re.sub(raised, "", text)  # the power of a unit is no number
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    text = _FRACTION.sub(lambda part: f" {part[1] or part[3]}/{part[2] or part[4]}", text)
    text = _WRAPPED.sub(r" \1", text).replace("\\%", "%").replace("\\$", "$")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "\u00b0", text)
    text = _POWER_OF_TEN.sub(lambda power: f"{'1' if power.group().startswith('10') else ''}e{power[1]}", text)
    text = re.sub(r"(?<=[A-Za-z)}])\^\s*\{?-?\d+\}?", "", text)
    text = re.sub(rf"-?\s?[{_CURRENCY}]\s?-?", lambda sign: " -" if "-" in sign.group() else " ", text)
    return _SPOKEN_MINUS.sub("-", text)


def _told(text: str) -> str | None:
    r"""What a reply says its answer is: the last \boxed{}, else what follows the last `####` or `answer is`."""
    if inside := graders.boxed(text):
        return inside
    if found := list(_TOLD.finditer(text)):
        return text[found[-1].end() :].strip().split("\n")[0].removesuffix("</answer>").strip() or None
    return None


def _numeral(text: str) -> str | None:
    """The number that a text ends up with: the first of what it says its answer is; else what alone is its first line,
    but for what follows in brackets; else its last."""
    if (told := _told(text)) and (found := _NUMERAL.findall(_plain(told.rpartition("=")[2]))):
        return str(found[0])
    first = re.sub(r"\([^()]*\)\W*\Z", "", text.strip().partition("\n")[0])
    if _only_number(first):
        return str(_NUMERAL.findall(_plain(first))[0])
    found = _NUMERAL.findall(_plain(text))
    return str(found[-1]) if found else None


def _only_number(text: str) -> bool:
    """Whether a text is a number, maybe with its unit and marked as Markdown or LaTeX mark it, and nothing else."""
    return _ONLY_NUMBER.fullmatch(_plain(text.strip("*_`$ \n")).strip()) is not None


def _same_number(one: str | None, other: str | None) -> bool:
    """Whether two numerals say the same number; what only one of them says in percent or in thousands may be meant
    either way, since the question may name the unit."""
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


def _bare(text: str) -> str:
    """A short answer without case, width, marks of lists and LaTeX, and what quotes and punctuation stand around it."""
    text = "".join(c for c in _WRAPPED.sub(r"\1", text) if unicodedata.category(c) != "Cf")
    plain = " ".join(unicodedata.normalize("NFKC", text).translate(_MINUS).casefold().split())
    plain = re.sub(r"\s*([,;/()\[\]{}])\s*", r"\1", re.sub(r"\A(?:#+|[-*\u2022])\s+(?=\D)", "", plain))
    inside = plain.strip("\"'`*_ .,;:!?()[]{}\u2018\u2019\u201c\u201d\u00ab\u00bb")
    if re.fullmatch(r"\$[^$]+\$", inside):
        inside = inside.strip("$ ")
    # The point of .5 belongs to it.
    if plain[: plain.find(inside)].endswith(".") and inside[:1].isdigit():
        inside = f".{inside}"
    return inside or plain


def _judged(extracted: str | None, right: bool) -> Grade:
    return Grade((extracted,), {"accuracy": float(right)})


def _number(row: Row, reply: str) -> Grade:
    found = _numeral(reply)
    return _judged(found, _same_number(found, _numeral(row.answer)))


def _exact(row: Row, reply: str) -> Grade:
    gold = _bare(row.answer)
    found = [part.strip() for part in (reply, _told(reply), reply.strip().split("\n")[0]) if part and part.strip()]
    for part in found:
        for text in (_bare(part), _bare(_told(part) or part)):
            # Numbers may be written in other ways, but not without zeros that they begin with: these belong to a code.
            numbers = _PURE_NUMBER.fullmatch(gold) and _PURE_NUMBER.fullmatch(text)
            if text == gold or (numbers and _same_number(_numeral(gold), _numeral(text))):
                return _judged(part, True)
    return _judged(found[0] if found else None, False)


def _choice(row: Row, reply: str) -> Grade:
    gold, reply = unicodedata.normalize("NFKC", row.answer).strip("*_` \n"), unicodedata.normalize("NFKC", reply)
    if word := re.fullmatch(r"(?i)(yes|no|true|false)\W*", gold):
        # What the reply says its answer is, else how it begins, else the last of the two words.
        options = r"\b(yes|no)\b" if word.group(1).lower() in ("yes", "no") else r"\b(true|false)\b"
        told = re.search(options, _told(reply) or "", re.IGNORECASE) or re.match(rf"\W*{options}", reply, re.IGNORECASE)
        anywhere = re.findall(options, reply, re.IGNORECASE)
        found = told.group(1).lower() if told else anywhere[-1].lower() if anywhere else None
        return _judged(found, found == word.group(1).lower())
    letter, right = _letter(reply), _letter(gold)
    return _judged(letter, letter is not None and letter == right) if right else _exact(row, reply)


def _letter(reply: str) -> str | None:
    """The letter, in upper case, of the option that a reply settles on; any letter, since some sets go beyond D."""
    for part in (_told(reply), reply):
        if part and _BETWEEN_LETTERS.match(part):
            return None
        if part and (head := _HEAD_LETTER.match(_WRAPPED.sub(r"\1", part))):
            # A reply that opens with "I" or "A" and goes on is a sentence, unless a mark follows the letter.
            if part is reply and re.match(r"\s*[AI]\s+\w", reply):
                continue
            return (head.group(1) or head.group(2)).upper()
    for pattern in _LETTER_ELSEWHERE:
        if found := pattern.findall(reply):
            return str(found[-1]).upper()
    return None


@cache
def verifier() -> Verifier:
    """The process that compares mathematics, which starts when it is first needed."""
    return Verifier()


def _math(row: Row, reply: str) -> Grade:
    gold, (found, *rest) = _mathematics(row.answer)[0], _mathematics(reply) or [None]
    for answer in (found, *rest):
        if answer is None or gold is None:
            break
        same = "".join(answer.split()) == "".join(gold.split())
        if same or (_only_number(gold) and _only_number(answer) and _same_number(_numeral(gold), _numeral(answer))):
            return _judged(answer, True)
        if verifier().equal(_latex(gold), _latex(answer)):
            return _judged(answer, True)
    return _judged(found, False)


def _mathematics(text: str) -> list[str | None]:
    """What may be the final answer of a text with LaTeX in it, the likeliest first: one line is taken as it stands."""
    if inside := graders.boxed(text):
        return [inside]
    told = (_told(text) or "").strip().removesuffix(".").strip("$* ")
    found = re.findall(r"\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", text, re.DOTALL)
    marked = ["".join(each).strip() for each in found]
    whole = text.strip().strip("*") if "\n" not in text.strip() and len(text) <= 200 else ""
    # The last number of a term is not what it comes to.
    term = re.search(r"[+*/^\\]|[\w)]\s*-\s*[\w(]", text.rpartition("=")[2])
    numeral = "" if told or marked or term else _numeral(text)
    return [part for part in (told, *marked[-1:], whole.removesuffix("."), numeral) if part] or [None]


def _latex(text: str) -> str:
    """LaTeX for what Unicode writes in a sign of its own."""
    text = re.sub(r"\u221a\s*(?:\(([^()]*)\)|(\d+|\w))", r"\\sqrt{\1\2}", text)
    return text.replace("\u221e", r"\infty").replace("\u2212", "-").replace("\u00b7", r"\cdot ")


GRADERS: dict[str, Callable[[Row, str], Grade]] = {
    "number": _number,
    "math": _math,
    "choice": _choice,
    "exact": _exact,
    "none": lambda row, reply: Grade(),
}
"""Final number; mathematics in LaTeX; letter of an option (or yes, no, true, false); whole answer; nothing."""
