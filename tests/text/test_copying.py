"""Shares of copied n-grams, by hand."""

import math

import pytest

from nrt_cli.text.pieces import copied_share, copied_words, ngrams

QUESTION = ["how", "much", "are", "two", "apples"]
ANSWER = ["two", "apples", "are", "6", "dollars", "so", "6", "dollars"]


def test_ngrams() -> None:
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


@pytest.mark.parametrize(
    ("n", "trace", "share"),
    [
        # Not in the question: 6, dollars, so, 6, dollars. The trace has both 6.
        (1, "3 and 3 is 6", 2 / 5),
        (1, "two apples", 0.0),
        # Not in the question: (apples are), (are 6), (6 dollars), (dollars so), (so 6), (6 dollars).
        (2, "it is 6 dollars", 2 / 6),
        (8, " ".join(ANSWER), 1.0),
    ],
)
def test_copied_share(n: int, trace: str, share: float) -> None:
    assert copied_share(ANSWER, trace.split(), QUESTION, n) == pytest.approx(share)


def test_nothing_that_could_be_copied_is_not_measured() -> None:
    assert math.isnan(copied_share(["two"], ["two"], QUESTION, 1))
    assert math.isnan(copied_share(["6"], ["6"], QUESTION, 2))


def test_copied_words() -> None:
    trace = ["two", "are", "6", "dollars", "or", "6"]
    assert copied_words(ANSWER, trace, QUESTION, 1) == [False, False, True, True, False, True]
    # `are 6` and `6 dollars` are the answer's; the 6 at the end stands in no pair of it.
    assert copied_words(ANSWER, trace, QUESTION, 2) == [False, True, True, True, False, False]
