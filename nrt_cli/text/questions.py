"""When two texts ask the same, and which of many known texts a text contains."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

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


class KnownTexts:
    """Texts to be found in others, whole and between word boundaries, whatever their case, spacing and width.

    Each is looked for only where its rarest pair of neighbouring words stands, so that a search takes as long as the
    text that is searched has words, however many are known. Texts of one word are not looked for.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        known = [_words(text) for text in texts]
        counts = Counter(pair for words in known for pair in _pairs(words))
        self._texts = [f" {' '.join(words)} " for words in known]
        self._by_pair: dict[tuple[str, str], list[int]] = {}
        for number, words in enumerate(known):
            if len(words) > 1:
                self._by_pair.setdefault(min(_pairs(words), key=counts.__getitem__), []).append(number)

    def found_in(self, text: str) -> set[int]:
        """Numbers, from 0 in the order they were given, of the known texts that stand in this one."""
        words = _words(text)
        candidates = {number for pair in _pairs(words) for number in self._by_pair.get(pair, ())}
        whole = f" {' '.join(words)} "
        return {number for number in candidates if self._texts[number] in whole}


def _words(text: str) -> list[str]:
    """Words and marks, so that `3+5?` and `3 + 5 ?` are the same."""
    return _MARKS.findall(normalised(text))


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    return pairwise(words)
