"""From graded documents, ours or another harness's, to the row of a benchmark and into the store."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import ORDER, BenchmarkSpec
from nrt_cli.data.sources import FLOATS, file_rows
from nrt_cli.errors import EvalError, NrtError
from nrt_cli.measures.statistics import Mean, mean_of, overall
from nrt_cli.records import OLMES, Document
from nrt_cli.store.evals import Evaluation, document_hash

LENGTHS = ("trace_tokens", "answer_tokens", "forced_share", "truncated_share")
"""How long traces and answers are, and how they ended."""


def head(spec: BenchmarkSpec) -> dict[str, Any]:
    """What a row says of the benchmark that it is of."""
    return {"benchmark": spec.name} | {key: getattr(spec, key) for key in ("title", "domain", "metric", "aggregation")}


def score_row(of: Mapping[str, Any], documents: Sequence[Document], grading: str = "strict") -> dict[str, Any]:
    """The row of what `head` describes: score and error, other metrics and means, and how traces and answers ended.

    Where the documents have OLMES's grades too, both scores are there, and `grading` says which of them is the row's.
    `trace_tokens` is a mean over the replies that have a trace, `forced_share` those of them whose t_end was appended,
    `truncated_share` the replies whose answer ran into its cap.
    """
    subsets = [document.subset for document in documents]
    graded = {"strict": [document.scores.get(of["metric"], math.nan) for document in documents]}
    if documents and all(OLMES in document.scores for document in documents):
        graded[OLMES] = [document.scores[OLMES] for document in documents]
    grading = grading if grading in graded else "strict"
    scores = graded[grading]
    means = {name: mean_of(values, subsets, of["aggregation"]) for name, values in graded.items()}
    mean = means[grading]
    by_subset = defaultdict(list)
    for subset, score in zip(subsets, scores, strict=True):
        by_subset[subset].append(score)
    names = sorted({name for document in documents for name in document.scores} - {OLMES})
    replies = [reply for document in documents for reply in document.replies]
    traces = [reply for reply in replies if reply.stop is not None]
    both = {f"{name}_score": found.value for name, found in means.items()}
    both |= {f"{name}_error": found.error for name, found in means.items()}
    return {
        **of,
        **({"grading": grading, **both} if OLMES in means else {}),
        "score": mean.value,
        "error": mean.error,
        "n": mean.n,
        "macro": mean_of(scores, subsets, "macro").value if any(subsets) else math.nan,
        "micro": mean_of(scores, subsets, "micro").value if any(subsets) else math.nan,
        "metrics": {name: _mean([d.scores.get(name, math.nan) for d in documents]) for name in names},
        "subsets": {name: {"score": _mean(own), "n": len(own)} for name, own in sorted(by_subset.items()) if name},
        "trace_tokens": _mean([reply.trace_tokens for reply in traces]),
        "answer_tokens": _mean([reply.answer_tokens for reply in replies if reply.logprob is None]),
        "forced_share": _mean([reply.forced for reply in traces]),
        "truncated_share": _mean([reply.cut for reply in replies]),
        "failed": None,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def failed_row(spec: BenchmarkSpec, error: Exception) -> dict[str, Any]:
    """The row of a benchmark that has no score, with the reason."""
    reason = str(error) if isinstance(error, NrtError) else f"{type(error).__name__}: {error}"
    nothing = dict.fromkeys(("score", "error", "macro", "micro", *LENGTHS), math.nan)
    failed = {"n": 0, "metrics": {}, "subsets": {}, "failed": reason.removeprefix(f"{spec.name}: ")}
    return head(spec) | nothing | failed


def outcome(head: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows under what they have in common, with the mean of all nine benchmarks, NaN where one is missing."""
    means = {row["benchmark"]: Mean(row["score"], row["error"], row["n"]) for row in rows}
    mean, missing = overall(means, ORDER)
    total = {"score": mean.value, "error": mean.error, "n": mean.n, "missing": missing}
    return {**head, "benchmarks": list(rows), "overall": total}


# --- what other harnesses leave behind -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """One benchmark as another harness scored it.

    `score` is its own, in [0, 1]; `differences` are sentences on how its settings are not the suite's; `lengths`
    says whether it told how long answers were.
    """

    documents: list[Document]
    score: float
    differences: list[str]
    model: str
    versions: dict[str, str | None]
    lengths: bool


class Line(dict[str, Any]):
    """An object of a file of JSON lines. What it lacks is said with where it is."""

    where: str

    def __missing__(self, key: str) -> Any:
        raise EvalError(f"{self.where}: has no {key!r}; it has {', '.join(self) or 'nothing'}.")


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Every line of a file. Raises an NrtError where one cannot be read, or lacks what is looked up in it."""
    lines: list[dict[str, Any]] = []
    for row in file_rows(path, str(path), FLOATS):
        if row.problem:
            raise EvalError(f"{row.where}: {row.problem}.")
        line = Line(row.values)
        line.where = row.where
        lines.append(line)
    return lines


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers or truth values."""
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def combined(aggregation: str, scores: list[float], counts: list[int]) -> float:
    """The score over tasks: of all alike (macro), or of all documents alike (micro)."""
    weights = [1] * len(scores) if aggregation == "macro" else counts
    return sum(score * weight for score, weight in zip(scores, weights, strict=True)) / max(1, sum(weights))


def differences(config: Mapping[str, Any], spec: BenchmarkSpec, shots: str) -> list[str]:
    """In what a task's settings are not the benchmark's; `shots` is the harness's name for worked examples."""
    generation, asked = config.get("generation_kwargs") or {}, spec.generation
    pairs: list[tuple[str, Any, Any]] = [(shots, config.get(shots), spec.shots)]
    if spec.mode == "generate":
        pairs += [
            ("max_gen_toks", generation.get("max_gen_toks"), asked.max_tokens),
            ("temperature", generation.get("temperature"), asked.temperature),
            ("repeats", {**config, **generation}.get("repeats"), asked.samples),
        ]
    return [f"{name} {found}, in the suite {wanted}" for name, found, wanted in pairs if found not in (None, wanted)]


def keep(
    root: Path, spec: BenchmarkSpec, output: Output, settings: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Put another harness's results into the store. The score is the harness's own; its error comes from ours."""
    documents = output.documents
    if about["backend"] == OLMES:
        documents = [
            replace(each, scores={OLMES: each.scores.get(spec.metric, math.nan), **each.scores}) for each in documents
        ]
    row = score_row(head(spec), documents, about["backend"]) | {"backend": about["backend"]}
    for key in ("strict_score", "strict_error"):  # nobody's
        row.pop(key, None)
    ours, found = row["score"], list(output.differences)
    if not math.isnan(ours) and abs(ours - output.score) > 1e-4:
        found.append(f"score {output.score:.4f}, recomputed from its documents {ours:.4f}")
    row |= {"score": output.score, "recomputed": ours, "differences": found}
    row |= {"olmes_score": output.score} if about["backend"] == OLMES else {}
    if not output.lengths:
        row |= dict.fromkeys(LENGTHS, math.nan)
    evaluation = Evaluation.create(root, spec.name, settings, about)
    with evaluation.writing():
        known = evaluation.documents()
        for document in documents:
            if document_hash(document) not in known:
                evaluation.append(document)
        row["folder"] = str(evaluation.path)
        evaluation.write_scores(row)
    return row
