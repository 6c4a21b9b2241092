"""Whether a reply is right: the graders of the whole program, by name, and which of them suits a set of answers.

A grader reads the reference answer and the reply, never a trace. Nothing in here raises, whatever the text, except for
a grader of the user's own.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

from nrt_cli.errors import ConfigError
from nrt_cli.grading import graders, sandbox
from nrt_cli.grading.mathematics import Verifier
from nrt_cli.grading.numerals import is_numeral, numeral, only_number, pure_number, same_number
from nrt_cli.grading.plain import bare, boxed, formulas, plain, told
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
        if name == "code" and (holes := sandbox.missing()):
            raise ConfigError(f"grader 'code' runs programs of a model, and nothing here enforces {', '.join(holes)}.")
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
    if is_numeral(text):
        return "number"
    if _ONLY_OPTION.fullmatch(text):
        return "choice"
    if boxed(text) or _ONLY_MATH.fullmatch(text) or (re.search(r"\\[A-Za-z]+", text) and len(text) <= 80):
        return "math"
    short = len(bare(text)) > 0 and len(text) <= 40 and "\n" not in text and len(text.split()) <= 4
    return "exact" if short else "none"


_ONLY_OPTION = re.compile(r"[(\[]?[A-Za-z][)\]]?[.:]?|[(\[]?[A-Za-z][)\].]\s.*|(?i:yes|no|true|false)\.?")
_ONLY_MATH = re.compile(r"\$[^$]+\$\.?")


def _judged(extracted: str | None, right: bool) -> Grade:
    return Grade((extracted,), {"accuracy": float(right)})


def _number(row: Row, reply: str) -> Grade:
    found = numeral(reply)
    return _judged(found, same_number(found, numeral(row.answer)))


def _exact(row: Row, reply: str) -> Grade:
    gold, said, first = bare(row.answer), (told(reply) or [""])[0].partition("\n")[0], plain(reply).partition("\n")[0]
    found = [part for part in (reply.strip(), said.removesuffix("</answer>").strip(), first) if part]
    for part in found:
        # Numbers may be written in other ways, but not without zeros that they begin with: these belong to a code.
        text = bare(part)
        numbers = pure_number(gold) and pure_number(text)
        if text == gold or (numbers and same_number(numeral(gold), numeral(text))):
            return _judged(part, True)
    return _judged(found[0] if found else None, False)


def _choice(row: Row, reply: str) -> Grade:
    gold = plain(row.answer).strip("*_` \n")
    if word := re.fullmatch(r"(?i)(yes|no|true|false)\W*", gold):
        # What the reply says its answer is, else how it begins, else the last of the two words.
        options = r"\b(yes|no)\b" if word[1].lower() in ("yes", "no") else r"\b(true|false)\b"
        text = plain(reply)
        said = re.search(options, (told(reply) or [""])[0].partition("\n")[0], re.IGNORECASE)
        said = said or re.match(rf"\W*{options}", text, re.IGNORECASE)
        anywhere = re.findall(options, text, re.IGNORECASE)
        found = said[1].lower() if said else anywhere[-1].lower() if anywhere else None
        return _judged(found, found == word[1].lower())
    letter, right = graders.letter(reply), graders.letter(gold)
    return _judged(letter, letter is not None and letter == right) if right else _exact(row, reply)


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
        if same or (only_number(gold) and only_number(answer) and same_number(numeral(gold), numeral(answer))):
            return _judged(answer, True)
        if verifier().equal(gold, answer):
            return _judged(answer, True)
    return _judged(found, False)


def _mathematics(text: str) -> list[str | None]:
    """What may be the final answer of a text with LaTeX in it, the likeliest first: one line is taken as it stands."""
    text = plain(text, latex=True)
    if inside := boxed(text):
        return [inside]
    said = (told(text, latex=True) or [""])[0].partition("\n")[0].removesuffix(".").strip("$* ")
    marked = formulas(text)
    whole = text.strip("*") if "\n" not in text and len(text) <= 200 else ""
    # The last number of a term is not what it comes to.
    term = re.search(r"[+*/^\\]|[\w)]\s?-\s?[\w(]", text.rpartition("=")[2])
    number = "" if said or marked or term else numeral(text)
    return [part for part in (said, *marked[-1:], whole.removesuffix("."), number) if part] or [None]


def _code(row: Row, reply: str) -> Grade:
    blocks = _BLOCK.findall(reply)
    program = blocks[-1] if blocks else reply
    # No program passes no tests, and so would any.
    tried = program.strip() and row.answer.strip()
    return _judged(program, bool(tried) and sandbox.run([program], row.answer, workers=1)[0])


_BLOCK = re.compile(r"^```[^\n`]*\n(.*?)^```", re.DOTALL | re.MULTILINE)

GRADERS: dict[str, Callable[[Row, str], Grade]] = {
    "number": _number,
    "math": _math,
    "choice": _choice,
    "exact": _exact,
    "code": _code,
    "none": lambda row, reply: Grade(),
}
"""Final number; mathematics in LaTeX; letter of an option (or yes, no, true, false); whole answer; the
program in a reply's last block of code, by the tests that the reference answer is, in the sandbox; nothing."""
