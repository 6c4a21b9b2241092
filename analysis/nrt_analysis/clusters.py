"""Means of values that come in clusters, such as the tokens of one answer, with bootstrap intervals over clusters."""

import numpy as np
import pandas as pd

DRAWS = 2000


def clustered_means(
    values: pd.Series, clusters: pd.Series, groups: pd.Series, seed: int = 0, draws: int = DRAWS
) -> pd.DataFrame:
    """The mean of `values` in each of `groups`, one row per group: mean, low, high, n, clusters.

    Whole clusters are drawn with replacement, since what belongs to one is not independent. Resamples in which a group
    is empty say nothing about it. Values that are NaN were not measured and are left out; a group of which none was
    measured has NaN and n = 0. With a single cluster, an interval cannot be known and is NaN.
    """
    every = pd.Index(sorted(groups.dropna().unique()), name="group")
    frame = pd.DataFrame({"value": values, "cluster": clusters, "group": groups}).dropna()
    if frame.empty:
        return pd.DataFrame({"mean": np.nan, "low": np.nan, "high": np.nan, "n": 0, "clusters": 0}, index=every)
    sums = frame.pivot_table(index="cluster", columns="group", values="value", aggfunc="sum", observed=True)
    counts = frame.pivot_table(index="cluster", columns="group", values="value", aggfunc="count", observed=True)
    sums_CG, counts_CG = (table.fillna(0.0).to_numpy(dtype=float) for table in (sums, counts))
    table = pd.DataFrame({"mean": sums_CG.sum(0) / counts_CG.sum(0)}, index=sums.columns)
    table["low"], table["high"] = np.nan, np.nan
    if len(sums_CG) > 1:
        means_RG = _resampled(sums_CG, counts_CG, seed, draws)
        table["low"], table["high"] = np.nanquantile(means_RG, [0.025, 0.975], axis=0)
    table["n"] = counts_CG.sum(0).astype(int)
    table["clusters"] = (counts_CG > 0).sum(0)
    table = table.reindex(every)
    return table.assign(**{name: table[name].fillna(0).astype(int) for name in ("n", "clusters")})


def share_above_0(values: pd.Series) -> float:
    """Of those that were measured; NaN where none was."""
    return float((values.dropna() > 0).mean())


def _resampled(sums_CG: np.ndarray, counts_CG: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """Means under resampling of clusters, [draws, groups]; NaN where a group was not drawn."""
    generator, size = np.random.default_rng(seed), len(sums_CG)
    means_RG = np.empty((draws, sums_CG.shape[1]))
    for r in range(draws):  # one at a time: draws x clusters would not fit for large data
        drawn_C = np.bincount(generator.integers(size, size=size), minlength=size)
        total_G = drawn_C @ counts_CG
        means_RG[r] = np.divide(drawn_C @ sums_CG, total_G, out=np.full_like(total_G, np.nan), where=total_G > 0)
    return means_RG
