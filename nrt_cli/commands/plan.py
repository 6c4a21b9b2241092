"""`nrt train --dry-run`: what would stop a run, and what it will take."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from nrt_cli import console
from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig


def dry_run(config: "RunConfig | None", run_path: Path, as_json: bool) -> None:
    """Print the checks and the plan of a run; nothing but the cache is written, and no process started.

    Raises the first failed check as a ConfigError, once everything is printed.
    """
    from nrt_cli.checks import estimate, preflight
    from nrt_cli.training import locate

    if config is None:
        raise ConfigError("--dry-run plans a new run; name its config and leave --resume out.")
    config = locate.locate_inputs(config)
    checks, plan = preflight.check(config, run_path)
    found = {
        "checks": [dataclasses.asdict(check) for check in checks],
        "plan": dataclasses.asdict(plan) if plan else None,
    }
    console.result(found, as_json, lambda _: _show(checks, estimate.describe(plan) if plan else []))
    if failed := [check for check in checks if check.ok is False]:
        raise ConfigError(f"would not start here: {failed[0].text}")


def _show(checks: Any, rows: list[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for check in checks:
        table.add_row({True: "ok", False: "no", None: "?"}[check.ok], check.name, console.plain(check.text))
    console.stdout.print(table)
    console.stdout.print()
    table = Table(box=None, show_header=False, padding=(0, 1))
    for what, how_much in rows:
        table.add_row(what, console.plain(how_much))
    console.stdout.print(table)
