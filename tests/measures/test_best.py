"""The best step is chosen on some rows and reported on the others: hand arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.measures.held_out import COLUMNS, best_step

EVEN = range(0, 100, 2)


def rows(*scores, column="thinking_score"):
    return [dict.fromkeys(COLUMNS) | {"example": i, column: score} for i, score in enumerate(scores)]


def test_it_is_chosen_on_some_rows_and_reported_on_the_others():
    best = best_step({10: rows(1, 0, 0, 1), 20: rows(1, 0, 1, 0, 1), 30: rows(0, 1, 0, 1)}, EVEN)
    # Even rows: 1/2, 3/3, 0/2. Odd rows of step 20: 0/2, though step 30 has 2/2 there.
    assert (best.step, best.steps, best.measure) == (20, (10, 20, 30), "accuracy_thinking")
    assert (best.chosen, best.chosen_rows, best.reported, best.reported_rows) == (1.0, 3, 0.0, 2)


def test_of_equals_the_latest_is_best():
    assert best_step({10: rows(1, 1), 30: rows(1, 0), 20: rows(1, 0)}, EVEN).step == 30


def test_a_measure_that_is_the_same_at_every_step_does_not_decide():
    def never_right(gain):
        return [row | {"answer_logprobs": [-1.0], "null_logprobs": [-1.0 - gain]} for row in rows(0, 0)]

    best = best_step({1: never_right(0.5), 2: never_right(2.0), 3: never_right(1.0)}, EVEN)
    assert (best.step, best.measure, best.chosen) == (2, "gain", 2.0)
    # Where nothing differs, it is the latest, by the first that was measured.
    best = best_step({1: never_right(0.5), 2: never_right(0.5)}, EVEN)
    assert (best.step, best.measure) == (2, "accuracy_thinking")


def test_what_is_not_measured_at_every_step_does_not_decide():
    def gaining(more, *scores):
        return [row | {"answer_logprobs": [-1.0, -1.0], "null_logprobs": [-2.0 - more]} for row in rows(*scores)]

    best = best_step({1: gaining(0.5, 1, 1), 2: gaining(2, None, None)}, EVEN)
    assert (best.step, best.measure, best.chosen) == (2, "gain", 2.0)
    direct = rows([-1.0, -2.0], [-4.0], column="answer_logprobs")
    assert best_step({1: direct}, EVEN).chosen == -3.0
    assert best_step({1: rows(None, None)}, EVEN) is None
    assert best_step({1: [], 2: rows(1)}, EVEN) is None
    assert best_step({}, EVEN) is None


def test_a_single_row_chooses_and_nothing_is_reported():
    best = best_step({1: rows(1.0)}, EVEN)
    assert best.chosen_rows == 1
    assert best.reported_rows == 0
    assert math.isnan(best.reported)


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=6, max_size=6)


@given(st.lists(SCORES, min_size=1, max_size=5), st.randoms())
def test_neither_the_order_of_rows_nor_those_that_report_choose(scores, random):
    scored = {step: rows(*values) for step, values in enumerate(scores)}
    shuffled = {}
    for step, some in scored.items():
        some = [row if row["example"] % 2 == 0 else row | {"thinking_score": random.random()} for row in some]
        random.shuffle(some)
        shuffled[step] = some
    one, other = best_step(scored, EVEN), best_step(shuffled, EVEN)
    assert (one.step, one.chosen) == (other.step, pytest.approx(other.chosen))
