"""What a report says, before any format: every output, the HTML page included, is made from these.

All text in a `Cell`, title or note may come from a model or from data: it is never markup. Only `math` is, and it is
ours. Numbers are in the unit of their column; what was not measured is NaN, with the reason.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from nrt_cli.records import measured
from nrt_cli.store import Run

Place = Literal[0, 1, 2]


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


@dataclass(frozen=True)
class Figure:
    """A drawn figure and the numbers behind it; one that could not be drawn says why in `reason`."""

    key: str
    """`figure-2`, or `figure-2-NAME` where every model has its own."""
    title: str
    caption: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    """By suffix: png, pdf, svg."""
    numbers: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """The tables behind it, by name."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Column -> its unit or meaning."""
    notes: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class RunCard:
    """One run, with what a page says of it. Traces and the rest are read from `run` where they are needed."""

    label: str
    """Unique in the report: model, method, seed."""
    run: Run
    study: Path | None
    """The study's folder, where it belongs to one."""
    model: str
    """Group: the starting model's name."""
    method: str
    """As configured: `sft`, `am`, ..., `module:function`."""
    title: str
    """As the paper calls it: `SFT`, `RLPR`, `NRT-WS (-log p)`; with the settings in which it differs from another run
    of its model and method."""
    seed: int
    status: str
    """`finished`, `running`, `stopped`, `failed`, ..."""
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    """The resolved config, nested; empty where it cannot be read."""
    data: Mapping[str, Any]
    """The manifest of `nrt data prepare` beside the training data; empty where that is not there any more."""

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """Metrics of the training steps, read once: many parts of a report ask, and the run may still go on."""
        return self.run.metrics()

    @cached_property
    def held_out(self) -> list[dict[str, Any]]:
        """Held-out scores, read once."""
        return self.run.metrics("held_out")

    @property
    def step(self) -> int:
        """Steps taken."""
        return int(self.steps[-1]["step"]) if self.steps else 0


@dataclass(frozen=True)
class Made:
    """The one place for dates and versions; everything else depends on the store's numbers alone."""

    program: str
    """nrt's version."""
    newest: str
    """UTC time of the newest record in the store: a report made twice of the same store has the same bytes."""


@dataclass(frozen=True)
class Contents:
    """A whole report."""

    title: str
    made: Made
    runs: tuple[RunCard, ...]
    tables: tuple[Table, ...]
    """In the order of the paper: `table-1` to `table-10`; what the paper has not stands after what it belongs to."""
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    """What a reader must know first: what was left out, sampled or not comparable."""

    @property
    def models(self) -> tuple[str, ...]:
        """The groups, in the order of the runs."""
        return tuple(dict.fromkeys(card.model for card in self.runs))

    def table(self, key: str) -> Table | None:
        """The table of that key, if the report has it."""
        return next((table for table in self.tables if table.key == key), None)

    def record(self) -> dict[str, Any]:
        """Tables and figures as JSON has them: what was not measured is null, with its reason."""
        tables = {table.key: _table_record(table) for table in self.tables}
        figures = {figure.key: {"title": figure.title, "reason": figure.reason} for figure in self.figures}
        about = {"title": self.title, "made": asdict(self.made), "notes": list(self.notes)}
        runs = [{"label": card.label, "run": str(card.run.path), "status": card.status} for card in self.runs]
        return measured({**about, "runs": runs, "tables": tables, "figures": figures})


def _table_record(table: Table) -> dict[str, Any]:
    names = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    rows = [
        {"section": row.section, "cells": dict(zip(names, map(_cell_record, row.cells), strict=True))}
        for row in table.rows
    ]
    return {
        "title": table.title,
        "caption": table.caption,
        "notes": list(table.notes),
        "reason": table.reason,
        "rows": rows,
    }


def _cell_record(cell: Cell) -> dict[str, Any]:
    """Only what the cell has: its text; its number with the ends of its interval; why it is empty."""
    record: dict[str, Any] = {"text": cell.text}
    record |= {} if math.isnan(cell.value) else {"value": cell.value}
    record |= {} if math.isnan(cell.low) else {"low": cell.low, "high": cell.high}
    return record | {key: text for key, text in (("reason", cell.reason), ("note", cell.note)) if text}
