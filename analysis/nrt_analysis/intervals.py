"""Means with 95 % intervals: bootstrapped of values that come in clusters, such as an answer's tokens; of scores over
seeds, and differences of those.

A score is a share: S seeds of training, each evaluated on the same n documents.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from nrt_cli.measures.statistics import NORMAL, Difference, Mean, wilson

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
        # NaN where a group was not drawn; one draw at a time, since draws x clusters would not fit for large data.
        generator, size = np.random.default_rng(seed), len(sums_CG)
        means_RG = np.empty((draws, sums_CG.shape[1]))
        for r in range(draws):
            drawn_C = np.bincount(generator.integers(size, size=size), minlength=size)
            total_G = drawn_C @ counts_CG
            means_RG[r] = np.divide(drawn_C @ sums_CG, total_G, out=np.full_like(total_G, np.nan), where=total_G > 0)
        table["low"], table["high"] = np.nanquantile(means_RG, [0.025, 0.975], axis=0)
    table["n"] = counts_CG.sum(0).astype(int)
    table["clusters"] = (counts_CG > 0).sum(0)
    table = table.reindex(every)
    return table.assign(**{name: table[name].fillna(0).astype(int) for name in ("n", "clusters")})


def share_over_clusters(values: pd.Series, clusters: pd.Series) -> Difference:
    """The mean of shares in [0, 1], those of a cluster not being independent; NaN where nothing was measured.

    The interval is Wilson's for the number of rows that has the variance between clusters, with four clusters more: two
    that are all 0 and two that are all 1 (Agresti and Coull). For clusters of one right or wrong answer it is theirs.
    """
    groups = values.dropna().groupby(clusters)
    sums_C, counts_C = groups.sum().to_numpy(dtype=float), groups.count().to_numpy(dtype=float)
    if not len(sums_C):
        return Difference(math.nan, math.nan, math.nan, 0)
    size = counts_C.mean()
    n = counts_C.sum() + 4 * size
    share = (sums_C.sum() + 2 * size) / n
    squares = np.sum((sums_C - share * counts_C) ** 2) + 2 * size**2 * (share**2 + (1 - share) ** 2)
    of = len(sums_C) / (len(sums_C) + 4) * share * (1 - share) / (squares / n**2)
    value = float(sums_C.sum() / counts_C.sum())
    return Difference(value, *wilson(value, float(of)), int(counts_C.sum()))


def share_above_0(values: pd.Series) -> float:
    """Of those that were measured; NaN where none was."""
    return float((values.dropna() > 0).mean())


def _variance(mean: Mean, spread: float) -> float:
    """The variance of the mean of n documents, whose own is `spread`, and of four more: two that score 0 and two that
    score 1 (Agresti and Coull). So no mean is certain, also where all documents score alike."""
    n = mean.n + 4
    squares = (mean.n * (spread + mean.value**2) + 2) / n
    return (squares - ((mean.n * mean.value + 2) / n) ** 2) / n


def trusted(mean: Mean) -> Mean:
    """A mean with the error that four documents more would give it.

    Four documents that all score 0 have a standard error of 0, and still say little.
    """
    if mean.n < 1 or math.isnan(mean.value):
        return mean
    spread = mean.value * (1 - mean.value) if math.isnan(mean.error) else mean.error**2 * (mean.n - 1)
    return Mean(mean.value, math.sqrt(_variance(mean, spread)), mean.n)


def over_seeds(means: Sequence[Mean]) -> Difference:
    """The mean over seeds of a score in [0, 1]; NaN where it or its interval cannot be known.

    Two chances are added: which documents were asked, a variance of mean(error_s^2), which all seeds share and which
    more seeds do not reduce; and training's, s^2 / S, with s the standard deviation over seeds. A single seed says
    nothing of the latter, so its interval is one over documents only. The interval is Wilson's, which stays in [0, 1]
    and does not vanish where all documents score alike, at the number of documents that has this variance: of right or
    wrong under one seed it is `share_over_rows`. Few seeds tell training's chance, so of several the quantile is
    Student's, at Welch's and Satterthwaite's degrees of freedom.
    """
    from scipy.special import stdtrit

    means = [mean for mean in means if not math.isnan(mean.value)]
    if not means:
        return Difference(math.nan, math.nan, math.nan, 0)
    value, n = sum(mean.value for mean in means) / len(means), min(mean.n for mean in means)
    if n < 2:
        return Difference(value, math.nan, math.nan, n)
    documents = sum(max(mean.error**2, _variance(mean, 0.0)) for mean in means) / len(means)
    seeds = float(np.var([mean.value for mean in means], ddof=1)) / len(means) if len(means) > 1 else 0.0
    variance, share = documents + seeds, (n * value + 2) / (n + 4)
    # A share of so many documents has this variance; of right or wrong and one seed, they are n.
    z = float(stdtrit((len(means) - 1) * (variance / seeds) ** 2, 0.975)) if seeds else NORMAL
    of = n / (n + 4) * share * (1 - share) / variance
    return Difference(value, *wilson(value, of, z), n)


def difference(of: Difference, minus: Difference) -> Difference:
    """of - minus, taken as independent: Newcombe's hybrid of the two intervals.

    Scores on the same documents rise and fall together, so where both are, this interval is wider than a paired one.
    """
    value = of.value - minus.value
    low = value - math.hypot(of.value - of.low, minus.high - minus.value)
    high = value + math.hypot(of.high - of.value, minus.value - minus.low)
    return Difference(value, low, high, min(of.n, minus.n))
