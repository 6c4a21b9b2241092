"""`nrt data prepare`: filter, dedupe, subset, split and write question-answer pairs as Parquet.

Two passes keep a million rows in flat memory. The first reads every source once into a Parquet spool and keeps 28
bytes a row: 64-bit hashes of content and question, its number, and its source's. Which rows are used is decided on
those arrays alone; the second pass copies them from the spool to the output.

The hash is keyed by the seed, so its order is the random order: what is chosen depends on content and seed only, not
on the order of rows or on how they were read, and a larger `size` keeps the rows of a smaller one. Rows that ask the
same question are on the same side of the split. Rows can be drawn by their numbers instead (`choose.Settings`).

The output folder appears by one rename, complete or not at all.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nrt_cli import __version__
from nrt_cli.data.choose import DUPLICATE, TRAIN, VALIDATION, Settings, Tally, choose
from nrt_cli.data.columns import OPTIONAL, SUFFIX, Message, Pair, read_pair
from nrt_cli.data.folder import DROPPED, MANIFEST, existing_output, workspace
from nrt_cli.data.sources import Source, file_sha256, open_sources
from nrt_cli.errors import DataError
from nrt_cli.files import listing_sha256
from nrt_cli.grading.grading import find, guess
from nrt_cli.text.prompts import encode_answer, render_prompt
from nrt_cli.text.questions import digest, ending_in, normalised

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
        ("where", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
    ]
)
OUTPUT = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _MESSAGES),
        (
            "reward_model",
            pa.struct([("style", pa.string()), ("ground_truth", pa.string()), ("grader", pa.string())]),
        ),
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
    sources = open_sources(specs)
    recipe = _recipe(sources, settings, tokenizer)
    if manifest := existing_output(out, recipe, overwrite):
        return manifest, True
    with workspace(out) as folder:
        with (folder / DROPPED).open("w", encoding="utf-8") as log:
            tally = _spool(sources, settings, tokenizer, folder / "spool.parquet", log, progress, strict)
            if not tally.read:
                raise DataError(f"{', '.join(source.name for source in sources)}: no rows, so no question-answer pair.")
            codes = choose(tally, settings)
            graders = _graders(folder, tally, codes, settings.grader)
            traces = _write(folder, tally, codes, graders, settings.suffix, log, progress)
        (folder / "spool.parquet").unlink()
        manifest = _manifest(recipe, tally, codes, graders, folder)
        manifest |= {"traces": traces} if tally.traces else {}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest, False


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
                        pair = replace(pair, messages=[*earlier, asked])
                    lengths = _lengths(pair, tokenizer)
                except DataError as error:
                    if strict:
                        raise
                    _count_unreadable(tally, log, row.where, str(error))
                    continue
                _count_columns(tally, pair)
                if reason := _reason(pair, lengths, settings):
                    tally.dropped[reason] += 1
                    _log_drop(log, pair.where, reason, lengths)
                    continue
                rows.append(_spooled(pair, lengths))
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
                raise DataError(_nothing_readable(source, found, tally.unreadable[-1]))
        writer.write_table(pa.Table.from_pylist(rows, _SPOOL))
    if unseen and tally.hashes:
        others = ", ".join(map(repr, list(tally.unused)[:_COLUMNS_NAMED])) or "none"
        raise DataError(f"--map names column {unseen[0]!r}, which no row has; columns that are not used: {others}.")
    progress("reading", tally.read)
    return tally


def _count_unreadable(tally: Tally, log: TextIO, where: str, error: str) -> None:
    tally.dropped["unreadable"] += 1
    if len(tally.unreadable) < SHOWN:
        tally.unreadable.append(error)
    _log_drop(log, where, "unreadable", {"why": error.removeprefix(f"{where}: ")})


def _count_columns(tally: Tally, pair: Pair) -> None:
    tally.textless += pair.textless
    for name in pair.unused:
        if name in tally.unused or len(tally.unused) < _COLUMNS:
            tally.unused[name] += 1


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
        return content, digest(question)
    except UnicodeEncodeError:
        reason = "the text has half of a surrogate pair, or bytes that are not UTF-8"
        raise DataError(f"{pair.where}: {reason}; save the file as UTF-8.") from None


def _lengths(pair: Pair, tokenizer: Tokenizer | None) -> dict[str, int]:
    """Characters of x and y*, and their tokens as training will see them: x rendered, y* with its eos."""
    answer = pair.answer or ""
    lengths = {"prompt_chars": prompt_chars(pair.messages), "answer_chars": len(answer)}
    if tokenizer and not pair.lacks:
        try:
            lengths["prompt_tokens"] = len(render_prompt(tokenizer.tokenizer, pair.messages))
        except DataError as error:
            raise DataError(f"{pair.where}: {error}") from None
        lengths["answer_tokens"] = len(encode_answer(tokenizer.tokenizer, answer))
    return lengths


def prompt_chars(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _reason(pair: Pair, lengths: Mapping[str, int], settings: Settings) -> str | None:
    """Why a pair cannot be trained on; None where it can."""
    if pair.lacks:
        return pair.lacks
    if settings.max_prompt_tokens and lengths["prompt_tokens"] > settings.max_prompt_tokens:
        return "long-prompt"
    if settings.max_answer_tokens and lengths["answer_tokens"] > settings.max_answer_tokens:
        return "long-answer"
    return None


def _spooled(pair: Pair, lengths: Mapping[str, int]) -> dict[str, Any]:
    return {
        "data_source": pair.source,
        "prompt": pair.messages,
        "answer": pair.answer,
        "trace": pair.trace or None,
        "where": pair.where,
        "prompt_tokens": lengths.get("prompt_tokens"),
        "answer_tokens": lengths.get("answer_tokens"),
    }


def _log_drop(log: TextIO, where: str, reason: str, about: Mapping[str, Any]) -> None:
    log.write(json.dumps({"where": where, "reason": reason, **about}, ensure_ascii=False) + "\n")


# --- pass 2: spool -> output ----------------------------------------------------------------------------------------


class _SplitWriter:
    """Writes one split's rows in groups, numbering them; a split without rows leaves no file."""

    def __init__(self, folder: Path, split: str, graders: Mapping[str, str], suffix: str | None, traces: bool) -> None:
        self.path, self.split, self.graders = folder / f"{split}.parquet", split, graders
        self.columns = WITH_TRACES if traces else OUTPUT
        self.schema = self.columns.with_metadata({SUFFIX: suffix}) if suffix else self.columns
        self.traces = 0
        self.pending: list[pa.Table] = []
        self.written = 0
        self.writer: pq.ParquetWriter | None = None

    def add(self, spooled: pa.Table) -> None:
        self.pending.append(spooled)
        if sum(map(len, self.pending)) >= _GROUP_ROWS or sum(t.nbytes for t in self.pending) >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self.pending).combine_chunks()
        self.pending = []
        if not len(table):
            return
        self.writer = self.writer or pq.ParquetWriter(self.path, self.schema)
        self.writer.write_table(self._output(table))
        self.written += len(table)

    def _output(self, table: pa.Table) -> pa.Table:
        rows = len(table)
        names = ("data_source", "prompt", "answer", "trace", "where")
        column = {name: table.column(name).combine_chunks() for name in names}
        self.traces += rows - column["trace"].null_count
        index = pa.array(np.arange(self.written, self.written + rows, dtype=np.int64))
        graders = pa.array([self.graders[source] for source in column["data_source"].to_pylist()], pa.string())
        reward = [pa.repeat("nrt", rows), column["answer"], graders]
        reward += [column["trace"]] if self.columns is WITH_TRACES else []
        extra = [index, pa.repeat(self.split, rows), column["where"]]
        structs = [
            pa.StructArray.from_arrays(parts, fields=list(self.columns.field(name).type))
            for name, parts in (("reward_model", reward), ("extra_info", extra))
        ]
        return pa.Table.from_arrays([column["data_source"], column["prompt"], *structs], schema=self.columns)

    def close(self) -> None:
        if self.pending:
            self._flush()
        if self.writer:
            self.writer.close()


def _graders(folder: Path, tally: Tally, codes_N: np.ndarray, asked: str | None) -> dict[str, str]:
    """What grades the answers of each source: what was asked for, what its rows name, or a guess from some answers.

    Those are chosen by content, so that the guess does not depend on the order of rows.
    """
    if asked:
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
    """Copy the chosen rows of the spool to their split's file, and the duplicates to `log`; how many have a trace."""
    writers = {
        code: _SplitWriter(folder, split, graders, suffix, tally.traces > 0) for code, split in enumerate(SPLITS, TRAIN)
    }
    done = 0
    with pq.ParquetFile(folder / "spool.parquet") as spool:
        for group in range(spool.num_row_groups):
            table = spool.read_row_group(group, use_threads=False)
            codes = codes_N[done : done + len(table)]
            for code, writer in writers.items():
                writer.add(table.filter(pa.array(codes == code)))
            _log_duplicates(table.filter(pa.array(codes == DUPLICATE)), log)
            done += len(table)
            progress("writing", done)
    for writer in writers.values():
        writer.close()
    return {writer.split: writer.traces for writer in writers.values()}


def _log_duplicates(table: pa.Table, log: TextIO) -> None:
    for row in table.to_pylist():
        lengths = {"prompt_chars": prompt_chars(row["prompt"]), "answer_chars": len(row["answer"])}
        tokens = {name: row[name] for name in ("prompt_tokens", "answer_tokens") if row[name] is not None}
        _log_drop(log, row["where"], "duplicate", lengths | tokens)


# --- manifest ----------------------------------------------------------------------------------------------


def _recipe(sources: Sequence[Source], settings: Settings, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """All that decides the output, as JSON: equal recipes make equal rows."""
    return {
        "settings": asdict(settings),
        "inputs": [{"name": source.name, "fingerprint": source.fingerprint()} for source in sources],
        "tokenizer": tokenizer.fingerprint if tokenizer else None,
    }


def _manifest(
    recipe: Mapping[str, Any], tally: Tally, codes_N: np.ndarray, graders: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    counts = np.bincount(codes_N, minlength=4).tolist()
    questions_N = np.frombuffer(tally.questions, dtype=np.uint64)
    questions = {split: len(np.unique(questions_N[codes_N == code])) for code, split in enumerate(SPLITS, TRAIN)}
    outputs = [name for name in (*(f"{split}.parquet" for split in SPLITS), DROPPED) if (folder / name).exists()]
    return {
        "nrt_version": __version__,
        **recipe,
        "counts": {
            "read": tally.read,
            "dropped": {reason: tally.dropped[reason] for reason in REASONS if tally.dropped[reason]},
            "kept": len(codes_N) - counts[DUPLICATE],
            "train": counts[TRAIN],
            "validation": counts[VALIDATION],
        },
        "questions": questions,
        "unreadable": tally.unreadable,
        "unused_columns": {_writable(name): count for name, count in tally.unused.most_common()},
        "textless_turns": tally.textless,
        "composition": composition(tally, codes_N),
        "graders": graders,
        "outputs": {name: file_sha256(folder / name) for name in outputs},
    }


def _nothing_readable(source: Source, rows: int, first: str) -> str:
    return first if rows == 1 else f"{source.name}: none of its {rows:,} rows can be read; one of them: {first}"


def _writable(name: str) -> str:
    """A column's name, in which half of a surrogate pair is spelled out."""
    return name.encode(errors="backslashreplace").decode()


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
