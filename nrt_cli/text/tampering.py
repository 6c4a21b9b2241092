"""Traces tampered with: whole tokens exchanged for others, of the same trace's or the vocabulary's. Nothing is random
but the order of shuffled steps, which its stream decides.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np

from nrt_cli.text.pieces import copied_words, pieces, sentence_spans, words

_NUMBER = re.compile(r"\D*\d+\D*")
_CAPITALISED = re.compile(r"[A-Z][a-z]+")
_NAME = re.compile(rf"[^A-Za-z]?{_CAPITALISED.pattern}")
"""A token that is a name or begins one, with its tokenizer's mark of a space."""


def shuffled(ids: Sequence[int], spans: Sequence[tuple[int, int]], key: Sequence[int]) -> tuple[int, ...] | None:
    """The trace's steps in another order; None where all orders are the same tokens."""
    stream, steps = np.random.default_rng(key), [tuple(ids[start:end]) for start, end in spans]
    for _ in range(100 if len(set(steps)) > 1 else 0):
        order = stream.permutation(len(steps))
        if (changed := tuple(token for i in order for token in steps[i])) != tuple(ids):
            return changed
    return None


def changed(tokenizer: Any, ids: Sequence[int], prompt_ids: Sequence[int]) -> tuple[int, ...] | None:
    """The trace with other numbers and names, each the same wherever it stands; None where it has neither.

    A token with a number in it becomes the vocabulary's next of as many digits, else alike; one that begins a name, the
    next capitalised word of its length. Names are capitalised words, but those that only ever begin sentences.
    """
    texts, names = pieces(tokenizer, ids), set[str]()
    for said in (texts, pieces(tokenizer, prompt_ids)):
        for start, end in sentence_spans(said):
            sentence = "".join(said[start:end])
            names.update(
                found.group() for found in _CAPITALISED.finditer(sentence) if sentence[: found.start()].strip()
            )
    following, out = _following(tokenizer), list(ids)
    at, text = 0, "".join(texts)
    begin = {found.start() for found in _CAPITALISED.finditer(text) if found.group() in names}
    for i, piece in enumerate(texts):
        start, at = at, at + len(piece)
        if re.search(r"\d", piece) or any(where in begin for where in range(start, at)):
            out[i] = following.get(ids[i], ids[i])
    return tuple(out) if out != list(ids) else None


@lru_cache(maxsize=4)
def _following(tokenizer: Any) -> dict[int, int]:
    """For each token that is a number or a capitalised word, the next of its shape; the last has the first."""
    shapes, special = [], set(tokenizer.all_special_ids)
    for token, name in enumerate(map(str, tokenizer.convert_ids_to_tokens(range(len(tokenizer))))):
        if token not in special:
            if _NUMBER.fullmatch(name):
                shapes.append((re.sub(r"\d", "0", name), name, token))
            elif _NAME.fullmatch(name):
                shapes.append((re.sub(r"[a-z]", "a", re.sub(r"[A-Z]", "A", name)), name, token))
    found: dict[int, int] = {}
    for _, of in groupby(sorted(shapes), key=lambda shape: shape[0]):
        tokens = [token for _, _, token in of]
        found.update(zip(tokens, [*tokens[1:], tokens[0]], strict=True))
    return found


def masked(tokenizer: Any, ids: Sequence[int], answer: str, question: str) -> tuple[int, ...] | None:
    """The trace with the words masked, token by token, that the answer has and the question has not; None: has none."""
    mask = tokenizer.encode(" _", add_special_tokens=False)[-1]
    texts, out = pieces(tokenizer, ids), list(ids)
    said = words("".join(texts))
    known = [[word for word, _, _ in words(text)] for text in (answer, question)]
    marks = copied_words(known[0], [word for word, _, _ in said], known[1], 1)
    spans = [(start, end) for (_, start, end), copied in zip(said, marks, strict=True) if copied]
    end = 0
    for j, text in enumerate(texts):
        start, end = end, end + len(text)
        if any(start < stop and begin < end for begin, stop in spans):
            out[j] = mask
    return tuple(out) if spans else None


def filler(tokenizer: Any, ids: Sequence[int]) -> tuple[int, ...]:
    """As many full stops as the trace has tokens."""
    return (tokenizer.encode(" .", add_special_tokens=False)[-1],) * len(ids)
