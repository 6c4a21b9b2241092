"""Means with intervals over clusters, against the slow way."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nrt_analysis.figures import error_bars
from nrt_analysis.intervals import DRAWS, clustered_means, share_over_clusters

from nrt_cli.measures.statistics import share_over_rows

VALUES = [1.0, 3.0, 2.0, 6.0, 5.0, np.nan]
FRAME = pd.DataFrame({"value": VALUES, "cluster": list("aabbcc"), "group": [0, 0, 0, 1, 1, 1]})


def test_means_and_counts_by_hand() -> None:
    table = clustered_means(FRAME["value"], FRAME["cluster"], FRAME["group"])
    assert table["mean"].to_dict() == {0: 2.0, 1: 5.5}
    assert table["n"].to_dict() == {0: 3, 1: 2}  # what is NaN was not measured
    assert table["clusters"].to_dict() == {0: 2, 1: 2}


@pytest.mark.full
def test_intervals_are_those_of_resampled_clusters() -> None:
    """The obvious way: glue whole clusters together and take the mean of each group."""
    table = clustered_means(FRAME["value"], FRAME["cluster"], FRAME["group"], seed=3)
    frame, generator, means = FRAME.dropna(), np.random.default_rng(3), []
    for _ in range(DRAWS):
        drawn = pd.concat([frame[frame["cluster"] == "abc"[i]] for i in generator.integers(3, size=3)])
        means.append(drawn.groupby("group")["value"].mean().reindex([0, 1]))
    expected = pd.DataFrame(means).quantile([0.025, 0.975])
    assert table["low"].tolist() == pytest.approx(expected.loc[0.025].tolist())
    assert table["high"].tolist() == pytest.approx(expected.loc[0.975].tolist())


def test_tokens_of_one_example_are_not_independent() -> None:
    """100 equal tokens of 4 examples are as uncertain as 4 tokens."""
    few = clustered_means(pd.Series([0.0, 1.0, 2.0, 3.0]), pd.Series(range(4)), pd.Series([0] * 4))
    numbers = pd.Series([i % 4 for i in range(100)])
    many = clustered_means(numbers.astype(float), numbers, pd.Series([0] * 100))
    assert many[["mean", "low", "high"]].equals(few[["mean", "low", "high"]])


def test_one_cluster_has_no_interval_and_a_group_of_which_nothing_was_measured_is_shown_empty() -> None:
    values, groups = pd.Series([1.0, 2.0, np.nan, np.nan]), pd.Series(["a", "a", "b", "b"])
    table = clustered_means(values, pd.Series([0, 0, 0, 1]), groups)
    assert table["mean"].tolist() == pytest.approx([1.5, np.nan], nan_ok=True)
    assert table[["low", "high"]].isna().all(axis=None)
    assert table[["n", "clusters"]].to_numpy().tolist() == [[2, 1], [0, 0]]


@pytest.mark.parametrize("right", [0, 3, 10])
def test_shares_of_clusters_have_a_width(right: int) -> None:
    """Clusters of one answer are rows; five answers of a cluster that are alike are as one."""
    scores = pd.Series([1.0] * right + [0.0] * (10 - right))
    rows = share_over_rows(scores.tolist())
    for times in (1, 5):
        found = share_over_clusters(scores.repeat(times).reset_index(drop=True), pd.Series(np.arange(10).repeat(times)))
        assert (found.value, found.low, found.high) == pytest.approx((rows.value, rows.low, rows.high))
    nothing = share_over_clusters(pd.Series([np.nan]), pd.Series([0]))
    assert (np.isnan(nothing.value), nothing.n) == (True, 0)


values = st.one_of(st.just(np.nan), st.sampled_from([0.1, 0.7, -3.0]))


@settings(max_examples=60)
@given(st.lists(st.tuples(values, st.integers(0, 3), st.sampled_from("abc")), max_size=12))
def test_every_group_has_its_row_and_the_mean_of_what_was_measured(rows: list[tuple[float, int, str]]) -> None:
    frame = pd.DataFrame(rows, columns=["value", "cluster", "group"])
    table = clustered_means(frame["value"], frame["cluster"], frame["group"], draws=20)
    assert table.index.tolist() == sorted(set(frame["group"]))
    for group, row in table.iterrows():
        measured = [value for value, _, of in rows if of == group and not np.isnan(value)]
        assert row["n"] == len(measured)
        assert row["mean"] == pytest.approx(np.mean(measured) if measured else np.nan, nan_ok=True)
        # What a figure draws of it is never negative, however the mean was rounded.
    for lengths in error_bars(table["mean"], table["low"], table["high"]):
        assert not (lengths < 0).any()
