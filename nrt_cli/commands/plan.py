"""`nrt train --dry-run`: what would stop a run, and what it will take."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from nrt_cli import console
from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig


def dry_run(config: "RunConfig | None", run_path: Path, as_json: bool) -> None:
    """Print the checks and the plan of a run; nothing but the cache is written, and no process started.

    Raises the first failed check as a ConfigError, once everything is printed.
    """
    from nrt_cli.checks.estimate import describe
    from nrt_cli.checks.preflight import Candidate, look
    from nrt_cli.training import locate

    if config is None:
        raise ConfigError("--dry-run plans a new run; name its config and leave --resume out.")
    findings, plan = look(Candidate(locate.locate_inputs(config), run_path))
    passed = {"ok": True, "problem": False}  # else it may turn out either way, or could not be seen here
    checks = [(finding.check, passed.get(finding.verdict), finding.text) for finding in findings]
    record = {
        "checks": [dict(zip(("name", "ok", "text"), check, strict=True)) for check in checks],
        "plan": dataclasses.asdict(plan) if plan else None,
    }

    def show(_: object) -> None:
        table, rows = (Table(box=None, show_header=False, padding=(0, 1)) for _ in range(2))
        for name, passed, text in checks:
            table.add_row({True: "ok", False: "no", None: "?"}[passed], name, console.plain(text))
        for what, how_much in describe(plan) if plan else []:
            rows.add_row(what, console.plain(how_much))
        for part in (table, "", rows):
            console.stdout.print(part)

    console.result(record, as_json, show)
    if failed := [text for _, passed, text in checks if passed is False]:
        raise ConfigError(f"would not start here: {failed[0]}")
