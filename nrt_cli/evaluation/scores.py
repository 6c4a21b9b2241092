"""From graded documents to the row of a benchmark."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from nrt_cli.config.suite import ORDER, BenchmarkSpec
from nrt_cli.errors import NrtError
from nrt_cli.measures.statistics import Mean, mean_of, overall
from nrt_cli.records import Document

LENGTHS = ("trace_tokens", "answer_tokens", "forced_share", "truncated_share")
"""How long traces and answers are, and how they ended."""


def head(spec: BenchmarkSpec) -> dict[str, Any]:
    """What a row says of the benchmark that it is of."""
    return {
        "benchmark": spec.name,
        "title": spec.title,
        "domain": spec.domain,
        "metric": spec.metric,
        "aggregation": spec.aggregation,
    }


def score_row(of: Mapping[str, Any], documents: Sequence[Document]) -> dict[str, Any]:
    """The row of what `head` describes: its score with its error, its other metrics and means, and how its traces and
    answers ended.

    `trace_tokens` is a mean over the replies that have a trace, `forced_share` those of them whose t_end was appended,
    `truncated_share` the replies whose answer ran into its cap.
    """
    subsets = [document.subset for document in documents]
    scores = [document.scores.get(of["metric"], math.nan) for document in documents]
    mean = mean_of(scores, subsets, of["aggregation"])
    names = sorted({name for document in documents for name in document.scores})
    return {
        **of,
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
        head(spec) | nothing | {"n": 0, "metrics": {}, "subsets": {}, "failed": reason.removeprefix(f"{spec.name}: ")}
    )


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
