"""What other harnesses leave behind, in one form, and into the store."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import BenchmarkSpec
from nrt_cli.errors import EvalError
from nrt_cli.evaluation.scores import LENGTHS, head, score_row
from nrt_cli.records import Document
from nrt_cli.store.evals import Evaluation, document_hash


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


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Every line of a file. Raises EvalError where one cannot be read."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise EvalError(f"{path}: cannot be read as JSON lines ({error}).") from None


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers or truth values."""
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def combined(aggregation: str, scores: list[float], counts: list[int]) -> float:
    """The score over tasks: of all alike (macro), or of all documents alike (micro)."""
    weights = [1] * len(scores) if aggregation == "macro" else counts
    return sum(score * weight for score, weight in zip(scores, weights, strict=True)) / max(1, sum(weights))


def differences(config: Mapping[str, Any], spec: BenchmarkSpec, shots: str, repeats: str) -> list[str]:
    """In what a task's settings are not the benchmark's.

    Args:
        shots: what the harness calls the number of worked examples; `repeats` that of answers.
    """
    generation, asked = config.get("generation_kwargs") or {}, spec.generation
    pairs: list[tuple[str, Any, Any]] = [(shots, config.get(shots), spec.shots)]
    if spec.mode == "generate":
        pairs += [
            ("max_gen_toks", generation.get("max_gen_toks"), asked.max_tokens),
            ("temperature", generation.get("temperature"), asked.temperature),
            ("repeats", {**config, **generation}.get(repeats), asked.samples),
        ]
    return [f"{name} {found}, in the suite {wanted}" for name, found, wanted in pairs if found not in (None, wanted)]


def keep(
    root: Path, spec: BenchmarkSpec, output: Output, settings: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Put another harness's results into the store. The score is the harness's own; its error comes from ours."""
    row = score_row(head(spec), output.documents) | {"backend": about["backend"]}
    ours = row["score"]
    row |= {"score": output.score, "recomputed": ours, "differences": output.differences}
    if not math.isnan(ours) and abs(ours - output.score) > 1e-4:
        row["differences"] = [
            *output.differences,
            f"score {output.score:.4f}, recomputed from its documents {ours:.4f}",
        ]
    if not output.lengths:
        row |= dict.fromkeys(LENGTHS, math.nan)
    evaluation = Evaluation.create(root, spec.name, settings, about)
    with evaluation.writing():
        known = evaluation.documents()
        for document in output.documents:
            if document_hash(document) not in known:
                evaluation.append(document)
        row["folder"] = str(evaluation.path)
        evaluation.write_scores(row)
    return row
