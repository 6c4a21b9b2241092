"""`nrt speedrun`: how soon a model thinks, as an entry of a table; the table; and an entry, run again."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commandline import nrt
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson, Overrides, no_effect
from nrt_cli.errors import ConfigError

EXAMPLE = "Example: nrt speedrun digits --set optimiser.lr=1e-3"


def speedrun(
    name: Annotated[str | None, Argument(metavar="[digits|real]", autocompletion=completion.speedruns)] = None,
    seed: Annotated[int | None, Option(min=0, help="Seed of data order and sampling.")] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, Option(autocompletion=completion.models, help="Prepared starting model, for real.")
    ] = None,
    out: Annotated[Path, Option(help="Where runs and entries go.")] = Path("speedruns"),
    verify: Annotated[
        str | None, Option(autocompletion=completion.entries, metavar="ENTRY", help="Run an entry again and compare.")
    ] = None,
    table: Annotated[bool, Option("--table", help="Print the table of the entries that were sent in.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train until the held-out questions are answered right, and say how long it took. An interrupted one goes on.

    Ends with 1 where it never got there, or where --verify finds another result. `nrt help speedrun` has the rules.
    """
    if table + (verify is not None) + (name is not None) != 1 or (
        (table or verify) and (overrides or seed is not None)
    ):
        raise ConfigError("say one thing: which speedrun, with --seed and --set; or --verify ENTRY; or --table.")
    from nrt_cli.commands.doctor import show_finding
    from nrt_cli.progress import choose, print_json_line
    from nrt_cli.workflows import speedrun as work

    if table:
        no_effect("beside --table", model=model)
        rows = work.standings([work.read_entry(str(file)) for file in work.entry_files()])
        three = ((row[0].track, row[0].machine.name, [entry.model_dump() for entry in row]) for row in rows)
        record = [dict(zip(("track", "machine", "entries"), each, strict=True)) for each in three]
        console.result(record, as_json, lambda _: console.page(work.markdown(rows)))
        return
    display = partial(choose, as_json)
    if verify is not None:
        *both, run, findings = work.verify(verify, out, display, model)
        if as_json:
            sides = dict(zip(("entry", "here"), (side.model_dump() for side in both), strict=True))
            print_json_line({"kind": "summary", **sides, "run": str(run), "findings": list(map(vars, findings))})
        else:
            compared = console.table("step", ">entry", ">here", ">entry, s", ">here, s", box=None, padding=(0, 3, 0, 0))
            by_step = [{score.step: score for score in side.scores} for side in both]
            for step in sorted({*by_step[0], *by_step[1]}):
                scores = [side.get(step) for side in by_step]
                accuracies = ["-" if score is None else f"{score.accuracy:.1%}" for score in scores]
                seconds = ["-" if score is None else f"{score.seconds:.1f}" for score in scores]
                compared.add_row(str(step), *accuracies, *seconds)
            console.stdout.print(compared)
            minutes = ["never" if side.minutes is None else f"{side.minutes:.2f}" for side in both]
            there, here = (side.machine for side in both)
            console.say(f"minutes: {minutes[0]} on {there.name}, load {there.load:.1f}")
            console.say(f"         {minutes[1]} here, {here.name}, load {here.load:.1f} ({run})")
            for finding in findings:
                show_finding(finding)
        if any(finding.verdict == "problem" for finding in findings):
            raise typer.Exit(1)
        return
    attempt = work.plan(str(name), out, overrides or (), seed, model)
    entry = work.speedrun(attempt, display)
    if as_json:
        print_json_line({"kind": "summary", **entry.model_dump(), "run": str(attempt.run), "entry": str(attempt.entry)})
    else:
        track, last = work.TRACKS[entry.track], entry.scores[-1]
        told = f"{track.threshold:.0%} of {track.questions} held-out questions twice in a row after {entry.steps} steps"
        told += f", {entry.minutes or 0:.2f} minutes of training."
        if entry.minutes is None:
            told = (
                f"never {track.threshold:.0%} twice in a row in {last.step} steps ({last.seconds / 60:.2f} minutes of "
                f"training); the best score was {entry.best:.0%}."
            )
        machine = entry.machine
        console.say(f"{entry.track}: {told}\n{machine.name}, {machine.setup}; load {machine.load:.1f}.")
        if entry.commit is None or not entry.clean:
            console.say("What ran is in no commit; commit it and run again before you send the entry in.")
        console.say(f"entry: {attempt.entry}\nagain: {nrt('speedrun', '--verify', attempt.entry)}")
    if entry.minutes is None:
        raise typer.Exit(1)
