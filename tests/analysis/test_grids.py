"""What the last digits of the printed shares tell of how many documents they are of: `digits` of the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nrt_analysis.report.paper import documents, paper, scores

from nrt_cli.config.suite import ORDER


@dataclass(frozen=True)
class Grid:
    """Printed shares that are all multiples of 1/n, n being the smallest number of which this holds.

    `chance` bounds the probability that shares of no such kind are multiples of 1/n or of any coarser one.
    """

    n: int
    chance: float


def printed_multiples(n: int, unit: int) -> frozenset[int]:
    """What k/n is printed as, for k from 0 to n: a number of `unit`ths. A half may be printed either way."""
    doubled = ((2 * unit * k, 2 * n) for k in range(n + 1))
    return frozenset(up for value, by in doubled for up in {(value + n) // by, -((n - value) // by)})


def coarsest_grid(printed: Sequence[int], unit: int) -> Grid:
    """How many documents printed shares can be of: the smallest n of whose multiples they all are.

    Shares of no grid are taken to be any of `unit` numbers alike: by chance, one is among the d_n of these that
    multiples of 1/n below 1 are printed as with probability d_n / unit, and N are with its Nth power. Every n up to the
    one that is found might have fitted, so their probabilities add.

    Args:
        printed: shares as numbers of `unit`ths: 46.3 % is 463 of 1000.
    """
    chance = 0.0
    for n in range(1, unit + 1):
        multiples = printed_multiples(n, unit)
        chance += (len(multiples - {unit}) / unit) ** len(printed)
        if multiples.issuperset(printed):
            return Grid(n, min(1.0, chance))
    return Grid(unit, 1.0)


def test_multiples_as_they_are_printed_by_hand():
    # thirds in tenths: 0, 3.33, 6.67, 10; quarters: 2.5 and 7.5 go either way
    assert printed_multiples(3, 10) == {0, 3, 7, 10}
    assert printed_multiples(4, 10) == {0, 2, 3, 5, 7, 8, 10}
    assert len(printed_multiples(300, 1000) - {1000}) == 300
    assert {value % 10 for value in printed_multiples(300, 1000)} == {0, 3, 7}


@given(n=st.integers(1, 300), unit=st.sampled_from([10, 100, 1000]))
def test_multiples_are_all_numbers_within_half_of_the_last_digit(n, unit):
    near = {
        value
        for k in range(n + 1)
        for value in (unit * k // n, unit * k // n + 1)
        if abs(Fraction(unit * k, n) - value) <= Fraction(1, 2)
    }
    assert printed_multiples(n, unit) == near


def test_the_coarsest_grid_and_its_chance_by_hand():
    # 0.3 and 0.7 are no halves, but thirds. Of ten numbers, 1 prints {0}, 2 prints {0, 5}, 3 prints {0, 3, 7}.
    found = coarsest_grid([3, 7], 10)
    assert found.n == 3
    assert found.chance == pytest.approx(0.1**2 + 0.2**2 + 0.3**2)


@given(n=st.integers(2, 60), data=st.data())
def test_shares_of_n_documents_lie_on_a_grid_that_is_no_finer(n, data):
    hits = data.draw(st.lists(st.integers(0, n), min_size=1, max_size=40))
    assert coarsest_grid([round(1000 * k / n) for k in hits], 1000).n <= n


def test_the_chance_is_as_large_as_it_says():
    """Of numbers of no grid, about that share lies on one that is so coarse."""
    drawn = np.random.default_rng(0).integers(0, 100, (2000, 3))
    found = [coarsest_grid(row.tolist(), 100) for row in drawn]
    for limit in (0.05, 0.2):
        assert np.mean([one.chance <= limit for one in found]) <= limit


def printed(*names: str) -> list[int]:
    """Columns of Table 3 in tenths of a percent."""
    rows = [(model, method) for model, block in paper()["scores"].items() for method in block]
    return [round(10 * scores(*row)[name]) for row in rows for name in names]


COUNTED = ("popqa", "gsm8k", "ifeval")


@pytest.mark.parametrize("name", ORDER)
def test_what_the_digits_of_a_column_tell(name):
    found, told = coarsest_grid(printed(name), 1000), paper()["digits"]["columns"][name]
    # k / 300 in percent is k / 3, which is printed with the last digit 0, 3 or 7: by chance 3 of 10 are.
    on = sum(score % 10 in (0, 3, 7) for score in printed(name))
    assert told["of_300"] == on == sum(score in printed_multiples(300, 1000) for score in printed(name))
    assert on == 21 if name in COUNTED else on <= 10  # 11 or more would be as rare by chance as 1 in 50
    # Of 1/800 every number with one decimal is a multiple, halves being printed either way.
    assert told["grid"] == (found.n if found.chance < 1 else None)
    assert told["chance"] == (pytest.approx(found.chance, rel=1e-12) if found.chance < 1 else None)
    assert (found.chance < 1e-6) == (name in COUNTED)
    known = dict.fromkeys(COUNTED, 300) | {"humaneval": 164, "truthfulqa": 817}
    assert documents(name) == known.get(name, documents(name))


def test_by_chance_that_is_next_to_impossible():
    together, counted = coarsest_grid(printed(*COUNTED), 1000), paper()["digits"]["counted"]
    assert counted == {"columns": [*COUNTED], "documents": together.n, "chance": pytest.approx(together.chance, 1e-12)}
    # 300 alone: 0.3 ** 63 = 1.1e-33; with all coarser ones, of which 299, 298, ... come close, a few times that
    assert together.n == 300
    assert 0.3**63 < together.chance < 10 * 0.3**63
