"""What every figure keeps to: all text inside it, methods told apart by anybody, no run that flattens the others."""

import io
import itertools
import math
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from nrt_analysis.dynamics_report import dynamics
from nrt_analysis.figures import (
    COLUMN,
    DPI,
    LINES,
    STYLE,
    fitted,
    legend_above,
    line_style,
    name_panels,
    new_figure,
    numbered,
    render,
    span,
)
from nrt_analysis.frames import open_runs

from nrt_cli.config.titles import CONTROL, TITLES

LONG = "a title that is much too long for one line of half a column, and for two of them, too"
ODD = ("x" * 200, "学习运行-七", "$x_1$ & 50 % \\alpha", "_hidden", "\x1b[31m", "")
NAMES = (LONG, *ODD, *TITLES, *TITLES.values(), CONTROL)


def outside(figure):
    """What is written over the figure's edge, by a pixel or more: texts, and the axes' ticks with their labels."""
    figure.draw_without_rendering()
    renderer, edge = figure.canvas.get_renderer(), figure.bbox
    ticks = {text for axis in figure.axes for text in (*axis.get_xticklabels(), *axis.get_yticklabels())}
    ticks |= {text for axis in figure.axes for text in (*axis.get_xticklabels("minor"), *axis.get_yticklabels("minor"))}
    texts = [text for text in figure.findobj(Text) if text not in ticks and text.get_visible() and text.get_text()]
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in texts}
    sides = [side for axis in figure.axes for side in (axis.xaxis, axis.yaxis)]
    boxes |= {str(side): box for side in sides if (box := side.get_tightbbox(renderer)) is not None}
    return {
        name: box
        for name, box in boxes.items()
        if box.x0 < edge.x0 - 1 or box.x1 > edge.x1 + 1 or box.y0 < edge.y0 - 1 or box.y1 > edge.y1 + 1
    }


@pytest.mark.parametrize("count", [1, len(NAMES)])
@pytest.mark.parametrize("columns", [1, 2])
def test_all_text_of_a_figure_is_inside_it_and_every_name_is_in_the_legend(count, columns):
    figure, axes = new_figure(2, columns, COLUMN, 5 / columns)
    names = NAMES[-count:]
    handles = [axes[0, 0].plot([1, 2], [i, i + 1], **line_style(i))[0] for i in range(count)]
    name_panels(axes, *[LONG] * axes.size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of a character that the font has not
        legend_above(figure, handles, names)
        files = render(figure, ("png", "svg"))
    assert outside(figure) == {}
    (legend,) = figure.legends
    assert len(legend.get_texts()) == count
    assert not any("$" in text.get_text() and text.get_parse_math() for text in legend.get_texts())
    first, second = axes[0, 0], axes[0, -1]
    if columns == 2:  # a title ends before the next panel begins
        box = first._left_title.get_window_extent(figure.canvas.get_renderer())
        assert box.x1 <= second.get_position().x0 * figure.bbox.width
    assert files["png"]


def test_every_format_is_what_matplotlib_saves():
    figure, axes = new_figure(1, 2, COLUMN, 2)
    axes[0, 0].plot([1, 2], [3, 1])
    name_panels(axes, "one", LONG)
    files = render(figure)
    nothing = {"png": ["Software"], "pdf": ["CreationDate", "Producer"], "svg": ["Date", "Creator"]}
    with mpl.rc_context(STYLE):
        for suffix, made in files.items():
            saved = io.BytesIO()
            figure.savefig(saved, format=suffix, dpi=DPI, metadata=dict.fromkeys(nothing[suffix]))
            assert saved.getvalue() == made, suffix


def test_the_dynamics_of_eight_runs_with_an_outlier_keep_all_text_inside_and_say_who_leaves(make_run):
    runs = []
    for i in range(8):
        gain = 3000.0 if i == 7 else 0.1 * i
        steps = [{"reward": 0.5 + gain * t, "truncated_share": 0.0, "distinct_ngrams": 0.9} for t in range(12)]
        runs.append(make_run(f"{LONG}-{i}", "am", steps).path)
    found = dynamics(open_runs(runs))
    figure = fitted(found.figures[0].drawing)
    assert outside(figure) == {}
    said = [note for note in found.notes if note.startswith("(f) leaves out what is far off")]
    assert len(said) == 1
    assert f"{LONG}-7 goes to" in said[0]
    (rewards,) = [axis for axis in figure.axes if "reward gain" in axis.get_title(loc="left")]
    assert rewards.get_ylim()[1] < 10


def lines(*rows):
    return {f"run {i}": pd.Series(row, dtype=float) for i, row in enumerate(rows)}


def test_a_line_far_off_is_left_out_by_hand():
    # Highest values 1, 1.1, 1.2, 50: their median is 1.15, the median distance from it 0.1; lines are 1 high.
    low, high, beyond = span(lines([0, 1], [0.1, 1.1], [0.2, 1.2], [0, 50]))
    assert (low, high) == (0, 1.2)
    assert beyond == {"run 3": 50}
    assert span(lines([0, 1], [0, 1], [0, 1], [-40, 1]))[2] == {"run 3": -40}


def test_of_two_lines_none_is_far_off_and_gaps_are_no_values():
    assert span(lines([0, 1], [0, 500])) == (0, 500, {})
    assert span(lines([0, math.nan, 1], [math.nan, 2], [math.nan, math.nan])) == (0, 2, {})
    assert math.isnan(span(lines([math.nan]))[0])
    assert math.isnan(span({})[0])


@given(st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=5), min_size=1, max_size=9), st.floats(0.1, 10))
def test_what_is_seen_does_not_depend_on_the_unit_or_the_order(rows, scale):
    low, high, beyond = span(lines(*rows))
    again = span({name: scale * line for name, line in reversed(lines(*rows).items())})
    assert again[:2] == pytest.approx((scale * low, scale * high), abs=1e-9)
    assert set(again[2]) == set(beyond)
    assert len(beyond) <= len(rows) // 2  # what most runs do is what is shown


# Machado, Oliveira and Fernandes (2009), severity 1.
SIGHT = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def linear(color):
    shares = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]] @ np.clip(rgb, 0, 1)
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / np.array([0.9505, 1, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("ground", ["color", "dark"])
def test_any_two_methods_are_told_apart(sight, ground):
    places = {line: lab(np.array(SIGHT[sight]) @ linear(getattr(line, ground))) for line in LINES}
    for one, other in itertools.combinations(LINES, 2):
        assert np.linalg.norm(places[one] - places[other]) >= 20, (one, other)
    assert len({line.dash for line in LINES}) == len({line.marker for line in LINES}) == len(LINES)


def test_a_method_looks_the_same_beside_any_others():
    everything = numbered([*TITLES.values(), CONTROL])
    first = len(TITLES)
    assert list(everything.values()) == list(range(first))
    assert numbered(["mine:reward", "NRT-GM", "SFT"]) == {"mine:reward": first, "NRT-GM": 4, "SFT": 0}
    # As before there were methods of others.
    assert numbered(["am", CONTROL]) == {"am": 3, CONTROL: 7}
    assert numbered(["NRT-GM, seed 0", "NRT-GM, seed 1"]) == {"NRT-GM, seed 0": 4, "NRT-GM, seed 1": first}
    many = numbered(f"run {i}" for i in range(40))
    assert len(set(many.values())) == 40
    styles = {str(line_style(i)) for i in many.values()}
    assert len(styles) == 40
