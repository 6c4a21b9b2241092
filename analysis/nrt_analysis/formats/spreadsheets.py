"""A document's tables as CSV: full precision, ends of intervals, and why cells are empty."""

import math

import pandas as pd

from nrt_analysis.document import Document
from nrt_cli.untrusted import csv_bytes


def render(document: Document) -> dict[str, bytes]:
    """Tables and the numbers behind figures as CSV, by name; of a section all that it found."""
    if document.section:
        return {f"{document.place('tables', name)}.csv": to_csv(frame) for name, frame in document.frames.items()}
    files = {}
    for table in document.tables:  # a column for each of the table's; for numbers with an interval, two more; remarks
        names, records = table.names(), []
        for row in table.rows:
            record: dict[str, object] = {"section": row.section} if any(row.section for row in table.rows) else {}
            remarks = []
            for name, column, cell in zip(names, table.columns, row.cells, strict=True):
                words = column.kind != "number" or (cell.text and math.isnan(cell.value))
                record[name] = cell.text if words else cell.value
                if column.kind == "number" and not math.isnan(cell.low):
                    record |= {f"{name} low": cell.low, f"{name} high": cell.high}
                remarks += [f"{name}: {remark}" for remark in (cell.reason, cell.note) if remark]
            records.append(record | {"remarks": "; ".join(remarks)})
        frame = pd.DataFrame(records, columns=None if records else [*names, "remarks"])
        files[f"{document.place('tables', table.key)}.csv"] = to_csv(frame)
    for figure in document.figures:
        for name, frame in figure.numbers.items():
            files[f"{document.place('figures', figure.key)}-{name}.csv"] = to_csv(frame)
    return files


def to_csv(frame: pd.DataFrame) -> bytes:
    """As `csv_bytes` writes it, without the index."""
    return csv_bytes(map(str, frame.columns), frame.itertuples(index=False))
