"""`nrt data`: turn question-answer pairs of any common shape into what training reads."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commandline import nrt
from nrt_cli.commands.config import no_effect
from nrt_cli.errors import DataError
from nrt_cli.methods import SUPERVISED

app = typer.Typer(help="Prepare question-answer pairs for training.", no_args_is_help=True)

COLUMNS_SHOWN = 8

SOURCES_HELP = (
    "Any of: .jsonl, .json, .csv or .parquet files, folders of them, hub:OWNER/NAME?split=train&config=NAME, "
    "generated:sums,shopping?size=2000&seed=0, reasoning-gym:chain_sum?size=2000, builtin:squad."
)
EXAMPLE = "Example: nrt data prepare qa.jsonl --out data/qa --validation 0.05 --size 2000"


@app.callback()
def data() -> None:
    """Prepare question-answer pairs for training."""


@app.command(epilog=EXAMPLE)
def prepare(
    sources: Annotated[list[str], Argument(help=SOURCES_HELP)],
    out: Annotated[Path, Option(help="Folder to write.")],
    mapping: Annotated[
        str | None,
        Option(
            "--map",
            help="Your column names: question=COLUMN,answer=COLUMN, and where there are such, context=COLUMN (which "
            "follows the question), system=COLUMN, source=COLUMN; or messages=COLUMN.",
        ),
    ] = None,
    size: Annotated[int | None, Option(min=1, help="Use a random subset of this many pairs.")] = None,
    train: Annotated[
        int | None, Option(min=1, help="Train on exactly this many pairs, drawn from what is left and not held out.")
    ] = None,
    stratify: Annotated[bool, Option("--stratify", help="Subset and split each source in its proportion.")] = False,
    validation: Annotated[
        str, Option(help="Questions to hold out, with all their answers: a number (200) or a share (0.05).")
    ] = "0",
    seed: Annotated[
        int | None, Option(min=0, max=2**63 - 1, help="Decides the subset and the split; default: 0.")
    ] = None,
    selection: Annotated[
        Literal["content", "train-test-split"],
        Option(
            help="content: drops rows, then draws by what is in them. train-test-split: draws all rows as Hugging Face "
            "datasets' train_test_split(seed=SEED, test_size=VALIDATION) does, takes the first SIZE to train on, then "
            "drops."
        ),
    ] = "content",
    duplicates: Annotated[bool, Option("--keep-duplicates", help="Keep rows that are the same.")] = False,
    tokenizer: Annotated[Path | None, Option(help="Model folder whose tokenizer measures the limits.")] = None,
    max_prompt_tokens: Annotated[int | None, Option(min=1, help="Drop longer prompts, chat template included.")] = None,
    max_answer_tokens: Annotated[int | None, Option(min=1, help="Drop longer answers, eos included.")] = None,
    grader: Annotated[
        str | None,
        Option(
            help="How answers are graded: number, math, choice, exact, code (the answer is a program's tests), none or "
            "MODULE:FUNCTION; kept with the data. "
            "Without it, guessed from each source's answers."
        ),
    ] = None,
    suffix: Annotated[
        str | None,
        Option(
            help="A last line for every question, such as 'Answer with one short equation.'; who is trained on it is "
            "asked with it, too."
        ),
    ] = None,
    spans: Annotated[
        str | None,
        Option(
            metavar="CONTEXT:CONTINUATION[:STRIDE]",
            help="Cut plain text (.txt, .md, or a column `text`) into examples: so many of the --tokenizer's tokens of "
            "context, the prompt, and of what follows it there, the answer; such as 256:64. STRIDE tokens on the next "
            "one begins; default: CONTINUATION. `nrt help data` says more.",
        ),
    ] = None,
    strict: Annotated[
        bool, Option("--strict", help="Stop at the first row that cannot be read, instead of leaving it out.")
    ] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an older output of this command.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Filter, dedupe, sample and split question-answer pairs, and write them as Parquet.

    Rows are chat messages (OpenAI's or ShareGPT's), prompt + completion, question + answer, instruction + input +
    output (Alpaca), instruction + context + response (Dolly), verl's, or --map. A row that cannot be read is left out,
    counted, and listed in dropped.jsonl with its reason.
    """
    from nrt_cli.data import prepare as room
    from nrt_cli.data.columns import parse_mapping
    from nrt_cli.progress import counted

    try:  # 200 is questions, 0.05 a share
        held_out = float(validation) if "." in validation else int(validation)
    except ValueError:
        held_out = -1
    if held_out < 0 or (isinstance(held_out, float) and not 0 < held_out < 1):
        raise DataError(
            f"--validation {validation}: give a number of questions, such as 200, or a share below 1, such as 0.05."
        )
    if not (size or train or held_out):
        no_effect("without --size, --train or --validation", seed=seed)
    settings = room.Settings(
        mapping=parse_mapping(mapping) if mapping else {}, size=size, stratify=stratify, validation=held_out,
        seed=seed or 0, max_prompt_tokens=max_prompt_tokens, max_answer_tokens=max_answer_tokens, grader=grader,
        suffix=(suffix or "").strip() or None, train=train, duplicates=duplicates, selection=selection, spans=spans,
    )  # fmt: skip
    limited = max_prompt_tokens or max_answer_tokens
    if limited and not tokenizer:
        raise DataError("--max-prompt-tokens and --max-answer-tokens need --tokenizer FOLDER to count tokens.")
    if tokenizer and not (limited or spans):
        raise DataError("--tokenizer has no effect without --max-prompt-tokens, --max-answer-tokens or --spans.")
    measure = None
    if tokenizer:
        from nrt_cli.models.loading import load_tokenizer

        measure = room.Tokenizer(load_tokenizer(tokenizer), room.tokenizer_fingerprint(tokenizer))
    with counted("rows") as report:
        manifest, unchanged = room.prepare(sources, out, settings, measure, overwrite, report, strict)
    if unchanged:
        console.note(f"{out} already holds exactly this; nothing was written.")
        if settings.validation and "questions" not in manifest:
            console.note("An earlier version made it, which split by row: --overwrite splits it by question.")
    if console.result(manifest, as_json):
        return
    # What was read, Table 4 of the paper with how answers are graded, what was left out, and what to do next.
    counts = manifest["counts"]
    lines = [("rows read", counts["read"]), *((f"dropped, {why}", n) for why, n in counts["dropped"].items())]
    lines += [("kept", counts["kept"]), ("train", counts["train"]), ("validation", counts["validation"])]
    questions = manifest.get("questions", {})
    if any(count != counts[split] for split, count in questions.items()):
        lines += [(f"different questions in {split}", count) for split, count in questions.items()]
    if manifest.get("textless_turns"):
        lines.append(("turns without text left out", manifest["textless_turns"]))
    rows = ((label, f"{count:,}") for label, count in lines)
    style: dict[str, Any] = {"box": None, "show_header": False, "pad_edge": False, "padding": (0, 2, 0, 0)}
    console.stdout.print(console.table("", ">", rows=rows, **style))
    composition, graders = manifest["composition"], manifest.get("graders", {})
    table = console.table("source", ">count", ">percentage", "grader")
    for row in composition:
        cells = (row["source"], f"{row['count']:,}", f"{row['percentage']:.2f}%", graders.get(row["source"], ""))
        table.add_row(*map(console.plain, cells))
    table.add_section()
    table.add_row("total", f"{sum(row['count'] for row in composition):,}", "100.00%", "")
    console.stdout.print(table)
    if unreadable := counts["dropped"].get("unreadable"):
        many = "1 row" if unreadable == 1 else f"{unreadable:,} rows"
        console.say(f"{many} could not be read, listed with the reason in {out / 'dropped.jsonl'}:")
        for text in manifest["unreadable"] + (["..."] if unreadable > len(manifest["unreadable"]) else []):
            console.say(f"  {text}")
    if traces := manifest.get("traces"):
        console.say(
            f"Reference traces: {traces['train']:,} rows to train on have one; `nrt train --method {SUPERVISED.name} "
            "--set data.traces=true` learns from them."
        )
    if unused := manifest.get("unused_columns"):
        named = [f"{name} ({rows:,} rows)" for name, rows in unused.items()]
        more = f" and {len(named) - COLUMNS_SHOWN} more" if len(named) > COLUMNS_SHOWN else ""
        console.say(
            f"Columns that hold something and were not used: {', '.join(named[:COLUMNS_SHOWN])}{more}. "
            "--map can name question, answer, context, system, source and trace."
        )
    console.say(f"Written to {out}: {', '.join(manifest['outputs'])}")
    words: list[str | Path] = ["train", "laptop", "--model", "MODEL", "--data", out / "train.parquet"]
    words += ["--validation", out / "validation.parquet"] if counts["validation"] else []
    console.say(f"Next: {nrt(*words)}")
