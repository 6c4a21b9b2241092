"""Whether a trace says the answer, word for word."""

import math
import re

NGRAM = 4
"""Words in a row that are no chance: a working shares numbers with the answer, and hardly so many words in a row."""


def tells(question: str, trace: str, answer: str) -> float:
    """1 where a trace has `NGRAM` words of the answer in a row that the question has not in a row; else 0.

    NaN where the answer has none, being short or a copy of the question. It tells a trace that rehearses an answer from
    one that works it out in other words; not whether what it rehearses was worked out before.
    """
    asked, said, own = (set(_ngrams(text)) for text in (question, trace, answer))
    own -= asked
    return float(bool(own & said)) if own else math.nan


def _ngrams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
