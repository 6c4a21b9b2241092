"""From graded documents to the row of a benchmark."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nrt_cli.config.suite import ORDER, BenchmarkSpec
from nrt_cli.errors import NrtError
from nrt_cli.measures.statistics import Aggregation, Mean, mean_of, overall
from nrt_cli.records import Document

LENGTHS = ("trace_tokens", "answer_tokens", "forced_share", "truncated_share")
"""How long traces and answers are, and how they ended."""


class Scored(Protocol):
    """What a row says of what was scored."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def aggregation(self) -> Aggregation: ...


def score_row(spec: Scored, documents: Sequence[Document]) -> dict[str, Any]:
    """A benchmark's score with its error, its other metrics and means, and how its traces and answers ended.

    `trace_tokens` is a mean over the replies that have a trace, `forced_share` those of them whose t_end was appended,
    `truncated_share` the replies whose answer ran into its cap.
    """
    subsets = [document.subset for document in documents]
    scores = [document.scores.get(spec.metric, math.nan) for document in documents]
    mean = mean_of(scores, subsets, spec.aggregation)
    names = sorted({name for document in documents for name in document.scores})
    return _head(spec) | {
        "score": mean.value,
        "error": mean.error,
        "n": mean.n,
        "macro": mean_of(scores, subsets, "macro").value if any(subsets) else math.nan,
        "micro": mean_of(scores, subsets, "micro").value if any(subsets) else math.nan,
        "metrics": {name: _mean([d.scores.get(name, math.nan) for d in documents]) for name in names},
        "subsets": _by_subset(subsets, scores),
        **_lengths(documents),
        "failed": None,
    }


def failed_row(spec: BenchmarkSpec, error: Exception) -> dict[str, Any]:
    """The row of a benchmark that has no score, with the reason."""
    reason = str(error) if isinstance(error, NrtError) else f"{type(error).__name__}: {error}"
    nothing = dict.fromkeys(("score", "error", "macro", "micro", *LENGTHS), math.nan)
    return (
        _head(spec) | nothing | {"n": 0, "metrics": {}, "subsets": {}, "failed": reason.removeprefix(f"{spec.name}: ")}
    )


def _head(spec: Scored) -> dict[str, Any]:
    return {
        "benchmark": spec.name,
        "title": spec.title,
        "domain": spec.domain,
        "metric": spec.metric,
        "aggregation": spec.aggregation,
    }


def _by_subset(subsets: Sequence[str], scores: Sequence[float]) -> dict[str, dict[str, float]]:
    found = defaultdict(list)
    for subset, score in zip(subsets, scores, strict=True):
        found[subset].append(score)
    return {name: {"score": _mean(found[name]), "n": len(found[name])} for name in sorted(found) if name}


def _lengths(documents: Sequence[Document]) -> dict[str, float]:
    replies = [reply for document in documents for reply in document.replies]
    traces = [reply for reply in replies if reply.stop is not None]
    said = [reply for reply in replies if reply.logprob is None]
    return {
        "trace_tokens": _mean([reply.trace_tokens for reply in traces]),
        "answer_tokens": _mean([reply.answer_tokens for reply in said]),
        "forced_share": _mean([reply.forced for reply in traces]),
        "truncated_share": _mean([reply.cut for reply in replies]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def outcome(head: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows under what they have in common, with the mean of all nine benchmarks, NaN where one is missing."""
    means = {row["benchmark"]: Mean(row["score"], row["error"], row["n"]) for row in rows}
    mean, missing = overall(means, ORDER)
    total = {"score": mean.value, "error": mean.error, "n": mean.n, "missing": missing}
    return {**head, "benchmarks": list(rows), "overall": total}


def failures(outcome: Mapping[str, Any]) -> list[str]:
    """Names of the benchmarks that have no score because something went wrong."""
    return [row["benchmark"] for row in outcome["benchmarks"] if row["failed"]]
