"""`nrt reproduce`: a whole study, from data and model to the report, in one command."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import Interrupted, NrtError

if TYPE_CHECKING:
    from nrt_cli.config.study import StudyConfig

EXAMPLE = "Example: nrt reproduce laptop"


def reproduce(
    study: Annotated[
        str,
        Argument(
            autocompletion=completion.studies,
            help="laptop, arena and its like, real, real-2, paper-3b, paper-mistral-7b, paper-8b, or a YAML file.",
        ),
    ] = "laptop",
    out: Annotated[Path | None, Option(help="The study's folder; default: studies/STUDY.")] = None,
    jobs: Annotated[int | None, Option(min=1, help="Runs at a time; default: as the study says.")] = None,
    overrides: Annotated[
        list[str] | None, Option("--set", help="Override a key of the study: --set run.train.steps=40.")
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Say what it takes and which commands it is; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study: every method and seed on the same data, evaluation, report. What is there already is kept."""
    from nrt_cli.config.study import load_study
    from nrt_cli.workflows.study import with_best

    folder = out or Path("studies") / Path(study).stem
    asked = with_best(folder, load_study(study, overrides or [], jobs))
    if dry_run:
        from nrt_cli.checks.estimate import in_bytes
        from nrt_cli.workflows.study import plan_study

        plan = plan_study(folder, asked)
        if console.result(plan, as_json):
            return
        console.stdout.print(console.plain(f"{plan['title']}: {len(plan['runs'])} runs in {plan['study']}"))
        if total := plan["total"]:
            title = {"title": "The longest run", "title_justify": "left"}
            console.stdout.print(console.table("one run", "", rows=plan["plan"], **title))
            expected, scoring = total["gpu_hours"], total["scoring"] / 3600
            hours = f"{expected:,.1f} hours of training on this CPU, a run at a time"
            hours += f"; scores {scoring:,.1f} more at most"
            if math.isnan(expected):
                hours = "no time is predicted"
            elif math.isnan(scoring):
                most = total["gpu_hours_most"]
                hours = f"{expected:,.0f} GPU-hours expected, {most:,.0f} at the caps, evaluation not counted"
            console.stdout.print(f"all runs: {in_bytes(total['disk'])} of disk; {hours}")
        else:
            console.stdout.print("data and model are made by the study itself; no time is predicted for it")
        for judge in plan["judges"]:
            console.stdout.print(console.plain(_judging(*judge.values())))
        console.stdout.print("commands:")
        for command in plan["commands"]:
            console.say(f"  {command}")
        return
    from nrt_cli.commands.report import DEFAULT, make_report, require_packages, show_report
    from nrt_cli.progress import StudyProgress
    from nrt_cli.workflows.study import reproduce as run_study

    require_packages()
    with StudyProgress() as display:
        outcomes = run_study(folder, asked, display)
    for look in (_score_tokens, _ask, _judge):
        try:
            look(asked, folder)
        except Interrupted:
            raise
        except NrtError as error:  # what is asked beyond the scores must not cost the report
            console.warn(str(error))
    contents, written = make_report([folder], folder / "report", DEFAULT.split(","))
    runs = {name: vars(outcome) for name, outcome in outcomes.items()}
    record = {"study": str(folder), "runs": runs, "report": contents.record(), "files": [str(path) for path in written]}
    missing = {name: outcome.reason for name, outcome in outcomes.items() if outcome.status != "finished"}
    if not console.result(record, as_json):
        show_report(contents, written)
        for name, reason in missing.items():
            console.warn(f"{name} has no result: {reason}")
        if missing:
            console.note("the same command tries them again; the results of the others stand.")
    if missing:
        raise typer.Exit(1)


def _score_tokens(asked: "StudyConfig", folder: Path) -> None:
    """Figure 3."""
    from nrt_analysis.formats import write
    from nrt_analysis.token_report import token_report

    from nrt_cli.progress import counted
    from nrt_cli.workflows.study import score_pairs

    with counted("pairs") as report:
        scored = score_pairs(folder, asked, report)
    if scored:
        write(token_report(scored), folder / "analysis" / "tokens", ("csv", "md"))


def _ask(asked: "StudyConfig", folder: Path) -> None:
    """Tables 9 and 10."""
    from nrt_analysis.case_report import generated_cases
    from nrt_analysis.formats import write

    from nrt_cli.progress import counted
    from nrt_cli.workflows.study import answer_questions, score_questions

    with counted("runs") as report:
        score_questions(folder, asked, report)
        rows = answer_questions(folder, asked, report)
    if rows:
        found = generated_cases(rows, "generated greedily, up to the caps of training")
        write(found, folder / "analysis" / "cases", ("csv", "md"))


def _judge(asked: "StudyConfig", folder: Path) -> None:
    """Figures 2e and 2f. What it may cost is said before anything is asked, and is all that is said without a key."""
    from nrt_cli.commands.judge import ask_judges
    from nrt_cli.judging.judge import estimate
    from nrt_cli.workflows.study import judge_plan

    if plan := judge_plan(folder, asked):
        for note in plan.notes:
            console.note(note)
        for row in estimate(plan):
            console.note(_judging(row["judge"], row["requests"], row["dollars (at most)"]))
        ask_judges(plan, asked.analysis.judge_max_cost).require_whole()


def _judging(judge: str, requests: int, dollars: float) -> str:
    """What asking a judge comes to, in one line."""
    return (
        f"judging (Figures 2e and 2f): {requests:,} requests to {judge}, ${dollars:,.2f} at most without repairs; "
        "OPENAI_BASE_URL and OPENAI_API_KEY say where"
    )
