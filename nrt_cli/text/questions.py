"""When two texts ask the same, and which of many known documents a text contains."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

# What tokenizers decode their special tokens to: <|name|>, <s>, </s>, <pad>, [INST], <start_of_turn>, and <unused12>.
_SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?(?:s|pad|unk|bos|eos|mask|(?:start|end)_of_turn|unused\d+)>|\[/?INST\]")
_MARKS = re.compile(r"\w+|[^\w\s]")


def normalised(text: str) -> str:
    """The text without what makes no other question: case, width, spacing, characters that nobody sees."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
        # Folding case can leave a character that NFKC would write as another.
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.casefold().split())


def digest(text: str, seed: int = 0) -> int:
    """64 bits of a text, keyed by the seed. Raises UnicodeEncodeError for half of a surrogate pair."""
    key = seed.to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "big")


def ending_in(question: str, suffix: str | None) -> str:
    """The question with a last line that training put there; as it is where there is none, or it has that already."""
    return question if not suffix or question.endswith(suffix) else f"{question}\n{suffix}"


def plain_text(text: str) -> str:
    """Decoded text without the special tokens in it."""
    return _SPECIAL.sub(" ", text).strip()


def questions(prompts: Sequence[str]) -> list[str]:
    """Rendered prompts without the chat template: the lines that all of them begin and end with. For display.

    A single prompt has no other to be compared with and loses its special tokens only.
    """
    if len(set(prompts)) < 2:
        return [plain_text(prompt) for prompt in prompts]
    head = os.path.commonprefix(list(prompts))  # noqa: RUF071  it is characters that are wanted
    tail = os.path.commonprefix([prompt[::-1] for prompt in prompts])[::-1]  # noqa: RUF071
    # Questions may begin or end alike: only whole lines are the template's, and what its special tokens close.
    head = head[: max(head.rfind("\n"), head.rfind(">"), head.rfind("]")) + 1]
    cut = min((i for i in (tail.find("\n"), tail.find("<"), tail.find("[")) if i >= 0), default=len(tail))
    tail = tail[cut:]
    return [plain_text(prompt[len(head) : len(prompt) - len(tail)]) for prompt in prompts]


class KnownDocuments:
    """Documents to be found in texts, between word boundaries, whatever their case, spacing and width.

    A document is the parts that it has to be found by, all of them. It is looked for only where the rarest pair of
    neighbouring words of its parts stands, so that a search takes as long as the text that is searched has words,
    however many documents are known. Not looked for is what says too little: a document of single words, or one of
    several that are the same.
    """

    def __init__(self, documents: Iterable[Sequence[str]]) -> None:
        known = [[_words(part) for part in parts] for parts in documents]
        self._parts = [tuple(_joined(words) for words in parts) for parts in known]
        times = Counter(self._parts)
        counts = Counter(pair for parts in known for words in parts for pair in pairwise(words))
        self._by_pair: dict[tuple[str, str], list[int]] = {}
        for number, parts in enumerate(known):
            pairs = [pair for words in parts for pair in pairwise(words)]
            if pairs and times[self._parts[number]] == 1:
                self._by_pair.setdefault(min(pairs, key=counts.__getitem__), []).append(number)

    def found_in(self, text: str) -> set[int]:
        """Numbers of the documents that stand in a text, from 0 in the order they were given."""
        words = _words(text)
        candidates = {number for pair in pairwise(words) for number in self._by_pair.get(pair, ())}
        whole = _joined(words)
        return {number for number in candidates if all(part in whole for part in self._parts[number])}


def _words(text: str) -> list[str]:
    """Words and marks, so that `3+5?` and `3 + 5 ?` are the same."""
    return _MARKS.findall(normalised(text))


def _joined(words: list[str]) -> str:
    return f" {' '.join(words)} "
