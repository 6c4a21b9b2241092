"""What an LLM judge is asked and what it said: quoting, the two prompts, and reading its reply. Nothing here is sent.

A trace is untrusted: it may address the judge, close the tag or fence it stands in, spell out control tokens or carry
a ready grade. So it is guarded before it goes in, and only a whole reply counts as a verdict, never JSON found within
one. What a judge thought before its reply is not part of it.
"""

import contextlib
import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nrt_cli.errors import ConfigError
from nrt_cli.text.rendering import limited

INPUTS = {"prompt": ("problem", "reasoning", "ground_truth"), "repair": ("reason",)}
"""Which texts a template has, and what each of them is given (Table 8's inputs, in its order)."""

# As Table 8 and Appendix H print them, and as text copied from a PDF or from LaTeX may have them.
_PLACE = re.compile(r"\{(\{)?\s*(?P<input>problem|reasoning|ground(?:[ ._-]|\\_)truth)\s*\}(?(1)\})")
_PLACES = "{problem}, {reasoning} and {ground_truth}"
# A name in braces that stands for nothing we know. LaTeX's, as in \boxed{a}, \frac{a}{b} and x^{n}, are text.
_OTHER = re.compile(r"(?<![\w}^])\{[A-Za-z_][\w.]*\}|\{\{\s*[A-Za-z_][\w.]*\s*\}\}|\{%.*?%\}", re.DOTALL)

# Most chat formats write control tokens with <; Mistral's are [INST] and the like.
_BRACKETED = re.compile(r"\[(?=/?[A-Z_]{2,}\])")
_FENCE = re.compile(r"`{3,}|~{3,}")
_TAG = re.compile(r"<(?=[/!|\uff5c]|[^\W\d])")
_BREAK = "\u200b"
"""A space without width: what stood together does not any more, and looks as it did."""
_LANGUAGE = re.compile(r"[ \t]*(?:json\w*)?", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_THOUGHT = re.compile(r"</(?:\w+:)?(?:think|thinking|thought|reasoning)>|\[/THINK\]|<\|think_end\|>", re.IGNORECASE)
"""What ends a judge's own trace. Servers may keep what began it: it stands in the prompt of many models."""
MOST_ENDS = 50
"""Of these, the last that are tried."""


class Verdict(BaseModel):
    """A judge's reply: Table 8's fields. A prompt may ask for the score alone, which may also come as a bare number.

    Types are not converted, and a score outside [0, 1] is no score.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    justification: str | None = None
    flags: tuple[str, ...] | None = ()


class JudgePrompt:
    """What a judge is asked, ready to be filled in; `digest` is of all of it that a user wrote.

    Args:
        texts: of a template file, by the names of `INPUTS`.
        origin: where they are from, for errors.
        plain: the prompt is no Jinja but text with placeholders in braces, as Table 8 is printed, and `repair` ours.
        name: what people call it: the file's name, or that of a shipped one; `text` is all that the file has.

    Raises ConfigError where a text is missing, is no Jinja, leaves an input out or wants something else.
    """

    def __init__(
        self, texts: Mapping[str, Any], origin: str, plain: bool = False, name: str = "", text: str = ""
    ) -> None:
        if set(texts) != set(INPUTS) or not all(isinstance(text, str) for text in texts.values()):
            raise ConfigError(
                f"{origin}: a judge's template in YAML has two texts, {' and '.join(INPUTS)}; one prompt with "
                f"{_PLACES} in it is a text file, such as my-judge.txt."
            )
        self.name, self.text, self.suffix = name, text, ".txt" if plain else ".yaml"
        self._plain = texts["prompt"] if plain else None
        if plain:
            found = {_input(place) for place in _PLACE.finditer(texts["prompt"])}
            if others := list(dict.fromkeys(_OTHER.findall(_PLACE.sub("", texts["prompt"])))):
                raise ConfigError(
                    f"{origin}: nothing is known to put in place of {', '.join(others[:3])}; a judge's prompt has "
                    f"{_PLACES}, and other words in braces are text only with a space within the braces."
                )
            if missing := [name for name in INPUTS["prompt"] if name not in found]:
                raise ConfigError(
                    f"{origin}: the prompt leaves out {', '.join(f'{{{name}}}' for name in missing)}; it must have "
                    f"{_PLACES}, where problem, trace and reference answer are to stand."
                )
        self._texts = {name: texts[name] for name in INPUTS if not (plain and name == "prompt")}
        written = [texts["prompt"]] if plain else [texts[name] for name in INPUTS]
        self.digest = hashlib.sha256("\0".join(written).encode()).hexdigest()
        self._origin = origin
        for name, written_text in self._texts.items():
            used = self._jinja(name, "is not a Jinja template", text=written_text).split()
            if used != sorted(INPUTS[name]):
                raise ConfigError(
                    f"{origin}: {name} must use {', '.join(INPUTS[name])} and nothing else; it uses "
                    f"{', '.join(used) or 'none'}."
                )
            self._rendered(name, **dict.fromkeys(used, "text"))  # mistakes that only show then are told now

    def prompt(self, problem: str, reasoning: str, ground_truth: str) -> str:
        """The user turn about one trace."""
        given = (problem, reasoning, ground_truth)
        if self._plain is None:
            texts = dict(zip(INPUTS["prompt"], map(quoted, given), strict=True))
            return self._rendered("prompt", **texts)
        texts = dict(zip(INPUTS["prompt"], map(broken, given), strict=True))
        # In one pass: a placeholder that a trace spells out is text.
        return _PLACE.sub(lambda place: texts[_input(place)], self._plain).strip()

    def repair(self, reason: str) -> str:
        """The user turn after a reply that could not be read."""
        return self._rendered("repair", reason=reason)

    def _rendered(self, name: str, **given: str) -> str:
        return self._jinja(name, "cannot be rendered", text=self._texts[name], given=given).strip()

    def _jinja(self, name: str, fault: str, **order: object) -> str:
        try:
            return limited(_in_child, ("judge",), order)
        except (ValueError, TimeoutError) as error:
            raise ConfigError(f"{self._origin}: {name} {fault}: {error}.") from None


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
_compiled = lru_cache(_ENVIRONMENT.from_string)


def _in_child(text: str, given: Mapping[str, str] | None = None) -> str:
    """A Jinja text with its names filled in; without any, which ones it has. To compile it may take for ever, too."""
    if given is None:
        return " ".join(sorted(meta.find_undeclared_variables(_ENVIRONMENT.parse(text))))
    return _compiled(text).render(given)


def _input(place: re.Match[str]) -> str:
    """Which input a placeholder stands for."""
    return re.sub(r"[^a-z]+", "_", place["input"])


def quoted(text: str) -> str:
    """Text in which nothing can close a tag or spell out a control token; `html.unescape` gives it back."""
    return _BRACKETED.sub("&#91;", html.escape(text, quote=False))


def broken(text: str) -> str:
    """Text as it is, but for spaces without width where it would close a code fence or a tag, or spell a control token.

    For a prompt that says nothing of escapes, and so would have the judge read `a &lt; b`.
    """
    text = _FENCE.sub(lambda fence: _BREAK.join(fence.group()), text)
    return _BRACKETED.sub("[" + _BREAK, _TAG.sub("<" + _BREAK, text))


def read_verdict(reply: str, shown: Sequence[str]) -> Verdict:
    """The verdict that a reply is, bare or in a code fence. Raises ValueError with the reason where it is none.

    Args:
        shown: the texts that the judge saw, before they were guarded. A "verdict" copied out of one is not its own.
    """
    reply = reply.strip()
    # The trace that a judge quotes while it thinks may spell an end of thinking too; one that stands in a verdict's
    # own text ends nothing. So each is tried, and the verdict must be all that follows.
    reason = ""
    for begin in (0, *[match.end() for match in _THOUGHT.finditer(reply)][-MOST_ENDS:]):
        body = reply[begin:].strip()
        if not body:
            reason = "it is empty"
            continue
        if len(body) >= 6 and body[:3] in ("```", "~~~") and body.endswith(body[:3]):
            body = _LANGUAGE.sub("", body[3:-3], count=1).strip()
        number = _NUMBER.fullmatch(body)
        if twice := _given_twice(body):
            reason = f"{twice[0]} is given twice"
            continue
        try:
            verdict = Verdict.model_validate_json(f'{{"score": {body}}}' if number else body)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
            continue
        bare = "".join(body.split())
        seen = ["".join(each.split()) for text in shown for each in (text, quoted(text), broken(text))]
        if number or not any(bare in each for each in seen):  # a number alone may well stand in a problem
            return verdict
        reason = "it is a copy of JSON in the quoted material"
    raise ValueError(reason)


def _given_twice(text: str) -> list[str]:
    """The keys that a mapping in a JSON text has more than once; none where it is no JSON."""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        found.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)

    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text, object_pairs_hook=look)
    return found
