"""One style for every figure: a paper's column, readable in greyscale, the same bytes for the same numbers.

No pyplot: figures are made and drawn without a display or any state that outlives the call.
"""

import io
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

COLUMN, TEXT = 3.35, 6.9
"""Widths in inches: one column of a paper, and the whole page."""

DPI = 300

STYLE: Any = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.3,
    "grid.color": "0.85",
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "nrt",  # else the names of its parts are new every time
}

# Colours of Okabe and Ito, which the colour-blind can tell apart, ordered so that their greys alternate; and dashes.
_LINES = (
    ("#0072B2", "-", "o"),
    ("#E69F00", (0, (4, 1.5)), "s"),
    ("#000000", (0, (1, 1)), "^"),
    ("#009E73", (0, (5, 1, 1, 1)), "D"),
    ("#D55E00", (0, (7, 2)), "v"),
    ("#56B4E9", (0, (3, 1, 1, 1, 1, 1)), "P"),
    ("#CC79A7", (0, (2, 1)), "X"),
)


def line_style(i: int) -> dict[str, Any]:
    """Colour, dash and marker of the i-th series."""
    color, dash, marker = _LINES[i % len(_LINES)]
    return {"color": color, "linestyle": dash, "marker": marker}


def new_figure(
    rows: int = 1, columns: int = 1, width: float = COLUMN, height: float | None = None, **grid: Any
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns]; `height` in inches, by default panels of 4:3."""
    height = height or 0.75 * width / columns * rows
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def panel(axis: Axes, letter: str, title: str) -> None:
    """Name a panel, `(a) trace entropy`, flush left above it."""
    axis.set_title(f"({letter}) {title}", loc="left", fontsize=STYLE["axes.titlesize"], pad=3)


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int = 3) -> None:
    """One legend for all panels, above them."""
    columns = min(columns, len(labels))
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        fontsize=STYLE["legend.fontsize"],
        frameon=False,
        handlelength=2.8,
    )


def error_bars(middle: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """What lies below and above, as matplotlib takes it. Of equal values, a mean may be a rounding outside of its
    interval, which matplotlib refuses; where nothing was measured, NaN draws nothing."""
    return [(middle - low).clip(lower=0), (high - middle).clip(lower=0)]


def font_for(texts: Iterable[str]) -> FontProperties:
    """The font on this machine that draws most of some texts: the house's, unless another draws more of them."""
    texts = list(texts)
    house = FontProperties(fname=font_manager.findfont("DejaVu Sans"))
    best, most = house, sum(draws(house, text) for text in texts)
    for path in sorted({entry.fname for entry in font_manager.fontManager.ttflist}) if most < len(texts) else ():
        font = FontProperties(fname=path)
        if (number := sum(draws(font, text) for text in texts)) > most:
            best, most = font, number
    return best


def draws(font: FontProperties, text: str) -> bool:
    """Whether a font has every character of a text."""
    return _characters(str(font.get_file())).issuperset(map(ord, text))


@cache
def _characters(path: str) -> frozenset[int]:
    """The characters of a font file; none for one that only draws placeholders."""
    font = FT2Font(path)
    return frozenset() if "LastResort" in font.postscript_name else frozenset(font.get_charmap())


def render(figure: Figure, suffixes: Sequence[str] = ("png", "pdf")) -> dict[str, bytes]:
    """The figure's files by suffix. No date or version is in them, so the same numbers give the same bytes."""
    unmarked: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None},
        "svg": {"Date": None, "Creator": None},
    }
    files = {}
    with mpl.rc_context(STYLE):
        for suffix in suffixes:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=DPI, metadata=unmarked[suffix])
            files[suffix] = buffer.getvalue()
    return files
