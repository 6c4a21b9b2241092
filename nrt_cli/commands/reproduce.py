"""`nrt reproduce`: a whole study, from data and model to the report, in one command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import NrtError

if TYPE_CHECKING:
    from analysis.report.contents import Contents
    from nrt_cli.config.study import StudyConfig

EXAMPLE = "Example: nrt reproduce laptop"


def reproduce(
    study: Annotated[
        str,
        typer.Argument(
            autocompletion=completion.studies, help="laptop, paper-3b, paper-mistral-7b, paper-8b, or a YAML file."
        ),
    ] = "laptop",
    out: Annotated[Path | None, typer.Option(help="The study's folder; default: studies/STUDY.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: as the study says.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the study: --set run.train.steps=40.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes and which commands it is; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study: every method and seed on the same data, evaluation, report. What is there already is kept."""
    from nrt_cli.config.study import load_study

    asked = load_study(study, overrides or [], jobs)
    folder = out or Path("studies") / Path(study).stem
    if dry_run:
        _plan(asked, folder, as_json)
        return
    from nrt_cli.commands.report import DEFAULT, make_report, require_packages
    from nrt_cli.progress import choose_for_study
    from nrt_cli.workflows.reproduce import reproduce as run_study

    require_packages()
    with choose_for_study() as display:
        outcome = run_study(folder, asked, display)
    try:
        _look_into(asked, folder)
    except NrtError as error:  # what is asked beyond the scores must not cost the report
        console.warn(str(error))
    contents, written = make_report([folder], folder / "report", DEFAULT.split(","))
    record = outcome | {"report": contents.record(), "files": [str(path) for path in written]}
    console.result(record, as_json, lambda _: _show(outcome, contents, written))
    if _unfinished(outcome):
        raise typer.Exit(1)


def _unfinished(outcome: dict[str, Any]) -> dict[str, str]:
    """Why runs are not finished, by name."""
    return {name: run["reason"] for name, run in outcome["runs"].items() if run["status"] != "finished"}


def _show(outcome: dict[str, Any], contents: "Contents", written: list[Path]) -> None:
    from nrt_cli.commands.report import show_report

    show_report(contents, written)
    if missing := _unfinished(outcome):
        for name, reason in missing.items():
            console.warn(f"{name} has no result: {reason}")
        console.note("the same command tries them again; the results of the others stand.")


def _look_into(asked: "StudyConfig", folder: Path) -> None:
    """What the report shows besides scores and dynamics, and takes models to find out."""
    from analysis.tokens import token_report
    from nrt_cli.progress import counted
    from nrt_cli.store.reports import write_report
    from nrt_cli.workflows.study_analysis import score_pairs, score_questions

    with counted("pairs") as report:
        if scored := score_pairs(folder, asked, report):
            sft, *others = scored
            found = token_report(sft.table, {model.label: model.table for model in others}, sft.parts)
            write_report(folder / "analysis" / "tokens", found.files())
        score_questions(folder, asked, report)


def _plan(asked: "StudyConfig", folder: Path, as_json: bool) -> None:
    """What a study takes, without making any of it."""
    from nrt_cli.workflows.study_plan import plan_study

    console.result(plan_study(folder, asked), as_json, _render_plan)


def _render_plan(plan: dict[str, Any]) -> None:
    console.stdout.print(console.plain(f"{plan['title']}: {len(plan['runs'])} runs in {plan['study']}"))
    if total := plan["total"]:
        table = Table("one run", "", title="The longest run", title_justify="left")
        for what, value in plan["plan"]:
            table.add_row(*map(console.plain, (what, value)))
        console.stdout.print(table)
        hours = f"{total['gpu_hours']:,.0f} GPU-hours expected, {total['gpu_hours_most']:,.0f} at the caps"
        console.stdout.print(f"all runs: {hours}, {total['disk'] / 1e9:,.0f} GB of disk, evaluation not counted")
    else:
        console.stdout.print("data and model are made by the study itself; no time is predicted for it")
    console.stdout.print("commands:")
    for command in plan["commands"]:
        console.stdout.print(console.plain(f"  {command}"), soft_wrap=True)
