"""What other harnesses leave behind, in one form."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt_cli.errors import EvalError
from nrt_cli.records import Document


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
