"""Text that a model, a file or a stranger wrote, where it is shown: it acts on no terminal, page or spreadsheet."""

import csv
import io
from collections.abc import Iterable
from typing import Any

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the beginning of a formula, after blanks too; wide forms are read as narrow ones."""


def visible(text: str) -> str:
    """The text with control characters and marks of direction written out. Line ends stay; a tab is a blank."""
    if text.isprintable():  # of most texts that is all
        return text
    return "".join(c if c == "\n" or c.isprintable() else " " if c == "\t" else f"\\x{ord(c):02x}" for c in text)


def csv_bytes(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    """A table as CSV, numbers in full precision, `NaN` for what was not measured; no text in it is a formula."""
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([_cell(value) for value in row] for row in (columns, *rows))
    return table.getvalue().encode()


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return "NaN"
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.lstrip().startswith(FORMULA) else visible(value)
