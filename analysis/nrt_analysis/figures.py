"""One style for every figure: a paper's column, readable in greyscale, the same bytes for the same numbers.

No pyplot: figures are made and drawn without a display or any state that outlives the call.
"""

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nrt_cli.config.titles import TITLES

COLUMN, TEXT = 3.35, 6.9
"""Widths in inches: one column of a paper, and the whole page."""

DPI = 300

STYLE: Any = mpl.rc_params_from_file(Path(__file__).with_name("nrt.mplstyle"), use_default_template=False)


@dataclass(frozen=True)
class Line:
    """How one method's line is drawn, on paper and on the page's two grounds."""

    color: str
    dark: str
    dash: tuple[float, ...]
    """Lengths of strokes and gaps, in widths of the line; none: unbroken."""
    marker: str


# For any two of the colours, CIELAB differs by 20 or more, as it does for people without red or green cones; dashes and
# markers tell lines apart without any colour.
LINES = (
    Line("#999999", "#808890", (), "o"),
    Line("#332288", "#3d7dff", (4, 1.5), "s"),
    Line("#b8a000", "#d9c400", (5, 1, 1, 1), "D"),
    Line("#000000", "#ffffff", (1, 1), "^"),
    Line("#3fa7dc", "#9bd3f5", (7, 2), "v"),
    Line("#7a5230", "#cfa988", (3, 1, 1, 1, 1, 1), "P"),
    Line("#aa4499", "#ff8a4c", (2, 1), "X"),
    Line("#857200", "#c85a3a", (8, 1.5, 1, 1.5), "<"),
    Line("#882255", "#4aa3e0", (1, 2.5), ">"),
)


def numbered(names: Iterable[str]) -> dict[str, int]:
    """The number in `LINES` of each series. A method has the same one in every figure, by its title or its setting."""
    names = list(dict.fromkeys(names))
    fixed = {name: i for i, pair in enumerate(TITLES.items()) for name in pair}
    found: dict[str, int] = {}
    for name in names:
        number = fixed.get(name.partition(", seed ")[0])
        if number is not None and number not in found.values():
            found[name] = number
    free = count(len(TITLES))  # none that a method which joins them later would have
    found |= dict(zip((name for name in names if name not in found), free, strict=False))
    return {name: found[name] for name in names}


def line_style(i: int) -> dict[str, Any]:
    """Colour, dash and marker of the series of a number."""
    color = LINES[i % len(LINES)].color
    # From the tenth series on, a colour comes back with another dash and marker.
    other = LINES[(i + i // len(LINES)) % len(LINES)]
    return {"color": color, "linestyle": (0, other.dash) if other.dash else "-", "marker": other.marker}


def new_figure(rows: int, columns: int, width: float, height: float, **grid: Any) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches and its axes [rows, columns]."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def name_panels(axes: np.ndarray, *titles: str) -> None:
    """Name panels, `(a) trace entropy`, flush left above them; `render` breaks what is too long.

    A figure's only panel needs no letter.
    """
    for axis, letter, title in zip(axes.flat, ascii_lowercase, titles, strict=False):
        text, font = drawable(f"({letter}) {title}" if axes.size > 1 else title, STYLE["axes.titlesize"])
        axis.set_title(text, loc="left", pad=3, fontproperties=font)


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for all panels, above them: as many columns as fit; the figure grows by its further rows."""
    text, font = drawable("\n".join(label.replace("\n", " ") for label in labels), STYLE["legend.fontsize"])
    names, room = text.split("\n"), figure.bbox.width - 0.1 * DPI
    for width, columns in [(200, n) for n in range(min(4, len(labels)), 0, -1)] + [(n, 1) for n in range(60, 8, -4)]:
        texts = ["\n".join(textwrap.wrap(name, width)) or " " for name in names]
        legend = figure.legend(
            handles, texts, loc="outside upper center", ncols=columns, prop=font, frameon=False, handlelength=2.8
        )
        for shown in legend.get_texts():
            shown.set_parse_math(False)  # a label is a name, whatever is in it
        if legend.get_window_extent(_renderer(figure)).width <= room:
            break
        legend.remove()
    height = legend.get_window_extent(_renderer(figure)).height / DPI
    figure.set_figheight(figure.get_figheight() + max(0, height - 0.25))


FAR = 8
"""How many spreads a line's end may be from the usual one before it leaves the panel."""


def span(lines: Mapping[str, pd.Series]) -> tuple[float, float, dict[str, float]]:
    """The lowest and highest value of the lines that are not far off, and where those that are go to.

    Far off is a line whose highest (or lowest) value lies further from the median of the lines' than `FAR` times the
    median distance from it, or the lines' usual height, whichever is more. Of two lines none is.
    """
    ends = {name: (float(line.min()), float(line.max())) for name, line in lines.items() if line.notna().any()}
    if not ends:
        return math.nan, math.nan, {}
    table = np.array(list(ends.values()))
    height = float(np.median(table[:, 1] - table[:, 0]))
    middle = np.median(table, axis=0)
    reach = FAR * np.maximum(np.median(np.abs(table - middle), axis=0), height)
    far = np.abs(table - middle) > np.where(reach > 0, reach, np.inf)
    kept = np.where(far.any(axis=1, keepdims=True), np.nan, table)
    if len(ends) < 3 or np.isnan(kept).all(axis=0).any():
        far[:], kept = False, table
    beyond = {name: float(table[i, 0] if far[i, 0] else table[i, 1]) for i, name in enumerate(ends) if far[i].any()}
    return float(np.nanmin(kept)), float(np.nanmax(kept)), beyond


@dataclass(frozen=True)
class StepLine:
    """One series by training step: thick what is usual of it, and whatever else of it there is."""

    steps: Any
    mean: pd.Series
    single: pd.Series | None = None
    """The steps themselves: thin and faint."""
    part: pd.Series | None = None
    """A part of it, such as the traces that ran into the cap of all that were forced: thin."""
    bars: np.ndarray | None = None
    """Half of each mean's interval."""
    falls: tuple[tuple[int, float], ...] = ()
    """Steps at which the collapse sentinel warns, and the mean there."""


@dataclass(frozen=True)
class StepPanel:
    """What is drawn by training step in one panel, by name."""

    title: str
    unit: str
    lines: Mapping[str, StepLine]
    share: bool = False
    zero: bool = True
    level: bool = False
    """A line at 0."""
    log: bool = False
    points: bool = False
    """Single points with markers and bars in place of lines."""


FELL: dict[str, Any] = {"marker": "o", "markersize": 4.5, "markeredgecolor": "black"}
"""How a step is marked at which the sentinel warns."""


def draw_steps(
    rows: Sequence[Sequence[StepPanel]], width: float, height: float, **grid: Any
) -> tuple[Figure, list[str]]:
    """A figure of rows of panels, one series alike in all of them; and what is not seen in it.

    A panel says which of its lines leave it: one run far off would flatten the others.
    """
    figure, axes = new_figure(len(rows), len(rows[0]), width, height, **grid)
    panels = [one for row in rows for one in row]
    numbers = numbered(name for one in panels for name in one.lines)
    handles: dict[str, Any] = {}
    said = []
    name_panels(axes, *(one.title for one in panels))
    for axis, letter, one in zip(axes.flat, ascii_lowercase, panels, strict=False):
        if one.points:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not one.lines:
            place: dict[str, Any] = {"ha": "center", "va": "center", "transform": axis.transAxes}
            axis.text(0.5, 0.5, "not judged", color="0.4", fontsize=7, **place)
            axis.set_xticks([])
        for name, line in one.lines.items():
            style = line_style(numbers[name])
            if one.points:
                bars = {"capsize": 1.5, "elinewidth": 0.6, "markersize": 3}
                handle: Any = axis.errorbar(line.steps, line.mean, line.bars, **bars, **style)
            else:
                del style["marker"]
                if line.part is not None:
                    axis.plot(line.steps, line.part, **style | {"linewidth": 0.6})
                if line.single is not None:
                    axis.plot(line.steps, line.single, color=style["color"], linewidth=0.4, alpha=0.45)
                (handle,) = axis.plot(line.steps, line.mean, **style)
                for step, at in line.falls:
                    axis.plot([step], [at], color=style["color"], **FELL)
            handles.setdefault(name, handle)
        axis.set_ylabel(one.unit)
        if one.log:
            axis.set_yscale("log")
            continue
        if one.level:
            axis.axhline(0, color="0.5", linewidth=0.6, zorder=0)
        shown = {name: line.mean if line.single is None else line.single for name, line in one.lines.items()}
        low, high, beyond = (0.0, 1.0, {}) if one.share else span(shown)
        if not math.isfinite(low):
            continue
        if one.zero:  # the panel begins at 0 where nothing is below
            low, high = min(low, 0.0), max(high, 0.0)
        edge = 0.04 * (high - low or abs(high) or 1)
        axis.set_ylim(low - edge, high + edge)
        if leave := "; ".join(f"{name} goes to {value:.3g}" for name, value in beyond.items()):
            said.append(f"{f'({letter}) ' if axes.size > 1 else ''}leaves out what is far off: {leave}")
            text, font = drawable("\n".join(textwrap.wrap(leave, 40)), 5)
            behind: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
            corner: dict[str, Any] = {"ha": "right", "va": "top", "transform": axis.transAxes, "bbox": behind}
            axis.text(0.99, 0.97, text, color="0.3", parse_math=False, fontproperties=font, **corner)
    for axis in axes[-1]:
        axis.set_xlabel("training step")
    figure.align_ylabels(axes)
    if any(line.falls for one in panels for line in one.lines.values()):
        handles["sentinel warns"] = Line2D([], [], color="0.6", linestyle="", **FELL)
    legend_above(figure, list(handles.values()), list(handles))
    return figure, said


def error_bars(middle: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    """What lies below and above, as matplotlib takes it. Of equal values, a mean may be a rounding outside of its
    interval, which matplotlib refuses; where nothing was measured, NaN draws nothing."""
    return [(middle - low).clip(lower=0), (high - middle).clip(lower=0)]


def intervals_beside(axis: Axes, middle: pd.Series, low: pd.Series, high: pd.Series, names: Iterable[Any]) -> None:
    """A row for each name, from the top: its value with its interval, beside a line at 0."""
    at = np.arange(len(middle))[::-1]
    axis.axvline(0, color="0.4", linewidth=0.7, zorder=0)
    bars = error_bars(middle, low, high)
    axis.errorbar(middle, at, xerr=bars, fmt="o", color="black", markersize=3, elinewidth=0.8, capsize=2)
    axis.set_yticks(at, list(names))
    axis.set_ylim(-0.6, len(middle) - 0.4)


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


def drawable(text: str, size: float) -> tuple[str, FontProperties]:
    """A text as the font that draws most of it can draw it, and that font; what it has not is a replacement mark."""
    font = font_for([c for c in dict.fromkeys(text) if c != "\n"])
    font.set_size(size)
    return "".join(c if c == "\n" or (draws(font, c) and c.isprintable()) else "\ufffd" for c in text), font


def draws(font: FontProperties, text: str) -> bool:
    """Whether a font has every character of a text."""
    return _characters(str(font.get_file())).issuperset(map(ord, text))


@cache
def _characters(path: str) -> frozenset[int]:
    """The characters of a font file; none for one that only draws placeholders."""
    font = FT2Font(path)
    return frozenset() if "LastResort" in font.postscript_name else frozenset(font.get_charmap())


def fitted(figure: Figure) -> Figure:
    """Break titles of panels that would reach into the next one or off the figure, which grows by their lines.

    The layout is final then: it takes longer than drawing does, and every format would make it anew. A title has height
    in it, but no width, or a long one would leave its panel none.
    """
    layout: Any = figure.get_layout_engine()
    titles = [axis._left_title for axis in figure.axes]  # type: ignore[attr-defined]
    texts = [title.get_text() for title in titles]
    for title, text in zip(titles, texts, strict=True):
        title.set_text(re.sub(".+", "A", text))
    layout.execute(figure)
    rows: dict[int, int] = {}  # panels of one height -> lines that their titles gain
    for n, (title, axis) in enumerate(zip(titles, figure.axes, strict=True)):
        place = axis.get_position()
        beside = [other.get_position().x0 for other in figure.axes]
        room = (min([1.0, *(x for x in beside if x > place.x1)]) - place.x0) * figure.bbox.width - 0.02 * DPI
        title.set_text(texts[n])
        for width in range(len(texts[n]), 8, -1):
            if title.get_window_extent(_renderer(figure)).width <= room:
                break
            title.set_text("\n".join(textwrap.wrap(texts[n].replace("\n", " "), width)))
        texts[n], lines = title.get_text(), title.get_text().count("\n") - texts[n].count("\n")
        rows[round(100 * place.y1)] = max(rows.get(round(100 * place.y1), 0), lines)
        title.set_text(re.sub(".+", "A", texts[n]))
    if more := sum(rows.values()):
        figure.set_figheight(figure.get_figheight() + more * 1.2 * STYLE["axes.titlesize"] / 72)
        layout.execute(figure)
    for title, text in zip(titles, texts, strict=True):
        title.set_text(text)
    figure.set_layout_engine("none")
    for axis in figure.axes:  # labels as well: each format would measure all ticks again to place them
        for one in (axis.xaxis, axis.yaxis):
            one.get_tightbbox(_renderer(figure))
            at = one.label.get_transform().transform(one.label.get_position())
            one.set_label_coords(*axis.transAxes.inverted().transform(at))
    return figure


def _renderer(figure: Figure) -> Any:
    return figure.canvas.get_renderer()  # type: ignore[attr-defined]


def render(figure: Figure, suffixes: Sequence[str] = ("png", "pdf", "svg")) -> dict[str, bytes]:
    """The figure's files by suffix. No date or version is in them, so the same numbers give the same bytes."""
    unmarked: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None},
        "svg": {"Date": None, "Creator": None},
    }
    canvases = {"png": FigureCanvasAgg, "pdf": FigureCanvasPdf, "svg": FigureCanvasSVG}
    files = {}
    with mpl.rc_context(STYLE):
        fitted(figure)
        for suffix in suffixes:
            buffer = io.BytesIO()
            # Not by `savefig`, which goes through all of it twice.
            getattr(canvases[suffix](figure), f"print_{suffix}")(buffer, metadata=unmarked[suffix])
            files[suffix] = buffer.getvalue()
            figure.set_dpi(DPI)  # vector formats leave theirs behind
        FigureCanvasAgg(figure)
    return files
