"""What each reward scheme would have made of the same rollouts."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from nrt_analysis.document import Document, interval, number, section
from nrt_analysis.figures import COLUMN, intervals_beside, name_panels, new_figure
from nrt_analysis.intervals import DRAWS, clustered_means
from nrt_cli.errors import StoreError
from nrt_cli.methods import METHODS, SCHEMES, asked


def scheme_report(rows: Sequence[Mapping[str, object]], source: str, method: str | None) -> Document:
    """How schemes agree, how much of their reward is signal, and which traces each would have preferred.

    Args:
        rows: of traces and of groups, from `nrt_cli/workflows/scoring.py`.
        source, method: where the rollouts are, and the method that sampled them, for the notes.
    """
    frame = pd.DataFrame(rows)
    if frame.empty:
        raise StoreError(
            f"{source}: no group has two traces or more, so there is nothing to rank; sample larger groups."
        )
    groups = frame[frame["kind"] == "group"]
    traces = frame[frame["kind"] == "trace"]
    schemes = list(dict.fromkeys(frame["scheme"]))
    correlation = rank_correlations(traces, schemes)
    agreed_halves = clustered_means(groups["agreement"], groups["group"], groups["scheme"]).reindex(schemes)
    # Spearman and Brown's reliability R = 2 r / (1 + r) of the whole answer, as R / (1 - R).
    found = agreed_halves["mean"].astype(float).where(agreed_halves["mean"] > 0)
    within = traces.groupby(["scheme", "group"])["scaled"]
    spread = within.std(ddof=0) / within.agg(lambda values: values.abs().mean())
    # How the trace with the highest reward differs from its group's mean, by (scheme, group).
    best, means = _preferred(traces).set_index(["scheme", "group"]), traces.groupby(["scheme", "group"])
    features = ("gain", "hardest_gain", "trace_length", "entropy")
    gaps = {feature: best[feature] - means[feature].mean() for feature in features}
    clipped = (traces["clipped"] == 0).astype(float).where(traces["clipped"].notna())
    table = pd.DataFrame(
        {
            "dead_share": groups["dead_group"].astype(float).groupby(groups["scheme"]).mean(),
            "clipped_share": clipped.groupby(traces["scheme"]).mean(),
            "spread": spread.groupby("scheme").median(),
            "agreement": agreed_halves["mean"],
            "agreement_low": agreed_halves["low"],
            "agreement_high": agreed_halves["high"],
            "snr": 2 * found / (1 - found),
            "hardest_signal": traces.groupby("scheme")["hardest_signal"].mean(),
            **{f"best_{feature}": gap.groupby("scheme").mean() for feature, gap in gaps.items()},
        }
    )
    summary = table.astype(float).loc[list(schemes)].rename_axis("scheme").reset_index()
    columns = ["step", "example", "k", "scheme", "reward", "reward_base", "clipped", "advantage"]
    preferred = _preferred(traces).groupby("group")["k"].nunique()
    agreed = number(float((preferred == 1).mean()), ".0%")
    sizes = traces.groupby(["group", "scheme"]).size()
    size = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    by = f", sampled while training with {method}" if method else ""
    # The pairs of schemes that rank traces the most and the least alike.
    pairs = {(a, b): correlation.loc[a, b] for i, a in enumerate(schemes) for b in schemes[i + 1 :]}
    known = {pair: float(value) for pair, value in pairs.items() if not np.isnan(value)}
    alike = "rank correlation: no group has rewards that differ under two schemes"
    if known:
        least, most = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        ends = (f"{known[pair]:.2f} ({' and '.join(pair)})" for pair in (least, most))
        alike = f"rank correlation within groups: from {' to '.join(ends)}"
    # What a terminal has room for.
    forms = {
        "dead": ("dead_share", ".0%"), "clipped": ("clipped_share", ".0%"), "gain": ("best_gain", "+z.1f"),
        "length": ("best_trace_length", "+z.0f"),
    }  # fmt: skip
    agreement = summary[["agreement", "agreement_low", "agreement_high"]].itertuples(index=False)
    texts = {name: [number(value, form) for value in summary[column]] for name, (column, form) in forms.items()}
    texts |= {"agreement": [interval(row, ".2f") for row in agreement]}
    overview = pd.DataFrame({"scheme": summary["scheme"], **texts, "snr": summary["snr"].round(2)})
    overview = overview[["scheme", "dead", "clipped", "agreement", "snr", "gain", "length"]]
    figure, axes = new_figure(3, 1, COLUMN, 3.7 + 0.21 * len(schemes), gridspec_kw={"height_ratios": (1.5, 1, 1)})
    ranks, halves, dead = axes[:, 0]
    values = correlation.to_numpy()
    ranks.grid(False)
    ranks.imshow(values, cmap="Greys", vmin=-0.2, vmax=1.4, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        shown = "-" if np.isnan(value) else f"{value:.2f}"
        ranks.text(j, i, shown, ha="center", va="center", fontsize=6, color="white" if value > 0.8 else "black")
    ranks.set_xticks(range(len(correlation)), list(correlation.columns), rotation=40, ha="right")
    ranks.set_yticks(range(len(correlation)), list(correlation.index))
    middle, low, high = (summary[name] for name in ("agreement", "agreement_low", "agreement_high"))
    intervals_beside(halves, middle, low, high, summary["scheme"])
    halves.set_xlabel("agreement of answer halves ($r$)")
    at = np.arange(len(summary))[::-1]
    dead.barh(at + 0.2, summary["dead_share"], 0.36, color="0.25", label="dead groups")
    dead.barh(at - 0.2, summary["clipped_share"], 0.36, color="0.75", label="clipped traces")
    dead.set_yticks(at, list(summary["scheme"]))
    dead.set_xlim(0, 1)
    dead.set_xlabel("share")
    dead.legend(frameon=False, fontsize=6, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    name_panels(axes, "rank correlation of rewards within groups", "signal within groups", "no signal")
    return section(
        "schemes",
        {
            "overview": overview,
            "schemes": summary,
            "correlation": correlation.rename_axis("scheme").reset_index(),
            "disagreements": disagreements(traces),
            "advantages": traces[columns].reset_index(drop=True),
        },
        {"schemes": figure},
        (
            f"{groups['group'].nunique()} groups of {size} traces from {source}{by}: rewards under another scheme are "
            "what it would have given to these traces, not to those it would have led to",
            f"all {len(schemes)} schemes prefer the same trace in {agreed} of the groups",
            "shown: dead groups, clipped traces (R <= R_base), agreement of answer halves [interval], signal-to-noise, "
            "and by how much the trace with the highest reward exceeds its group's mean in gain (nats) and length "
            "(tokens)",
            alike,
            *_not_shown(schemes),
            *(["snr is - where agreement is not above 0: no signal was found"] if summary["snr"].isna().any() else []),
            "agreement: groups that are dead in a half are left out; intervals: 95 %, "
            f"{DRAWS:,} bootstrap draws of groups",
        ),
    )


def _not_shown(schemes: Sequence[str]) -> list[str]:
    """What those methods need that no bank of rollouts has; nothing where only some were asked for."""
    if any(name not in schemes for name in SCHEMES if not METHODS[name].asks):
        return []
    left_out = [METHODS[name] for name in SCHEMES if name not in schemes]
    return [f"not in this bank: {method.name} needs {asked(method)}" for method in left_out]


def rank_correlations(traces: pd.DataFrame, schemes: Sequence[str]) -> pd.DataFrame:
    """Spearman's rho of the rewards of a group's traces under two schemes, mean over groups; ties share a rank.

    A group whose rewards are all equal under one of the two cannot be ranked and is left out.
    """
    ranks = traces.assign(rank=traces.groupby(["group", "scheme"])["rank_by"].rank())
    wide = ranks.pivot(index=["group", "k"], columns="scheme", values="rank").reindex(columns=list(schemes))
    centred = wide - wide.groupby("group").transform("mean")
    scaled = centred / np.sqrt((centred**2).groupby("group").transform("sum")).replace(0.0, np.nan)
    table = pd.DataFrame(index=pd.Index(schemes), columns=list(schemes), dtype=float)
    for a in schemes:
        for b in schemes:
            table.loc[a, b] = (scaled[a] * scaled[b]).groupby("group").sum(min_count=1).mean()
    return table


def _preferred(traces: pd.DataFrame) -> pd.DataFrame:
    """The trace with the highest reward, the first of equals, in each group under each scheme that rewards any."""
    ranked = traces.dropna(subset="rank_by").sort_values("rank_by", ascending=False, kind="stable")
    return ranked.drop_duplicates(["group", "scheme"]).sort_values(["group", "scheme"])


def disagreements(traces: pd.DataFrame, most: int = 20) -> pd.DataFrame:
    """The groups in which schemes prefer the most different traces, and what each prefers there."""
    best = _preferred(traces)
    chosen = best.groupby("group")["k"].nunique().sort_values(ascending=False, kind="stable")
    rows = best[best["group"].isin(chosen[chosen > 1].index[:most])]
    return rows[["step", "example", "scheme", "k", "advantage", "gain", "trace_length", "trace"]].reset_index(drop=True)
