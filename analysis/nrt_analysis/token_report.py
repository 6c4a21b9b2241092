"""How thinking changes the probability of ground-truth tokens, by how unsure an SFT model is of them (Figure 3)."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nrt_analysis.document import Document, interval, section, shipped
from nrt_analysis.figures import COLUMN, error_bars, legend_above, line_style, name_panels, new_figure, numbered
from nrt_analysis.frames import stacked
from nrt_analysis.intervals import DRAWS, clustered_means, share_above_0
from nrt_cli.errors import StoreError

FEWEST = 30
"""Tokens that a bin must have; the bins of the highest entropies are joined until they do."""


def token_report(models: Iterable[tuple[str, Sequence[Path]]], width: float = 0.5) -> Document:
    """Figure 3 and its numbers.

    Args:
        models: labels and tables of the same examples, as `nrt_cli/workflows/scoring.py` stores them; the baseline's
            come first.
        width: of a bin of H_SFT, in nats.
    """
    columns = ["example", "position", "token_id", "token", "logprob", "entropy"]
    scored = ((label, (pd.read_parquet(part, columns=columns) for part in parts)) for label, parts in models)
    (_, sft), *others = ((label, stacked(frames, columns)) for label, frames in scored)
    if sft["entropy"].isna().all():
        raise StoreError("the baseline gives no finite probabilities to compare with; name another with --baseline.")
    joined = {}
    for label, rows in others:
        both = sft.merge(rows, on=["example", "position"], suffixes=("_sft", ""), validate="one_to_one")
        if len(both) != len(sft) or (both["token_id"] != both["token_id_sft"]).any():
            raise StoreError(
                f"{label}: was not scored on the baseline's tokens; delete the `scored` folder and run again."
            )
        log_ratio = both["logprob"] - both["logprob_sft"]
        p, p_sft = np.exp(both["logprob"]), np.exp(both["logprob_sft"])
        joined[label] = both.assign(log_ratio=log_ratio, ratio=np.exp(log_ratio), p=p, p_sft=p_sft)
    edges = bin_edges(sft["entropy"], width)
    table = pd.concat([by_entropy(frame, edges).assign(run=label) for label, frame in joined.items()])
    table = table[
        ["run", *(column for column in shipped("columns.yaml")["tokens"] if column in table and column != "run")]
    ].reset_index(drop=True)
    # Each model over all tokens, and over the tenth of them with the highest H_SFT.
    summary, hard = [], sft["entropy"].quantile(0.9)
    for label, frame in joined.items():
        for which, part in (("all", frame), ("hardest tenth", frame[frame["entropy_sft"] >= hard])):
            means = part[["p_sft", "p", "ratio"]].mean().to_dict()
            means |= {"typical": float(np.exp(part["log_ratio"].mean())), "improved": share_above_0(part["log_ratio"])}
            summary.append({"run": label, "which": which, "tokens": len(part), **means})
    # The table to read: a row per bin, a column per run with its ratio and interval.
    bins = table[["h_low", "h_high"]].itertuples(index=False, name=None)
    texts = table.assign(
        H_SFT=[f"{low:g}-{high:g}" if np.isfinite(high) else f"{low:g} or more" for low, high in bins],
        text=[interval(row, ".3f") for row in table[["ratio", "low", "high"]].itertuples(index=False)],
    )
    wide = texts.pivot_table(index=["H_SFT", "tokens"], columns="run", values="text", aggfunc="first", sort=False)
    wide = wide.reset_index().rename_axis(columns=None)[["H_SFT", "tokens", *dict.fromkeys(table["run"])]]
    median, narrow = float(sft["entropy"].median()), width / 5
    fine = np.arange(int(sft["entropy"].max() // narrow) + 2) * narrow
    counts, _ = np.histogram(sft["entropy"], fine)
    histogram = pd.DataFrame({"h_low": fine[:-1], "h_high": fine[1:], "tokens": counts})
    return section(
        "tokens",
        {"ratios": wide, "tokens": table, "summary": pd.DataFrame(summary), "entropy": histogram},
        {"tokens": token_figure(histogram, table, median)},
        (
            f"{len(sft):,} ground-truth tokens of {sft['example'].nunique()} examples, eos included; median H_SFT "
            f"{median:.3f} nats",
            f"intervals: 95 %, percentiles of {DRAWS:,} bootstrap draws of whole examples; bins of {width:g} nats, the "
            f"last ones joined to {FEWEST} tokens or more",
            "shown: mean P / P_SFT [interval] by H_SFT in nats; all columns are in tokens.csv",
            "ratio is the mean of P / P_SFT as in the paper: single tokens with a tiny P_SFT can dominate it; typical "
            "is the geometric mean",
        ),
    )


def bin_edges(entropies: pd.Series, width: float) -> np.ndarray:
    """Edges of bins of equal width from 0, the last of which goes on to infinity and has `FEWEST` tokens or more."""
    last = int(entropies.max() // width)
    while last > 0 and (entropies >= last * width).sum() < FEWEST:
        last -= 1
    return np.append(np.arange(last + 1) * width, np.inf)


def by_entropy(frame: pd.DataFrame, edges: np.ndarray) -> pd.DataFrame:
    """One row per bin of H_SFT."""
    bins = pd.cut(frame["entropy_sft"].clip(lower=0), edges, right=False, labels=False)
    grouped = frame.groupby(bins)
    ratio = clustered_means(frame["ratio"], frame["example"], bins)
    typical = np.exp(clustered_means(frame["log_ratio"], frame["example"], bins)[["mean", "low", "high"]])
    found = ratio.index.to_numpy().astype(int)
    table = pd.DataFrame({"h_low": edges[found], "h_high": edges[found + 1], "h_mean": grouped["entropy_sft"].mean()})
    table[["tokens", "examples"]] = ratio[["n", "clusters"]]
    table[["ratio", "low", "high"]] = ratio[["mean", "low", "high"]]
    table[["typical", "typical_low", "typical_high"]] = typical
    table["improved"] = grouped["log_ratio"].agg(share_above_0)
    return table.assign(p_sft=grouped["p_sft"].mean(), p=grouped["p"].mean())


def token_figure(histogram: pd.DataFrame, table: pd.DataFrame, median: float = math.nan) -> Figure:
    """Figure 3 of a report's tables `entropy` and `tokens`; with the median H_SFT, where it is known."""
    figure, axes = new_figure(3, 1, COLUMN, 4.5, sharex=True)
    above, ratios, typical = axes[:, 0]
    style: dict[str, Any] = {"align": "edge", "color": "0.6", "edgecolor": "white", "linewidth": 0.3}
    above.bar(histogram["h_low"], histogram["tokens"], histogram["h_high"] - histogram["h_low"], **style)
    if not math.isnan(median):
        above.axvline(median, color="black", linewidth=1, linestyle="--")
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        above.annotate(f"median {median:.3f}", (median, 0.97), xytext=(4, 0), fontsize=6, **place)
    above.set_axisbelow(True)
    above.set_yscale("log")
    above.set_ylabel("ground-truth tokens")
    handles = _draw_ratios(ratios, table, "ratio", "low", "high")
    _draw_ratios(typical, table, "typical", "typical_low", "typical_high")
    name_panels(axes, "how unsure the SFT model is", "change in probability", "the same for a typical token")
    ratios.set_ylabel("mean $P / P_{SFT}$")
    typical.set_ylabel("geom. mean $P / P_{SFT}$")
    typical.set_xlabel("token entropy $H_{SFT}$ (nats)")
    figure.align_ylabels(axes)
    legend_above(figure, handles, list(dict.fromkeys(table["run"])))
    return figure


def _draw_ratios(axis: Axes, table: pd.DataFrame, value: str, low: str, high: str) -> list[object]:
    """A line per run over its bins, moved a little aside so that the intervals do not hide each other."""
    handles: list[object] = []
    axis.axhline(1, color="0.4", linewidth=0.7, zorder=0)
    numbers = numbered(table["run"])
    for i, (run, frame) in enumerate(table.groupby("run", sort=False)):
        style = line_style(numbers[str(run)])
        at = frame["h_mean"] + 0.03 * i
        lengths = error_bars(frame[value], frame[low], frame[high])
        bars = axis.errorbar(at, frame[value], lengths, elinewidth=0.7, capsize=1.5, linewidth=1, markersize=3, **style)
        handles.append(bars)
    axis.set_yscale("log")
    # Numbers and not powers of ten on a short axis.
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    return handles
