"""Parquet tables: written whole or not at all, and read to score traces anew."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nrt_cli.errors import StoreError
from nrt_cli.files import replacing
from nrt_cli.records import TraceRow
from nrt_cli.store.files import reads, writes_to

_MADE_BY = "`nrt train` with a method that samples traces and train.trace_groups above 0"
NAME = b"nrt.file"
"""Metadata of a table: the name that it was written under, so that no other is taken for it."""


@contextmanager
def open_table(file: Path, named: bool = False) -> Iterator[Any]:
    """A Parquet file to read, every page verified. Raises StoreError where it is not what was written.

    Args:
        named: it has to be the table that was written under its name, as a run's are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reads(file, "restore it from a copy, or remove it"):
        try:
            with pq.ParquetFile(file, page_checksum_verification=True) as opened:
                if named and (opened.schema_arrow.metadata or {}).get(NAME, file.name.encode()) != file.name.encode():
                    raise ValueError("is another table than it says")
                yield opened
        except pa.ArrowException:  # whose messages are about Arrow's code
            raise ValueError("is damaged") from None


def write_table(file: Path, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Store rows under columns of these Arrow types, by name. Raises StoreError where the disk does not take them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def arrow(kind: str) -> Any:
        inner = kind.removeprefix("list<").removesuffix(">")
        return pa.list_(arrow(inner)) if inner != kind else pa.type_for_alias(kind)

    # Stated types: a step of empty traces would otherwise have columns of another type than its neighbours.
    schema = pa.schema([(name, arrow(kind)) for name, kind in columns.items()])
    with writes_to(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            table = pa.Table.from_pylist(list(rows), schema=schema.with_metadata({NAME: file.name}))
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def bank_tables(path: Path) -> list[Path]:
    """The trace tables of a run (of its training steps, which are scored), of a folder, or the one file, in order.

    Raises StoreError where there is none.
    """
    if path.is_file():
        return [path]
    found = sorted((path / "traces").glob("step-*.parquet") if _in_run(path) else path.glob("*.parquet"))
    if not found:
        raise StoreError(f"{path}: no scored traces are stored there; they come from {_MADE_BY}.")
    return found


def _in_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def table_columns(table: Path) -> set[str]:
    """The names of a trace table's columns."""
    with open_table(table, named=_in_run(table.parent.parent)) as file:
        return set(file.schema_arrow.names)


def bank_rows(table: Path, columns: Sequence[str]) -> list[TraceRow]:
    """Some columns of a table's rows, the traces of a group one after another. Raises StoreError where one is missing,
    or where traces were not scored."""
    with open_table(table, named=_in_run(table.parent.parent)) as file:  # who copies tables may name them as he likes
        if missing := sorted(set(columns) - set(file.schema_arrow.names)):
            raise StoreError(f"{table}: column {missing[0]} is missing; trace tables come from {_MADE_BY}.")
        rows: list[dict[str, Any]] = file.read(columns=list(columns)).to_pylist()
    if any(row[column] is None for row in rows for column in ("answer_logprobs", "null_logprobs") if column in row):
        raise StoreError(f"{table}: its traces were not scored token by token; tables of training steps are.")
    return [TraceRow(**row) for row in rows]
