"""`nrt data prepare`: filter, dedupe, subset, split and write question-answer pairs as Parquet.

Two passes keep a million rows in flat memory. The first reads every source once into a Parquet spool and keeps 28
bytes a row: 64-bit hashes of content and question, its number, and its source's. Which rows are used is decided on
those arrays alone; the second pass copies them from the spool to the output.

The hash is keyed by the seed, so its order is the random order: what is chosen depends on content and seed only, not
on the order of rows or on how they were read, and a larger `size` keeps the rows of a smaller one. Rows that ask the
same question are on the same side of the split. Rows can be drawn by their numbers instead (`Settings`).

The output folder appears by one rename, complete or not at all.

Legend: N spooled rows. A row is the 64-bit hashes of its content, keyed by the seed, and of its question, its source's
number, and its own among all rows that were read.
"""

import contextlib
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nrt_cli import __version__
from nrt_cli.data import spans
from nrt_cli.data.columns import OPTIONAL, SPAN, SUFFIX, Message, Pair, read_pair
from nrt_cli.data.sources import NO_TEXT, Source, file_sha256, open_sources
from nrt_cli.errors import DataError
from nrt_cli.files import draft, listing_sha256, read_record, record_text
from nrt_cli.grading import grading
from nrt_cli.grading.grading import find, guess
from nrt_cli.text.prompts import encode_answer, encode_span, render_prompt
from nrt_cli.text.questions import digest, ending_in, normalised

MANIFEST = "manifest.json"
DROPPED = "dropped.jsonl"
SPLITS = ("train", "validation")
REASONS = (
    "unreadable",
    "no-assistant-turn",
    "empty-question",
    "empty-answer",
    "long-prompt",
    "long-answer",
    "duplicate",
)

SHOWN = 3
"""Rows that could not be read of which the manifest says why; `dropped.jsonl` has all of them."""
_COLUMNS = 1000
"""Names of unused columns that are counted: rows may have names of their own."""
_COLUMNS_NAMED = 12
"""Of those, how many a message names."""
GUESSED_FROM = 200
"""Answers of a source that its grader is guessed from."""
_GENERATED = "generated:"
"""What the names of our own generators' sources begin with: the last number of an answer of theirs is what counts."""

_GROUP_ROWS, _GROUP_BYTES = 4096, 1 << 24
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_SPOOL = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _MESSAGES),
        ("answer", pa.string()),
        ("trace", pa.string()),
        ("style", pa.string()),
        ("where", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
    ]
)
OUTPUT = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _MESSAGES),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string()), ("grader", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("where", pa.string())])),
    ]
)
"""Also what verl's RLHFDataset reads."""
_REWARD = OUTPUT.field("reward_model")
WITH_TRACES = OUTPUT.set(
    OUTPUT.get_field_index("reward_model"), _REWARD.with_type(pa.struct([*_REWARD.type, ("trace", pa.string())]))
)
"""The same where a row has a reference trace, beside its reference answer; null where another has none."""

Progress = Callable[[str, int], None]
"""Called now and then with the pass (`reading`, `writing`) and the rows done so far."""


UNUSED, TRAIN, VALIDATION, DUPLICATE = range(4)
"""What becomes of a row."""

Selection = Literal["content", "train-test-split"]


@dataclass(frozen=True)
class Settings:
    """What decides the output, besides the inputs.

    `selection` is how rows are drawn, after or before the others are dropped:

    - content: from those that are left, `size` by the hashes of their contents. `validation` is a number of questions
      (int) or a share of them (float): all rows that ask one of them are held out.
    - train-test-split: from all that were read, by their numbers, as `train_test_split` of Hugging Face datasets draws
      them with seed=`seed` and test_size=`validation`; `size` takes its first training rows. Then rows are dropped.

    `train` is how many rows to train on are drawn of those that are not held out; None takes all. `duplicates` keeps
    rows that are the same. `spans` cuts plain text, as `spans.Spans.parse` reads it; its sections count as questions.
    `grader` is a name of `text.grading`; None keeps what prepared rows name, and guesses one for each other source from
    its answers. `suffix` is a last line for every question; what is chosen does not depend on it.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    stratify: bool = False
    validation: int | float = 0
    seed: int = 0
    max_prompt_tokens: int | None = None
    max_answer_tokens: int | None = None
    grader: str | None = None
    suffix: str | None = None
    train: int | None = None
    duplicates: bool = False
    selection: Selection = "content"
    spans: str | None = None

    def __post_init__(self) -> None:
        """Raises DataError for what has no effect, or cannot be meant together."""
        if self.spans:
            spans.Spans.parse(self.spans)
            for option, value in {"--map": self.mapping, "--suffix": self.suffix, "--grader": self.grader}.items():
                if value:
                    raise DataError(
                        f"{option} is about questions and answers, and --spans cuts plain text; remove one."
                    )
        if self.stratify and not (self.size or self.train or self.validation):
            raise DataError("--stratify has no effect without --size, --train or --validation.")
        if self.selection == "train-test-split":
            if self.stratify:
                raise DataError("--selection train-test-split does not look at sources; leave out --stratify.")
            if not self.validation:
                raise DataError("--selection train-test-split needs --validation, its test_size.")
        elif self.train:
            if self.size:
                raise DataError("--size counts what is held out too, --train what is trained on; give one of them.")
            if isinstance(self.validation, float):
                raise DataError("--train needs a number of questions for --validation, such as 512, not a share.")


@dataclass
class Tally:
    """What the first pass found.

    `hashes`, `questions` and `numbers` (uint64; a row's place among all that were read) and `source_ids` (int32) have
    one entry per spooled row. `unreadable` says of the first rows that could not be read why; `unused` counts the rows
    in which a column holds something that was not read; `graders` are those that prepared sources name, and `traces`
    counts the spooled rows that have one.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    textless: int = 0
    hashes: array = field(default_factory=lambda: array("Q"))
    questions: array = field(default_factory=lambda: array("Q"))
    numbers: array = field(default_factory=lambda: array("Q"))
    source_ids: array = field(default_factory=lambda: array("i"))
    sources: dict[str, int] = field(default_factory=dict)
    graders: dict[str, str] = field(default_factory=dict)
    traces: int = 0


@dataclass(frozen=True)
class Tokenizer:
    """A transformers tokenizer and the sha256 of its files; needed for limits in tokens."""

    tokenizer: Any
    fingerprint: str


def prepare(
    specs: Sequence[str],
    out: Path,
    settings: Settings,
    tokenizer: Tokenizer | None = None,
    overwrite: bool = False,
    progress: Progress = lambda stage, rows: None,
    strict: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Write `out` from the sources; returns its manifest, and whether it was already there and right.

    A row that cannot be read is left out and counted, or with `strict` an error.

    Raises DataError for anything wrong with sources, settings or `out`; then nothing at `out` has changed.
    """
    if settings.grader:
        find(settings.grader)
    sources = open_sources(specs, texts=settings.spans is not None)
    # All that decides the output, as JSON: equal recipes make equal rows.
    recipe = {
        "settings": asdict(settings),
        "inputs": [{"name": source.name, "fingerprint": source.fingerprint()} for source in sources],
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
    }
    if manifest := existing_output(out, recipe, overwrite):
        return manifest, True
    try:
        with draft(out) as folder:
            with (folder / DROPPED).open("w", encoding="utf-8") as log:
                if settings.spans:
                    if tokenizer is None:
                        raise DataError("--spans needs --tokenizer FOLDER: documents are cut by its tokens.")
                    size = spans.Spans.parse(settings.spans)
                    sources = [spans.cut(source, size, tokenizer.tokenizer) for source in sources]
                tally = _spool(sources, settings, tokenizer, folder / "spool.parquet", log, progress, strict)
                if not tally.read:
                    names = ", ".join(source.name for source in sources)
                    raise DataError(f"{names}: no rows, so no question-answer pair.")
                codes_N = choose(tally, settings)
                graders = _graders(folder, tally, codes_N, settings.grader)
                traces = _write(folder, tally, codes_N, graders, settings.suffix, log, progress)
            (folder / "spool.parquet").unlink()
            counts = np.bincount(codes_N, minlength=4).tolist()
            asked_N = np.frombuffer(tally.questions, dtype=np.uint64)
            files = [name for name in (*(f"{split}.parquet" for split in SPLITS), DROPPED) if (folder / name).exists()]
            manifest = {
                "nrt_version": __version__,
                **recipe,
                "counts": {
                    "read": tally.read,
                    "dropped": {reason: tally.dropped[reason] for reason in REASONS if tally.dropped[reason]},
                    "kept": len(codes_N) - counts[DUPLICATE],
                    "train": counts[TRAIN],
                    "validation": counts[VALIDATION],
                },
                "questions": {s: len(np.unique(asked_N[codes_N == code])) for code, s in enumerate(SPLITS, TRAIN)},
                "unreadable": tally.unreadable,
                # Half of a surrogate pair in a column's name is spelled out.
                "unused_columns": {
                    name.encode(errors="backslashreplace").decode(): count for name, count in tally.unused.most_common()
                },
                "textless_turns": tally.textless,
                "composition": composition(tally, codes_N),
                "graders": graders,
                "outputs": {name: file_sha256(folder / name) for name in files},
                **({"traces": traces} if tally.traces else {}),
            }
            (folder / MANIFEST).write_text(record_text(MANIFEST, manifest), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error}); nothing there was changed.") from None
    return manifest, False


def made_with(file: Path) -> str | None:
    """sha256 that the manifest beside a file says it was written with; None where no such manifest is.

    Raises DataError where the manifest is damaged.
    """
    try:
        digest: str | None = (read_record(file.parent / MANIFEST).get("outputs") or {}).get(file.name)
        return digest
    except OSError:
        return None
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{file.parent / MANIFEST}: {error}; make the data again with `nrt data prepare`, or remove that file."
        ) from None


# --- the output folder: it appears by one rename, and replaces nothing unasked ---------------------------------------


def existing_output(out: Path, recipe: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest at `out` where it is what the recipe makes; None where `out` may be written.

    Raises DataError where something else is there: another recipe's output without `overwrite`, or with it anything
    that this command did not write.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = read_record(out / MANIFEST)
    except OSError:
        manifest = {}
    except ValueError as error:
        raise DataError(f"{out / MANIFEST}: {error}; remove {out}, or choose another --out.") from None
    if not {"nrt_version", "settings", "inputs", "outputs"} <= set(manifest):
        raise DataError(f"{out} exists and was not made by `nrt data prepare`; choose another --out.")
    if not overwrite:
        before, now = asdict(Settings()) | manifest["settings"], recipe["settings"]  # an older manifest has fewer
        changed = [f"{key} ({before.get(key)}, now {now[key]})" for key in now if before.get(key) != now[key]]
        changed += [key for key in recipe if key != "settings" and manifest.get(key) != recipe[key]]
        if changed:
            raise DataError(
                f"{out} was made with other {', '.join(changed)}; choose another --out, or replace it with --overwrite."
            )
        outputs = ((out / name, sha256) for name, sha256 in manifest["outputs"].items())
        if any(not path.is_file() or file_sha256(path) != sha256 for path, sha256 in outputs):
            raise DataError(f"{out} was changed since it was made; replace it with --overwrite.")
        return manifest
    known = {MANIFEST, DROPPED, *manifest["outputs"]}
    if foreign := sorted(path.name for path in out.iterdir() if path.name not in known):
        raise DataError(f"{out} holds {foreign[0]}, which --overwrite would delete; move it or choose another --out.")
    return None


# --- pass 1: sources -> spool ---------------------------------------------------------------------------------------


def _spool(
    sources: Sequence[Source],
    settings: Settings,
    tokenizer: Tokenizer | None,
    path: Path,
    log: TextIO,
    progress: Progress,
    strict: bool,
) -> Tally:
    """Every pair that passes the filters, in input order, to a Parquet file at `path`; the others to `log`."""
    tally = Tally()
    unseen = [column for ours, column in settings.mapping.items() if ours in OPTIONAL]
    with pq.ParquetWriter(path, _SPOOL) as writer:
        rows: list[dict[str, Any]] = []
        size = 0
        for source in sources:
            before, unreadable = tally.read, tally.dropped["unreadable"]
            for row in source.rows():
                tally.read += 1
                unseen = [column for column in unseen if column not in row.values]
                if tally.read % 1000 == 0:
                    progress("reading", tally.read)
                try:
                    pair = read_pair(row, settings.mapping)
                    content, question = hashes(pair, settings.seed)
                    if not pair.lacks:
                        *earlier, last = pair.messages
                        asked = last | {"content": ending_in(last["content"], settings.suffix)}
                        pair = pair if pair.span else replace(pair, messages=[*earlier, asked])
                    # Characters, and tokens as training will see them: x rendered, y* with its eos.
                    answer = pair.answer or ""
                    lengths = {"prompt_chars": prompt_chars(pair.messages), "answer_chars": len(answer)}
                    if tokenizer and pair.span and not pair.lacks:
                        parts = encode_span(tokenizer.tokenizer, pair.messages[0]["content"], answer)
                        lengths["prompt_tokens"], lengths["answer_tokens"] = map(len, parts)
                    elif tokenizer and not pair.lacks:
                        try:
                            lengths["prompt_tokens"] = len(render_prompt(tokenizer.tokenizer, pair.messages))
                        except DataError as error:
                            raise DataError(f"{pair.where}: {error}") from None
                        lengths["answer_tokens"] = len(encode_answer(tokenizer.tokenizer, answer))
                except DataError as error:
                    if strict:
                        raise
                    tally.dropped["unreadable"] += 1
                    if len(tally.unreadable) < SHOWN:
                        tally.unreadable.append(str(error))
                    _log_drop(log, row.where, "unreadable", {"why": str(error).removeprefix(f"{row.where}: ")})
                    continue
                tally.textless += pair.textless
                for name in pair.unused:
                    if name in tally.unused or len(tally.unused) < _COLUMNS:
                        tally.unused[name] += 1
                reason = pair.lacks
                if not reason and settings.max_prompt_tokens and lengths["prompt_tokens"] > settings.max_prompt_tokens:
                    reason = "long-prompt"
                if not reason and settings.max_answer_tokens and lengths["answer_tokens"] > settings.max_answer_tokens:
                    reason = "long-answer"
                if reason:
                    tally.dropped[reason] += 1
                    _log_drop(log, pair.where, reason, lengths)
                    continue
                tokens = {name: lengths.get(name) for name in ("prompt_tokens", "answer_tokens")}
                row_of = {"data_source": pair.source, "prompt": pair.messages, "answer": pair.answer}
                row_of |= {"style": SPAN if pair.span else "nrt", "trace": pair.trace or None, "where": pair.where}
                rows.append({**row_of, **tokens})
                size += lengths["prompt_chars"] + lengths["answer_chars"]
                tally.hashes.append(content)
                tally.questions.append(question)
                tally.numbers.append(tally.read - 1)
                tally.source_ids.append(tally.sources.setdefault(pair.source, len(tally.sources)))
                tally.traces += bool(pair.trace)
                if pair.grader:
                    tally.graders.setdefault(pair.source, pair.grader)
                if len(rows) == _GROUP_ROWS or size >= _GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(rows, _SPOOL))
                    rows, size = [], 0
            if (found := tally.read - before) and tally.dropped["unreadable"] - unreadable == found:
                first = tally.unreadable[-1]
                many = f"{source.name}: none of its {found:,} rows can be read; one of them: {first}"
                raise DataError(first if found == 1 else many)
        writer.write_table(pa.Table.from_pylist(rows, _SPOOL))
    if unseen and tally.hashes:
        others = ", ".join(map(repr, list(tally.unused)[:_COLUMNS_NAMED])) or "none"
        raise DataError(f"--map names column {unseen[0]!r}, which no row has; columns that are not used: {others}.")
    progress("reading", tally.read)
    return tally


def hashes(pair: Pair, seed: int) -> tuple[int, int]:
    """64 bits of prompt, answer and trace, keyed by the seed; and of the prompt alone, however its letters are cased.

    Two different pairs of a million share one with probability 3e-8; the later would be dropped as a duplicate.
    """
    turns = [(message["role"], message["content"]) for message in pair.messages]
    question = "\n".join(f"{role} {normalised(content)}" for role, content in turns)  # contents have no line ends now
    try:
        pair.source.encode()  # is written too
        reply = [pair.trace] if pair.trace else []
        content = digest(json.dumps([turns, pair.answer, *reply], ensure_ascii=False), seed)
        return content, digest(pair.section or question)
    except UnicodeEncodeError:
        raise DataError(f"{pair.where}: {NO_TEXT}.") from None


def prompt_chars(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _log_drop(log: TextIO, where: str, reason: str, about: Mapping[str, Any]) -> None:
    log.write(json.dumps({"where": where, "reason": reason, **about}, ensure_ascii=False) + "\n")


# --- which rows are used, and in which split: decided on arrays, without the rows ------------------------------------


def choose(tally: Tally, settings: Settings) -> np.ndarray:
    """codes_N (uint8): unused, train, validation or duplicate. Counts duplicates in `tally`."""
    hashes_N = np.frombuffer(tally.hashes, dtype=np.uint64)
    # How many of the rows before each are the same: 0 for the first of its content.
    by_hash = np.argsort(hashes_N, kind="stable")
    first = np.concatenate([[True], np.diff(hashes_N[by_hash]) != 0])[: len(by_hash)]
    places = np.arange(len(by_hash))
    copies_N = np.empty(len(by_hash), dtype=np.uint64)
    copies_N[by_hash] = places - np.maximum.accumulate(np.where(first, places, 0))
    kept = np.arange(len(hashes_N)) if settings.duplicates else np.flatnonzero(copies_N == 0)
    if duplicates := len(hashes_N) - len(kept):
        tally.dropped["duplicate"] = duplicates
    listed = ", ".join(f"{count:,} {reason}" for reason, count in tally.dropped.items())
    of_rows = f"{tally.read:,} rows" + (f" (dropped: {listed})" if listed else "")
    if not len(kept):
        raise DataError(
            f"No question-answer pair is left of {of_rows}."
            + (f" The first that cannot be read: {tally.unreadable[0]}" if tally.unreadable else "")
        )
    ids_N = np.frombuffer(tally.source_ids, dtype=np.int32)
    names = list(tally.sources) if settings.stratify else None
    share = settings.validation
    if settings.selection == "content":
        # Copies of a row are as far apart in the random order as any rows: adding a large odd number wraps around.
        keys_N = hashes_N + copies_N * np.uint64(0x9E3779B97F4A7C15)
        if settings.size is not None and settings.size > len(kept):
            raise DataError(
                f"--size {settings.size:,} asks for more than the {len(kept):,} pairs that are left of {of_rows}; "
                "lower it."
            )
        size = len(kept) if settings.size is None else settings.size
        used = take(kept[np.argsort(keys_N[kept])], ids_N, size, names)
        # take() may group by source; back into the random order, of which the questions held out are the beginning.
        used = used[np.argsort(keys_N[used])]
        questions_N = np.frombuffer(tally.questions, dtype=np.uint64)
        asked = np.sort(np.unique(questions_N[used], return_index=True)[1])  # of each question, its first row in `used`
        count = round(share * len(asked)) if isinstance(share, float) else share
        if share and not 0 < count < len(asked):
            raise DataError(
                f"--validation {share} would hold out {count:,} of {len(asked):,} questions; leave some on both sides."
            )
        is_held_out = np.isin(questions_N[used], questions_N[take(used[asked], ids_N, count, names)])
        train, held_out = used[~is_held_out], used[is_held_out]
    else:
        # As Hugging Face datasets' `train_test_split` draws from all rows that were read.
        count = math.ceil(share * tally.read) if isinstance(share, float) else share
        if not 0 < count < tally.read:
            raise DataError(
                f"--validation {share} would hold out {count:,} of {tally.read:,} rows; leave some on both sides."
            )
        place = np.empty(tally.read, dtype=np.int64)
        place[np.random.default_rng(settings.seed).permutation(tally.read)] = np.arange(tally.read)
        places = place[np.frombuffer(tally.numbers, dtype=np.uint64)[kept]]
        in_order, places = kept[np.argsort(places)], np.sort(places)
        last = tally.read if settings.size is None else count + settings.size
        train, held_out = in_order[(places >= count) & (places < last)], in_order[places < count]
    if settings.train is not None:
        if settings.train > len(train):
            raise DataError(
                f"--train {settings.train:,} asks for more than the {len(train):,} pairs that are left to train on of "
                f"{of_rows}; lower it{', or raise --size' if settings.size else ''}."
            )
        train = take(train, ids_N, settings.train, names)
    codes_N = np.full(len(hashes_N), DUPLICATE, dtype=np.uint8)
    codes_N[kept] = UNUSED
    codes_N[train] = TRAIN
    codes_N[held_out] = VALIDATION
    return codes_N


def take(order: np.ndarray, ids_N: np.ndarray, count: int, names: Sequence[str] | None) -> np.ndarray:
    """`count` of the row numbers in `order`: the first ones, or the first ones of each source in its proportion.

    `ids_N` is the source number of each row, `names` the sources' names; None does not look at sources.
    """
    if names is None:
        return order[:count]
    by_source = order[np.argsort(ids_N[order], kind="stable")]
    counts = np.bincount(ids_N[order], minlength=len(names))
    rank_in_source = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return by_source[rank_in_source < np.repeat(quotas(counts.tolist(), count, names), counts)]


def quotas(counts: Sequence[int], total: int, names: Sequence[str]) -> list[int]:
    """`total` over sources in proportion to `counts`, by largest remainder; ties go to the first name."""
    whole = sum(counts)
    quota = [count * total // whole for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: (-(counts[i] * total % whole), names[i]))
    for i in by_remainder[: total - sum(quota)]:
        quota[i] += 1
    return quota


# --- pass 2: spool -> output ----------------------------------------------------------------------------------------


def _graders(folder: Path, tally: Tally, codes_N: np.ndarray, asked: str | None) -> dict[str, str]:
    """What grades the answers of each source: what was asked for, what its rows name, or a guess from some answers.

    Those are chosen by content, so that the guess does not depend on the order of rows.
    """
    if asked:
        if ":" in asked:  # a user's own is tried, whatever it is registered as
            with pq.ParquetFile(folder / "spool.parquet") as spool:
                (first,) = (
                    spool.read_row_group(0, columns=["prompt", "answer"], use_threads=False).slice(0, 1).to_pylist()
                )
            find(asked)(grading.Pair(first["prompt"][-1]["content"], first["answer"], asked), first["answer"])
        return dict.fromkeys(tally.sources, asked)
    ids_N = np.frombuffer(tally.source_ids, dtype=np.int32)
    used = np.flatnonzero((codes_N == TRAIN) | (codes_N == VALIDATION))
    order = used[np.argsort(np.frombuffer(tally.hashes, dtype=np.uint64)[used])]
    order = order[np.argsort(ids_N[order], kind="stable")]
    counts = np.bincount(ids_N[order], minlength=len(tally.sources))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    looked_at = np.zeros(len(codes_N), dtype=bool)
    looked_at[order[rank < GUESSED_FROM]] = True
    answers: dict[str, list[str]] = {source: [] for source in tally.sources}
    done = 0
    with pq.ParquetFile(folder / "spool.parquet") as spool:
        for group in range(spool.num_row_groups):
            table = spool.read_row_group(group, columns=["data_source", "answer"], use_threads=False)
            for row in table.filter(pa.array(looked_at[done : done + len(table)])).to_pylist():
                answers[row["data_source"]].append(row["answer"])
            done += len(table)
    known = {source: "number" for source in answers if source.startswith(_GENERATED)} | tally.graders
    return {source: known.get(source) or guess(found) for source, found in answers.items()}


def _write(
    folder: Path,
    tally: Tally,
    codes_N: np.ndarray,
    graders: Mapping[str, str],
    suffix: str | None,
    log: TextIO,
    progress: Progress,
) -> dict[str, int]:
    """Copy the chosen rows of the spool, numbered and in groups, to their split's file, and the duplicates to `log`.

    Returns how many of each split have a trace. A split without rows leaves no file.
    """
    columns = WITH_TRACES if tally.traces else OUTPUT
    schema = columns.with_metadata({SUFFIX: suffix}) if suffix else columns
    pending: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
    written, traces = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    writers: dict[str, pq.ParquetWriter] = {}
    done = 0
    with pq.ParquetFile(folder / "spool.parquet") as spool, contextlib.ExitStack() as opened:
        for group in range(spool.num_row_groups):
            table = spool.read_row_group(group, use_threads=False)
            codes = codes_N[done : done + len(table)]
            for code, split in enumerate(SPLITS, TRAIN):
                parts = pending[split]
                parts.append(table.filter(pa.array(codes == code)))
                full = sum(map(len, parts)) >= _GROUP_ROWS or sum(part.nbytes for part in parts) >= _GROUP_BYTES
                if not full and group + 1 < spool.num_row_groups:
                    continue
                chosen = pa.concat_tables(parts).combine_chunks()
                pending[split] = []
                if not (rows := len(chosen)):
                    continue
                column = {name: chosen.column(name).combine_chunks() for name in chosen.column_names}
                traces[split] += rows - column["trace"].null_count
                graded_by = pa.array([graders[source] for source in column["data_source"].to_pylist()], pa.string())
                reward = [column["style"], column["answer"], graded_by]
                reward += [column["trace"]] if tally.traces else []
                index = pa.array(np.arange(written[split], written[split] + rows, dtype=np.int64))
                structs = [
                    pa.StructArray.from_arrays(fields, fields=list(columns.field(name).type))
                    for name, fields in (
                        ("reward_model", reward),
                        ("extra_info", [index, pa.repeat(split, rows), column["where"]]),
                    )
                ]
                if split not in writers:
                    writers[split] = opened.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", schema))
                output = [column["data_source"], column["prompt"], *structs]
                writers[split].write_table(pa.Table.from_arrays(output, schema=columns))
                written[split] += rows
            for row in table.filter(pa.array(codes == DUPLICATE)).to_pylist():
                lengths = {"prompt_chars": prompt_chars(row["prompt"]), "answer_chars": len(row["answer"])}
                tokens = {name: row[name] for name in ("prompt_tokens", "answer_tokens") if row[name] is not None}
                _log_drop(log, row["where"], "duplicate", lengths | tokens)
            done += len(table)
            progress("writing", done)
    return traces


def composition(tally: Tally, codes_N: np.ndarray) -> list[dict[str, Any]]:
    """Table 4: each source's count and percentage of the rows used, largest first; and its rows in each split."""
    ids_N = np.frombuffer(tally.source_ids, dtype=np.int32)
    per_split = [np.bincount(ids_N[codes_N == code], minlength=len(tally.sources)) for code in (TRAIN, VALIDATION)]
    whole = int(sum(counts.sum() for counts in per_split))
    table = []
    for name, train, validation in zip(tally.sources, *(counts.tolist() for counts in per_split), strict=True):
        count = train + validation
        share = {"source": name, "count": count, "percentage": 100 * count / whole}
        table.append({**share, "train": train, "validation": validation})
    return sorted((row for row in table if row["count"]), key=lambda row: (-row["count"], row["source"]))


def tokenizer_fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of the files that make a tokenizer and its chat template."""
    patterns = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return listing_sha256(files)
