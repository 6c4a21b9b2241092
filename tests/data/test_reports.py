"""The world of long answers: what is true in it, and which of its words need the trace."""

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.data import digits, reports
from nrt_cli.grading.grading import Pair, grade

SEEDS = st.integers(0, 2**32)


def asked(question: str) -> tuple[tuple[int, ...], int]:
    *problem, length = map(int, re.findall(r"\d+", question))
    return tuple(problem), length


@given(SEEDS)
def test_a_report_is_as_long_as_asked_and_true_in_every_word(seed: int) -> None:
    question, answer = reports.pair(random.Random(seed))
    problem, length = asked(question)
    assert not digits.held_out(problem)
    *before, last = answer.removeprefix("A : ").removesuffix(" .").split(" . ")
    assert len(before) == length
    assert f"A : {last} ." == digits.answer(problem)
    for place, digit in re.findall(r"the (first|second|third|fourth) is (\d)", answer):
        assert problem[("first", "second", "third", "fourth").index(place)] == int(digit)
    said = re.findall(r"their sum is (even|odd)", answer)
    assert said == ([("even", "odd")[sum(problem) % 2]] if length else [])


@given(SEEDS)
def test_the_last_number_is_the_answer(seed: int) -> None:
    question, answer = reports.held_out_pair(random.Random(seed))
    problem, _ = asked(question)
    assert digits.held_out(problem)
    right, wrong = (answer, f"{answer.rsplit(' ', 2)[0]} {(sum(problem) + 1) % 10} .")
    assert grade(Pair(question, answer, "number"), right).score == 1
    assert grade(Pair(question, answer, "number"), wrong).score == 0


def test_answers_are_long_and_fit_the_model() -> None:
    lengths = [len(reports.pair(random.Random(seed))[1].split()) for seed in range(2000)]
    assert (min(lengths), max(lengths)) >= (16, 110)
    assert 60 < sum(lengths) / len(lengths) < 70
    words = set(reports.vocabulary())
    assert len(words) == len(reports.vocabulary())
    for mixture in (reports.FIRST, reports.THEN):
        for document in reports.documents(0, 0, 2000, mixture):
            text = " ".join(document).split()
            assert words.issuperset(text)
            assert len(text) < reports.POSITIONS
            assert max(lengths) + 24 + 40 < reports.POSITIONS  # with a question and a trace


def test_by_lot_nothing_can_be_worked_out() -> None:
    """Each digit is as often the answer, whatever the sum."""
    for make in (digits.pair_by_lot, digits.held_out_pair_by_lot):
        pairs = [make(random.Random(seed)) for seed in range(4000)]
        right = sum(answer == digits.answer(tuple(map(int, re.findall(r"\d", question)))) for question, answer in pairs)
        assert 0.08 < right / len(pairs) < 0.12


def test_plain_text_has_true_answers_and_nothing_held_out_but_where_it_is_asked_for() -> None:
    for kept in (False, True):
        for seed in range(200):
            text = digits.text(random.Random(seed), kept)
            said = re.findall(r"Q : (\d) \+ (\d) \+ (\d) \+ (\d) \? A : [^.]* ends in (\d) \.", text)
            assert len(said) == text.count("Q :")
            for *problem, digit in said:
                assert sum(map(int, problem)) % 10 == int(digit)
                assert digits.held_out(tuple(map(int, problem))) == kept


def test_the_first_world_is_as_it_was() -> None:
    """What the second shares with it draws nothing more."""
    first = list(digits.documents(0, 0, 3, digits.THEN))
    assert first == list(digits.documents(0, 0, 3, digits.THEN, digits.said))
