"""Whether traces reason or smuggle the answer in: copied words, and the gain of traces tampered with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nrt_analysis.document import Document, interval, number, section
from nrt_analysis.figures import COLUMN, error_bars, intervals_beside, line_style, name_panels, new_figure
from nrt_analysis.intervals import DRAWS, clustered_means, share_above_0, share_over_clusters

CONTROLS = {
    "sampled": "as sampled",
    "masked": "answer words masked",
    "shuffled": "tokens shuffled",
    "swapped": "another example's",
    "empty": "empty",
}
"""Controls in the order of what is left of the trace, with the words a figure has for them."""


def leakage_report(parts: Sequence[Path], method: str, traces: str, span: int) -> Document:
    """Gains under controls, and the share of answer n-grams that are copied into traces.

    Args:
        parts: tables of controls, as `nrt_cli/workflows/scoring.py` stores them.
        method, traces: the run's method and the name of its trace table, for the notes.
        span: words in a row that counted as copied where they were masked.
    """
    frame = pd.concat(map(pd.read_parquet, parts), ignore_index=True)
    controls, copies = by_control(frame), by_length(frame)
    sampled = frame[frame["control"] == "sampled"]
    spans = "words" if span == 1 else f"runs of {span} or more words"
    gains, losses = (  # what a terminal has room for
        [interval(row, "+z.1f") for row in controls[columns].itertuples(index=False)]
        for columns in (["gain", "low", "high"], ["lost", "lost_low", "lost_high"])
    )
    short = {"trace": controls["control"].map(CONTROLS), "gain (nats)": gains, "lost (nats)": losses}
    copied = [
        f"{row.n}-grams of the answer that are not in the question: {row.copied:.1%} are in the trace, "
        f"{number(row.by_chance, '.1%')} in another example's"
        for row in copies.itertuples()
        if row.measured
    ]
    pair = sampled[["copied_1", "gain"]].dropna()
    if len(pair) > 2 and pair.nunique().min() > 1:
        rho = pair.corr(method="spearman").iloc[0, 1]
        copied.append(
            f"rank correlation of a trace's gain with its share of copied words: {rho:+.2f} (n = {len(pair)})"
        )
    figure, axes = new_figure(2, 1, COLUMN, 3.4)
    above, below = axes[:, 0]
    intervals_beside(above, controls["gain"], controls["low"], controls["high"], map(CONTROLS.get, controls["control"]))
    above.set_xlabel("gain over the null trace (nats per answer)")
    small: dict[str, Any] = {"markersize": 3, "linewidth": 1}
    bars = error_bars(copies["copied"], copies["low"], copies["high"])
    style = small | line_style(0)
    below.errorbar(copies["n"], copies["copied"], bars, label="own trace", elinewidth=0.8, capsize=2, **style)
    below.plot(copies["n"], copies["by_chance"], label="another example's", **small | line_style(1))
    below.set_xticks(copies["n"])
    below.set_ylim(bottom=0)
    below.set_xlabel("$n$ (words)")
    below.set_ylabel("share of $n$-grams copied")
    below.legend(frameon=False, fontsize=6)
    name_panels(axes, "gain of a trace, and of what is left of it", "answer words in the trace")
    return section(
        "leakage",
        {
            "gains": pd.DataFrame(short | {"R": controls["reward"]}),
            "leakage": controls,
            "copied": copies,
            "traces": frame,
        },
        {"leakage": figure},
        (
            f"{len(sampled)} traces ({traces}) of {sampled['example'].nunique()} examples; rewards: {method}",
            f"masked: {spans} that the answer has and the question has not, one mask for each of their tokens; "
            "shuffled: the trace's own tokens in random order",
            *copied,
            f"intervals: 95 %, percentiles of {DRAWS:,} bootstrap draws of whole examples; of shares, Wilson's",
        ),
    )


def by_control(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per control; one that could not be made (a single example has no other's trace) is left out."""
    sampled = frame[frame["control"] == "sampled"].set_index(["example", "k"])["gain"]
    own = sampled.reindex(pd.MultiIndex.from_frame(frame[["example", "k"]])).to_numpy()
    frame = frame.assign(lost=own - frame["gain"], reward_gain=frame["reward"] - frame["reward_base"])
    order = [control for control in CONTROLS if (frame["control"] == control).any()]
    gains, losses = (clustered_means(frame[c], frame["example"], frame["control"]) for c in ("gain", "lost"))
    means = frame.groupby("control")[["trace_tokens", "changed_tokens", "reward", "reward_gain"]].mean()
    table = pd.DataFrame({"traces": frame.groupby("control").size()})
    table[["trace_tokens", "changed_tokens"]] = means[["trace_tokens", "changed_tokens"]]
    table[["gain", "low", "high"]] = gains[["mean", "low", "high"]]
    table[["lost", "lost_low", "lost_high"]] = losses[["mean", "low", "high"]]
    table["helpful_share"] = frame.groupby("control")["gain"].agg(share_above_0)
    table[["reward", "reward_gain"]] = means[["reward", "reward_gain"]]
    return table.loc[order].rename_axis("control").reset_index()


def by_length(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per n: how much of the answer is in its own trace, and in another example's."""
    lengths = sorted(int(column.removeprefix("copied_")) for column in frame if column.startswith("copied_"))
    rows = []
    sampled, swapped = (frame[frame["control"] == control] for control in ("sampled", "swapped"))
    for n in lengths:
        found = share_over_clusters(sampled[f"copied_{n}"], sampled["example"])
        rows.append((n, found.value, found.low, found.high, swapped[f"copied_{n}"].mean(), found.n))
    return pd.DataFrame(rows, columns=["n", "copied", "low", "high", "by_chance", "measured"])
