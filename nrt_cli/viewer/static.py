"""What a page that has no server holds: some of the stored groups; and the viewer as a folder that opens from disk.

Groups are the first stored ones, not chosen by what they say.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, permutations
from typing import Any

from nrt_cli.errors import NrtError
from nrt_cli.store import Run
from nrt_cli.text.questions import questions
from nrt_cli.viewer import screens, server
from nrt_cli.viewer.library import Library, clips, setting
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
        size = int(setting(run, "rollout", "group_size", 8))
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


def exported(library: Library) -> dict[str, bytes]:
    """The viewer as files of a folder that opens from disk, under the same policy: by name or path.

    It holds `EXPORTED` tokens of traces at most, curves of all runs, pairs of the first of them, and of each benchmark
    the first documents of two models.
    """
    runs = {name: followed.run for name, followed in library.runs.items()}
    kinds = ("held-out", "direct", "step")
    data = sampled(runs, library.cutter, kinds, steps=40, groups=64, longest=screens.LONGEST, budget=EXPORTED)
    answers: dict[str, Any] = {}
    for screen in ("runs", "curves"):
        given = {} if screen == "runs" else {"run": list(runs)}
        answers[f"/{screen}"] = screens.answer(library, screens.address(screen, **given))
    for run in answers["/runs"]["runs"]:
        run["damaged"] = []  # paths of this machine
    answers["/compare"] = []
    for pair in list(permutations(runs, 2))[:12]:
        with contextlib.suppress(NrtError):
            found = screens.answer(library, screens.address("compare", run=pair))
            steps = spread(found["steps"], 12)
            of_steps = [screens.answer(library, screens.address("compare", run=pair, step=at)) for at in steps]
            found |= {"steps": steps, "differences": [one for of in of_steps for one in of["differences"]]}
            answers["/compare"].append({key: found[key] for key in ("runs", "steps", "examples", "differences")})
    evals = answers["/evals"] = screens.answer(library, "/evals") | {"benchmarks": {}}
    for name in dict.fromkeys(score["benchmark"] for score in evals["scores"]):
        found = screens.answer(library, screens.address("evals", benchmark=name))
        each = [screens.address("evals", benchmark=name, document=one["document"]) for one in found["documents"]]
        details = {one["document"]: one for one in (screens.answer(library, query)["document"] for query in each)}
        evals["benchmarks"][name] = found | {"models": found["chosen"], "details": details}
    text = json.dumps(json.dumps(data | {"answers": answers}, separators=(",", ":"), allow_nan=False))
    page = server.page().replace(
        "<meta charset", f'<meta http-equiv="Content-Security-Policy" content="{OFFLINE}">\n<meta charset'
    )
    first = f'<script src="assets/{server.SCRIPTS[0]}" defer></script>'
    # JSON.parse, not a literal: a key of a stranger's may be __proto__.
    files = {"index.html": page.replace(first, f'<script src="data.js" defer></script>\n{first}').encode()}
    files["data.js"] = f"const HELD = JSON.parse({text});\n".encode()
    for name in (*server.SCRIPTS, *server.STYLES, *server.IMAGES, "vendor/LICENSES.txt"):
        files[f"assets/{name}"] = server.asset(name).encode()
    return files


OFFLINE = server.POLICY.replace("connect-src 'self'", "connect-src 'none'").partition("; frame-ancestors")[0]
"""The policy of a folder; what a page says of itself may not speak of frames."""
