"""Whether a reply is right: the graders of the whole program, by name, and which of them suits a set of answers.

A grader reads the reference answer and the reply, never a trace. Nothing in here raises, whatever the text, except for
a grader of the user's own.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

from nrt_cli.config.named import load_named
from nrt_cli.errors import ConfigError
from nrt_cli.text import graders
from nrt_cli.text.mathematics import Verifier


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
    if ":" in name:
        return _own(name)
    if name not in GRADERS:
        raise ConfigError(f"grader {name!r} is unknown; choose one of {', '.join(GRADERS)} or module:function.")
    if name == "math" and find_spec("math_verify") is None:
        raise ConfigError("grader 'math' needs the package math-verify: pip install 'nrt-cli[eval]'.")
    return GRADERS[name]


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
    text = answer.strip()
    if _FINAL_NUMBER.search(text) or (_ONLY_NUMBER.fullmatch(_plain(text)) and _value(_numeral(text)) is not None):
        return "number"
    if _ONLY_OPTION.fullmatch(text):
        return "choice"
    if graders.boxed(text) or _ONLY_MATH.fullmatch(text) or (re.search(r"\\[A-Za-z]+", text) and len(text) <= 80):
        return "math"
    short = len(_bare(text)) > 0 and len(text) <= 40 and "\n" not in text and len(text.split()) <= 4
    return "exact" if short else "none"


# What a reply says its answer is: the rest of the line after the last of these.
_TOLD = re.compile(r"####|(?i:\banswer\b[*_]*(?:\s+is\b|\s*[:=])[*_:=\s]*)")
_GROUPED = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f'\u2019]|\\[,!; ]|\{,\})(?=\d{3}(?!\d))")
_POWER_OF_TEN = re.compile(r"(?<=\d)\s*(?:[*x\u00d7]|\\times|\\cdot)\s*10\s*\^\s*\{?\s*(-?\d{1,3})\b\s*\}?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2010": "-", "\u2011": "-", "\u2044": "/", "\u066c": ","})
_UNSIGNED = r"(?:\d+\s)?\d+/\d+|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?|\.\d+"
_NUMERAL = re.compile(rf"(?:(?<![\w.)])-\s?(?=[\d.]))?(?<![A-Za-z\d])(?:{_UNSIGNED})")
_ONLY_NUMBER = re.compile(
    rf"[-+]?\s?[$€£¥]?\s?-?(?:{_UNSIGNED})\s?(?:%|°|[^\W\d]+[.²³]?(?:[ /][^\W\d]+\.?){{0,2}})?\.?"
)
_FINAL_NUMBER = re.compile(r"####\s*[-+]?[$€£]?\s?-?[\d.][\d,.]*\s*\Z")
_LETTER = r"[A-Za-z]"
_ONLY_OPTION = re.compile(rf"[(\[]?{_LETTER}[)\]]?[.:]?|(?i:yes|no|true|false)\.?")
_ONLY_MATH = re.compile(r"\$[^$]+\$\.?")
_HEAD_LETTER = re.compile(r"[\s(\[*_\"'$]*(?:([A-Z])(?![\w'\u2019])|([a-z])(?=[\s*_\"'$]*(?:[)\].:,]|\Z)))")
_LETTER_ELSEWHERE = (
    re.compile(r"\(([A-Za-z])\)"),
    re.compile(r"(?i:\b(?:option|choice)\s+)([A-Za-z])\b"),
    re.compile(r"\b([A-Z])\)?\s+is\s+(?:the\s+)?correct"),
    re.compile(r"(?<![\w'\u2019])([B-HJ-Z]|A(?!\s+[a-z]))(?![\w'\u2019])"),
)


def _plain(text: str) -> str:
    """A text whose numbers are ASCII digits with thousands together, LaTeX's and Unicode's ways of writing undone."""
    text = _GROUPED.sub("", text)
    text = re.sub(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)  # 1½ is 1 1/2
    text = re.sub(r"[\u00b2\u00b3\u00b9\u2070-\u2079]+", "", text)  # the power of a unit is no number
    text = unicodedata.normalize("NFKC", text).translate(_MINUS)
    text = _WRAPPED.sub(r" \1", _FRACTION.sub(r" \1/\2", text)).replace("\\%", "%").replace("\\$", "$")
    text = _POWER_OF_TEN.sub(r"e\1", text)
    text = re.sub(r"(?<=[A-Za-z)}])\^\s*\{?-?\d+\}?", "", text)
    return re.sub(r"-?\s?[$€£¥]\s?-?", lambda sign: " -" if "-" in sign.group() else " ", text)


def _told(text: str) -> str | None:
    r"""What a reply says its answer is: the last \boxed{}, else what follows the last `####` or `answer is`."""
    if inside := graders.boxed(text):
        return inside
    if found := list(_TOLD.finditer(text)):
        return text[found[-1].end() :].strip().split("\n")[0] or None
    return None


def _numeral(text: str) -> str | None:
    """The number that a text ends up with: the first of what it says its answer is, else its last."""
    if (told := _told(text)) and (found := _NUMERAL.findall(_plain(told.rpartition("=")[2]))):
        return str(found[0])
    found = _NUMERAL.findall(_plain(text))
    return str(found[-1]) if found else None


def _value(numeral: str | None) -> Fraction | None:
    # Python refuses to read integers of thousands of digits; such a number is compared as text.
    if numeral is None or len(numeral) > 300:
        return None
    plain = numeral.replace(",", "").replace("- ", "-")
    sign = -1 if plain.startswith("-") else 1
    try:
        return sign * sum((Fraction(part) for part in plain.removeprefix("-").split()), Fraction(0))
    except (ValueError, ZeroDivisionError):
        return None


def _bare(text: str) -> str:
    """A short answer without case, width, and what white space, quotes and punctuation stand around it."""
    plain = " ".join(unicodedata.normalize("NFKC", text).translate(_MINUS).casefold().split())
    return plain.strip("\"'`*_ .,;:!?()[]{}\u2018\u2019\u201c\u201d") or plain


def _judged(extracted: str | None, right: bool) -> Grade:
    return Grade((extracted,), {"accuracy": float(right)})


def _number(row: Row, reply: str) -> Grade:
    found, gold = _numeral(reply), _numeral(row.answer)
    value = _value(found)
    return _judged(found, found is not None and (found == gold if value is None else value == _value(gold)))


def _exact(row: Row, reply: str) -> Grade:
    gold = _bare(row.answer)
    found = [part.strip() for part in (reply, _told(reply), reply.strip().split("\n")[0]) if part and part.strip()]
    same = next((part for part in found if gold in (_bare(part), _bare(_told(part) or part))), None)
    return _judged(same or (found[0] if found else None), same is not None)


def _choice(row: Row, reply: str) -> Grade:
    gold = row.answer.strip()
    if word := re.fullmatch(r"(?i)(yes|no|true|false)\W*", gold):
        options = r"(?i)\b(yes|no)\b" if word.group(1).lower() in ("yes", "no") else r"(?i)\b(true|false)\b"
        found = _word(reply, options)
        return _judged(found, found == word.group(1).lower())
    letter, right = _letter(reply), _letter(gold)
    return _judged(letter, letter is not None and letter == right) if right else _exact(row, reply)


def _word(reply: str, options: str) -> str | None:
    """Which of two words a reply settles on: what it says its answer is, else how it begins, else the last."""
    told = re.search(options, _told(reply) or "")
    found = told or re.match(rf"\W*{options[4:]}", reply, re.IGNORECASE)
    if found is None and (anywhere := list(re.finditer(options, reply))):
        found = anywhere[-1]
    return found.group(1).lower() if found else None


def _letter(reply: str) -> str | None:
    """The letter, in upper case, of the option that a reply settles on; any letter, since some sets go beyond D."""
    for part in (_told(reply), reply):
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
        if "".join(answer.split()) == "".join(gold.split()) or verifier().equal(gold, answer):
            return _judged(answer, True)
    return _judged(found, False)


def _mathematics(text: str) -> list[str | None]:
    """What may be the final answer of a text with LaTeX in it, the likeliest first: one line is taken as it stands."""
    if inside := graders.boxed(text):
        return [inside]
    told = (_told(text) or "").strip().removesuffix(".").strip("$* ")
    dollars = [inside.strip() for inside in re.findall(r"\$([^$]+)\$", text)]
    whole = text.strip() if "\n" not in text.strip() and len(text) <= 200 else ""
    found = [told, *dollars[-1:], whole.removesuffix("."), _numeral(text)]
    return [part for part in found if part] or [None]


def _none(row: Row, reply: str) -> Grade:
    return Grade()


GRADERS: dict[str, Callable[[Row, str], Grade]] = {
    "number": _number,
    "math": _math,
    "choice": _choice,
    "exact": _exact,
    "none": _none,
}
"""Final number; mathematics in LaTeX; letter of an option (or yes, no, true, false); whole answer; nothing."""


def _own(name: str) -> Callable[[Row, str], Grade]:
    """A user's function of (row, reply): a score in [0, 1], True or False, or a `Grade`."""
    function = load_named(name, "grader")

    def graded(row: Row, reply: str) -> Grade:
        found: Any = None
        try:
            found = function(row, reply)
            score = found.score if isinstance(found, Grade) else float(found)
        except Exception as error:
            raise ConfigError(f"grader {name!r} fails on a reply ({type(error).__name__}: {error}).") from None
        if not 0 <= score <= 1:
            raise ConfigError(f"grader {name!r} must return a score in [0, 1]; it returned {found!r}.")
        return found if isinstance(found, Grade) else Grade((reply,), {"accuracy": score})

    return graded
