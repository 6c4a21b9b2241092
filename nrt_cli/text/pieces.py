"""Which piece of text each token stands for, the words and sentences those pieces make up, and which are copied.

A trace stays token ids: what is taken out of it or masked in it is whole tokens, found here by their text.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

# Thai to Lao, Burmese, Khmer, Japanese kana, Chinese: scripts that leave no space between words.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\d+(?:[.,]\d+)*|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")
_CLOSING = r"[\"'\u2019\u201d)\]]*\s*$"
_SENTENCE_END = re.compile(rf"[.!?\u2026\u0964\u061f]{_CLOSING}")
_UNSPACED_END = re.compile(rf"[\u3002\uff01\uff1f]{_CLOSING}")
_LIST_MARK = re.compile(r"\s*(?:\d+|\w)[.)]\s*")


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined, they are the whole decoded text.

    A token that ends inside a character adds nothing: the token that completes the character has all of it.
    """
    out: list[str] = []
    ids = [*_word(tokenizer), *ids]
    begin, read = 0, len(_word(tokenizer))
    for end in range(read + 1, len(ids) + 1):
        # Decoded together with the piece before it, since decoders treat the first token of a text differently.
        before, whole = (_decode(tokenizer, ids[begin:to]) for to in (read, end))
        # A replacement character at the end is half of a letter, unless nothing is left that could complete it.
        if whole.endswith("\ufffd") and end < len(ids):
            out.append("")
            continue
        out.append(whole[len(before) :])
        begin, read = read, end
    return out


def text_within(tokenizer: Any, ids: Sequence[int], special: bool = True) -> str:
    """The text of a part of a sequence: a trace, an answer or a few tokens of one. A prompt is decoded alone.

    Decoders that mark spaces drop the one that a text begins with (Llama 2, Mistral), which a part has said.

    Args:
        special: show special tokens too.
    """
    word = _word(tokenizer)
    return _decode(tokenizer, [*word, *ids], special)[len(_decode(tokenizer, word)) :]


def _decode(tokenizer: Any, ids: Sequence[int], special: bool = True) -> str:
    """Without the tokenizer's clean-up, which would change text already shown once the next token is known."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))


@lru_cache(maxsize=4)
def _word(tokenizer: Any) -> list[int]:
    """A token of plain text that any part can follow: one that is decoded to its name, but for a mark of a space.

    Not that of a byte or of half a letter, with which what follows may make up another letter. Empty where there is
    none, and where the tokenizer keeps words without their spaces: then the space before a part is no token's.
    """
    for token in range(len(tokenizer)):
        name, text = str(tokenizer.convert_ids_to_tokens(token)), _decode(tokenizer, [token], special=False)
        if text.strip() and name.removeprefix("\u2581") == text:
            apart = _decode(tokenizer, [token, token])[len(text) :].startswith(" ") and name == text
            return [] if apart else [token]
    return []


def words(text: str) -> list[tuple[str, int, int]]:
    """Each word in lower case with where it begins and ends.

    A word is a number with its points and commas (1,000 is one), a run of letters, or, in scripts that leave no space
    between words, a single character.
    """
    return [(match.group().casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]


def sentence_spans(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Sentences of a text given as its tokens' pieces, as (first token, token after the last).

    A sentence ends with its line, with `.`, `!`, `?` or an ellipsis before white space, and with the Chinese, Hindi or
    Arabic kin of these; `1.` and `a)` begin one. Each token is in exactly one; white space is in the one before it.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for i, following in enumerate(tokens):
        said = "".join(tokens[start:i])
        if following.isspace() or not said.strip():
            continue
        over = (
            said.rstrip(" \t").endswith("\n") or following.lstrip(" \t").startswith("\n") or _UNSPACED_END.search(said)
        )
        apart = said[-1].isspace() or following[:1].isspace()
        if over or (apart and _SENTENCE_END.search(said) and not _LIST_MARK.fullmatch(said)):
            spans.append((start, i))
            start = i
    return [*spans, (start, len(tokens))] if tokens else []


def word_spans(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Words of a text given as its tokens' pieces, and the marks between them, as (first token, token after the last).

    A token belongs to the word, or to the run of marks, in which its first character lies that is no white space; white
    space is in what is before it. Each token is in exactly one.
    """
    text, spans, at = "".join(tokens), list[tuple[int, int]](), 0
    parts = [match.span() for match in re.finditer(rf"{_WORD.pattern}|(?:(?!{_WORD.pattern})\S)+", text)]
    starts = [start for start, _ in parts]
    before = -1
    for i, piece in enumerate(tokens):
        inside = at + len(piece) - len(piece.lstrip())
        part = before if not piece.strip() else bisect_right(starts, inside) - 1
        if part != before and i:
            spans.append((spans[-1][1] if spans else 0, i))
        before, at = part, at + len(piece)
    return [*spans, (spans[-1][1] if spans else 0, len(tokens))] if tokens else []


def joined_spans(spans: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """At most so many spans: neighbours are joined, as evenly by their number as it goes."""
    edges = [len(spans) * i // most for i in range(most + 1)] if len(spans) > most else range(len(spans) + 1)
    return [(spans[start][0], spans[end - 1][1]) for start, end in pairwise(edges)]


# --- what of an answer is in a trace word for word; words are lower-case, as `words` makes them


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Runs of n words, one for each place where one begins."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def copied_share(answer: Sequence[str], trace: Sequence[str], question: Sequence[str], n: int) -> float:
    """Share of the answer's n-grams that are in the trace, of those that the question does not give away.

    NaN where there are none: the answer is shorter than n words, or all of it is in the question.
    """
    known, there = set(ngrams(question, n)), set(ngrams(trace, n))
    novel = [gram for gram in ngrams(answer, n) if gram not in known]
    return sum(gram in there for gram in novel) / len(novel) if novel else float("nan")


def copied_words(answer: Sequence[str], trace: Sequence[str], question: Sequence[str], n: int) -> list[bool]:
    """Which words of the trace belong to an n-gram that the answer has and the question has not."""
    copied = set(ngrams(answer, n)) - set(ngrams(question, n))
    marks = [False] * len(trace)
    for i, gram in enumerate(ngrams(trace, n)):
        if gram in copied:
            marks[i : i + n] = [True] * n
    return marks
