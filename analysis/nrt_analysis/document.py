"""What a report says, before any format: `nrt report` and `nrt analyze` make a `Document`, `formats` write it.

All text in a `Cell`, title or note may come from a model or from data: it is never markup. Only `math` is, and it is
ours. Numbers are in the unit of their column; what was not measured is NaN, with the reason.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from itertools import chain, groupby, product
from string import ascii_lowercase as letters
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from matplotlib.figure import Figure as Drawing

from nrt_analysis.figures import render
from nrt_cli.config import load_yaml
from nrt_cli.records import json_line, measured

if TYPE_CHECKING:
    from nrt_analysis.report.run_cards import RunCard

Place = Literal[0, 1, 2]

NO_VALUE = "-"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    A cell without text is empty, and `reason` says why, such as "not run".
    """

    text: str = ""
    value: float = math.nan
    """What it sorts by and what CSV has, where it is a number."""
    low: float = math.nan
    high: float = math.nan
    """Ends of its 95 % interval."""
    seeds: tuple[float, ...] = ()
    """What each of several seeds scored, where the value is their mean."""
    place: Place = 0
    """1: best of its column and section (bold); 2: second (underlined)."""
    reason: str = ""
    note: str = ""
    """What a reader must know of this number, such as "20 of 1319 documents"."""
    math: str = ""
    """LaTeX of the same, where `text` is a formula; ours, so it may be handed on as it is."""


@dataclass(frozen=True)
class Column:
    """A column's heading; neighbours with the same `group` share a heading above them."""

    title: str
    group: str = ""
    kind: Literal["text", "number", "long"] = "text"
    """long: text that wraps."""
    math: str = ""
    """LaTeX of the title, where it is a formula."""

    def shown(self, cell: Cell) -> str:
        """A cell's text; a remark belongs to words, while those of numbers would drown them."""
        return f"{cell.text} ({cell.note})" if cell.note and self.kind != "number" else cell.text


def numbers(*titles: str, group: str = "") -> tuple[Column, ...]:
    return tuple(Column(title, group, "number") for title in titles)


@dataclass(frozen=True)
class Row:
    """Cells, one per column; neighbours with the same `section` stand under one heading, such as a model's name."""

    cells: tuple[Cell, ...]
    section: str = ""


@dataclass(frozen=True)
class Table:
    """A table; one without rows says why in `reason`."""

    key: str
    """`table-3`: names its files and its place on the page."""
    title: str
    """`Table 3`, as in the paper, or what it is where the paper has none."""
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""

    @property
    def whole(self) -> bool:
        """Whether there is something in it."""
        return bool(self.rows)

    @cached_property
    def marks(self) -> dict[str, str]:
        """A letter for every reason why a cell is empty: a, b, ..., z, aa, ..."""
        reasons = dict.fromkeys(cell.reason for row in self.rows for cell in row.cells if not cell.text and cell.reason)
        return dict(zip(reasons, chain(letters, map("".join, product(letters, repeat=2))), strict=False))

    def below(self) -> list[str]:
        """Everything that stands below the table, why cells are empty included."""
        return [*self.notes, *(f"{mark}: {reason}" for reason, mark in self.marks.items())]

    def spans(self) -> list[tuple[str, int]]:
        """Neighbouring columns' shared headings and how many they stand over."""
        return [(group, len(list(of))) for group, of in groupby(column.group for column in self.columns)]

    def sections(self) -> Iterator[tuple[str, list[Row]]]:
        """Rows by the heading they stand under, as they come."""
        for section, of in groupby(self.rows, key=lambda row: row.section):
            yield section, list(of)

    def record(self) -> dict[str, Any]:
        """As JSON has it; of a cell only what there is: text, number with its interval's ends, why it is empty."""
        rows = []
        for row in self.rows:
            cells: dict[str, Any] = {}
            for name, cell in zip(self.names(), row.cells, strict=True):
                cells[name] = {"text": cell.text}
                cells[name] |= {} if math.isnan(cell.value) else {"value": cell.value}
                cells[name] |= {} if math.isnan(cell.low) else {"low": cell.low, "high": cell.high}
                cells[name] |= {key: text for key, text in (("reason", cell.reason), ("note", cell.note)) if text}
            rows.append({"section": row.section, "cells": cells})
        about = {"title": self.title, "caption": self.caption, "notes": list(self.notes), "reason": self.reason}
        return about | {"rows": rows}

    def names(self) -> list[str]:
        """Each column by its whole name."""
        return [f"{column.group}: {column.title}" if column.group else column.title for column in self.columns]


@dataclass(frozen=True)
class Figure:
    """A drawn figure and the numbers behind it; one that could not be drawn says why in `reason`."""

    key: str
    """`figure-2`, or `figure-2-NAME` where every model has its own."""
    title: str
    caption: str
    drawing: Drawing | None = None
    numbers: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """The tables behind it, by name."""
    notes: tuple[str, ...] = ()
    reason: str = ""

    @cached_property
    def files(self) -> dict[str, bytes]:
        """By suffix: png, pdf, svg; empty where nothing is drawn."""
        return render(self.drawing) if self.drawing else {}

    @property
    def whole(self) -> bool:
        """Whether it is drawn."""
        return self.drawing is not None

    def below(self) -> list[str]:
        return list(self.notes)


@dataclass(frozen=True)
class Made:
    """The one place for dates and versions; everything else depends on the store's numbers alone."""

    program: str
    """nrt's version."""
    newest: str
    """UTC time of the newest record in the store: a report made twice of the same store has the same bytes."""

    def __str__(self) -> str:
        return f"nrt {self.program}; the newest record in the store is of {self.newest}"


@dataclass(frozen=True)
class Document:
    """A whole report, or the one section that `nrt analyze NAME` makes: `section` is that name.

    A table or figure of a section that is called like it is saved as `NAME.*`, any other as `NAME-OTHER.*`.
    """

    title: str
    made: Made | None
    runs: "tuple[RunCard, ...]"
    tables: tuple[Table, ...]
    """In the order of the paper: `table-1` to `table-10`; what the paper has not stands after what it belongs to."""
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    """What a reader must know first: what was left out, sampled or not comparable."""
    section: str = ""
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """All that a section found, by name, at full precision: its CSV and JSON. The first is its table to read."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Column of `frames` -> its unit or meaning."""

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(card.model for card in self.runs))

    @property
    def parts(self) -> tuple[Table | Figure, ...]:
        """Tables, then figures."""
        return (*self.tables, *self.figures)

    def place(self, kind: Literal["tables", "figures"], key: str) -> str:
        """Where a part's files are, without their suffix: in a folder of its kind; a section's lie side by side."""
        if self.section:
            return key if key == self.section else f"{self.section}-{key}"
        return f"{kind}/{key}"

    def record(self) -> dict[str, Any]:
        """Its notes and tables as JSON has them: what was not measured is null. A section's are its `frames`."""
        if self.section:
            tables: dict[str, Any] = {
                name: [{str(key): value for key, value in row.items()} for row in frame.to_dict(orient="records")]
                for name, frame in self.frames.items()
            }
            record = {"analysis": self.section, "notes": self.notes, "units": dict(self.units), "tables": tables}
            return json.loads(json_line(record))  # numbers of numpy are Python's afterwards
        tables = {table.key: table.record() for table in self.tables}
        figures = {figure.key: {"title": figure.title, "reason": figure.reason} for figure in self.figures}
        about = {"title": self.title, "made": asdict(self.made) if self.made else None, "notes": list(self.notes)}
        runs = [{"label": card.label, "run": str(card.run.path), "status": card.status} for card in self.runs]
        return measured({**about, "runs": runs, "tables": tables, "figures": figures})


def section(
    name: str,
    frames: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Drawing],
    notes: Iterable[str],
) -> Document:
    """What an analysis found. The first frame is the table that is read, so it is short."""
    first, frame = next(iter(frames.items()))
    columns = tuple(Column(str(c), kind="number" if frame[c].dtype.kind in "fi" else "text") for c in frame)
    rows = tuple(Row(tuple(Cell(shown(value)) for value in row)) for row in frame.itertuples(index=False))
    title = name if first == name else f"{name}: {first}"
    drawn = tuple(Figure(key, key, "", drawing) for key, drawing in figures.items())
    table = Table(first, title, "", columns, rows, reason="" if rows else "nothing was found")
    return Document(name, None, (), (table,), drawn, tuple(notes), name, frames, shipped("columns.yaml").get(name, {}))


@cache
def shipped(name: str) -> dict[str, Any]:
    """A YAML file that ships in this room."""
    values: dict[str, Any] = load_yaml(files("nrt_analysis").joinpath(name).read_text(encoding="utf-8"), name)
    return values


@dataclass(frozen=True)
class Analysis:
    """What an analysis found, for notebooks: data frames and matplotlib figures by name."""

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Drawing]
    notes: tuple[str, ...]
    units: Mapping[str, str]
    """Column -> its unit or meaning."""


def shown(value: Any) -> str:
    """A value as people read it: 4 significant digits, `-` for what was not measured."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return NO_VALUE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def number(value: float, form: str, none: str = NO_VALUE) -> str:
    """A number in a format of its own, `-` for what was not measured."""
    return none if pd.isna(value) else format(value, form)


def interval(estimate: Iterable[float], form: str) -> str:
    """A number with the two ends of its interval; `-` alone where nothing was measured."""
    middle, low, high = estimate
    return NO_VALUE if pd.isna(middle) else f"{middle:{form}} [{number(low, form)}, {number(high, form)}]"
