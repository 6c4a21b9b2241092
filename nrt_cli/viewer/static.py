"""What a page that has no server holds: some of the stored groups; and the viewer as a folder that opens from disk.

Groups are the first stored ones, not chosen by what they say.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from nrt_cli.store import Run
from nrt_cli.text.questions import questions
from nrt_cli.viewer.library import clips
from nrt_cli.viewer.screens import ROW_COLUMNS, Cutter, group_of, looked_through, spread

EXPORTED = 1_500_000
"""Tokens that an exported folder holds, an answer's once per trace: at about 20 bytes each, some 30 MB."""


def sampled(
    runs: Mapping[str, Run],
    cutter: Callable[[Run], Cutter | None],
    kinds: Sequence[str],
    steps: int,
    groups: int,
    longest: int,
    budget: int,
) -> dict[str, Any]:
    """Stored `groups`, ready for JSON: how many traces are `shown` and how many are `stored`.

    One group of every run's last step comes first, then of its other steps, then the second groups, until there are
    `budget` tokens: with many runs each has fewer, and none is missing before all have one.

    Args:
        steps: of a run and kind, from the first to the last stored; `groups` of a step.
        longest: tokens of a trace or an answer.
    """
    waiting: list[tuple[int, dict[str, Any], list[list[dict[str, Any]]]]] = []
    stored = 0
    known: dict[str, tuple[Cutter | None, bool]] = {}
    for name, run in runs.items():
        known[name] = cutter(run), clips(run)
        size = int((run.settings().get("rollout") or {}).get("group_size", 8))
        for kind in kinds:
            tables = [table for table in run.trace_names() if table.rpartition("-")[0] == kind]
            stored += sum(run.count_traces(table) for table in tables)
            for rank, table in enumerate(reversed(spread(tables, steps))):
                rows = run.traces(table, ROW_COLUMNS, first=groups * (size if kind == "step" else 1))
                asked = questions([row["prompt"] or "" for row in rows])
                rows = looked_through(run, table, rows)
                rows = [row | {"question": q} for row, q in zip(rows, asked, strict=True)]
                where: dict[str, Any] = {"run": name, "kind": kind, "step": int(table.rpartition("-")[2])}
                waiting.append((rank, where, [list(of) for _, of in groupby(rows, key=lambda row: row["example"])]))
    found = list[dict[str, Any]]()
    for turn in range(groups):
        for _, where, those in sorted(waiting, key=lambda entry: entry[0]):
            if turn < len(those) and budget > 0:
                question, (cut, clipped) = those[turn][0]["question"], known[where["run"]]
                group: dict[str, Any] = where | group_of(those[turn], question, cut, clipped, longest)
                found.append(group)
                budget -= sum(len(trace["tokens"] or ()) + len(group["answer"]) for trace in group["traces"])
    order = {name: i for i, name in enumerate(runs)}
    found.sort(key=lambda group: (order[group["run"]], group["kind"], group["step"]))
    return {"groups": found, "shown": sum(len(group["traces"]) for group in found), "stored": stored}
