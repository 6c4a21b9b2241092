"""`nrt doctor`: is this machine, model, data and config fit to train?"""

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from nrt_cli import console
from nrt_cli.commandline import pasted
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson, HeldOutData, Overrides, TrainData, flags, section
from nrt_cli.records import measured

if TYPE_CHECKING:
    from nrt_cli.checks.findings import Finding
    from nrt_cli.checks.forecast import Cell, Forecast

EXAMPLE = "Example: nrt doctor laptop --model models/smollm2 --data data/mine/train.parquet"

MARKS = {
    "ok": ("ok      ", "green"),
    "warning": ("warning ", "yellow"),
    "problem": ("problem ", "red"),
    "skipped": ("skipped ", "dim"),
}
INDENT = " " * 8
SHOWN = 6
"""Tokens shown at either end of a part of a row."""


def doctor(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            autocompletion=completion.configs,
            help="YAML file, shipped config, or a run.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(autocompletion=completion.methods, help="sft, a scheme, a paper name, or module:function."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(autocompletion=completion.models, help="Folder made by `nrt model prepare`.")
    ] = None,
    data: TrainData = None,
    validation: HeldOutData = None,
    overrides: Overrides = None,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="Instead, try other caps, K, temperatures and schemes on one bank.")
    ] = False,
    questions: Annotated[int, typer.Option(min=1, help="Questions that --forecast asks.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Two minutes that save a week: eight questions and one tiny step, looked at from all sides.

    Each finding says what to do. Exits with 1 where there is a problem. Nothing is written.
    """
    from nrt_cli import config as configs

    given = flags(method=method) | section("model", path=model) | section("data", train=data, validation=validation)
    config = None
    if name is not None or given or overrides:
        # A run is asked about by its own config.
        own = Path(name or "", "config.yaml")
        config = configs.load(str(own) if name and own.is_file() else name, overrides or [], **given)
    if forecast:
        if config is None:
            raise typer.BadParameter("name a config: nrt doctor CONFIG --forecast", param_hint="CONFIG")

        from nrt_cli.checks.forecast import forecast as make_forecast

        made = make_forecast(config, questions, console.note)
        console.result(measured(made.record()), as_json, lambda _: _show_forecast(made))
        return

    from nrt_cli.checks.doctor import diagnose
    from nrt_cli.checks.findings import VERDICTS

    findings = []
    for finding in diagnose(config):
        findings.append(finding)
        if not as_json:
            show_finding(finding)
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS}
    record = {"config": name, "counts": counts, "findings": [vars(finding) for finding in findings]}
    each = ", ".join(
        f"{count} {verdict}{'s' if verdict in ('problem', 'warning') and count != 1 else ''}"
        for verdict, count in counts.items()
    )
    style = MARKS["problem" if counts["problem"] else "ok"][1]
    console.result(measured(record), as_json, lambda _: console.stdout.print(console.plain(f"\n{each}."), style=style))
    if counts["problem"]:
        raise typer.Exit(1)


def _show_forecast(found: "Forecast") -> None:
    """Two tables, of the config's own scheme and of all schemes under its own settings, and what they say."""
    own = found.own
    of_scheme = [cell for cell in found.cells if cell.method == own.method]
    of_settings = [cell for cell in found.cells if cell.changes | {"method": own.method} == own.changes]
    rollout = {"temperature": "rollout.temperature", "cap": "rollout.max_trace_tokens", "K": "rollout.group_size"}
    title = f"{own.method}, of {found.questions} (> as configured)"
    console.show(_cells(title, rollout, of_scheme, own), least=("closed", "mixed"))
    console.show(_cells("all schemes, with the config's other settings", {"scheme": "method"}, of_settings, own))
    console.stdout.print(console.plain(found.said), soft_wrap=True)
    if found.settings:
        console.stdout.print(console.plain(f"  {pasted([*found.settings])}"), soft_wrap=True)


def _cells(title: str, keys: dict[str, str], cells: list["Cell"], own: "Cell") -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for column in ("", *keys, "live groups", "closed", "right", "mixed", "right preferred", "cost"):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    table.add_column("")
    for cell in cells:
        seen = cell.found
        shares = (seen.alive, seen.closed, seen.right_share, seen.mixed, seen.agrees)
        table.add_row(
            ">" if cell == own else "",
            *(str(cell.changes[key]) for key in keys.values()),
            *("-" if math.isnan(share) else f"{share:.0%}" for share in shares),
            f"{cell.cost:.2f}",
            Text(seen.mark, style={"dead": "red", "weak": "yellow", "signal": "green"}[seen.mark]),
        )
    return table


def show_finding(finding: "Finding") -> None:
    """A finding in a line, and what to do about it in another; rows in runs of tokens that the same terms reach."""
    mark, style = MARKS[finding.verdict]
    line = Text(mark, style=style).append(f"{finding.check}: ", style="bold").append_text(console.plain(finding.found))
    console.stdout.print(line, soft_wrap=True)
    if finding.do:
        console.stdout.print(console.plain(f"{INDENT}-> {finding.do}"), style=style, soft_wrap=True)
    for row in finding.details.get("rows", ()):
        console.stdout.print(f"{INDENT}{row['row']}:", style="bold")
        for names, group in itertools.groupby(row["tokens"], lambda token: token["terms"]):
            tokens = list(group)
            first, last = tokens[0]["position"], tokens[-1]["position"]
            # The text of each between bars; the middle of many is left out.
            texts = [token["token"].replace("\n", "⏎") for token in tokens]
            if len(texts) > 2 * SHOWN:
                texts = [*texts[:SHOWN], f"... {len(texts) - 2 * SHOWN} more ...", *texts[-SHOWN:]]
            place = f"{first}-{last}" if len(tokens) > 1 else f"{first}"
            text = f"{INDENT}{place:>9}  {' + '.join(names) or 'no loss':<15}  {'|'.join(texts)}"
            console.stdout.print(console.plain(text), soft_wrap=True)
