"""Scores over documents: means, their standard errors, and the difference of two models on the same documents.

Shapes: N documents, S subsets, R resamples. Scores lie in [0, 1]; what was not measured is NaN.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Aggregation = Literal["micro", "macro"]
"""micro weighs every document alike, macro every subset."""

NORMAL = 1.959963984540054
"""The standard normal's quantile of 95 % intervals."""


@dataclass(frozen=True)
class Mean:
    """A mean of n scores with its standard error; both NaN where they are not defined."""

    value: float
    error: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean over n documents, such as that of b - a, with a 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def mean_over_rows(values: Sequence[float], seed: int = 0) -> Difference:
    """The mean of one number per row, such as a difference in nats, with its bootstrap interval over the rows."""
    x_N, generator = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    if not len(x_N):
        return Difference(math.nan, math.nan, math.nan, 0)
    # One at a time: R x N numbers of a large benchmark would not fit.
    means_R = [np.mean(x_N[generator.integers(len(x_N), size=len(x_N))]) for _ in range(2000)]
    low, high = np.quantile(means_R, [0.025, 0.975])
    return Difference(mean(values), float(low), float(high), len(x_N))


def wilson(share: float, n: float, quantile: float = NORMAL) -> tuple[float, float]:
    """The interval of a share of n rows, which has a width also where all are 0 or all are 1.

    Source: Wilson, 1927, Probable Inference, the Law of Succession, and Statistical Inference.
    """
    z2 = quantile * quantile / n
    # Of a mean that rounding takes beyond 1, the product would be below 0.
    root = z2 / 2 + math.sqrt(z2 * max(0.0, share * (1 - share)) + z2 * z2 / 4)
    # The smaller root of a quadratic equation from the larger one: nothing cancels, so that of 0 and 1 an end is exact.
    return share**2 / (share + root), 1 - (1 - share) ** 2 / (1 - share + root)


def share_over_rows(scores: Sequence[float]) -> Difference:
    """The mean of scores in [0, 1] with Wilson's interval."""
    if not scores:
        return Difference(math.nan, math.nan, math.nan, 0)
    return Difference(mean(scores), *wilson(mean(scores), len(scores)), len(scores))


def bounded_over_rows(
    values: Sequence[float], bound: float = 1.0, subsets: Sequence[str] = (), aggregation: Aggregation = "micro"
) -> Difference:
    """The mean of differences in [-bound, bound] with an interval that has a width also where all are alike.

    As if there were two rows more: half a row each at the ends and one at 0. For right or wrong in pairs this is the
    Wald interval with two added pairs. Weighted rows count as the 1 / sum(w^2) equal ones that are as many (Kish).

    Source: Agresti and Min, 2005, Simple improved confidence intervals for comparing matched proportions.
    """
    if not values:
        return Difference(math.nan, math.nan, math.nan, 0)
    weights = document_weights(subsets or [""] * len(values), aggregation).tolist()
    n = 1 / math.fsum(w * w for w in weights)
    value = math.fsum(w * x for w, x in zip(weights, values, strict=True))
    squares = math.fsum(w * x * x for w, x in zip(weights, values, strict=True))
    centre = n * value / (n + 2)
    half = NORMAL * math.sqrt(((n * squares + bound * bound) / (n + 2) - centre * centre) / (n + 2))
    return Difference(value, max(-bound, centre - half), min(bound, centre + half), len(values))


def document_weights(subsets: Sequence[str], aggregation: Aggregation) -> NDArray[np.float64]:
    """Weights_N that make a weighted sum the aggregate: 1/N each, or 1/(S n_s) for one of n_s documents of a subset."""
    if aggregation == "micro":
        return np.full(len(subsets), 1 / max(1, len(subsets)))
    _, which_N, counts_S = np.unique(np.asarray(subsets, dtype=str), return_inverse=True, return_counts=True)
    return 1 / (len(counts_S) * counts_S[which_N])


def mean_of(scores: Sequence[float], subsets: Sequence[str], aggregation: Aggregation) -> Mean:
    """The aggregate of one benchmark with its standard error.

    The error is that of a weighted mean m of N independent documents, sqrt(N / (N - 1) * sum w^2 (x - m)^2). With equal
    weights this is s / sqrt(N), s the sample standard deviation. It counts the differences between subsets as chance
    too: for a macro mean a little more than with subsets held fixed, but it needs no second document in each.
    """
    x_N, w_N = np.asarray(scores, dtype=np.float64), document_weights(subsets, aggregation)
    n = len(x_N)
    if not n:
        return Mean(math.nan, math.nan, 0)
    value = math.fsum(w_N * x_N) / math.fsum(w_N)
    error = math.sqrt(n / (n - 1) * float(w_N**2 @ (x_N - value) ** 2)) if n > 1 else math.nan
    return Mean(value, error, n)


def overall(means: Mapping[str, Mean], names: Sequence[str]) -> tuple[Mean, list[str]]:
    """The plain mean over the named benchmarks, and those that are missing, for which it is NaN."""
    missing = [name for name in names if name not in means or math.isnan(means[name].value)]
    n = sum(mean.n for mean in means.values())
    if missing or not names:
        return Mean(math.nan, math.nan, n), missing
    found = [means[name] for name in names]
    # Benchmarks are independent, so variances add.
    error = math.sqrt(sum(mean.error**2 for mean in found)) / len(found)
    return Mean(sum(mean.value for mean in found) / len(found), error, n), []


def paired_difference(
    a: Sequence[float], b: Sequence[float], subsets: Sequence[str], aggregation: Aggregation
) -> Difference:
    """How much better b is than a, each one score in [0, 1] per document, in the same order."""
    return bounded_over_rows([y - x for x, y in zip(a, b, strict=True)], 1.0, subsets, aggregation)
