"""How traces change while a model trains (Fig. 2a-d of the paper), and where they collapse."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nrt_analysis.figures import COLUMN, legend_above, limits, line_style, new_figure, numbered, panel
from nrt_analysis.frames import steps_frame
from nrt_analysis.tables import Report
from nrt_cli.measures.collapse import NGRAM, SIGNS, WINDOW, Fall, Sentinel, watched
from nrt_cli.store import Run

PANELS = {
    "entropy": ("trace entropy", "nats per token"),
    "trace_length": ("trace length", "tokens"),
    "distinct_ngrams": (f"distinct {NGRAM}-grams", "share of all"),
    "forced_share": ("forced (thin: by cap)", "share of traces"),
    "gain": ("gain over null trace", "nats per answer"),
    "reward_gain": ("reward gain $R - R_{base}$", "unit of the scheme"),
    "dead_groups": ("dead groups", "share of groups"),
    "token_signal": ("token signal", "mean size"),
}
"""Metrics drawn: panel title and unit."""

FELL: dict[str, Any] = {"marker": "o", "markersize": 4.5, "markeredgecolor": "black"}
"""How a step is marked at which the sentinel warns."""

SHARES = ("distinct_ngrams", "forced_share", "dead_groups")
COLUMNS = ("entropy", "trace_length", "distinct_ngrams", "forced_share", "truncated_share", *list(PANELS)[4:])

UNITS = {
    "step": "training step, from 1",
    "entropy": "nats, exact, mean over sampled trace tokens",
    "trace_length": "tokens, mean over traces",
    "distinct_ngrams": f"distinct / all {NGRAM}-grams of a group's traces, mean over groups",
    "forced_share": "share of traces whose end was appended (cap or eos)",
    "truncated_share": "share of traces that ran into the cap",
    "gain": "nats: log P(y*) given the trace - given the null trace, mean over traces",
    "reward_gain": "R - R_base in the scheme's unit: not comparable between schemes",
    "dead_groups": "share of groups whose advantages are all 0",
    "token_signal": "mean factor of the answer tokens' loss; its scale differs between schemes",
}


def dynamics(runs: Mapping[str, Run], window: int = WINDOW) -> Report:
    """Each metric by step and run, and its mean over the last `window` steps; what the collapse sentinel sees in them.

    Raises StoreError for a run that has no steps or samples no traces.
    """
    frames = {label: steps_frame(run) for label, run in runs.items()}
    falls = {label: collapses(frames[label], run) for label, run in runs.items()}
    smooth = {label: smoothed(frame, window) for label, frame in frames.items()}
    figure, said = _figure(frames, smooth, falls)
    by_step = pd.concat([_by_step(label, frames[label], smooth[label]) for label in runs], ignore_index=True)
    return Report(
        name="dynamics",
        tables={
            "summary": _summary(frames, falls, window),
            "dynamics": by_step,
            "collapse": _collapse_table(falls),
        },
        figures={"dynamics": figure},
        notes=(
            f"first, last: means over a run's first and last {window} steps",
            f"smoothed: mean of the last {window} steps, fewer at the start; thin lines are the steps themselves",
            f"the sentinel compares means of {WINDOW} steps with the run's first {WINDOW}; it marks the step where a "
            "sign falls while nothing speaks for learning: no gain, no better held-out accuracy",
            *said,
            *(f"{label}: step {fall.step}: {fall}" for label in runs for fall in falls[label]),
        ),
        units=UNITS,
    )


def smoothed(frame: pd.DataFrame, window: int) -> pd.DataFrame:
    """Trailing means of the metrics over `window` rows; NaN is passed over, and stays only where all of a window is."""
    return frame[list(COLUMNS)].rolling(window, min_periods=1).mean()


def collapses(frame: pd.DataFrame, run: Run) -> list[Fall]:
    """What the sentinel reports over a whole run, in order.

    Args:
        frame: of the run's steps, which may know more than its metrics do (`steps_frame`).
    """
    sentinel = Sentinel(run.manifest().get("steps"))
    steps = frame[["step", *SIGNS.keys() & set(frame)]].to_dict(orient="records")
    return [fall for record in watched(steps, run.metrics("held_out")) for fall in sentinel.add(record)]


def _by_step(label: str, frame: pd.DataFrame, smooth: pd.DataFrame) -> pd.DataFrame:
    table = frame[["step", *COLUMNS]].join(smooth.add_suffix("_smoothed"))
    table.insert(0, "run", label)
    return table


def _summary(frames: Mapping[str, pd.DataFrame], falls: Mapping[str, list[Fall]], window: int) -> pd.DataFrame:
    """A row per run and metric: its mean over the run's first and last `window` steps, and where it fell."""
    rows = []
    for label, frame in frames.items():
        fell = {fall.sign: str(fall.step) for fall in falls[label]}
        for metric in COLUMNS:
            first, last = frame[metric].iloc[:window].mean(), frame[metric].iloc[-window:].mean()
            rows.append({"run": label, "metric": metric, "first": first, "last": last, "fell at": fell.get(metric, "")})
    return pd.DataFrame(rows)


def _collapse_table(falls: Mapping[str, list[Fall]]) -> pd.DataFrame:
    rows = [{"run": label, **vars(fall)} for label, found in falls.items() for fall in found]
    return pd.DataFrame(rows, columns=["run", "sign", "step", "start", "now", "limit", "seen"])


# --- figure ----------------------------------------------------------------------------------------------------------


def _figure(
    frames: Mapping[str, pd.DataFrame], smooth: Mapping[str, pd.DataFrame], falls: Mapping[str, list[Fall]]
) -> tuple[Figure, list[str]]:
    """The panels, and what is not seen in them."""
    figure, axes = new_figure(4, 2, COLUMN, 5.2, sharex=True)
    handles, numbers, said = [], numbered(frames), []
    for axis, letter, (metric, (title, unit)) in zip(axes.flat, "abcdefgh", PANELS.items(), strict=True):
        for label, i in numbers.items():
            handles.append(_series(axis, i, metric, frames[label], smooth[label], falls[label]))
        panel(axis, letter, title)
        axis.set_ylabel(unit)
        if beyond := _scale(axis, metric, frames):
            said.append(f"({letter}) leaves out what is far off: {beyond}")
    for axis in axes[-1]:
        axis.set_xlabel("training step")
    figure.align_ylabels(axes)
    handles, labels = handles[: len(frames)], list(frames)
    if any(falls.values()):
        handles.append(Line2D([], [], color="0.6", linestyle="", **FELL))
        labels.append("sentinel warns")
    legend_above(figure, handles, labels)
    return figure, said


def _series(axis: Axes, i: int, metric: str, frame: pd.DataFrame, smooth: pd.DataFrame, falls: list[Fall]) -> object:
    """One run in one panel: steps thin, smoothed thick, and a marker where the sentinel saw the metric fall."""
    style = line_style(i)
    del style["marker"]
    steps = frame["step"]
    if metric == "forced_share":
        axis.plot(steps, smooth["truncated_share"], **style | {"linewidth": 0.6})
    else:
        axis.plot(steps, frame[metric], color=style["color"], linewidth=0.4, alpha=0.45)
    (line,) = axis.plot(steps, smooth[metric], **style)
    for fall in falls:
        if fall.sign == metric:
            height = smooth.loc[steps == fall.step, metric]
            axis.plot([fall.step], height, color=style["color"], **FELL)
    return line


def _scale(axis: Axes, metric: str, frames: Mapping[str, pd.DataFrame]) -> str:
    if metric == "token_signal" and all((frame[metric] > 0).all() for frame in frames.values()):
        axis.set_yscale("log")  # schemes differ by orders of magnitude
        return ""
    if metric not in (*SHARES, "entropy", "trace_length"):
        axis.axhline(0, color="0.5", linewidth=0.6, zorder=0)
    lines = {label: frame[metric] for label, frame in frames.items()}
    return limits(axis, lines, zero=metric != "token_signal", share=metric in SHARES)
