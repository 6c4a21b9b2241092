"""What a written answer says, and whether that is right: pure functions of text.

Each reads the answer that a model gave, never its trace. Where a model corrects itself, what it says last counts.
Nothing in here raises, whatever the text.
"""

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

# OLMES's order for MMLU: the phrase that was asked for (the last one), then looser ones (the first of each).
_CHOICE_ASKED = re.compile(r"Therefore, the answer is \(([A-D])\)")
_CHOICE_LOOSER = (
    re.compile(r"(?i)therefore,?\s*the\s*answer\s*is:?\s*\(?([A-D])\b"),
    re.compile(r"(?i)answer\s*is:?\s*\(?([A-D])\b"),
    re.compile(r"(?i)([A-D])\)?\s+is\s+correct"),
    re.compile(r"\(([A-D])\)"),
    re.compile(r".*\b([A-D])\b"),
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+"
_NUMBER = re.compile(rf"(?:(?<![\w.)])-)?(?:{_DIGITS})")  # a minus after a digit or a bracket subtracts
_ANSWER_IS = re.compile(r"(?i)answer is:?")
_DROP_ASKED = (re.compile(r"The answer is"), re.compile(r"(?i)answer is"), re.compile(r"(?i)answer:"))
_FENCED = re.compile(r"```(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2010": "-", "\u2011": "-"})


def choice(answer: str) -> str | None:
    """The letter A to D that a multiple-choice answer settles on (OLMES, `mmlu:0shot_cot::tulu3`)."""
    if asked := _CHOICE_ASKED.findall(answer):
        return str(asked[-1])
    found = next((match for pattern in _CHOICE_LOOSER if (match := pattern.search(answer))), None)
    return found.group(1).upper() if found else None


def number(answer: str) -> str | None:
    """The last number in a text: a decimal or a fraction, without thousands separators and currency signs."""
    plain = unicodedata.normalize("NFKC", answer).translate(_MINUS).replace("\u2044", "/")
    found = _NUMBER.findall(re.sub(r"-?\s?[$€£]\s?-?", lambda sign: " -" if "-" in sign.group() else " ", plain))
    return found[-1].replace(",", "") if found else None


def same_number(one: str | None, other: str | None) -> bool:
    """Whether two numbers as written are equal: 18 is 18.00, and 1/2 is 0.5."""
    left, right = _fraction(one), _fraction(other)
    return left is not None and left == right


def _fraction(text: str | None) -> Fraction | None:
    # Python refuses to read integers of thousands of digits; no benchmark has one.
    if text is None or len(text) > 300:
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def phrase(answer: str, patterns: Sequence[str]) -> str | None:
    """A task's answer: the first that one of its patterns finds after the last `answer is`, else the last anywhere.

    The patterns are regular expressions, such as `True|False`, tried in order; only the first is looked for anywhere.
    """
    if told := list(_ANSWER_IS.finditer(answer)):
        rest = answer[told[-1].end() :].strip().split("\n")[0]
        for pattern in patterns:
            if found := re.search(_word(pattern), rest):
                return found.group().strip()
    anywhere = list(re.finditer(_word(patterns[0]), answer))
    return anywhere[-1].group().strip() if anywhere else None


def _word(pattern: str) -> str:
    return rf"(?<!\w)(?:{pattern})(?!\w)"


def same_phrase(one: str | None, other: str) -> bool:
    """Whether two short answers are equal but for case, white space, quotation marks, and brackets or a full stop."""
    return one is not None and _bare(one) == _bare(other)


def _bare(text: str) -> str:
    plain = " ".join(text.lower().split()).strip("\"'`* ").removesuffix(".").strip("\"'`* ")
    return plain[1:-1] if re.fullmatch(r"\([a-z]\)", plain) else plain


def spans(answer: str) -> list[str] | None:
    """The spans, number or date of a DROP answer: what follows the last `The answer is`, else the whole text."""
    text = answer.strip()
    for pattern in _DROP_ASKED:
        if told := list(pattern.finditer(text)):
            text = text[told[-1].end() :].strip(": ").split("\n")[0]
            break
    inside = [span.strip() for span in re.findall(r"<([^<>]*)>", text)]
    found_spans = [span for span in inside if span] or [text.strip("*").strip().removesuffix(".").strip()]
    return found_spans if found_spans != [""] else None


def any_alias(answer: str, aliases: Sequence[str]) -> str | None:
    """The first alias that occurs in the answer as it stands, in lower case or with one capital (PopQA's own rule)."""
    forms = {alias: (alias, alias.lower(), alias.capitalize()) for alias in aliases if alias}
    return next((alias for alias in forms if any(form in answer for form in forms[alias])), None)


def alias_list(value: Any) -> list[str]:
    """PopQA's `possible_answers`: a list, or the JSON of one."""
    return list(map(str, json.loads(value) if isinstance(value, str) else value))


def boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...}, braces balanced; None where there is none or it is open."""
    starts = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    depth = 1
    for at in range(starts[-1], len(text)) if starts else ():
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[starts[-1] : at].strip()
    return None


def mathematics(answer: str) -> str | None:
    r"""The final answer of a solution in LaTeX: boxed, else after `answer is`, else the last $...$, else a number."""
    if (inside := boxed(answer)) is not None:
        return inside or None
    if told := list(_ANSWER_IS.finditer(answer)):
        line = answer[told[-1].end() :].strip().split("\n")[0]
        if line := line.removesuffix(" I hope it is correct.").strip().removesuffix(".").strip("$* "):
            return line
    dollars = re.findall(r"\$([^$]+)\$", answer)
    return dollars[-1].strip() if dollars else number(answer)


def code(answer: str, entry_point: str, prompt: str) -> str | None:
    """The program of a HumanEval answer: the function written anew, or what continues the prompt.

    Of several code blocks it is the last that defines `entry_point`, else the first; without any, the whole answer.
    """
    blocks = _FENCED.findall(answer) or [answer.replace("```", "")]
    defining = [block for block in blocks if re.search(rf"(?m)^\s*def\s+{re.escape(entry_point)}\s*\(", block)]
    text = defining[-1] if defining else blocks[0]
    if not text.strip():
        return None
    if not defining:
        lines = text.strip("\n").split("\n")
        if not next(line for line in lines if line.strip())[:1].isspace():
            # A function's body that was written without its indentation gets it.
            lines = ["    " + line for line in lines]
        return prompt + "\n".join(lines)
    # What stands before the function in the prompt: imports and helpers it may take for granted.
    head = prompt[: prompt.rfind(f"def {entry_point}")]
    return head + "\n" + text


def mc2(logprobs: Sequence[float], labels: Sequence[int]) -> float:
    """TruthfulQA's mc2: the normalised probability of the true answers, from log-probabilities in nats.

    A choice that was not measured (NaN) makes the score NaN.
    """
    if any(math.isnan(value) for value in logprobs):
        return math.nan
    top = max(logprobs)
    if top == -math.inf:
        return math.nan
    weights = [math.exp(value - top) for value in logprobs]
    true = sum(weight for weight, label in zip(weights, labels, strict=True) if label == 1)
    return true / sum(weights)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).

    NaN where there are fewer than k samples.
    """
    if samples < k:
        return math.nan
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
