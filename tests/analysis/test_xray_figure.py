"""What the X-ray's report says, by hand, and what of it reaches the report of runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from nrt_analysis.formats import render
from nrt_analysis.report.paper_report import gather
from nrt_analysis.xray_report import by_control, by_model, by_trace, decided_curve, xray_report

from nrt_cli.records import XRAY_COLUMNS, XrayRow
from nrt_cli.store import Run
from nrt_cli.store.tables import write_table

COLUMNS = {name: column.type for name, column in XRAY_COLUMNS.items()}


def looked(example: int, needed: list[float], kept: list[float], decided: int, **more: Any) -> XrayRow:
    steps = [f"Step {n}. " for n in range(len(needed))]
    about = {"traces": "held-out-000003", "step": 3, "example": example, "k": 0, "model_step": 3, "unit": "sentence"}
    measured = {"necessity": [0.0] * len(needed), "needed": needed, "kept": kept, "null_logprob": -4.0}
    ends = list(range(2, 2 * len(needed) + 1, 2))
    return XrayRow(steps=steps, ends=ends, decided=decided, copied=0.5, **about, **measured, **more)


ROWS = [
    looked(0, [2.0, 0.0, 0.2, -1.0], [-4.0, -1.0, -1.0, -1.0, -1.0], 1, swapped=-6.0, smuggled=1.0, gained=3.0),
    looked(1, [0.05, 0.05], [-4.0, -4.0, -4.0], 0, swapped=-4.0),
    looked(2, [], [-3.0], 0),
]


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.parquet" for i in range(2)]
    for path, rows in zip(paths, (ROWS[:2], ROWS[2:]), strict=True):
        write_table(path, COLUMNS, map(vars, rows))
    return paths


def test_shares_of_steps_by_hand(parts: list[Path]) -> None:
    traces = by_trace(pd.concat(map(pd.read_parquet, parts), ignore_index=True).assign(model="am"))
    assert traces["matters"].tolist()[:2] == [0.5, 0.0]
    assert traces["harms"].tolist()[:2] == [0.25, 0.0]
    assert traces["matters"].isna().tolist() == [False, False, True]  # no steps, so no share
    assert traces["decided"].tolist() == [0.25, 0.0, 0.0]
    assert traces["gain"].tolist() == [3.0, 0.0, 1.0]
    (row,) = by_model(traces, ["am"]).to_dict("records")
    assert (row["traces"], row["matters"], row["at_once"], row["copied"]) == (3, 0.25, pytest.approx(2 / 3), 0.5)
    assert (row["matters_low"], row["matters_high"]) == (0.0, 0.5)
    assert (row["smuggled"], row["measured"]) == (1.0, 1)
    lost = by_control(traces, ["am"]).set_index("control")
    assert lost["lost"].to_dict() == {"empty": pytest.approx(4 / 3), "swapped": 2.5}  # others were not made
    curve = decided_curve(traces).set_index("share")["decided"]
    assert [curve[share] for share in (0.0, 0.2, 0.25, 1.0)] == pytest.approx([2 / 3, 2 / 3, 1, 1])
    area = 1 - (curve.to_numpy()[:-1].mean())
    assert area == pytest.approx(traces["decided"].mean(), abs=0.05)


def test_the_section(parts: list[Path]) -> None:
    report = xray_report([("am@0", parts), ("am", parts)])
    assert {"xray.csv", "xray-steps.csv", "xray.png"} <= render(report, ("csv", "md")).keys()
    assert report.frames["read"]["k"].tolist() == [0] * 12  # few traces: their steps are the table to read
    many = xray_report([("am", parts * 4)])
    assert many.frames["models"]["matter"].tolist() == ["25% [0%, 50%]"]
    assert set(report.units) >= set(report.frames["xray"]) - {"model"} - {
        f"{name}_{end}" for name in ("matters", "harms", "decided", "smuggled", "gain") for end in ("low", "high")
    }


def test_a_report_has_one_row_and_one_line_for_each_method(
    make_run: Callable[..., Run], parts: list[Path], tmp_path: Path
) -> None:
    runs = [make_run(name, method) for name, method in (("a", "am"), ("b", "gm"))]
    unseen = gather([run.path for run in runs])
    table, figure = (next(part for part in of if part.key == "xray") for of in (unseen.tables, unseen.figures))
    assert "`nrt analyze xray RUN` does" in table.reason
    assert "`nrt analyze xray RUN` does" in figure.reason
    section = xray_report([("a@0", parts), ("a", parts)])
    folder = runs[0].path / "analysis" / "xray"
    folder.mkdir(parents=True)
    for name, content in render(section, ("csv", "md")).items():
        (folder / name).write_bytes(content)
    seen = gather([run.path for run in runs])
    table, figure = (next(part for part in of if part.key == "xray") for of in (seen.tables, seen.figures))
    ((method, unit, steps, needed, decided, smuggled),) = (row.cells for row in table.rows)
    assert (method.text, unit.text, steps.text) == (seen.runs[0].title, "sentence", "2.0")
    assert (needed.text, needed.value, needed.low, needed.high) == ("25% [0%, 50%]", 0.25, 0.0, 0.5)
    assert decided.value == pytest.approx(0.25 / 3)
    assert smuggled.value == 1.0
    assert figure.whole
    assert {"index.html", "report.md"} & {name.rpartition("/")[2] for name in render(seen, ("html", "md"))}
