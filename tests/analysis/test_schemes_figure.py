"""What schemes made of the same rollouts, by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nrt_analysis.formats import render
from nrt_analysis.scheme_report import disagreements, rank_correlations, scheme_report
from scipy.stats import spearmanr

from nrt_cli.errors import StoreError
from nrt_cli.methods import METHODS, SCHEMES, asked


def rows(rewards: dict[str, list[list[float]]], agreement: float = 0.5) -> list[dict[str, Any]]:
    """Rows of traces and groups from rewards by scheme and group."""
    found: list[dict[str, Any]] = []
    for scheme, groups in rewards.items():
        for g, values in enumerate(groups):
            where = {"group": g, "step": 1, "example": g, "scheme": scheme}
            dead = len(set(values)) == 1
            found.append(where | {"kind": "group", "dead_group": dead, "agreement": np.nan if dead else agreement})
            for k, value in enumerate(values):
                numbers = dict.fromkeys(("rank_by", "scaled", "reward", "clipped", "advantage"), value)
                more = {"reward_base": 0.0, "hardest_signal": 0.5, "gain": 10.0 * k, "hardest_gain": 1.0 * k}
                text = {"trace_length": 100 * k, "entropy": 1.0, "trace": f"trace {k}"}
                found.append(where | {"kind": "trace", "k": k} | numbers | more | text)
    return found


A = [[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 1.0, 2.0], [7.0, 7.0, 7.0, 7.0]]
B = [[1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 3.0], [1.0, 2.0, 3.0, 4.0]]


def test_rank_correlation_is_spearmans_within_groups() -> None:
    traces = pd.DataFrame([row for row in rows({"a": A, "b": B}) if row["kind"] == "trace"])
    table = rank_correlations(traces, ["a", "b"])
    # The third group has no ranks under a, so it counts for b with itself only.
    expected = np.mean([spearmanr(A[0], B[0]).statistic, spearmanr(A[1], B[1]).statistic])
    assert table.loc["a", "b"] == pytest.approx(expected)
    assert table.loc["b", "a"] == pytest.approx(expected)
    assert table.loc["a", "a"] == table.loc["b", "b"] == pytest.approx(1.0)


def test_a_summary_by_hand() -> None:
    report = scheme_report(rows({"a": A, "b": B}), "bank", "am")
    found = report.frames["schemes"].set_index("scheme")
    assert found["dead_share"].to_dict() == pytest.approx({"a": 1 / 3, "b": 0.0})
    # std / mean of each group: sqrt(1.25) / 2.5, sqrt(3.1875) / 3.25 and 0; the middle one is the first.
    assert found.loc["a", "spread"] == pytest.approx(np.sqrt(1.25) / 2.5)
    # The best of a's traces are 3, 0 and 0 (the first of equals); the mean of a group's gains is 15.
    assert found.loc["a", "best_gain"] == pytest.approx((30 + 0 + 0) / 3 - 15)
    assert found.loc["b", "best_trace_length"] == pytest.approx((300 + 200 + 300) / 3 - 150)
    assert found["snr"].tolist() == pytest.approx([2.0, 2.0])  # 2 * 0.5 / (1 - 0.5)
    assert "all 2 schemes prefer the same trace in 33% of the groups" in report.notes
    none = scheme_report(rows({"a": A, "b": B}, agreement=-0.1), "bank", "am").frames["schemes"]
    assert none["snr"].isna().all()  # no signal is not measured as 0
    files = render(report, ("csv", "md"))
    assert {"schemes.png", "schemes-correlation.csv", "schemes-disagreements.csv", "schemes.json"} <= files.keys()
    with pytest.raises(StoreError, match=r"bank: no group has two traces or more"):
        scheme_report([], "bank", None)


def test_what_needs_more_than_a_bank_says_what() -> None:
    """Of a report on all that the bank can say; of one on two schemes that were asked for, nothing is missing."""
    alone = {name: A for name in SCHEMES if not METHODS[name].asks}
    left_out = [name for name in SCHEMES if METHODS[name].asks]
    notes = scheme_report(rows(alone), "bank", None).notes
    said = [note for note in notes if note.startswith("not in this bank")]
    assert said == [f"not in this bank: {name} needs {asked(METHODS[name])}" for name in left_out]
    notes = scheme_report(rows({"am": A, "gm": B}), "bank", None).notes
    assert not any("not in this bank" in note for note in notes)


def test_disagreements_show_what_each_scheme_prefers() -> None:
    traces = pd.DataFrame([row for row in rows({"a": A, "b": B}) if row["kind"] == "trace"])
    found = disagreements(traces)
    assert found[["example", "scheme", "k"]].to_numpy().tolist() == [[1, "a", 0], [1, "b", 2], [2, "a", 0], [2, "b", 3]]


DEAD = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]


def test_dead_groups_alone_leave_cells_empty() -> None:
    report = scheme_report(rows({"a": DEAD, "b": DEAD}), "bank", "am")
    found = report.frames["schemes"].set_index("scheme")
    assert found["dead_share"].to_dict() == {"a": 1.0, "b": 1.0}
    assert found[["agreement", "agreement_low", "agreement_high", "snr"]].isna().all(axis=None)
    assert report.frames["overview"]["agreement"].tolist() == ["-", "-"]
    assert report.frames["correlation"][["a", "b"]].isna().all(axis=None)
    assert "rank correlation: no group has rewards that differ under two schemes" in report.notes
    assert "snr is - where agreement is not above 0: no signal was found" in report.notes
    assert "| - |" in render(report, ("csv", "md"))["schemes.md"].decode()


def test_a_scheme_that_rewards_nothing_measurable_has_empty_cells_and_the_others_theirs() -> None:
    nothing = [[np.nan] * 4] * 3
    report = scheme_report(rows({"a": A, "b": nothing}), "bank", "am")
    found = report.frames["schemes"].set_index("scheme")
    assert found.loc["a", "best_gain"] == pytest.approx((30 + 0 + 0) / 3 - 15)
    assert np.isnan(found.loc["b", "best_gain"])
    assert report.frames["overview"].set_index("scheme").loc["b", "gain"] == "-"
    assert render(report, ("csv", "md"))


def test_no_preference_at_all_is_no_percentage() -> None:
    report = scheme_report(rows({"a": [[np.nan] * 2], "b": [[np.nan] * 2]}), "bank", None)
    assert "all 2 schemes prefer the same trace in - of the groups" in report.notes
    assert "nan" not in render(report, ("csv", "md"))["schemes.md"].decode()


numbers = st.one_of(st.just(np.nan), st.sampled_from([0.1, 0.3, 1.0, -2.0]))


@settings(max_examples=8)
@given(st.integers(1, 3).flatmap(lambda k: st.lists(st.lists(numbers, min_size=k, max_size=k), min_size=1, max_size=4)))
def test_any_rewards_give_a_report_and_order_of_groups_does_not_matter(groups: list[list[float]]) -> None:
    def summary(of: list[list[float]]) -> pd.DataFrame:
        report = scheme_report(rows({"a": of, "b": of[::-1]}), "bank", None)
        assert report.frames["schemes"]["scheme"].tolist() == ["a", "b"]
        return report.frames["schemes"].set_index("scheme").drop(columns=["agreement_low", "agreement_high"])

    pd.testing.assert_frame_equal(summary(groups), summary(groups[::-1]))
