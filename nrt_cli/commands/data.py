"""`nrt data`: turn question-answer pairs of any common shape into what training reads."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from nrt_cli import console
from nrt_cli.commandline import nrt
from nrt_cli.errors import DataError

if TYPE_CHECKING:
    from nrt_cli.data.prepare import Tokenizer

app = typer.Typer(help="Prepare question-answer pairs for training.", no_args_is_help=True)

_PLAIN_SECONDS = 10.0
COLUMNS_SHOWN = 8

SOURCES_HELP = (
    "Any of: .jsonl, .json, .csv or .parquet files, folders of them, hub:OWNER/NAME?split=train&config=NAME, "
    "generated:sums,shopping?size=2000&seed=0, reasoning-gym:chain_sum?size=2000."
)
EXAMPLE = "Example: nrt data prepare qa.jsonl --out data/qa --validation 0.05 --size 2000"


@app.callback()
def data() -> None:
    """Prepare question-answer pairs for training."""


@app.command(epilog=EXAMPLE)
def prepare(
    sources: Annotated[list[str], typer.Argument(help=SOURCES_HELP, show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map",
            help="Your column names: question=COLUMN,answer=COLUMN, and where there are such, context=COLUMN (which "
            "follows the question), system=COLUMN, source=COLUMN; or messages=COLUMN.",
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Use a random subset of this many pairs.")] = None,
    train: Annotated[
        int | None,
        typer.Option(min=1, help="Train on exactly this many pairs, drawn from what is left and not held out."),
    ] = None,
    stratify: Annotated[
        bool, typer.Option("--stratify", help="Subset and split each source in its proportion.")
    ] = False,
    validation: Annotated[
        str,
        typer.Option(help="Questions to hold out, with all their answers: a number (200) or a share (0.05)."),
    ] = "0",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Decides the subset and the split.")] = 0,
    selection: Annotated[
        Literal["content", "train-test-split"],
        typer.Option(
            help="content: drops rows, then draws by what is in them. train-test-split: draws all rows as Hugging Face "
            "datasets' train_test_split(seed=SEED, test_size=VALIDATION) does, takes the first SIZE to train on, then "
            "drops."
        ),
    ] = "content",
    duplicates: Annotated[bool, typer.Option("--keep-duplicates", help="Keep rows that are the same.")] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Model folder whose tokenizer measures the limits.", show_default=False)
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Drop longer prompts, chat template included.")
    ] = None,
    max_answer_tokens: Annotated[int | None, typer.Option(min=1, help="Drop longer answers, eos included.")] = None,
    grader: Annotated[
        str | None,
        typer.Option(
            help="How answers are graded: number, math, choice, exact, none or MODULE:FUNCTION; kept with the data. "
            "Without it, guessed from each source's answers.",
            show_default=False,
        ),
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            help="A last line for every question, such as 'Answer with one short equation.'; who is trained on it is "
            "asked with it, too.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first row that cannot be read, instead of leaving it out.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older output of this command.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Filter, dedupe, sample and split question-answer pairs, and write them as Parquet.

    Rows are chat messages (OpenAI's or ShareGPT's), prompt + completion, question + answer, instruction + input +
    output (Alpaca), instruction + context + response (Dolly), verl's, or --map. A row that cannot be read is left out,
    counted, and listed in dropped.jsonl with its reason.
    """
    from nrt_cli.data import prepare as room
    from nrt_cli.data.columns import parse_mapping

    settings = room.Settings(
        mapping=parse_mapping(mapping) if mapping else {},
        size=size,
        stratify=stratify,
        validation=_number_or_share(validation),
        seed=seed,
        max_prompt_tokens=max_prompt_tokens,
        max_answer_tokens=max_answer_tokens,
        grader=grader,
        suffix=(suffix or "").strip() or None,
        train=train,
        duplicates=duplicates,
        selection=selection,
    )
    measure = _tokenizer(tokenizer, settings)
    with _progress() as report:
        manifest, unchanged = room.prepare(sources, out, settings, measure, overwrite, report, strict)
    if unchanged:
        console.note(f"{out} already holds exactly this; nothing was written.")
        if settings.validation and "questions" not in manifest:
            console.note("An earlier version made it, which split by row: --overwrite splits it by question.")
    console.result(manifest, as_json, lambda _: _show(manifest, out))


def _number_or_share(text: str) -> int | float:
    """`200` is questions, `0.05` a share. Raises DataError for anything else."""
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = -1
    if value < 0 or (isinstance(value, float) and not 0 < value < 1):
        raise DataError(
            f"--validation {text}: give a number of questions, such as 200, or a share below 1, such as 0.05."
        )
    return value


def _tokenizer(folder: Path | None, settings: Any) -> "Tokenizer | None":
    """The tokenizer that limits in tokens need. Raises DataError where one is given without the other."""
    limited = settings.max_prompt_tokens or settings.max_answer_tokens
    if limited and not folder:
        raise DataError("--max-prompt-tokens and --max-answer-tokens need --tokenizer FOLDER to count tokens.")
    if folder and not limited:
        raise DataError("--tokenizer has no effect without --max-prompt-tokens or --max-answer-tokens.")
    if not folder:
        return None
    from nrt_cli.data.prepare import Tokenizer, tokenizer_fingerprint
    from nrt_cli.models.loading import load_tokenizer

    return Tokenizer(load_tokenizer(folder), tokenizer_fingerprint(folder))


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """Rows done so far on stderr: a live line on a terminal, else a plain line now and then."""
    if not console.stderr.is_terminal:
        yield _plain_lines()
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=console.stderr, transient=True) as display:
        task = display.add_task("reading", total=None)
        yield lambda stage, rows: display.update(task, description=stage, completed=rows)


def _plain_lines() -> Callable[[str, int], None]:
    last = time.monotonic()

    def report(stage: str, rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_SECONDS:
            last = time.monotonic()
            console.note(f"{stage}: {rows:,} rows")

    return report


def _show(manifest: dict[str, Any], out: Path) -> None:
    counts = manifest["counts"]
    lines = [("rows read", counts["read"]), *((f"dropped, {why}", n) for why, n in counts["dropped"].items())]
    lines += [("kept", counts["kept"]), ("train", counts["train"]), ("validation", counts["validation"])]
    questions = manifest.get("questions", {})
    if any(count != counts[split] for split, count in questions.items()):
        lines += [(f"different questions in {split}", count) for split, count in questions.items()]
    if manifest.get("textless_turns"):
        lines.append(("turns without text left out", manifest["textless_turns"]))
    summary = Table.grid(padding=(0, 2))
    summary.add_column()
    summary.add_column(justify="right")
    for label, count in lines:
        summary.add_row(label, f"{count:,}")
    console.stdout.print(summary)
    console.stdout.print(_composition(manifest["composition"], manifest.get("graders", {})))
    for text in _left_out(manifest, out):
        console.stdout.print(console.plain(text), soft_wrap=True)
    console.stdout.print(console.plain(f"Written to {out}: {', '.join(manifest['outputs'])}"), soft_wrap=True)
    words: list[str | Path] = ["train", "laptop", "--model", "MODEL", "--data", out / "train.parquet"]
    words += ["--validation", out / "validation.parquet"] if counts["validation"] else []
    following = nrt(*words)
    console.stdout.print(console.plain(f"Next: {following}"), soft_wrap=True)


def _left_out(manifest: dict[str, Any], out: Path) -> Iterator[str]:
    """What was not read, in words: rows, then columns."""
    if unreadable := manifest["counts"]["dropped"].get("unreadable"):
        rows = "1 row" if unreadable == 1 else f"{unreadable:,} rows"
        yield f"{rows} could not be read, listed with the reason in {out / 'dropped.jsonl'}:"
        yield from (f"  {text}" for text in manifest["unreadable"])
        if unreadable > len(manifest["unreadable"]):
            yield "  ..."
    if traces := manifest.get("traces"):
        yield (
            f"Reference traces: {traces['train']:,} rows to train on have one; `nrt train --method sft --set "
            "data.traces=true` learns from them."
        )
    if unused := manifest.get("unused_columns"):
        named = [f"{name} ({rows:,} rows)" for name, rows in unused.items()]
        more = f" and {len(named) - COLUMNS_SHOWN} more" if len(named) > COLUMNS_SHOWN else ""
        yield (
            f"Columns that hold something and were not used: {', '.join(named[:COLUMNS_SHOWN])}{more}. "
            "--map can name question, answer, context, system, source and trace."
        )


def _composition(rows: list[dict[str, Any]], graders: dict[str, str]) -> Table:
    """Table 4 of the paper: sources by count, with a total; and how their answers are graded."""
    table = Table("source")
    for header in ("count", "percentage"):
        table.add_column(header, justify="right")
    table.add_column("grader")
    for row in rows:
        share = f"{row['percentage']:.2f}%"
        grader = console.plain(graders.get(row["source"], ""))
        table.add_row(console.plain(row["source"]), f"{row['count']:,}", share, grader)
    table.add_section()
    table.add_row("total", f"{sum(row['count'] for row in rows):,}", "100.00%", "")
    return table
