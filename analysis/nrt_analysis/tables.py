"""Frames as files and as what `--json` prints; and the report that every analysis returns."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nrt_analysis.figures import render
from nrt_cli.records import json_line


@dataclass(frozen=True)
class Report:
    """What an analysis found: tables and figures by name, and what a reader must know to read them.

    A table or figure that is called like the report is saved as `NAME.*`, any other as `NAME-OTHER.*`. The first table
    is what the terminal shows, so it is short.
    """

    name: str
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    """Column -> its unit or meaning."""

    def record(self) -> dict[str, Any]:
        """All of it but the figures, ready for JSON; what was not measured is null."""
        return _clean(
            {
                "analysis": self.name,
                "notes": list(self.notes),
                "units": dict(self.units),
                "tables": {name: to_records(frame) for name, frame in self.tables.items()},
            }
        )

    def files(self) -> dict[str, bytes]:
        """Everything by file name: each table as CSV, all as one JSON and one Markdown, each figure as PNG and PDF."""
        files = {f"{self._stem(name)}.csv": to_csv(frame).encode() for name, frame in self.tables.items()}
        files[f"{self.name}.json"] = (json.dumps(self.record(), indent=2, ensure_ascii=False) + "\n").encode()
        files[f"{self.name}.md"] = self._markdown().encode()
        for name, figure in self.figures.items():
            files |= {f"{self._stem(name)}.{suffix}": content for suffix, content in render(figure).items()}
        return files

    def _stem(self, name: str) -> str:
        return self.name if name == self.name else f"{self.name}-{name}"

    def _markdown(self) -> str:
        name, frame = next(iter(self.tables.items()))
        notes = "".join(f"- {note}\n" for note in self.notes)
        return f"# {self._stem(name)}\n\n{to_markdown(frame)}\n{notes}"


def to_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain Python objects."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict(orient="records")]


def to_csv(frame: pd.DataFrame) -> str:
    """Full precision; what was not measured is `NaN`."""
    return frame.to_csv(index=False, na_rep="NaN", lineterminator="\n")


def to_markdown(frame: pd.DataFrame) -> str:
    """A table as GitHub shows it, numbers to 4 digits."""
    rows = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    rows += [[shown(value) for value in row] for row in frame.itertuples(index=False)]
    return "".join("| " + " | ".join(markdown_text(cell) for cell in row) + " |\n" for row in rows)


def shown(value: Any) -> str:
    """A value as people read it: 4 significant digits, `-` for what was not measured."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def number(value: float, form: str) -> str:
    """A number in a format of its own, `-` for what was not measured."""
    return "-" if pd.isna(value) else format(value, form)


def interval(estimate: Iterable[float], form: str) -> str:
    """A number with the two ends of its interval; `-` alone where nothing was measured."""
    middle, low, high = estimate
    return "-" if pd.isna(middle) else f"{middle:{form}} [{number(low, form)}, {number(high, form)}]"


_MARKDOWN = str.maketrans(
    {character: "\\" + character for character in "\\`*_[]|~$!"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": "<br>"}
)


def markdown_text(text: str) -> str:
    """Text that cannot leave its cell, nor be read as Markdown, HTML, a formula or a picture."""
    # An address by itself would become a link.
    return text.translate(_MARKDOWN).replace("://", ":&#47;&#47;")


def _clean(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json_line(values))
