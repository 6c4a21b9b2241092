"""Leakage's numbers by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nrt_analysis.formats import render
from nrt_analysis.leakage_report import by_control, by_length, leakage_report

from nrt_cli.store.tables import write_table
from nrt_cli.workflows.scoring import CONTROL_COLUMNS as COLUMNS


def row(example: int, control: str, gain: float, copied: float) -> dict[str, Any]:
    """A trace under a control; rewards are 2 above a base of 1 per nat."""
    numbers = {"gain": gain, "logprob": gain - 9, "reward": 1 + 2 * gain, "reward_base": 1.0}
    lengths = {"trace_tokens": 4, "changed_tokens": 0 if control == "sampled" else 3}
    return {"example": example, "k": 0, "control": control} | numbers | lengths | {
        "copied_1": copied, "copied_2": np.nan, "copied_3": np.nan, "copied_4": np.nan,
    }  # fmt: skip


ROWS = [
    row(0, "sampled", 4.0, 0.5), row(0, "empty", 0.0, 0.0), row(0, "swapped", 1.0, 0.1),
    row(1, "sampled", -2.0, 0.1), row(1, "empty", 0.0, 0.0), row(1, "swapped", -5.0, 0.3),
]  # fmt: skip


def test_gains_and_losses() -> None:
    found = by_control(pd.DataFrame(ROWS)).set_index("control")
    assert found.index.tolist() == ["sampled", "swapped", "empty"]  # what was not made is left out
    assert found["gain"].to_dict() == {"sampled": 1.0, "swapped": -2.0, "empty": 0.0}
    assert found["lost"].to_dict() == {"sampled": 0.0, "swapped": 3.0, "empty": 1.0}
    assert found["helpful_share"].to_dict() == {"sampled": 0.5, "swapped": 0.5, "empty": 0.0}
    assert found["reward_gain"].to_dict() == {"sampled": 2.0, "swapped": -4.0, "empty": 0.0}
    # Both traces lost 3 nats to a swap, so there is nothing uncertain about it; gains of 4 and -2 are.
    assert found.loc["swapped", ["lost_low", "lost_high"]].tolist() == [3.0, 3.0]
    assert found.loc["sampled", ["low", "high"]].tolist() == [-2.0, 4.0]


def test_copied_shares_beside_those_of_another_trace() -> None:
    found = by_length(pd.DataFrame(ROWS)).set_index("n")
    assert found.loc[1, ["copied", "by_chance", "measured"]].tolist() == pytest.approx([0.3, 0.2, 2])
    assert found.loc[2, ["copied", "by_chance"]].isna().all()  # no answer has two words in a row
    assert found.loc[2, "measured"] == 0


def test_the_report(tmp_path: Path) -> None:
    parts = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for part, rows in zip(parts, (ROWS[:3], ROWS[3:]), strict=True):
        write_table(part, COLUMNS, rows)
    report = leakage_report(parts, "am", "held-out-000003", 1)
    assert any("1-grams" in note and "30.0% are in the trace, 20.0% in another" in note for note in report.notes)
    assert report.frames["gains"]["gain (nats)"].tolist()[0] == "+1.0 [-2.0, +4.0]"
    assert {"leakage.csv", "leakage-copied.csv", "leakage.png"} <= render(report, ("csv", "md")).keys()


def test_what_was_not_measured_is_a_dash_and_no_share_of_0(tmp_path: Path) -> None:
    rows = [row(0, "sampled", np.nan, 0.5), row(0, "empty", np.nan, np.nan), row(1, "sampled", np.nan, np.nan)]
    write_table(tmp_path / "0.parquet", COLUMNS, rows)
    report = leakage_report([tmp_path / "0.parquet"], "am", "held-out-000003", 1)
    assert report.frames["gains"][["gain (nats)", "lost (nats)"]].to_numpy().tolist() == [["-", "-"]] * 2
    assert report.frames["leakage"]["helpful_share"].isna().all()
    # A single example has no other's trace.
    assert any("50.0% are in the trace, - in another" in note for note in report.notes)
    assert render(report, ("csv", "md"))
