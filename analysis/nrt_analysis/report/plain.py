"""What every output of a report has in common: text that shows what is in it, and marks for empty cells."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from nrt_analysis.report.contents import Cell, Column, Contents, Row, Table

NO_VALUE = "-"


def visible(text: str) -> str:
    """Untrusted text whose control characters are written out, so that they act nowhere; line ends stay."""
    return "".join(c if c == "\n" or c.isprintable() else " " if c == "\t" else f"\\x{ord(c):02x}" for c in text)


def spans(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Neighbouring columns' shared headings and how many they stand over."""
    return [(group, len(list(of))) for group, of in groupby(column.group for column in columns)]


def sections(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows by the heading they stand under, as they come."""
    for section, of in groupby(rows, key=lambda row: row.section):
        yield section, list(of)


def marks(table: Table) -> dict[str, str]:
    """A letter for every reason why a cell is empty: a, b, ..., z, aa, ..."""
    reasons = dict.fromkeys(cell.reason for row in table.rows for cell in row.cells if not cell.text and cell.reason)
    return {reason: _letter(i) for i, reason in enumerate(reasons)}


def _letter(i: int) -> str:
    return (_letter(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


def shown(cell: Cell, column: Column) -> str:
    """A cell's text; a remark belongs to words, while those of numbers would drown them."""
    return f"{cell.text} ({cell.note})" if cell.note and column.kind != "number" else cell.text


def notes(table: Table) -> list[str]:
    """Everything that stands below a table, why cells are empty included."""
    return [*table.notes, *(f"{mark}: {reason}" for reason, mark in marks(table).items())]


def made(contents: Contents) -> str:
    """The one line with dates and versions."""
    return f"nrt {contents.made.program}; the newest record in the store is of {contents.made.newest}"
