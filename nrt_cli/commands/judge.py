"""`nrt judge`: an LLM scores the traces of a run's checkpoints."""

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.analyze import Out, deliver
from nrt_cli.commands.config import AsJson, Overrides

if TYPE_CHECKING:
    from nrt_cli.judging.judge import Outcome
    from nrt_cli.judging.plan import Plan

EXAMPLE = "Example: nrt judge runs/am runs/ws-neg-log-p@0,30 --n 100 --max-cost 0.50"


def judge(
    runs: Annotated[
        list[str],
        Argument(
            metavar="RUN@STEPS...",
            autocompletion=completion.runs,
            help="Runs; runs/a@30, runs/a@0,30 or runs/a@10-20 for some steps.",
        ),
    ],
    n: Annotated[int | None, Option(min=1, help="Held-out examples per checkpoint; default 100.")] = None,
    judges: Annotated[
        list[str] | None, Option("--judge", help="The judge's model name; repeat it for several judges.")
    ] = None,
    template: Annotated[
        str | None, Option(help="What to ask: your YAML, or one prompt as text; default: the shipped one.")
    ] = None,
    max_cost: Annotated[float | None, Option(min=0.0, help="US dollars that this call may spend.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Count requests, tokens and cost; ask nothing.")] = False,
    overrides: Overrides = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Let an LLM score held-out traces by checkpoint (Fig. 2e-f). What was judged before is not asked again.

    Address and key of an OpenAI-compatible endpoint are read from OPENAI_BASE_URL and OPENAI_API_KEY.
    """
    from nrt_cli import config
    from nrt_cli.judging.judge import estimate
    from nrt_cli.judging.plan import make_plan

    flags = {key: value for key, value in (("n", n), ("models", judges), ("template", template)) if value is not None}
    plan = make_plan(runs, [*map(config.parse_override, overrides or []), {"judge": flags}])
    for note in plan.notes:
        console.note(note)
    if dry_run:
        rows = estimate(plan)
        table = console.table(*(name if name == "judge" else f">{name}" for name in rows[0]))
        for row in rows:
            cells = (f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" for value in list(row.values())[1:])
            table.add_row(console.plain(row["judge"]), *("no price" if cell == "nan" else cell for cell in cells))
        console.result(rows, as_json, lambda _: console.stdout.print(table))
        return
    outcome = ask_judges(plan, max_cost)
    if outcome.judged or outcome.reused:
        from nrt_analysis.frames import open_runs
        from nrt_analysis.judge_report import judged

        labelled = open_runs([run.path for run in plan.runs])
        steps = dict(zip(labelled, (steps for _, steps in plan.steps), strict=True))
        report = judged(labelled, steps, {question.key for question in plan.questions})
        deliver(report, out, plan.runs[0].path, as_json)
    outcome.require_whole()


def ask_judges(plan: "Plan", max_cost: float | None) -> "Outcome":
    """Ask, and say what came of it."""
    from nrt_cli.judging.judge import dollars
    from nrt_cli.judging.judge import judge as run_judges
    from nrt_cli.progress import counted

    with counted("requests") as report:
        outcome = run_judges(plan, max_cost, report)
    console.note(f"{outcome.judged} requests, {dollars(outcome.cost)}; {outcome.reused} traces were judged before")
    return outcome
