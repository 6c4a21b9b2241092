"""What the X-ray stored of a run's traces, read back."""

import os
from pathlib import Path

from nrt_cli.records import XRAY_COLUMNS, XrayRow
from nrt_cli.store import Run
from nrt_cli.store.tables import write_table

COLUMNS = {name: column.type for name, column in XRAY_COLUMNS.items()}


def test_a_trace_counts_as_it_was_scored_last(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", "", {"status": "created"})
    scored = run.path / "analysis" / "xray" / "scored"
    rows = [
        XrayRow("held-out-000003", 3, example, 0, 3, "sentence", ["So. ", "7."], [2, 4], [0.0, 1.5], [-2.0, -2.0, -0.5])
        for example in (5, 2)
    ]
    again = XrayRow("held-out-000003", 3, 5, 0, 3, "word", ["So", ". ", "7."], [1, 2, 4], [0.0] * 3, [-1.0] * 4)
    other = XrayRow("held-out-000000", 0, 5, 0, 0, "sentence", [], [], [], [-9.0])
    for age, (part, of) in enumerate(
        (
            ("held-out-000003-bbb/part-000000", [again]),
            ("held-out-000003-aaa/part-000000", rows[:1]),
            ("held-out-000003-aaa/part-000001", rows[1:]),
            ("held-out-000000-ccc/part-000000", [other]),
        )
    ):
        write_table(scored / f"{part}.parquet", COLUMNS, map(vars, of))
        os.utime(scored / f"{part}.parquet", (100 - age, 100 - age))
    found = run.xray("held-out-000003")
    assert found == [vars(rows[1]), vars(again)]
    assert run.xray("held-out-000000") == [vars(other)]
    assert run.xray("step-000001") == []
