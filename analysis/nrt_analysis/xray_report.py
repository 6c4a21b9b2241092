"""Which steps of traces the answer needs, when it is decided, and whether it was computed or smuggled in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nrt_analysis.document import Document, interval, section
from nrt_analysis.figures import COLUMN, intervals_beside, legend_above, line_style, name_panels, new_figure, numbered
from nrt_analysis.intervals import DRAWS, clustered_means
from nrt_cli.measures.xray import DECIDED, MATTERS

CONTROLS = {
    "empty": "no trace",
    "swapped": "another question's",
    "filler": "full stops",
    "shuffled": "steps shuffled",
    "changed": "other numbers, names",
    "masked": "answer's words masked",
}
"""Controls with the words that a figure has for them, those that leave the least of a trace first."""

FEW = 8
"""Traces up to which their steps are the table to read."""


def xray_report(models: Sequence[tuple[str, Sequence[Path]]]) -> Document:
    """What the models' tables say, as `nrt_cli/workflows/xray.py` stores them."""
    frames = [pd.concat(map(pd.read_parquet, parts)).assign(model=label) for label, parts in models]
    rows = pd.concat(frames, ignore_index=True)
    traces, names = by_trace(rows), [label for label, _ in models]
    steps = rows[["model", "traces", "example", "k"]].join(rows[["necessity", "needed", "steps"]].map(list))
    steps = steps.explode(["necessity", "needed", "steps"]).rename(columns={"steps": "text"}).dropna(subset=["text"])
    steps.insert(4, "n", steps.groupby(level=0).cumcount() + 1)
    steps = steps.astype({"necessity": float, "needed": float}).reset_index(drop=True)
    summary, controls = by_model(traces, names), by_control(traces, names)
    curves = {name: decided_curve(traces[traces["model"] == name]) for name in names}
    curve = pd.concat([of.assign(model=name) for name, of in curves.items()])[["model", "share", "decided"]]
    few = len(traces) <= FEW
    short = {"model": summary.index, "traces": summary["traces"], "steps": summary["steps"].round(1)}
    for title, name in (("matter", "matters"), ("decided after", "decided"), ("smuggled", "smuggled")):
        ends = summary[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        short[title] = [interval(of, ".0%") for of in ends]
    read = steps[["k", "necessity", "needed", "text"]] if few else pd.DataFrame(short | {"gain": summary["gain"]})
    figure, axes = new_figure(2, 1, COLUMN, 3.8, height_ratios=(3, 2))
    above, below = axes[:, 0]
    draw_decided(figure, above, curves)
    last = controls[controls["model"] == names[-1]]
    intervals_beside(below, last["lost"], last["low"], last["high"], [CONTROLS[name] for name in last["control"]])
    below.set_xlabel("lost (nats per answer)")
    name_panels(axes, "when is the answer decided?", f"log P(y*) lost in place of the trace, {names[-1]}")
    unit = ", ".join(sorted(rows["unit"].unique()))
    return section(
        "xray",
        {
            **({"read": read} if few else {"models": read}),
            "xray": summary.reset_index(names="model"),
            "controls": controls,
            "curve": curve,
            "steps": steps,
            "traces": traces,
        },
        {"xray": figure},
        (
            f"{len(traces)} traces ({', '.join(dict.fromkeys(rows['traces']))}) of {traces['example'].nunique()} "
            f"questions; a step is a {unit}",
            f"matter: share of a trace's steps that the answer needs: it has lost a tenth of its probability "
            f"({MATTERS:.3f} nats) or more without the step or with other numbers and names in it, or so has "
            "what follows from it in a later step that matters",
            f"decided after: share of the steps from which on log P(y*) lacks less than {DECIDED:.0%} of the trace's "
            "gain, or less than that tenth",
            "smuggled: share of the gain that the surprise of the words that bring it pays for, told or guessed; what "
            "is over was computed",
            f"intervals: 95 %, percentiles of {DRAWS:,} bootstrap draws of whole questions",
        ),
    )


def by_trace(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per trace, its steps taken together; what each control loses in nats, `empty` being the null trace."""
    whole = rows["kept"].map(lambda kept: kept[-1])
    taken = rows["needed"]
    found = rows[["model", "model_step", "traces", "step", "example", "k", "unit"]].assign(
        steps=taken.map(len),
        matters=taken.map(lambda nats: float(np.mean(nats >= MATTERS)) if len(nats) else np.nan),
        harms=taken.map(lambda nats: float(np.mean(nats <= -MATTERS)) if len(nats) else np.nan),
        decided=rows["decided"] / taken.map(len).clip(lower=1),
        logprob=whole,
        gain=whole - rows["null_logprob"],
        gained=rows["gained"].astype(float),
        smuggled=rows["smuggled"].astype(float),
        copied=rows["copied"].astype(float),
        empty=whole - rows["null_logprob"],
    )
    return found.assign(**{name: whole - rows[name].astype(float) for name in CONTROLS if name in rows})


def by_model(traces: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """One row per model, in their order: means over traces, with intervals over whole questions."""
    found = pd.DataFrame({"traces": traces.groupby("model").size(), "steps": traces.groupby("model")["steps"].mean()})
    for name in ("matters", "harms", "decided", "smuggled", "gain"):
        means = clustered_means(traces[name], traces["example"], traces["model"])
        found[[name, f"{name}_low", f"{name}_high"]] = means[["mean", "low", "high"]]
        if name == "smuggled":
            found["measured"] = means["n"]
    at_once = (traces["decided"] == 0).groupby(traces["model"]).mean()
    return found.assign(at_once=at_once, copied=traces.groupby("model")["copied"].mean()).loc[list(names)]


def by_control(traces: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """What each model's answers lose with something else in the trace's place; what was not made is left out."""
    found = []
    for control in CONTROLS:
        means = clustered_means(traces[control], traces["example"], traces["model"]).loc[list(names)]
        means = means.rename(columns={"mean": "lost"}).reset_index(names="model")
        found.append(means.assign(control=control)[["model", "control", "n", "lost", "low", "high"]])
    table = pd.concat(found, ignore_index=True)
    return table[table["n"] > 0].reset_index(drop=True)


def decided_curve(traces: pd.DataFrame) -> pd.DataFrame:
    """Share of the traces whose answer is decided by the first `share` of their steps, in twentieths.

    The area above it is the mean share of a trace that it takes: early is the sign of a shortcut (arXiv 2510.01367).
    """
    decided, shares = traces["decided"].dropna().to_numpy(float), np.arange(21) / 20
    by = [float(np.mean(decided <= share + 1e-9)) if len(decided) else np.nan for share in shares]
    return pd.DataFrame({"share": shares, "decided": by})


def draw_decided(figure: Figure, axis: Axes, curves: Mapping[str, pd.DataFrame]) -> None:
    """A line for each model or method, by name."""
    numbers, handles = numbered(curves), list[Any]()
    for name, curve in curves.items():
        style = line_style(numbers[name]) | {"marker": ""}
        handles += axis.step(curve["share"], curve["decided"], where="post", **style)
    axis.set_ylim(-0.02, 1.02)
    for way in (axis.xaxis, axis.yaxis):
        way.set_major_formatter(PercentFormatter(1))
    axis.set_xlabel("first steps of the trace that are kept")
    axis.set_ylabel("traces decided")
    legend_above(figure, handles, list(curves))
