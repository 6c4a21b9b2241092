"""Means with 95 % intervals: bootstrapped of values that come in clusters, such as an answer's tokens; of scores over
seeds, and differences of those, also where two methods have the same seeds and the same rows.

A score is a share: S seeds of training, each evaluated on the same n documents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


POWER = 0.8
"""How often a difference would have been shown that is called the smallest which would have been."""


@dataclass(frozen=True)
class Paired:
    """How far one method's mean is above another's, both with the same seeds and the same rows."""

    value: float
    low: float
    high: float
    """Ends of its 95 % interval."""
    p: float
    """Two-sided, of no difference."""
    least: float
    """The smallest difference that such runs would have shown at 5 % in four of five repetitions (`POWER`)."""
    seeds: int
    rows: int


def paired_over_seeds(of_SN: np.ndarray, minus_SN: np.ndarray, share: bool) -> Paired:
    """The mean of of - minus over S seeds and N rows, with what these say of other seeds and other rows.

    The unit is the seed: d_s is seed s's mean over the rows, s^2 the variance of the d_s. Which rows were asked is
    another chance, which all seeds share: v, the variance over rows of their mean over seeds. So the standard error is
    E = sqrt(s^2 / S + v / N), of f degrees of freedom (Welch and Satterthwaite), the interval mean +- t_f(0.975) E.
    The smallest difference that would have been shown is L E, L the noncentrality at which Student's t of f degrees
    lies above t_f(0.975) in 80 % of the cases: 2.80 for many seeds, 5.65 for three (f = 2). E is an estimate, of three
    seeds a rough one, and so is that.

    Args:
        share: both are shares in [0, 1]: v is then that of two rows more, which differ by -1 and by 1 in half a row
            each (Agresti and Min, as `bounded_over_rows`), so that methods which answer all alike are not certain to.

    One seed has no interval: what another one would have changed is not known.
    """
    from scipy.special import nctdtrinc, stdtr, stdtrit

    apart_SN = np.asarray(of_SN, dtype=float) - np.asarray(minus_SN, dtype=float)
    seeds, n = apart_SN.shape
    value, apart_N = float(apart_SN.mean()) if apart_SN.size else math.nan, apart_SN.mean(0)
    if seeds < 2 or n < 2:
        return Paired(value, math.nan, math.nan, math.nan, math.nan, seeds, n)
    by_seed = float(np.var(apart_SN.mean(1), ddof=1)) / seeds
    if share:
        by_row = ((np.sum(apart_N**2) + 1) / (n + 2) - (np.sum(apart_N) / (n + 2)) ** 2) / (n + 2)
    else:
        by_row = np.var(apart_N, ddof=1) / n
    error, free = math.sqrt(by_seed + by_row), math.inf
    if error:
        free = (by_seed + by_row) ** 2 / (by_seed**2 / (seeds - 1) + float(by_row) ** 2 / (n - 1))
    t = float(stdtrit(free, 0.975)) if error else NORMAL
    p = 2 * float(stdtr(free, -abs(value) / error)) if error else float(value == 0)
    least = float(nctdtrinc(free, 1 - POWER, t)) * error if error else 0.0
    low, high = value - t * error, value + t * error
    return Paired(value, max(-1.0, low) if share else low, min(1.0, high) if share else high, p, least, seeds, n)


def holm(found: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Each p as it is among so many comparisons, NaN for one that is not known (Holm, 1979): the smallest times their
    number, the next times one less, and none below the one before."""
    known = sorted((p, pair) for pair, p in found.items() if not math.isnan(p))
    adjusted, least = dict.fromkeys(found, math.nan), 0.0
    for i, (p, pair) in enumerate(known):
        adjusted[pair] = least = max(least, min(1.0, p * (len(known) - i)))
    return adjusted
