"""Scores over documents: hand arithmetic, a slow reference, and what resampling may and may not change."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.measures.statistics import (
    NORMAL,
    Mean,
    bounded_over_rows,
    document_weights,
    mean_of,
    mean_over_rows,
    overall,
    paired_difference,
    share_over_rows,
    wilson,
)

documents = st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abc")), min_size=2, max_size=30)


def test_the_error_of_a_macro_mean_by_hand():
    # Weights 1/4, 1/4, 1/2; mean 3/4; deviations 1/4, -3/4, 1/4.
    # 3/2 * (1/16 * 1/16 + 1/16 * 9/16 + 1/4 * 1/16) = 3/2 * 14/256.
    mean = mean_of([1, 0, 1], ["a", "a", "b"], "macro")
    assert mean.value == pytest.approx(0.75)
    assert mean.error == pytest.approx(math.sqrt(1.5 * 14 / 256))


def test_one_document_has_no_error_and_none_no_mean():
    assert mean_of([1.0], [""], "micro").value == 1.0
    assert math.isnan(mean_of([1.0], [""], "micro").error)
    nothing = mean_of([], [], "macro")
    assert (math.isnan(nothing.value), math.isnan(nothing.error), nothing.n) == (True, True, 0)


@given(documents)
def test_means_agree_with_the_slow_definition(pairs):
    scores, subsets = [score for score, _ in pairs], [subset for _, subset in pairs]
    by_subset = {name: [x for x, subset in pairs if subset == name] for name in set(subsets)}
    macro = statistics.fmean(statistics.fmean(values) for values in by_subset.values())
    assert mean_of(scores, subsets, "macro").value == pytest.approx(macro)
    micro = mean_of(scores, subsets, "micro")
    assert micro.value == pytest.approx(statistics.fmean(scores))
    assert micro.error == pytest.approx(statistics.stdev(scores) / math.sqrt(len(scores)), abs=1e-12)


@given(documents)
def test_weights_sum_to_one_and_equal_subsets_weigh_alike(pairs):
    subsets = [subset for _, subset in pairs]
    for aggregation in ("micro", "macro"):
        assert document_weights(subsets, aggregation).sum() == pytest.approx(1)
    macro = document_weights(subsets, "macro")
    totals = {name: sum(w for w, s in zip(macro, subsets, strict=True) if s == name) for name in set(subsets)}
    assert list(totals.values()) == pytest.approx([1 / len(totals)] * len(totals))


def test_overall_is_the_mean_of_all_and_nothing_without_one():
    means = {"x": Mean(0.2, 0.03, 10), "y": Mean(0.6, 0.04, 5)}
    mean, missing = overall(means, ["x", "y"])
    # sqrt(0.03^2 + 0.04^2) / 2 = 0.05 / 2
    assert (mean.value, mean.error, mean.n, missing) == (pytest.approx(0.4), pytest.approx(0.025), 15, [])
    mean, missing = overall(means, ["x", "z", "y"])
    assert math.isnan(mean.value)
    assert missing == ["z"]
    assert overall(means | {"z": Mean(math.nan, math.nan, 0)}, ["x", "z"])[1] == ["z"]


def test_the_difference_of_the_same_documents():
    difference = paired_difference([0, 1, 0, 1], [1, 1, 0, 1], [""] * 4, "micro")
    assert difference == bounded_over_rows([1, 0, 0, 0])
    assert (difference.value, difference.n) == (pytest.approx(0.25), 4)
    assert difference.low <= 0.25 <= difference.high <= 1


@given(st.integers(1, 300), st.sampled_from([-1.0, 0.0, 1 / 3, 1.0]), st.sampled_from(["micro", "macro"]))
def test_a_difference_that_is_the_same_everywhere_has_a_width(n, shift, aggregation):
    """By hand for n documents alike: centre n d / (n + 2), variance (n d^2 + 1) / (n + 2) - centre^2."""
    found = bounded_over_rows([shift] * n, 1.0, ["a"] * n, aggregation)
    centre = n * shift / (n + 2)
    half = 1.959964 * math.sqrt(((n * shift**2 + 1) / (n + 2) - centre**2) / (n + 2))
    assert found.value == pytest.approx(shift)
    assert (found.low, found.high) == pytest.approx((max(-1, centre - half), min(1, centre + half)), abs=1e-6)
    assert found.high - found.low > 1 / (n + 2)


def test_pairing_counts_and_not_only_means():
    """Two models of equal means: surer where they agree on every document than where they swap them."""
    a = [0.0, 1.0] * 20
    same, swapped = (paired_difference(a, b, [""] * 40, "micro") for b in (a, a[::-1]))
    assert same.value == pytest.approx(0) == swapped.value
    assert same.high - same.low == pytest.approx(2 * 1.959964 / 42)
    assert swapped.high - swapped.low > 0.5


def test_a_macro_difference_weighs_subsets_alike():
    # Weights 1/6, 1/6, 1/6, 1/2: as many as 1 / (3/36 + 1/4) = 3 equal rows, of which -1 is half and 0.5 is half.
    found = paired_difference([0, 0, 0, 1], [0.5, 0.5, 0.5, 0], list("aaab"), "macro")
    half = 1.959964 * math.sqrt(((3 * (0.5 * 0.25 + 0.5) + 1) / 5 - (3 * -0.25 / 5) ** 2) / 5)
    assert found.value == pytest.approx(-0.25)
    assert (found.low, found.high) == pytest.approx((-0.15 - half, -0.15 + half), abs=1e-6)


@pytest.mark.parametrize(("share", "n"), [(0.5, 30), (0.95, 60), (0.02, 200)])
def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(share, n):
    generator = np.random.default_rng(0)
    pairs = [(generator.random(n) < share, generator.random(n) < share) for _ in range(400)]
    found = [paired_difference(a.astype(float), b.astype(float), [""] * n, "micro") for a, b in pairs]
    assert np.mean([one.low <= 0 <= one.high for one in found]) >= 0.93


def test_a_mean_of_documents_alike_has_no_error_from_rounding():
    for n in range(1, 200):
        found = mean_of([1.0] * n, [""] * n, "micro")
        assert found.value == 1
        assert found.error == 0 or n == 1


def test_without_shared_documents_there_is_no_difference():
    difference = paired_difference([], [], [], "macro")
    assert math.isnan(difference.value)
    assert difference.n == 0


def test_a_share_by_hand():
    # Wilson: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); with p = 1 the ends are 1 and 1 / (1 + z^2/n).
    found = share_over_rows([1.0] * 4)
    assert (found.value, found.high, found.n) == (1.0, 1.0, 4)
    assert found.low == pytest.approx(1 / (1 + 1.959964**2 / 4), rel=1e-6)
    # p = 1/2: centred, half the width is z sqrt(1/4n + z^2/4n^2) / (1 + z^2/n).
    half = share_over_rows([1.0, 0.0])
    assert (half.low + half.high) / 2 == pytest.approx(0.5)
    z2 = 1.959964**2
    assert half.high - 0.5 == pytest.approx((z2 * (1 / 8 + z2 / 16)) ** 0.5 / (1 + z2 / 2), rel=1e-6)
    assert math.isnan(share_over_rows([]).value)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_share_lies_in_its_interval(scores):
    found = share_over_rows(scores)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1


def test_a_mean_over_rows_is_that_of_a_slow_bootstrap():
    values, generator = [2.0, -0.5, 2.0], np.random.default_rng(5)
    draws = [statistics.fmean(values[i] for i in generator.integers(3, size=3)) for _ in range(2000)]
    found = mean_over_rows(values, seed=5)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.value == pytest.approx(3.5 / 3)
    assert math.isnan(mean_over_rows([]).value)


def test_a_difference_of_accuracies_has_a_width_where_all_pairs_are_alike():
    # Agresti and Min for 10 pairs without any discordant one: 0 -+ z sqrt((0 + 1) / 12 / 12).
    found = bounded_over_rows([0.0] * 10)
    assert (found.value, found.n) == (0, 10)
    assert found.high == pytest.approx(1.959964 / 12) == -found.low
    # 4 pairs better, 1 worse, 5 alike: centre 3/12, variance (5 + 1)/12 - (3/12)^2.
    found = bounded_over_rows([1.0] * 4 + [-1.0] + [0.0] * 5)
    assert found.value == pytest.approx(0.3)
    half = 1.959964 * math.sqrt((6 / 12 - 1 / 16) / 12)
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half))


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), max_size=20))
def test_a_difference_of_accuracies_mirrors(values):
    found, mirrored = bounded_over_rows(values), bounded_over_rows([-value for value in values])
    if values:
        assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low))
        assert found.low <= found.value <= found.high


def test_an_end_that_nothing_lies_beyond_is_exact():
    for n in range(1, 400):
        assert wilson(0.0, n)[0] == 0.0 < wilson(0.0, n)[1]
        assert wilson(1.0, n + 0.3)[1] == 1.0 > wilson(1.0, n + 0.3)[0]
        # Textbook's form, by hand: centre and half width.
        z2 = NORMAL**2
        centre, half = (n / 4 + z2 / 2) / (n + z2), (z2 * (n * 3 / 16 + z2 / 4)) ** 0.5 / (n + z2)
        assert wilson(0.25, n) == pytest.approx((centre - half, centre + half), abs=1e-12)
