"""Plain text as examples: documents cut by tokens into a context, which is x, and its continuation, which is y*.

Windows of CONTEXT + CONTINUATION tokens begin STRIDE tokens apart. Those that overlap are on the same side of a split:
a document is divided into sections that no window crosses, and a section counts as one question.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nrt_cli.data.columns import SPAN
from nrt_cli.data.sources import Row, Source
from nrt_cli.errors import DataError
from nrt_cli.text.prompts import encode_within

SECTION = 8
"""Windows, laid end to end, that a section has room for where windows overlap; else each is its own section."""
REACH = 16
"""Tokens that a cut may move on to where the tokenizer reads the parts as it read the whole."""


@dataclass(frozen=True)
class Spans:
    """Tokens of a context and of its continuation, and from where a window begins to where the next one does."""

    context: int
    continuation: int
    stride: int

    @classmethod
    def parse(cls, text: str) -> "Spans":
        """CONTEXT:CONTINUATION[:STRIDE]; without a stride every token of a section continues one context at most.

        Raises DataError for anything else.
        """
        if not re.fullmatch(r"[1-9]\d{0,6}:[1-9]\d{0,6}(:[1-9]\d{0,6})?", text):
            raise DataError(
                f"--spans {text!r}: write CONTEXT:CONTINUATION or CONTEXT:CONTINUATION:STRIDE, each a number of "
                "tokens, such as 256:64."
            )
        context, continuation, *stride = map(int, text.split(":"))
        return cls(context, continuation, *(stride or [continuation]))

    @property
    def window(self) -> int:
        return self.context + self.continuation

    @property
    def section(self) -> int:
        return self.stride if self.stride >= self.window else SECTION * self.window

    def windows(self, tokens: int) -> Iterator[tuple[int, int]]:
        """Where windows of a document of so many tokens begin, each with the number of its section."""
        for start in range(0, tokens - self.window + 1, self.section):
            last = min(start + self.section, tokens)
            yield from ((at, start // self.section) for at in range(start, last - self.window + 1, self.stride))


def cut(source: Source, spans: Spans, tokenizer: Any) -> Source:
    """The spans of a source's documents, each a row in the layout that `nrt data prepare` writes.

    A document is a row with a column `text`, as a .txt file is by itself. Raises DataError for a tokenizer that does
    not say where in a text its tokens stand.
    """
    if not tokenizer.is_fast:
        raise DataError("--spans needs a tokenizer with a tokenizer.json, which says where in a text its tokens stand.")

    def rows() -> Iterator[Row]:
        for document in source.rows():
            text = document.values.get("text")
            if document.problem:
                yield document
            elif not isinstance(text, str):
                found = ", ".join(map(repr, list(document.values)[:12])) or "no columns"
                yield Row(document.where, document.origin, {}, f"no column `text` that holds text; found {found}")
            else:
                yield from _document(document, text, spans, tokenizer)

    return Source(source.name, source.fingerprint, rows)


def _document(document: Row, text: str, spans: Spans, tokenizer: Any) -> Iterator[Row]:
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    ids = encoded["input_ids"]
    # Where the text of each token begins; the last entry is the end of the text.
    begins = [start for start, _ in encoded["offset_mapping"]] + [len(text)]
    if len(ids) < spans.window:
        few = f"{len(ids):,} tokens, fewer than the {spans.window:,} of a context and its continuation"
        yield Row(document.where, document.origin, {}, few)

    def read(first: int, last: int, after: int) -> bool:
        """Whether tokens `first` to `last` are read so again, by themselves, where they go on from those at `after`."""
        given, part = text[begins[after] : begins[first]], text[begins[first] : begins[last]]
        return encode_within(tokenizer, part, given, plain=True) == ids[first:last]

    for at, section in spans.windows(len(ids)):
        where = f"{document.where}: token {at:,}"
        found = _places(at, spans, min((section + 1) * spans.section, len(ids)), read)
        if found is None:
            unlike = f"within {REACH} tokens no cut at which the tokenizer reads both parts as it reads the whole"
            yield Row(where, document.origin, {}, unlike)
            continue
        first, middle, last = (begins[place] for place in found)
        answer = {"style": SPAN, "ground_truth": text[middle:last], "grader": "none"}
        answer["section"] = f"{document.where} section {section}"
        yield Row(
            where,
            document.origin,
            {"prompt": [{"role": "user", "content": text[first:middle]}], "reward_model": answer},
        )


def _places(at: int, spans: Spans, end: int, read: Callable[[int, int, int], bool]) -> tuple[int, int, int] | None:
    """Where a window begins, is cut and ends: where it should, or a few tokens beside, in a section that has an `end`.

    The text is encoded again in training, context and continuation each by itself: only where that gives the same
    tokens is the model asked for what stands in the document. No part is longer than it was asked to be.
    """

    def last(first: int, size: int, after: int) -> int | None:
        most = min(first + size, end)
        return next((to for to in range(most, max(first, most - REACH), -1) if read(first, to, after)), None)

    for first in range(at, min(at + REACH, end)):
        middle = last(first, spans.context, first)
        to = last(middle, spans.continuation, first) if middle is not None and middle < end else None
        if middle is not None and to is not None:
            return first, middle, to
    return None
