"""Judged quality by step, and the agreement of judges."""

import itertools
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from nrt_analysis.formats import render
from nrt_analysis.judge_report import (
    agreement_table,
    change_table,
    judged,
    judged_frame,
    krippendorff_alpha,
    quality_table,
)

from nrt_cli.errors import StoreError
from nrt_cli.store import Run
from nrt_cli.store.judgements import Judgements

NAN = math.nan
needs_krippendorff = pytest.mark.skipif(not find_spec("krippendorff"), reason="the judge extra is not installed")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A run with judgements: `make_run("a", (judge, step, example, score), ...)`."""

    def make(name: str, *judgements: tuple[str, int, int, float]) -> Run:
        run = Run.create(tmp_path / name, "", {"method": name})
        for judge, step, example, score in judgements:
            record = {"key": f"{judge} {step} {example}", "judge": judge, "step": step, "example": example}
            reason = "Invalid JSON" if math.isnan(score) else None
            run_record = {"score": score, "reason": reason, "flags": [], "template": "abc", "replies": ["?"]}
            with Judgements(run).writing():
                Judgements(run).append(record | run_record)
        return run

    return make


def test_quality_is_the_mean_of_what_was_scored(make_run: Callable[..., Run]) -> None:
    run = make_run("a", *(("j", 0, e, score) for e, score in enumerate((0.2, 0.4, 0.9, NAN))), ("j", 5, 0, NAN))
    table = quality_table(judged_frame({"a": run}))
    before, after = table.to_dict("records")
    # mean 1.5/3; squares ((-.3)^2 + (-.1)^2 + .4^2) = 0.26, with two scores of 0 and two of 1 more: (.26 + 1)/7 = .18
    # so they are as 3 * .25/.18 right or wrong answers.
    n, z = 3 * 0.25 / 0.18, 1.959964
    margin = z * math.sqrt(0.25 / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert (before["n"], before["unscored"]) == (4, 1)
    assert before["quality"] == pytest.approx(0.5)
    assert (before["low"], before["high"]) == pytest.approx((0.5 - margin, 0.5 + margin), abs=1e-6)
    # nothing was scored: not measured, not 0
    assert (after["n"], after["unscored"]) == (1, 1)
    assert math.isnan(after["quality"])


def test_change_is_over_the_examples_that_both_ends_scored(make_run: Callable[..., Run]) -> None:
    rows = [("j", 0, 0, 0.2), ("j", 0, 1, 0.6), ("j", 0, 2, 1.0), ("j", 9, 0, 0.5), ("j", 9, 1, 0.7), ("j", 9, 2, NAN)]
    run = make_run("a", *rows, ("j", 4, 0, 0.0))
    (row,) = change_table(judged_frame({"a": run})).to_dict("records")
    assert (row["n"], row["first"], row["last"]) == (2, pytest.approx(0.4), pytest.approx(0.6))
    assert row["change"] == pytest.approx(0.2)  # (0.3 + 0.1) / 2
    # Agresti and Min: with -1/2, 1/2 and 0: centre 0.4/4, variance (0.09 + 0.01 + 1)/4 - 0.01.
    half = 1.959964 * math.sqrt((1.1 / 4 - 0.01) / 4)
    assert (row["low"], row["high"]) == pytest.approx((0.1 - half, 0.1 + half))


def test_one_step_has_no_change_and_the_last_judgement_of_a_trace_counts(make_run: Callable[..., Run]) -> None:
    frame = judged_frame({"a": make_run("a", ("j", 3, 0, 0.1), ("j", 3, 1, 0.5), ("j", 3, 0, 0.8))})
    assert change_table(frame).empty
    assert frame["score"].tolist() == [0.8, 0.5]


def slow_alpha(table: list[list[float]]) -> float:
    """1 - observed / expected disagreement, squared differences, over all pairs of scores (Krippendorff 2011)."""
    units = [[score for score in row if not math.isnan(score)] for row in table]
    units = [unit for unit in units if len(unit) > 1]
    scores = [score for unit in units for score in unit]
    observed = sum(
        sum((a - b) ** 2 for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units
    ) / len(scores)
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(scores, 2)) / (len(scores) * (len(scores) - 1))
    return 1 - observed / expected


@needs_krippendorff
@pytest.mark.parametrize(
    ("table", "alpha"),
    [
        ([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]], 1.0),
        # Four scores 0 1 1 0: observed 1; expected: 8 of the 12 ordered pairs differ, 2/3. So 1 - 3/2.
        ([[0.0, 1.0], [1.0, 0.0]], -0.5),
        ([[0.1, 0.2, 0.4], [0.9, 0.7, NAN], [NAN, 0.3, 0.3], [NAN, 0.9, NAN], [0.5, 0.5, 0.6]], None),
        ([[0.5, 0.5], [0.5, 0.5]], NAN),  # not defined, as in the next
        ([[0.1, NAN], [NAN, 0.9]], NAN),
    ],
)
def test_alpha_is_krippendorffs(table: list[list[float]], alpha: float | None) -> None:
    expected = slow_alpha(table) if alpha is None else alpha
    assert krippendorff_alpha(pd.DataFrame(table)) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(expected) or slow_alpha(table) == pytest.approx(expected)


@needs_krippendorff
def test_agreement_is_of_each_pair_and_of_all(make_run: Callable[..., Run]) -> None:
    columns = {"a": [0.1, 0.2, 0.3, 0.9], "b": [0.2, 0.3, 0.4, NAN], "c": [0.9, 0.5, 0.1, 0.2]}
    rows = [(judge, 0, e, score) for judge, scores in columns.items() for e, score in enumerate(scores)]
    table = agreement_table(judged_frame({"run": make_run("run", *rows)})).set_index("judges")
    assert list(table.index) == ["a / b", "a / c", "b / c", "a / b / c"]
    assert table.loc["a / b", "n"] == 3
    assert table.loc["a / b", "spearman"] == pytest.approx(1.0)
    assert table.loc["b / c", "spearman"] == pytest.approx(-1.0)
    # ranks 1 2 3 4 against 4 3 1 2: 1 - 6 (9 + 1 + 4 + 4) / (4 * 15)
    assert table.loc["a / c", "spearman"] == pytest.approx(1 - 6 * 18 / 60)
    assert table.loc["a / b", "difference"] == pytest.approx(0.1)
    every = [[columns[judge][e] for judge in "abc"] for e in range(4)]
    assert table.loc["a / b / c", "alpha"] == pytest.approx(slow_alpha(every))
    assert math.isnan(table.loc["a / b / c", "spearman"])


@needs_krippendorff
def test_a_trace_that_checkpoints_share_counts_once_in_the_agreement(make_run: Callable[..., Run]) -> None:
    rows = [(judge, 0, e, 0.1 * e) for judge in "jk" for e in range(3)]
    runs = {"a": make_run("a", *rows), "b": make_run("b", *rows, ("j", 1, 0, 0.9), ("k", 1, 0, 0.9))}
    (row,) = agreement_table(judged_frame(runs)).to_dict("records")
    assert row["n"] == 4  # three that a and b share, and one more


def test_the_report_counts_the_steps_and_judgements_asked_for(make_run: Callable[..., Run]) -> None:
    made = {"b": make_run("b", ("j", 5, 0, 0.5))}  # runs stay in the order given
    made["a"] = make_run("a", ("j", 5, 0, 0.3), ("j", 0, 0, 0.1), ("old", 5, 0, 0.9))
    report = judged(made, {"a": [5], "b": [5]}, {"j 5 0"})
    table = report.frames["judged"]
    assert table[["run", "step", "quality"]].values.tolist() == [["b", 5, 0.5], ["a", 5, 0.3]]
    assert "agreement" not in report.frames  # one judge
    assert {"judged.csv", "judged.png", "judged.pdf"} <= set(render(report, ("csv", "md")))


def test_reasons_of_what_was_not_scored_are_told(make_run: Callable[..., Run]) -> None:
    report = judged({"a": make_run("a", ("j", 0, 0, NAN))}, {"a": [0]})
    assert "1 unscored: Invalid JSON" in report.notes
    assert not report.figures  # an empty frame shows nothing
    with pytest.raises(StoreError, match="nrt judge RUN@STEPS"):
        judged({"b": make_run("b")}, {"b": [0]})


@needs_krippendorff
def test_the_figure_has_a_line_per_run_and_judge_within_the_scale(make_run: Callable[..., Run]) -> None:
    rows: list[Any] = [(judge, step, e, 0.1 * e) for judge in "jk" for step in (0, 5) for e in range(3)]
    report = judged({"a": make_run("a", *rows), "b": make_run("b", *rows)}, {"a": [0, 5], "b": [0, 5]})
    (axis,) = report.figures[0].drawing.axes
    assert axis.get_xlabel() == "training step"
    assert axis.get_ylabel() == "judged trace quality (0 to 1)"
    assert axis.get_ylim() == pytest.approx((-0.04, 1.04))
    (legend,) = report.figures[0].drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a, j", "a, k", "b, j", "b, k"]
