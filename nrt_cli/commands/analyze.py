"""`nrt analyze`: what happened in runs, as a table, its figure and their files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from nrt_analysis.tables import Report

app = typer.Typer(help="Tables and figures of what runs left behind.", no_args_is_help=True)

Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", autocompletion=completion.runs, help="Run directories.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for the files; by default analysis/NAME in the (first) run.", show_default=False),
]

ROWS = 40
"""Rows of a table that the terminal shows; the files have all."""


@app.callback()
def analyze() -> None:
    """Tables and figures of what runs left behind."""


def deliver(report: "Report", out: Path | None, first: Path, as_json: bool) -> None:
    """Store a report and print it: its first table and its notes, or all of it as JSON."""
    from nrt_cli.store.files import write_report

    written = write_report(out or first / "analysis" / report.name, report.files())
    record = report.record() | {"files": [str(path) for path in written]}
    console.result(record, as_json, lambda _: _show(report, written))


def _show(report: "Report", written: list[Path]) -> None:
    from nrt_analysis.tables import shown

    name, frame = next(iter(report.tables.items()))
    table = Table(title=report.name if name == report.name else f"{report.name}: {name}", title_justify="left")
    for column in frame.columns:
        numbers = frame[column].dtype.kind in "fi"
        table.add_column(console.plain(str(column)), justify="right" if numbers else "left", overflow="fold")
    for row in frame.head(ROWS).itertuples(index=False):
        table.add_row(*(console.plain(shown(value)) for value in row))
    console.stdout.print(table)
    for note in report.notes:
        console.stdout.print(console.plain(f"- {note}"))
    folder = written[0].parent
    files = ", ".join(path.name for path in written)
    console.stdout.print(console.plain(f"Written to {folder}: {files}"), soft_wrap=True)


@app.command(epilog="Example: nrt analyze dynamics runs/am runs/ws-neg-log-p")
def dynamics(
    runs: Runs,
    window: Annotated[int, typer.Option(min=1, help="Steps that the thick lines average.")] = 10,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Trace entropy, length, repetition, forced ends, gain and dead groups by step (Fig. 2a-d); where they collapse."""
    from nrt_analysis import dynamics as room
    from nrt_analysis.frames import open_runs

    deliver(room.dynamics(open_runs(runs), window), out, runs[0], as_json)


@app.command(epilog="Example: nrt analyze vocab runs/ws-neg-log-p@400-500")
def vocab(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@STEPS]", autocompletion=completion.runs, help="A run; @30, @0,30 or @10-20 are its steps."
        ),
    ],
    held_out: Annotated[bool, typer.Option("--held-out", help="Held-out traces instead of training's.")] = False,
    stop_words: Annotated[
        Path | None, typer.Option(help="File of stop words, one a line; default: English ones.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=30, help="Words ranked in each direction.")] = 12,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Words that traces use more and less than the reference answers, and two word clouds (Fig. 4)."""
    from nrt_analysis import vocabulary as room
    from nrt_analysis.frames import HELD_OUT, STEP

    from nrt_cli.store.reference import Reference

    reference = Reference.parse(run)
    stop = _words_in(stop_words) if stop_words else room.STOPWORDS
    report = room.vocabulary(reference, HELD_OUT if held_out else STEP, stop, top)
    deliver(report, out, reference.path, as_json)


def _words_in(file: Path) -> frozenset[str]:
    try:
        return frozenset(file.read_text(encoding="utf-8").lower().split())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: no stop words can be read there ({error}).") from None


@app.command(epilog="Example: nrt analyze cases runs/sft runs/am runs/ws-neg-log-p --generate --n 2")
def cases(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[@STEP]...", autocompletion=completion.runs, help="Runs to compare.", show_default=False
        ),
    ],
    n: Annotated[int | None, typer.Option("--n", min=1, help="Questions; default: 3.", show_default=False)] = None,
    training: Annotated[bool, typer.Option("--training", help="Training's traces instead of held-out ones.")] = False,
    generate: Annotated[
        bool, typer.Option("--generate", help="Let the models think and answer now, greedily.")
    ] = False,
    question: Annotated[list[str] | None, typer.Option(help="Ask this instead; implies --generate.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Cap on a generated trace and answer; default: 256.", show_default=False)
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The same questions across runs, side by side (Table 10): stored traces, or traces and answers made now."""
    from nrt_analysis import cases as room
    from nrt_analysis.frames import HELD_OUT, STEP

    from nrt_cli.store.reference import Reference

    references = [Reference.parse(run) for run in runs]
    kind = STEP if training else HELD_OUT
    if question and (n or training):
        raise ConfigError("--n and --training have no effect with --question, which says what to ask.")
    if not (generate or question):
        if max_tokens:
            raise ConfigError("--max-tokens has no effect on stored traces; add --generate.")
        deliver(room.stored_cases(references, kind, n or 3), out, references[0].path, as_json)
        return
    from nrt_cli.workflows.cases import generate_cases

    asked = question or room.stored_questions(references, n or 3, kind)
    models = dict(zip(room.case_labels(references), runs, strict=True))
    cap = max_tokens or 256
    rows = generate_cases(models, asked, cap, cap, console.note)
    how = f"generated greedily, at most {cap} tokens of trace and of answer"
    deliver(room.generated_cases(rows, how), out, references[0].path, as_json)
