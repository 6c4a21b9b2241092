"""A report's tables as CSV: full precision, the ends of intervals, and why cells are empty."""

import math

import pandas as pd

from nrt_analysis.report.contents import Cell, Contents, Figure, Table
from nrt_analysis.report.plain import visible
from nrt_analysis.tables import to_csv


def render(contents: Contents) -> dict[str, bytes]:
    """`tables/KEY.csv` by name, and the numbers behind figures as `figures/KEY-NAME.csv`."""
    files = {f"tables/{table.key}.csv": to_csv(_frame(table)).encode() for table in contents.tables}
    return files | {name: content for figure in contents.figures for name, content in _numbers(figure).items()}


def _numbers(figure: Figure) -> dict[str, bytes]:
    return {f"figures/{figure.key}-{name}.csv": to_csv(_safe(frame)).encode() for name, frame in figure.numbers.items()}


def _frame(table: Table) -> pd.DataFrame:
    """A column for each of the table's; for numbers with an interval, two more; and one for remarks."""
    columns = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    records = []
    for row in table.rows:
        record: dict[str, object] = {"section": row.section} if any(row.section for row in table.rows) else {}
        remarks = []
        for name, column, cell in zip(columns, table.columns, row.cells, strict=True):
            record |= _cells(name, cell) if column.kind == "number" else {name: cell.text}
            remarks += [f"{name}: {remark}" for remark in (cell.reason, cell.note) if remark]
        records.append(record | {"remarks": "; ".join(remarks)})
    return _safe(pd.DataFrame(records, columns=None if records else [*columns, "remarks"]))


def _cells(name: str, cell: Cell) -> dict[str, object]:
    value: object = cell.text if cell.text and math.isnan(cell.value) else cell.value
    return {name: value} | ({} if math.isnan(cell.low) else {f"{name} low": cell.low, f"{name} high": cell.high})


def _safe(frame: pd.DataFrame) -> pd.DataFrame:
    """Text that no spreadsheet takes for a formula."""
    return frame.map(lambda value: _text(value) if isinstance(value, str) else value)


def _text(text: str) -> str:
    return f"'{visible(text)}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else visible(text)
