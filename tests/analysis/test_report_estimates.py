"""Means over seeds and their intervals, by hand and by simulation; the paper's numbers as data."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nrt_analysis.intervals import difference, over_seeds, trusted
from nrt_analysis.report.paper import (
    overall_differs,
    paper,
    paper_model,
    recomputed_overall,
    scores,
    uncertain,
)

from nrt_cli.config.suite import ORDER
from nrt_cli.measures.statistics import Difference, Mean, mean_of, share_over_rows
from nrt_cli.methods import METHODS

NAN = math.nan


def wilson(value, n, z):
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z / (1 + z**2 / n) * math.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    return pytest.approx((value, centre - margin, centre + margin), abs=1e-6)


@pytest.mark.parametrize(("right", "documents"), [(50, 100), (70, 70), (0, 4), (3, 24)])
def test_one_seed_has_wilsons_interval_over_documents(right, documents):
    """Of 70 right of 70 it is [0.948, 1]; one number has one interval wherever a report has it."""
    scores = [1.0] * right + [0.0] * (documents - right)
    found = over_seeds([trusted(mean_of(scores, [""] * documents, "micro"))])
    assert (found.value, found.low, found.high) == wilson(right / documents, documents, 1.959964)
    assert vars(found) == pytest.approx(vars(share_over_rows(scores)))


def test_rounding_is_no_chance():
    for error in (0.0, 1e-17, 1e-9):
        found = over_seeds([Mean(1.0, error, 70)])
        assert (found.value, found.low, found.high) == wilson(1.0, 70, 1.959964)


def test_seeds_add_their_own_chance():
    # documents .05^2 = .0025; seeds: s^2 = .005, by 2 = .0025; degrees .005^2 / (.0025^2 / 1) = 4
    found = over_seeds([Mean(0.5, 0.05, 100), Mean(0.6, 0.05, 100)])
    from scipy.stats import t

    # As many documents as have this variance, of the share of 57 of 104, and 100 of 104 of them.
    n = 100 / 104 * (57 / 104) * (47 / 104) / 0.005
    assert (found.value, found.low, found.high) == wilson(0.55, n, t.ppf(0.975, 4))


def test_more_seeds_do_not_make_the_documents_more():
    one, five = over_seeds([Mean(0.3, 0.02, 400)]), over_seeds([Mean(0.3, 0.02, 400)] * 5)
    assert (five.low, five.high) == pytest.approx((one.low, one.high))


def test_few_documents_that_all_fail_say_little():
    none_of_four, none_of_many = (over_seeds([trusted(mean_of([0.0] * n, [""] * n, "micro"))]) for n in (4, 1000))
    assert (none_of_four.low, none_of_many.low) == pytest.approx((0, 0))
    assert none_of_four.high > 0.48  # 1.96^2 / (4 + 1.96^2)
    assert none_of_many.high == pytest.approx(1.96**2 / (1000 + 1.96**2), rel=0.05)


def test_what_was_not_measured_stays_so():
    assert math.isnan(over_seeds([Mean(NAN, NAN, 0)]).value)
    assert over_seeds([Mean(NAN, NAN, 0), Mean(0.5, 0.1, 20)]).value == 0.5
    lone = over_seeds([Mean(1.0, NAN, 1)])
    assert lone.value == 1
    assert math.isnan(lone.low)


@pytest.mark.parametrize(("share", "documents"), [(0.3, 20), (0.5, 200), (0.97, 60)])
def test_the_interval_holds_the_truth_as_often_as_it_says(share, documents):
    draws = np.random.default_rng(0).random((600, documents)) < share
    found = [over_seeds([trusted(mean_of(draw, [""] * documents, "micro"))]) for draw in draws.astype(float)]
    assert np.mean([one.low <= share <= one.high for one in found]) >= 0.93


def test_a_difference_by_newcombes_rule():
    # 0.6 [0.5, 0.7] - 0.4 [0.35, 0.5]: low = .2 - hypot(.1, .1), high = .2 + hypot(.1, .05)
    found = difference(Difference(0.6, 0.5, 0.7, 9), Difference(0.4, 0.35, 0.5, 9))
    expected = (0.2, 0.2 - math.hypot(0.1, 0.1), 0.2 + math.hypot(0.1, 0.05))
    assert (found.value, found.low, found.high) == pytest.approx(expected)


@given(*[st.tuples(st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 0.3))] * 2)
def test_a_difference_the_other_way_is_its_mirror(one, other):
    a, b = (Difference(value, value - below, value + above, 9) for value, below, above in (one, other))
    there, back = difference(a, b), difference(b, a)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.low <= there.value <= there.high


def test_the_paper_has_our_methods_and_benchmarks():
    ours = [name for name in METHODS if name in paper()["methods"]]
    assert list(paper()["methods"]) == ours
    assert len(ours) == 7
    assert set(paper()["benchmarks"]) == set(ORDER)
    assert sum(paper()["composition"].values()) == 800 * 256
    assert (paper_model("Llama-3.2-3B"), paper_model("smollm2-135m")) == ("Llama-3.2-3B-Base", None)
    for block in paper()["scores"].values():
        assert [(method, len(row)) for method, row in block.items()] == [(method, 10) for method in paper()["methods"]]


def test_fourteen_of_the_papers_rows_have_another_overall_than_their_mean():
    rows = [(model, method) for model, block in paper()["scores"].items() for method in block]
    differ = [row for row in rows if overall_differs(*row)]
    assert len(differ) == 14
    assert {model for model, _ in differ} == {"Llama-3.2-3B-Base", "Llama-3.1-8B-Base"}
    # 51.0 + 66.7 + 52.2 + 31.0 + 46.1 + 76.0 + 30.7 + 77.8 + 59.0 = 490.5
    assert recomputed_overall("Llama-3.1-8B-Base", "ws-neg-log-p") == pytest.approx(490.5 / 9)
    assert scores("Llama-3.1-8B-Base", "ws-neg-log-p")["overall"] == 56.2


def test_a_printed_score_is_as_uncertain_as_its_documents_make_it():
    found = uncertain("Llama-3.1-8B-Base", "ws-neg-log-p", "gsm8k")
    assert (found.value, found.n) == (0.76, 300)
    assert found.error == pytest.approx(math.sqrt(0.76 * 0.24 / 300))
    nine = [uncertain("Llama-3.1-8B-Base", "ws-neg-log-p", name) for name in ORDER]
    mean = uncertain("Llama-3.1-8B-Base", "ws-neg-log-p", "overall")
    assert mean.value == pytest.approx(4.905 / 9)
    assert mean.error == pytest.approx(math.sqrt(sum(one.error**2 for one in nine)) / 9)
