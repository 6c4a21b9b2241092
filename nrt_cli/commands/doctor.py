"""`nrt doctor`: is this machine, model, data and config fit to train?"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson, HeldOutData, Overrides, TrainData, flags, section
from nrt_cli.records import measured

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig

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
            show_default=False,
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
    given = flags(method=method) | section("model", path=model) | section("data", train=data, validation=validation)
    config = _config(name, overrides, given)
    if forecast:
        _forecast(config, questions, as_json)
        return

    from nrt_cli.checks.doctor import diagnose, summary

    findings = []
    for finding in diagnose(config):
        findings.append(finding)
        if not as_json:
            show_finding(finding)
    counts = summary(findings)
    record = {"config": name, "counts": counts, "findings": [vars(finding) for finding in findings]}
    console.result(measured(record), as_json, lambda _: _conclude(counts))
    if counts["problem"]:
        raise typer.Exit(1)


def _forecast(config: "RunConfig | None", questions: int, as_json: bool) -> None:
    if config is None:
        raise typer.BadParameter("name a config: nrt doctor CONFIG --forecast", param_hint="CONFIG")

    from nrt_cli.checks.doctor_forecast import forecast

    found = forecast(config, questions, console.note)
    console.result(measured(found.record()), as_json, lambda _: _show_forecast(found))


def _show_forecast(found: Any) -> None:
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
        from nrt_cli.commandline import pasted

        console.stdout.print(console.plain(f"  {pasted([*found.settings])}"), soft_wrap=True)


def _cells(title: str, keys: dict[str, str], cells: list[Any], own: Any) -> Table:
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


def _config(name: str | None, overrides: list[str] | None, given: dict[str, Any]) -> "RunConfig | None":
    """The config asked about; None where nothing at all was named."""
    from nrt_cli import config

    if name is None and not given and not overrides:
        return None
    # A run is asked about by its own config.
    own = Path(name or "", "config.yaml")
    return config.load(str(own) if name and own.is_file() else name, overrides or [], **given)


def show_finding(finding: Any) -> None:
    """A finding in a line, and what to do about it in another."""
    mark, style = MARKS[finding.verdict]
    line = Text(mark, style=style).append(f"{finding.check}: ", style="bold").append_text(console.plain(finding.found))
    console.stdout.print(line, soft_wrap=True)
    if finding.do:
        console.stdout.print(console.plain(f"{INDENT}-> {finding.do}"), style=style, soft_wrap=True)
    if finding.check == "positions":
        for row in finding.details.get("rows", ()):
            _show_row(row)


def _show_row(row: dict[str, Any]) -> None:
    """A row in runs of tokens that the same terms reach: position, terms, text."""
    console.stdout.print(f"{INDENT}{row['row']}:", style="bold")
    start = 0
    tokens = row["tokens"]
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or tokens[end]["terms"] != tokens[start]["terms"]:
            terms = " + ".join(tokens[start]["terms"]) or "no loss"
            place = f"{tokens[start]['position']}-{tokens[end - 1]['position']}" if end - start > 1 else f"{start}"
            text = f"{INDENT}{place:>9}  {terms:<15}  {_ends(tokens[start:end])}"
            console.stdout.print(console.plain(text), soft_wrap=True)
            start = end


def _ends(tokens: list[dict[str, Any]]) -> str:
    """The text of some tokens, each between bars; the middle of many is left out."""
    texts = [token["token"].replace("\n", "⏎") for token in tokens]
    if len(texts) > 2 * SHOWN:
        texts = [*texts[:SHOWN], f"... {len(texts) - 2 * SHOWN} more ...", *texts[-SHOWN:]]
    return "|".join(texts)


def _conclude(counts: dict[str, int]) -> None:
    text = ", ".join(
        f"{count} {verdict}{'s' if verdict in ('problem', 'warning') and count != 1 else ''}"
        for verdict, count in counts.items()
    )
    console.stdout.print(console.plain(f"\n{text}."), style=MARKS["problem" if counts["problem"] else "ok"][1])
