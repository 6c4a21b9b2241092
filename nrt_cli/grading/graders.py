"""What a written answer says, and whether that is right: pure functions of text.

Each reads the answer that a model gave, never its trace, in plain signs (`plain.py`) but for programs. Where a model
corrects itself, what it says last counts. Nothing in here raises, whatever the text.
"""

import ast
import contextlib
import doctest
import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Any

from markdown_it import MarkdownIt

from nrt_cli.grading.numerals import last_number, pure_number, ready, same_number
from nrt_cli.grading.plain import bare, boxed, formulas, plain, result, told

_DENIED = r"(?!\)?\s+is\s+(?:wrong|incorrect|false|not\s+(?:the|true|correct|right)))"
_HEAD_LETTER = re.compile(r"[\s(\[{*_\"'$]*(?:([A-Z])(?!\w|'\w)|([a-z])(?=[\s*_\"'$]*(?:[)\]}.:,]|\Z)))(?!\)?\s+is\s)")
_LETTER_ELSEWHERE = (
    re.compile(r"\b([A-Z])\)?\s+is\s+(?:the\s+)?(?:correct|right|true|best|answer)"),
    re.compile(rf"\([ ]?([A-Za-z])[ ]?(?=\)){_DENIED}"),
    re.compile(rf"(?i:\b(?:option|choice|choose|pick|select)\s+)([A-Za-z])\b{_DENIED}"),
    re.compile(r"(?<![\w'])(?<!\bnot\s)([B-HJ-Z]|A(?!\s+[a-z])|I(?=\W*\Z))(?!\w|'\w)"),
)
_BETWEEN_LETTERS = re.compile(
    r"[\s(\[*_\"'$]*[A-Z]\W{0,3}\s*(?:\b(?:or|and)\b|/|&|,(?=\W{0,3}[A-Z]\W*\Z))\s*\W{0,3}[A-Z](?!\w)"
)
_MARKDOWN = MarkdownIt("zero").enable(["code", "fence", "list", "blockquote"])


def letter(text: str, among: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> str | None:
    """The letter, in upper case, of the option that a reply settles on."""
    said, text = told(text)[:1], plain(text)
    for part in (*said, text):
        if _BETWEEN_LETTERS.match(part):
            return None
        if head := _HEAD_LETTER.match(part):
            # A reply that opens with "I" or "A" and goes on is a sentence, unless a mark follows the letter.
            if part is text and re.match(r"[AI]\s+\w", text):
                continue
            if (found := (head[1] or head[2]).upper()) in among:
                return found
    for pattern in _LETTER_ELSEWHERE:
        if letters := [one.upper() for one in pattern.findall(text) if one.upper() in among]:
            return str(letters[-1])
    return None


def phrase(answer: str, patterns: Sequence[str]) -> str | None:
    """A task's answer: what one of its patterns finds in what the answer says it is, else the last anywhere.

    The patterns are regular expressions, such as `True|False`, tried in order, each on a line of its own: first where
    what the line comes to begins, then anywhere there, then in all of the line; only the first pattern is
    looked for anywhere. What they find is no part of a word or of another number.
    """
    words = [re.compile(rf"(?<![^\W_])(?<!\d[.,/])(?:{pattern})(?![^\W_]|[.,/]\d)") for pattern in patterns]
    for rest in told(answer):
        line = ready(rest.partition("\n")[0])
        last = result(line).lstrip(" *_`\"'$:")
        tried = ((word.match, last) for word in words), ((word.search, last) for word in words)
        for look, part in (*tried[0], *tried[1], *((word.search, line) for word in words)):
            if (found := look(part)) and found[0].strip():
                return found[0].strip()
    anywhere = [found[0].strip() for found in words[0].finditer(ready(answer)) if found[0].strip()]
    return anywhere[-1] if anywhere else None


def same_phrase(one: str | None, other: str) -> bool:
    """Whether two short answers are the same, but for case, spacing, and brackets and marks around them, or numbers."""
    if one is None:
        return False
    left, right = bare(one), bare(other)
    number = pure_number(left) and pure_number(right) and same_number(left, right)
    return number or left == right or left.replace(",", " ") == right


def spans(answer: str) -> list[str] | None:
    """The spans, number or date of a DROP answer: what it says it is, else the whole text; in `<...>`, on that line and
    on those of a list below it, or else all of the line."""
    lines = next(iter(told(answer)), plain(answer).replace("\n", " ")).split("\n")
    marked = [re.findall(r"<([^<>]*)>", line) for line in lines]
    inside = [span.strip() for line in takewhile(bool, marked) for span in line]
    found = [span for span in inside if span] or [lines[0].strip("*`$ ").removesuffix(".").strip("*`$ ")]
    return found if found != [""] else None


def any_alias(answer: str, aliases: Sequence[str]) -> str | None:
    """The first alias that occurs in the answer as it stands, in lower case or with one capital (PopQA's own rule)."""
    text = plain(answer)
    for alias in aliases:
        spelled = plain(alias)
        if spelled and any(form in text for form in (spelled, spelled.lower(), spelled.capitalize())):
            return alias
    return None


def alias_list(value: Any) -> list[str]:
    """PopQA's `possible_answers`: a list, or the JSON of one."""
    return list(map(str, json.loads(value) if isinstance(value, str) else value))


def mathematics(answer: str) -> str | None:
    r"""The final answer of a solution in LaTeX: boxed, else after `answer is`, else the last $...$, else a number."""
    text = plain(answer, latex=True)
    if (inside := boxed(text)) is not None:
        return inside or None
    for rest in told(answer, latex=True):
        line = rest.partition("\n")[0]
        if line := line.removesuffix(" I hope it is correct.").strip().removesuffix(".").strip("$* "):
            return (formulas(rest.partition("\n")[0]) or [line])[0]
    return formulas(text)[-1] if formulas(text) else last_number(text)


def code(answer: str, entry_point: str, prompt: str) -> str | None:
    """The program of a HumanEval answer: the function written anew, or what continues the prompt.

    Read as Markdown, it is the last code block that defines `entry_point`, else what does so outside of blocks, else
    the first block of Python as the function's body, or the text before it: the first of these that is Python. What
    begins as indented code continues the prompt. Prose after the program goes.
    """
    answer = re.sub(r"(?m)^[^\S\n]+", lambda indent: indent[0].replace("\u00a0", " "), re.sub(r"\r\n?", "\n", answer))
    programs = list(islice(_programs(answer, entry_point, prompt), 60))
    found = (_python(program, own) for program, own in programs)
    return next(filter(None, found), programs[0][0] if programs else None)


def _programs(answer: str, entry_point: str, prompt: str) -> Iterator[tuple[str, int]]:
    """What may be the program of an answer, the likeliest first, with the number of its lines that are the prompt's."""
    lines, blocks, end = answer.split("\n"), [], len(answer)
    outside = dict(enumerate(lines))
    definition = re.compile(
        rf"^(?:(?:async )?def {re.escape(entry_point)}\b|{re.escape(entry_point)} *=)", re.MULTILINE
    )
    for token in _MARKDOWN.parse(answer):
        text = textwrap.dedent(token.content)
        # Indented text is a block only where it has the function: it may be the function's body.
        if token.map and (token.type == "fence" or (token.type == "code_block" and definition.search(text))):
            if text.startswith(">>> "):
                with contextlib.suppress(ValueError):
                    text = doctest.script_from_examples(text)
            python = re.match(r"[\s{.]*(?:i?py|$|[{}=])", token.info.lower()) is not None
            blocks.append((text.rstrip().removesuffix("```") + "\n", python))
            for line in range(*token.map):
                outside.pop(line, None)
            end = min(end, token.map[0])
    # What stands before the function in the prompt: imports and helpers it may take for granted.
    head = prompt[: prompt.rfind(f"def {entry_point}")] + "\n"
    for text in (*(block for block, _ in reversed(blocks)), "\n".join(outside.values())):
        if found := definition.search(text):
            others = [block for block, python in blocks if python and block is not text]
            before = head + "".join(_helpers(block, text) for block in others)
            begun = re.search(r"^(?:from|import|def|class|async|@\w+)\b", text, re.MULTILINE)
            yield before + text, before.count("\n")
            yield before + text[begun.start() if begun else found.start() :], before.count("\n")
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


def _helpers(block: str, text: str) -> str:
    """The imports, functions and classes of a block, where the program in `text` names one that it has not itself."""
    try:
        with warnings.catch_warnings(action="ignore"):
            own, other = ast.parse(text), ast.parse(block)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ""
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    found = [node for node in other.body if isinstance(node, kinds)]
    there, here = (
        {
            getattr(each, "asname", None) or each.name.partition(".")[0]
            for node in nodes
            if isinstance(node, kinds)
            for each in getattr(node, "names", [node])
        }
        for nodes in (other.body, own.body)
    )
    used = {node.id for node in ast.walk(own) if isinstance(node, ast.Name)}
    return "".join(f"{ast.unparse(node)}\n" for node in found) if used & (there - here) else ""


def _python(program: str, own: int) -> str | None:
    """A program without the prose after it; None where it is no Python or has no more than its `own` first lines."""
    lines = program.split("\n")
    for _ in range(3):
        try:
            with warnings.catch_warnings(action="ignore"):
                ast.parse("\n".join(lines))
        except SyntaxError as error:
            end = (error.lineno or 1) - 1
            # Prose after a program is not indented, but for a closing fence that Markdown takes for code.
            if not own < end < len(lines) or re.match(r"\s+(?!```|~~~)\S", lines[end]):
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
