"""Means over seeds with 95 % intervals, and differences of them.

A score is a share: S seeds of training, each evaluated on the same n documents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nrt_cli.measures.statistics import Mean


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval; NaN where they cannot be known."""

    value: float
    low: float
    high: float


NOTHING = Estimate(math.nan, math.nan, math.nan)


FEW = 30
"""Documents below which their spread is too chancy to be taken at its word."""


def trusted(mean: Mean) -> Mean:
    """A mean whose error is at least that of Agresti and Coull's adjusted share, where documents are few or all alike.

    Four documents that all score 0 have a standard error of 0, and still say little.
    """
    if mean.n < 1 or math.isnan(mean.value) or (mean.n >= FEW and mean.error > 0):
        return mean
    share = (mean.n * mean.value + 2) / (mean.n + 4)
    least = math.sqrt(share * (1 - share) / (mean.n + 4))
    return Mean(mean.value, least if math.isnan(mean.error) else max(mean.error, least), mean.n)


def over_seeds(means: Sequence[Mean]) -> Estimate:
    """The mean over seeds of a score in [0, 1].

    Two chances are added: which documents were asked, a variance of mean(error_s^2), which all seeds share and which
    more seeds do not reduce; and training's, s^2 / S, with s the standard deviation over seeds. A single seed says
    nothing of the latter, so its interval is one over documents only. The interval is Wilson's, which stays in [0, 1]
    and does not vanish where all documents score alike, at the number of documents that has this variance; its quantile
    is Student's, at Welch's and Satterthwaite's degrees of freedom.
    """
    means = [mean for mean in means if not math.isnan(mean.value)]
    if not means:
        return NOTHING
    value, n = sum(mean.value for mean in means) / len(means), min(mean.n for mean in means)
    if n < 2:
        return Estimate(value, math.nan, math.nan)
    documents = sum(mean.error**2 for mean in means) / len(means)
    seeds = float(np.var([mean.value for mean in means], ddof=1)) / len(means) if len(means) > 1 else 0.0
    variance, spread = documents + seeds, value * (1 - value)
    freedom = float(n - 1)
    if variance > 0:
        freedom = variance**2 / (documents**2 / (n - 1) + (seeds**2 / (len(means) - 1) if seeds else 0.0))
    return Estimate(value, *wilson(value, spread / variance if variance > 0 and spread > 0 else n, quantile(freedom)))


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share of n, z standard errors wide to either side."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    margin = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - margin), min(1.0, centre + margin)


def quantile(freedom: float) -> float:
    """Student's 97.5 % quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def difference(of: Estimate, minus: Estimate) -> Estimate:
    """of - minus, taken as independent: Newcombe's hybrid of the two intervals.

    Scores on the same documents rise and fall together, so where both are, this interval is wider than a paired one.
    """
    value = of.value - minus.value
    low = value - math.hypot(of.value - of.low, minus.high - minus.value)
    high = value + math.hypot(of.high - of.value, minus.value - minus.low)
    return Estimate(value, low, high)
