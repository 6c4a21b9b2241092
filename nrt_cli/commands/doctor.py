"""`nrt doctor`: is this machine, model, data and config fit to train?"""

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commandline import pasted
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson, HeldOutData, Overrides, TrainData, flags, no_effect, section
from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from nrt_cli.checks.findings import Finding
    from nrt_cli.checks.forecast import Cell

EXAMPLE = "Example: nrt doctor laptop --model models/smollm2 --data data/mine/train.parquet"

STYLES = {"ok": "green", "warning": "yellow", "problem": "red", "skipped": "dim"}
INDENT = " " * 8
SHOWN = 6
"""Tokens shown at either end of a part of a row."""


def doctor(
    name: Annotated[
        str | None,
        Argument(metavar="[CONFIG]", autocompletion=completion.configs, help="YAML file, shipped config, or a run."),
    ] = None,
    method: Annotated[
        str | None, Option(autocompletion=completion.methods, help="sft, a scheme, a paper name, or module:function.")
    ] = None,
    model: Annotated[
        str | None, Option(autocompletion=completion.models, help="Folder made by `nrt model prepare`.")
    ] = None,
    data: TrainData = None,
    validation: HeldOutData = None,
    overrides: Overrides = None,
    benchmarks: Annotated[
        str | None,
        Option(
            autocompletion=completion.benchmarks,
            help="A benchmark of your own (mine.yaml), whose rows are looked for in the training data, too.",
        ),
    ] = None,
    forecast: Annotated[
        bool, Option("--forecast", help="Instead, try other caps, K, temperatures and schemes on one bank.")
    ] = False,
    olmes: Annotated[
        bool, Option("--olmes", help="Instead, what the environment of eval.olmes.python lacks to run OLMES.")
    ] = False,
    gpu: Annotated[
        bool, Option("--gpu", help="Instead, whether this GPU computes what a CPU does, and how fast: minutes.")
    ] = False,
    out: Annotated[
        str | None, Option(metavar="FILE", help="What --gpu found, as JSON; default: nrt-gpu-check.json.")
    ] = None,
    questions: Annotated[int | None, Option(min=1, help="Questions that --forecast asks; default: 8.")] = None,
    as_json: AsJson = False,
) -> None:
    """Two minutes that save a week: eight questions and one tiny step, looked at from all sides.

    Each finding says what to do. Exits with 1 where there is a problem. Nothing is written but what --gpu found.
    """
    from nrt_cli import config as configs

    if gpu:
        of_config = {"method": method, "model": model, "data": data, "validation": validation, "set": overrides or None}
        others = {"benchmarks": benchmarks, "forecast": forecast, "olmes": olmes, "questions": questions}
        no_effect("with --gpu", **of_config, **others)
        if name is not None:
            raise typer.BadParameter("--gpu makes a model of its own; drop the config", param_hint="CONFIG")
        _gpu(Path(out or "nrt-gpu-check.json"), as_json)
        return
    no_effect("without --gpu", out=out)
    if olmes:
        others = {"model": model, "data": data, "validation": validation, "benchmarks": benchmarks}
        no_effect("with --olmes", method=method, forecast=forecast, **others)
    given = flags(method=method) | section("model", path=model) | section("data", train=data, validation=validation)
    config = None
    if name is not None or given or overrides or olmes:
        # A run is asked about by its own config.
        own = Path(name or "", "config.yaml")
        config = configs.load(str(own) if name and own.is_file() else name, overrides or [], **given)
    if config is None or forecast or not config.data.train:
        no_effect("without training data to look into", benchmarks=benchmarks)
    if not forecast:
        no_effect("without --forecast", questions=questions)
    if forecast:
        if config is None:
            raise typer.BadParameter("name a config: nrt doctor CONFIG --forecast", param_hint="CONFIG")

        from nrt_cli.checks.forecast import forecast as make_forecast

        made = make_forecast(config, questions or 8, console.note)
        if console.result(made.record(), as_json):
            return
        # Two tables, of the config's own scheme and of all schemes under its own settings, and what they say.
        chosen = made.own
        of_scheme = [cell for cell in made.cells if cell.method == chosen.method]
        of_settings = [cell for cell in made.cells if cell.changes | {"method": chosen.method} == chosen.changes]
        rollout = {"temperature": "rollout.temperature", "cap": "rollout.max_trace_tokens", "K": "rollout.group_size"}
        title = f"{chosen.method}, of {made.questions} (> as configured)"
        console.show(_cells(title, rollout, of_scheme, chosen), least=("closed", "mixed"))
        console.show(_cells("all schemes, with the config's other settings", {"scheme": "method"}, of_settings, chosen))
        console.say(made.said)
        if made.settings:
            console.say(f"  {pasted([*made.settings])}")
        return

    from nrt_cli.checks.doctor import OLMES, diagnose
    from nrt_cli.checks.findings import VERDICTS
    from nrt_cli.config.suite import select

    findings = []
    users = select([benchmarks]) if benchmarks else ()
    if shipped := [spec.name for spec in users if not spec.own]:
        raise ConfigError(f"--benchmarks {shipped[0]}: the suite's are looked for anyway; name YAMLs of your own only.")
    for finding in OLMES.findings(config) if olmes and config else diagnose(config, users):
        findings.append(finding)
        if not as_json:
            show_finding(finding)
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS}
    record = {"config": name, "counts": counts, "findings": [vars(finding) for finding in findings]}
    each = ", ".join(
        f"{count} {verdict}{'s' if verdict in ('problem', 'warning') and count != 1 else ''}"
        for verdict, count in counts.items()
    )
    style = STYLES["problem" if counts["problem"] else "ok"]
    console.result(record, as_json, lambda _: console.stdout.print(console.plain(f"\n{each}."), style=style))
    if counts["problem"]:
        raise typer.Exit(1)


def _gpu(out: Path, as_json: bool) -> None:
    """The check of a GPU, step by step; what is known so far is in the file after each."""
    import tempfile

    from nrt_cli.checks.gpu import checked, report
    from nrt_cli.files import replacing

    outcomes = []
    with tempfile.TemporaryDirectory(prefix="nrt-gpu-") as folder:
        for outcome in checked(Path(folder)):
            outcomes.append(outcome)
            record = report(outcomes)
            with replacing(out) as file:
                file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            for finding in () if as_json else outcome.findings:
                show_finding(finding)
    verdicts = [Text(outcome.verdict, style=STYLES[outcome.verdict]) for outcome in outcomes]
    rows = [
        (outcome.step, verdict, f"{outcome.seconds:.0f}", f"{outcome.limit:.0f}")
        for outcome, verdict in zip(outcomes, verdicts, strict=True)
    ]
    if not console.result(record, as_json):
        console.show(console.table("step", "verdict", ">seconds", ">of at most", rows=rows))
        console.say(f"{out} has all of it: attach it to a report.")
    if any(outcome.verdict == "problem" for outcome in outcomes):
        raise typer.Exit(1)


def _cells(title: str, keys: dict[str, str], cells: list["Cell"], own: "Cell") -> Table:
    columns = ("", *keys, "live groups", "closed", "right", "mixed", "right preferred", "cost")
    names = (column if column == "scheme" else f">{column}" for column in columns)
    table = console.table(*names, "", title=title, title_justify="left", box=None)
    for cell in cells:
        seen = cell.found
        shares = (seen.alive, seen.closed, seen.right_share, seen.mixed, seen.agrees)
        table.add_row(
            ">" if cell == own else "",
            *(str(cell.changes[key]) for key in keys.values()),
            *(console.number(share, ".0%") for share in shares),
            f"{cell.cost:.2f}",
            Text(seen.mark, style={"dead": "red", "weak": "yellow", "signal": "green"}[seen.mark]),
        )
    return table


def show_finding(finding: "Finding") -> None:
    """A finding in a line, and what to do about it in another; rows in runs of tokens that the same terms reach."""
    style = STYLES[finding.verdict]
    line = Text(f"{finding.verdict:<8}", style=style).append(f"{finding.check}: ", style="bold")
    console.stdout.print(line.append_text(console.plain(finding.found)), soft_wrap=True)
    if finding.do:
        console.stdout.print(console.plain(f"{INDENT}-> {finding.do}"), style=style, soft_wrap=True)
    if group := finding.details.get("group"):
        columns = finding.details["columns"]
        rows = [[_shown(row[name]) for name in columns] for row in group]
        console.show(console.table(*(f">{name}" for name in columns[:-1]), columns[-1], rows=rows, box=None))
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


def _shown(value: str | float | list[float]) -> str:
    """A cell of one group's table, with the digits that its neighbours are made again with; of weights the ends."""
    if isinstance(value, list):
        texts = [f"{each:.2g}" for each in value]
        return " ".join(texts if len(texts) < 3 else [texts[0], "..", texts[-1]])
    return value if isinstance(value, str) else console.number(value, ".6g" if abs(value) >= 1 else ".4g")
