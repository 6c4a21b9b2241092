"""What traces become when they are tampered with: whole tokens, the same each time."""

from typing import Any

import pytest

from nrt_cli.text.pieces import word_spans
from nrt_cli.text.tampering import changed, filler, masked, shuffled
from nrt_cli.training.pretraining import word_tokenizer

WORDS = ["Tom", "Ann", "Bob", "So", "The", "ate", "and", "had", "3", "4", "5", "12", "30", ".", "?", "left", "Who"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer(WORDS)


def tampered(tokenizer: Any, how: Any, trace: str, *more: Any) -> str | None:
    ids = how(tokenizer, tokenizer.encode(trace), *more)
    return None if ids is None else tokenizer.decode(ids)


def test_numbers_and_names_become_others_wherever_they_stand(tokenizer: Any) -> None:
    """The next of as many digits, in order: 3, 4, 5 and 12, 30. Of three letters there are Ann, Bob, The, Tom, Who."""
    question = tokenizer.encode("Who left ? had Tom 12 ?")
    told = tampered(tokenizer, changed, "So Tom had 12 and 3 . The 12 and 5 Tom ate .", question)
    # So and The only begin sentences; Tom does not.
    assert told == "So Who had 30 and 4 . The 30 and 3 Who ate ."
    assert tampered(tokenizer, changed, "So had and ate . The ate .", question) is None
    # The question says that what begins the sentence is a name.
    assert tampered(tokenizer, changed, "Tom ate .", question) == "Who ate ."
    assert tampered(tokenizer, changed, "Tom ate .", tokenizer.encode("Who left ?")) is None


def test_words_of_the_answer_that_the_question_has_not_are_masked(tokenizer: Any) -> None:
    told = tampered(tokenizer, masked, "Tom ate 12 and left 5 .", "Tom left 5", "Who ate 12 ?")
    assert told == "<unk> ate 12 and <unk> <unk> ."  # the mask ` _` is no word of this vocabulary
    assert tampered(tokenizer, masked, "ate 12 .", "Tom left 5", "Who ate 12 ?") is None
    assert tokenizer.decode(filler(tokenizer, tokenizer.encode("Tom ate 12"))) == ". . ."


def test_steps_are_shuffled_whole_and_never_left_as_they_were(tokenizer: Any) -> None:
    trace = "3 and 4 and 5"
    ids = tokenizer.encode(trace)
    spans = [(0, 2), (2, 4), (4, 5)]
    assert word_spans(trace.split()) == [(i, i + 1) for i in range(5)]
    found = {shuffled(ids, spans, (seed, 1)) for seed in range(40)}
    assert tuple(ids) not in found
    assert len(found) == 5  # of 3! orders
    assert {tuple(sorted(each)) for each in found if each} == {tuple(sorted(ids))}
    assert shuffled(ids, spans, (7, 7)) == shuffled(ids, spans, (7, 7))
    assert shuffled(ids[:2], [(0, 2)], (0, 0)) is None
    assert shuffled([5, 5], [(0, 1), (1, 2)], (0, 0)) is None
