"""File formats: each reader takes a path and the name to call it by, and streams (where, row).

`where` is for people (`qa.jsonl:17`). A row is its columns, or where it cannot be read, the reason as a string: the
rows after it are read all the same. No reader holds more than a block of its file; each raises DataError where the file
itself is malformed, so that what follows cannot be told, and leaves OSError to its caller.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from nrt_cli.errors import DataError, first_line

Found = tuple[str, dict[str, Any] | str]

_BLOCK = 1 << 20
_PARQUET_ROWS = 256
_NOT_SPACE = re.compile(r"\S")
_TOO_DEEP = "it is nested too deeply"
_BAD_BYTES = "it has bytes that are not UTF-8 text; save the file as UTF-8"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        raise _NamedTwice(next(name for name in names if names.count(name) > 1))
    return columns


class _NamedTwice(Exception):
    """A JSON object that gives a column twice; plain JSON drops the first without a word."""


def _integer(digits: str) -> int | str:
    """A whole number; one that is longer than Python likes to convert stays the text that it is, digit by digit."""
    return int(digits) if len(digits) <= 4000 else digits


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=str, object_pairs_hook=_unique)
"""Of numbers that are not whole it keeps the digits: as an answer, 3.10 is not 3.1."""


def _jsonl(path: Path, name: str) -> Iterator[Found]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{name}:{number}", _json_line(line)


def _json_line(line: bytes) -> dict[str, Any] | str:
    try:
        return _columns(_DECODER.decode(line.decode("utf-8-sig").rstrip("\r\n")))
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg} at column {error.colno})"
    except UnicodeDecodeError:
        return _BAD_BYTES
    except RecursionError:
        return _TOO_DEEP
    except _NamedTwice as error:
        return f"column {str(error)!r} is given twice"


def _json(path: Path, name: str) -> Iterator[Found]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, values in enumerate(_JsonArray(file, name), 1):
            yield f"{name}:row {number}", _columns(values)


def _columns(values: Any) -> dict[str, Any] | str:
    return values if isinstance(values, dict) else f"a row is a JSON object of columns, found {type(values).__name__}"


class _JsonArray:
    """The items of a JSON array, decoded one by one: `json.load` would hold all of them at once.

    `text[at:]` is what was read of the file and not used yet; `line` is the line of `text[at]`.
    """

    def __init__(self, file: TextIO, name: str) -> None:
        self.file, self.name = file, name
        self.text, self.at, self.line = "", 0, 1

    def __iter__(self) -> Iterator[Any]:
        if self._next_char() != "[":
            raise self._error("expected an array of rows; for one object a line, name the file .jsonl")
        self._move(self.at + 1)
        if self._next_char() == "]":
            return self._end()
        while True:
            yield self._item()
            mark = self._next_char()
            if mark not in (",", "]"):
                raise self._error("expected , or ] after a row")
            if mark == "]":
                return self._end()
            self._move(self.at + 1)

    def _end(self) -> None:
        self._move(self.at + 1)
        if self._next_char():
            raise self._error("there is more after the array of rows")

    def _item(self) -> Any:
        self._next_char()
        while True:
            try:
                item, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # It may only be cut off by the end of the block. Doubling keeps the retries linear in the file.
                line = self.line + self.text.count("\n", self.at, error.pos)
                if not self._fill(max(_BLOCK, len(self.text) - self.at)):
                    raise self._error(error.msg, line) from None
            except RecursionError:
                raise self._error(_TOO_DEEP) from None
            except _NamedTwice as error:
                raise self._error(f"column {str(error)!r} is given twice in one row") from None
            else:
                self._move(end)
                return item

    def _next_char(self) -> str:
        """Move to the next character that is not white space and return it; '' at the end of the file."""
        while True:
            found = _NOT_SPACE.search(self.text, self.at)
            self._move(found.start() if found else len(self.text))
            if found or not self._fill(_BLOCK):
                return self.text[self.at : self.at + 1]

    def _move(self, at: int) -> None:
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def _fill(self, count: int) -> bool:
        """Read on by `count` characters, forgetting what was used; False at the end of the file."""
        more = self.file.read(count)
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def _error(self, reason: str, line: int | None = None) -> DataError:
        return DataError(f"{self.name}:{line or self.line}: not valid JSON ({reason}).")


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
                if fields and not header:
                    header = _header(fields, f"{name}:{first}")
                    fields = []
                found = _fields(header, fields)
            where, first = f"{name}:{first}", reader.line_num + 1
            if found:
                yield where, found


def _header(names: list[str], where: str) -> list[str]:
    if twice := _named_twice(names):
        raise DataError(f"{where}: two columns have the same name, {twice!r}; rename one.")
    if _has_bad_bytes("".join(names)):
        raise DataError(f"{where}: the names of the columns are not UTF-8 text; save the file as UTF-8.")
    return names


def _fields(header: list[str], fields: list[str]) -> dict[str, Any] | str:
    if fields and len(fields) != len(header):
        return f"{len(fields)} fields where the header names {len(header)} columns"
    return _BAD_BYTES if _has_bad_bytes("".join(fields)) else dict(zip(header, fields, strict=False))


def _has_bad_bytes(text: str) -> bool:
    """Whether a file's bytes were kept as halves of surrogate pairs, because they are not UTF-8."""
    try:
        return not text.isascii() and not text.encode()
    except UnicodeEncodeError:
        return True


def _named_twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None


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
                for values in _rows(batch):
                    number += 1
                    yield f"{name}:row {number}", values
    except pa.ArrowException as error:
        raise DataError(
            f"{name}: not a readable Parquet file (after row {number}: {first_line(error).rstrip('.')})."
        ) from None


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A batch as Python's values; a cell that has none is the exception that says why."""
    try:
        return batch.to_pylist()
    except Exception:  # dates out of range, unknown time zones, text that is not UTF-8: each raises what it likes
        columns = {name: [_cell(value) for value in batch.column(name)] for name in batch.schema.names}
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _cell(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except Exception as error:
        return ValueError(first_line(error).rstrip("."))


READERS: dict[str, Callable[[Path, str], Iterator[Found]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": parquet_rows,
}
