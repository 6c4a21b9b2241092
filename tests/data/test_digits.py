"""The laptop study's world: what is true in it, what is kept out of it, and that it stays as it is."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.data import digits

PROBLEMS = st.tuples(*[st.integers(0, 9)] * digits.TERMS)
MIXTURES = (digits.FIRST, digits.THEN)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ((3, 4, 9, 1), "A : the sum of 3 , 4 , 9 , 1 ends in 7 ."),  # 17
        ((0, 0, 0, 0), "A : the sum of 0 , 0 , 0 , 0 ends in 0 ."),
        ((9, 9, 9, 3), "A : the sum of 9 , 9 , 9 , 3 ends in 0 ."),  # 30
    ],
)
def test_answers(problem, said):
    assert digits.answer(problem) == said
    assert digits.question(problem) == f"Q : {said[15:28].replace(' , ', ' + ')} ?"


def test_a_fifth_is_held_out_whatever_its_answer():
    found = digits.held_out_problems()
    assert len(set(found)) == len(found)
    assert 0.19 < len(found) / 10**digits.TERMS < 0.21
    by_answer = Counter(sum(problem) % 10 for problem in found)
    assert all(150 < by_answer[digit] < 250 for digit in range(10))  # of about 1000 problems each


@given(PROBLEMS.flatmap(lambda problem: st.tuples(st.just(problem), st.permutations(problem))))
def test_a_problem_is_held_out_in_every_order_or_in_none(orders):
    one, other = orders
    assert digits.held_out(one) == digits.held_out(other)


def test_nothing_that_trains_has_the_digits_of_a_held_out_problem():
    """Whole documents and pairs, as the laptop study and the quickstart read them; working included."""
    kept = {tuple(sorted(problem)) for problem in digits.held_out_problems()}
    assert 100 < len(kept) < 200  # of 715
    read = [" ".join(document) for mixture in MIXTURES for document in digits.documents(0, 0, 4000, mixture)]
    read += [" ".join(digits.pair(random.Random(f"digits/0/{index}"))) for index in range(4000)]
    step = r" (?:,|then) {} (?:\+|and) (\d) (?:=|makes) (\d)"  # that goes on from the result before
    worked = re.compile(r"(?=(\d) (?:\+|and) (\d) (?:=|makes) (\d)" + step.format(r"\3") + step.format(r"\5") + ")")
    listed = re.compile(r"(?=(\d) [+,] (\d) [+,] (\d) [+,] (\d))")
    seen = [
        {tuple(sorted(map(int, found))) for text in read for found in listed.findall(text)},
        {tuple(sorted(map(int, (a, b, c, d)))) for text in read for a, b, _, c, _, d, _ in worked.findall(text)},
    ]
    for problems in seen:
        assert len(problems) > 400
        assert problems.isdisjoint(kept)


def asked(question):
    return tuple(map(int, re.findall(r"\d", question)))


@given(st.integers(0, 2**32))
def test_pairs_are_right_and_never_held_out(seed):
    question, answer = digits.pair(random.Random(seed))
    assert answer == digits.answer(asked(question))
    assert not digits.held_out(asked(question))


def test_working_adds_up_but_for_slips():
    right = steps = 0
    for _, text in digits.documents(1, 0, 500, digits.Mixture(direct=0, worked=1, sidetracked=0, drill=0)):
        found = re.findall(r"(\d) (?:\+|and) (\d) (?:=|makes) (\d)", text)
        assert len(found) == digits.TERMS - 1
        assert [a for a, _, _ in found[1:]] == [c for _, _, c in found[:-1]]  # each goes on from the last result
        for stated in re.findall(r"ends in (\d)", text):
            assert stated == found[-1][2]  # the answer follows from the work, slips included
        steps += len(found)
        right += sum((int(a) + int(b)) % 10 == int(c) for a, b, c in found)
    # 3 % of the results are drawn at random, a tenth of those are right by chance: 97.3 %.
    assert 0.96 < right / steps < 0.985


def test_shares_are_those_of_the_mixture():
    texts = [text for _, text in digits.documents(2, 0, 4000, digits.THEN)]
    worked = sum(bool(re.search(r"(?:so|let us see|first|hmm) \d", text)) for text in texts)
    assert worked / len(texts) == pytest.approx(digits.THEN.worked, abs=0.02)
    assert not any("cat sat" in text for _, text in digits.documents(2, 0, 500, digits.Mixture(0.5, 0.5, 0, 0)))


def test_a_document_depends_on_its_place_alone():
    whole = list(digits.documents(3, 0, 30, digits.FIRST))
    assert whole[10:20] == list(digits.documents(3, 10, 10, digits.FIRST))
    assert whole != list(digits.documents(4, 0, 30, digits.FIRST))


def test_the_vocabulary_has_every_word():
    known = set(digits.vocabulary())
    assert len(known) == len(digits.vocabulary())
    for mixture in MIXTURES:
        for document in digits.documents(5, 0, 2000, mixture):
            assert set(" ".join(document).split()) <= known
