"""What a written answer says, and whether that is right: pure functions of text.

Each reads the answer that a model gave, never its trace, in plain signs (`plain.py`) but for programs. Where a model
corrects itself, what it says last counts. Nothing in here raises, whatever the text.
"""

import ast
import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Any

from markdown_it import MarkdownIt

from nrt_cli.grading.numerals import last_number
from nrt_cli.grading.plain import boxed, formulas, plain, told

_HEAD_LETTER = re.compile(r"[\s(\[{*_\"'$]*(?:([A-Z])(?!\w|'\w)|([a-z])(?=[\s*_\"'$]*(?:[)\]}.:,]|\Z)))")
_LETTER_ELSEWHERE = (
    re.compile(r"\b([A-Z])\)?\s+is\s+(?:the\s+)?(?:correct|right)"),
    re.compile(r"\(([A-Za-z])\)(?!\s+is\s+(?:wrong|incorrect|false|not))"),
    re.compile(r"(?i:\b(?:option|choice|choose|pick|select)\s+)([A-Za-z])\b(?!\)?\s+is\s+(?:wrong|incorrect|false|not))"),
    re.compile(r"(?<![\w'])(?<!\bnot\s)([B-HJ-Z]|A(?!\s+[a-z])|I(?=\W*\Z))(?!\w|'\w)"),
)
_BETWEEN_LETTERS = re.compile(r"[\s(\[*_\"'$]*[A-Z]\W{0,3}\s*(?:\b(?:or|and)\b|/|&)\s*\W{0,3}[A-Z](?!\w)")
_MARKDOWN = MarkdownIt("zero").enable(["code", "fence", "list", "blockquote"])


def said(text: str, latex: bool = False) -> str | None:
    r"""What a reply says its answer is: the last \boxed{}, else the line that follows the last `####` or `answer is`."""
    text = plain(text, latex)
    if inside := boxed(text):
        return inside
    return next((rest.partition("\n")[0].removesuffix("</answer>").strip() for rest in told(text)), None) or None


def letter(text: str, among: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> str | None:
    """The letter, in upper case, of the option that a reply settles on."""
    text = plain(text)
    for part in (*told(text)[:1], text):
        if _BETWEEN_LETTERS.match(part):
            return None
        if head := _HEAD_LETTER.match(part):
            # A reply that opens with "I" or "A" and goes on is a sentence, unless a mark follows the letter.
            if part is text and re.match(r"[AI]\s+\w", text):
                continue
            if (found := (head[1] or head[2]).upper()) in among:
                return found
    for pattern in _LETTER_ELSEWHERE:
        if found := [one.upper() for one in pattern.findall(text) if one.upper() in among]:
            return str(found[-1])
    return None


def phrase(answer: str, patterns: Sequence[str]) -> str | None:
    """A task's answer: what one of its patterns finds in what the answer says it is, else the last anywhere.

    The patterns are regular expressions, such as `True|False`, tried in order: first where the answer begins, then in
    the rest of its line; only the first pattern is looked for anywhere.
    """
    text = plain(answer)
    words = [re.compile(rf"(?<![^\W_])(?:{pattern})(?![^\W_])") for pattern in patterns]
    for rest in told(text):
        line = rest.partition("\n")[0].lstrip(" *_`\"'$:")
        for found in (*(word.match(line) for word in words), *(word.search(line) for word in words)):
            if found and found[0].strip():
                return found[0].strip()
    anywhere = [found[0].strip() for found in words[0].finditer(text) if found[0].strip()]
    return anywhere[-1] if anywhere else None


def same_phrase(one: str | None, other: str) -> bool:
    """Whether two short answers are equal but for case, white space, quotation marks, and brackets or a full stop."""
    return one is not None and _bare(one) == _bare(other)


def _bare(text: str) -> str:
    bare = " ".join(plain(text).lower().split()).strip("\"'`*_$ ").removesuffix(".").strip("\"'`*_$ ")
    return bare[1:-1] if re.fullmatch(r"\([a-z]\)", bare) else bare


def spans(answer: str) -> list[str] | None:
    """The spans, number or date of a DROP answer: what it says it is, else the whole text; in `<...>`, on that line and
    on those of a list below it, or else all of the line."""
    text = plain(answer)
    lines = next(iter(told(text)), text.replace("\n", " ")).split("\n")
    marked = [re.findall(r"<([^<>]*)>", line) for line in lines]
    inside = [span.strip() for line in takewhile(bool, marked) for span in line]
    found = [span for span in inside if span] or [lines[0].strip("* ").removesuffix(".").strip("* ")]
    return found if found != [""] else None


def any_alias(answer: str, aliases: Sequence[str]) -> str | None:
    """The first alias that occurs in the answer as it stands, in lower case or with one capital (PopQA's own rule)."""
    text = plain(answer)
    forms = {alias: bare for alias in aliases if (bare := plain(alias))}
    return next(
        (alias for alias, bare in forms.items() if any(form in text for form in (bare, bare.lower(), bare.capitalize()))),
        None,
    )


def alias_list(value: Any) -> list[str]:
    """PopQA's `possible_answers`: a list, or the JSON of one."""
    return list(map(str, json.loads(value) if isinstance(value, str) else value))


def mathematics(answer: str) -> str | None:
    r"""The final answer of a solution in LaTeX: boxed, else after `answer is`, else the last $...$, else a number."""
    text = plain(answer, latex=True)
    if (inside := boxed(text)) is not None:
        return inside or None
    for rest in told(text):
        line = rest.partition("\n")[0]
        if line := line.removesuffix(" I hope it is correct.").strip().removesuffix(".").strip("$* "):
            return (formulas(rest.partition("\n")[0]) or [line])[0]
    return (formulas(text) or [last_number(text)])[-1]


def code(answer: str, entry_point: str, prompt: str) -> str | None:
    """The program of a HumanEval answer: the function written anew, or what continues the prompt.

    Read as Markdown, it is the last code block that defines `entry_point`, else what does so outside of blocks, else the
    first block of Python as the function's body, or the text before it: the first of these that is Python. What begins
    as indented code continues the prompt. Prose after the program goes.
    """
    programs = list(islice(_programs(re.sub(r"\r\n?", "\n", answer), entry_point, prompt), 60))
    found = (_python(program, own) for program, own in programs)
    return next(filter(None, found), programs[0][0] if programs else None)


def _programs(answer: str, entry_point: str, prompt: str) -> Iterator[tuple[str, int]]:
    """What may be the program of an answer, the likeliest first, with the number of its lines that are the prompt's."""
    lines, blocks, end = answer.split("\n"), [], len(answer)
    outside = dict(enumerate(lines))
    for token in _MARKDOWN.parse(answer):
        if token.type == "fence" and token.map:
            language = re.match(r"[\s{.]*(\w*)", token.info.lower())
            blocks.append((textwrap.dedent(token.content), bool(language and re.match(r"i?py|\Z", language[1]))))
            for line in range(*token.map):
                outside.pop(line, None)
            end = min(end, token.map[0])
    # What stands before the function in the prompt: imports and helpers it may take for granted.
    head = prompt[: prompt.rfind(f"def {entry_point}")] + "\n"
    definition = re.compile(rf"^(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    beside = "\n".join(outside.values())
    for text in (*(block for block, _ in reversed(blocks)), beside):
        if found := definition.search(text):
            yield head + text, head.count("\n")
            begun = re.search(r"^(?:from|import|def|class|async|@\w+)\b", text, re.MULTILINE)
            start = begun.start() if begun else found.start()
            yield head + text[start:], head.count("\n")
    before = "\n".join(lines[:end])
    bodies = [*(block for block, python in blocks if python), *(block for block, python in blocks if not python)]
    for body in (before, *bodies) if re.match(r"\n*(?: {4}|\t)", answer) or not bodies else (*bodies, before):
        text = body.strip("\n")
        first, *others = text.split("\n")
        if not text.strip():
            continue
        if first[:1].isspace():
            yield prompt + text, prompt.count("\n")
        # A body that was written without its indentation, or whose first line lost it, gets it.
        yield prompt + textwrap.indent(textwrap.dedent(text), "    "), prompt.count("\n")
        indents = [line[: len(line) - len(line.lstrip())] for line in others if line.strip()]
        whole = "\n".join([min(indents, key=len, default="") + first.lstrip(), *others])
        yield prompt + textwrap.indent(textwrap.dedent(whole), "    "), prompt.count("\n")


def _python(program: str, own: int) -> str | None:
    """A program without the prose after it; None where it is no Python, or nothing is left beyond its `own` first lines."""
    lines = program.split("\n")
    for _ in range(3):
        try:
            with warnings.catch_warnings(action="ignore"):
                ast.parse("\n".join(lines))
        except SyntaxError as error:
            end = (error.lineno or 1) - 1
            if not own < end < len(lines) or lines[end][:1].isspace():
                return None
            lines = lines[:end]
        except (ValueError, MemoryError, RecursionError):
            return None
        else:
            return "\n".join(lines)
    return None


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
