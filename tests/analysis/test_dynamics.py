"""Dynamics by hand arithmetic."""

import math

import pytest
from nrt_analysis.dynamics_report import COLUMNS, PANELS, collapses, dynamics
from nrt_analysis.frames import steps_frame

from nrt_cli.measures.collapse import NGRAM


def test_smoothing_is_the_mean_of_the_last_steps(make_run):
    lengths = [10.0, 20.0, 60.0, 0.0]
    run = make_run(steps=[{"trace_length": n, "distinct_ngrams": 1.0, "truncated_share": 0.0} for n in lengths])
    report = dynamics({"am": run}, window=2)
    table = report.frames["dynamics"]
    assert table["trace_length"].tolist() == lengths
    assert table["trace_length_smoothed"].tolist() == [10.0, 15.0, 40.0, 30.0]
    assert "mean of the last 2 steps" in " ".join(report.notes)
    summary = report.frames["summary"].set_index("metric").loc["trace_length"]
    assert (summary["first"], summary["last"]) == (15.0, 30.0)


def test_not_measured_is_passed_over_and_stays_where_nothing_is(make_run):
    shares = [0.5, math.nan, math.nan, 0.7]
    run = make_run(steps=[{"distinct_ngrams": s, "truncated_share": 0.0} for s in shares])
    smooth = dynamics({"am": run}, window=2).frames["dynamics"]["distinct_ngrams_smoothed"].tolist()
    assert smooth[:2] == [0.5, 0.5]
    assert math.isnan(smooth[2])
    assert smooth[3] == 0.7


def test_the_sentinel_marks_what_it_would_have_warned_of(make_run):
    steps = [{"entropy": 2.0 if step <= 12 else 0.5, "distinct_ngrams": 0.9} for step in range(1, 31)]
    run = make_run(steps=[step | {"truncated_share": 0.0, "gain": -1.0} for step in steps])
    # From step 13 on, i steps of the window are at 0.5: mean (2 (10 - i) + 0.5 i) / 10 < 1 from i = 7 on, step 19.
    (fall,) = collapses(steps_frame(run), run)
    assert (fall.sign, fall.step, fall.now) == ("entropy", 19, pytest.approx(0.95))
    report = dynamics({"am": run})
    assert report.frames["collapse"].to_dict("records")[0]["step"] == 19
    summary = report.frames["summary"].set_index("metric")
    assert summary.loc["entropy", "fell at"] == "19"
    assert summary.loc["trace_length", "fell at"] == ""
    # Held-out accuracy outweighs it.
    for step, share in ((0, 0.1), (13, 0.9)):
        run.append_metrics({"kind": "held_out", "step": step, "accuracy_thinking": share, "graded": 64})
    assert collapses(steps_frame(run), run) == []


def test_several_runs_share_a_figure(make_run):
    health = {"distinct_ngrams": 0.9, "truncated_share": 0.1}
    runs = {
        name: make_run(name, steps=[{**health, "entropy": e} for e in (2.0, 1.0)]) for name, e in (("x", 1), ("y", 2))
    }
    report = dynamics(runs)
    assert report.frames["dynamics"]["run"].tolist() == ["x", "x", "y", "y"]
    (figure,) = [figure.drawing for figure in report.figures]
    axes = figure.axes
    assert len(axes) == len(PANELS)
    assert all(axis.get_ylabel() for axis in axes)  # every panel has its unit
    assert {axis.get_xlabel() for axis in axes[-2:]} == {"training step"}
    drawn = axes[0].get_lines()
    assert [list(line.get_ydata()) for line in drawn] == [[2.0, 1.0], [2.0, 1.5]] * 2  # steps, smoothed; per run
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]
    table = report.frames["dynamics"]
    for metric in (*PANELS, "truncated_share"):
        assert {metric, f"{metric}_smoothed"} <= set(table.columns)
        assert metric in report.units
    assert set(COLUMNS) <= set(report.units)
    assert f"all {NGRAM}-grams" in report.units["distinct_ngrams"]
