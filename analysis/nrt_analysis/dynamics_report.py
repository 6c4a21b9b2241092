"""How traces change while a model trains (Fig. 2a-d of the paper), and where they collapse."""

from collections.abc import Mapping

import pandas as pd

from nrt_analysis.document import Document, section
from nrt_analysis.figures import COLUMN, StepLine, StepPanel, draw_steps
from nrt_analysis.frames import averaged, steps_frame
from nrt_cli.measures.collapse import NGRAM, SIGNS, WINDOW, Fall, Sentinel, watched
from nrt_cli.store import Run

PANELS = {
    "entropy": ("trace entropy", "nats per token"),
    "trace_length": ("trace length", "tokens"),
    "distinct_ngrams": (f"distinct {NGRAM}-grams", "share of all"),
    "forced_share": ("forced (thin: by cap)", "share of traces"),
    "gain": ("gain over null trace", "nats per answer"),
    # No space in its formula, at which a narrow title would break.
    "reward_gain": ("reward gain $R-R_{base}$", "unit of the scheme"),
    "dead_groups": ("dead groups", "share of groups"),
    "token_signal": ("token signal", "mean size"),
}
"""Metrics drawn: panel title and unit."""

SHARES = ("distinct_ngrams", "forced_share", "dead_groups")
COLUMNS = ("entropy", "trace_length", "distinct_ngrams", "forced_share", "truncated_share", *list(PANELS)[4:])


def dynamics(runs: Mapping[str, Run], window: int = WINDOW) -> Document:
    """Each metric by step and run, and its mean over the last `window` steps; what the collapse sentinel sees in them.

    Raises StoreError for a run that has no steps or samples no traces.
    """
    frames = {label: steps_frame(run) for label, run in runs.items()}
    falls = {label: collapses(frames[label], run) for label, run in runs.items()}
    # NaN is passed over, and stays only where all of a window is.
    smooth = {label: frame[list(COLUMNS)].rolling(window, min_periods=1).mean() for label, frame in frames.items()}
    summary, means, drawn = [], list[str](), dict[str, pd.DataFrame]()
    for label, frame in frames.items():
        each = frame[["step", *COLUMNS]].join(smooth[label].add_suffix("_smoothed"))
        each, of = averaged(each)
        if of > 1:
            means.append(f"{label}: rows and lines are means over {of} steps each; `nrt runs export` writes every step")
        drawn[label] = each
        fell = {fall.sign: str(fall.step) for fall in falls[label]}
        for metric in COLUMNS:
            first, last = frame[metric].iloc[:window].mean(), frame[metric].iloc[-window:].mean()
            summary.append((label, metric, first, last, fell.get(metric, "")))
    collapse = [{"run": label, **vars(fall)} for label, found in falls.items() for fall in found]
    panels = []
    for metric, (title, unit) in PANELS.items():
        lines = {}
        for label, frame in drawn.items():
            mean, every = frame[f"{metric}_smoothed"], smooth[label][metric]
            steps = frames[label]["step"]
            at = tuple((f.step, float(every[steps == f.step].iloc[0])) for f in falls[label] if f.sign == metric)
            # Thin are the steps themselves, or beside forced ends those that ran into the cap.
            forced = metric == "forced_share"
            single, part = (None, frame["truncated_share_smoothed"]) if forced else (frame[metric], None)
            lines[label] = StepLine(frame["step"], mean, single, part, falls=at)
        # Token signals of schemes differ by orders of magnitude.
        log = metric == "token_signal" and all((frame[metric] > 0).all() for frame in frames.values())
        level = metric not in (*SHARES, "entropy", "trace_length")
        panels.append(StepPanel(title, unit, lines, metric in SHARES, metric != "token_signal", level, log))
    rows = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    figure, said = draw_steps(rows, COLUMN, 5.2, sharex=True)
    return section(
        "dynamics",
        {
            "summary": pd.DataFrame(summary, columns=["run", "metric", "first", "last", "fell at"]),
            "dynamics": pd.concat(drawn, names=["run"]).reset_index("run").reset_index(drop=True),
            "collapse": pd.DataFrame(collapse, columns=["run", "sign", "step", "start", "now", "limit", "seen"]),
        },
        {"dynamics": figure},
        (
            f"first, last: means over a run's first and last {window} steps",
            f"smoothed: mean of the last {window} steps, fewer at the start; thin lines are the steps themselves",
            f"the sentinel compares means of {WINDOW} steps with the run's first {WINDOW}; it marks the step where a "
            "sign falls while nothing speaks for learning: no gain, no better held-out accuracy",
            *said,
            *means,
            *(f"{label}: step {fall.step}: {fall}" for label in runs for fall in falls[label]),
        ),
    )


def collapses(frame: pd.DataFrame, run: Run) -> list[Fall]:
    """What the sentinel reports over a whole run, in order.

    Args:
        frame: of the run's steps, which may know more than its metrics do (`steps_frame`).
    """
    sentinel = Sentinel(run.manifest().get("steps"))
    signs = ["step", *SIGNS.keys() & set(frame)]
    steps = (dict(zip(signs, row, strict=True)) for row in frame[signs].to_numpy(float).tolist())
    return [fall for record in watched(steps, run.metrics("held_out")) for fall in sentinel.add(record)]
