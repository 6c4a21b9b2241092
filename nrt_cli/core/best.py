"""Which checkpoint of a run is best, by its held-out rows: chosen on one part of them, reported on the other.

The best of several looks better than it is on the rows that it was chosen by. So rows with an even number choose, and
what is said of the choice is over those with an odd one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Best:
    """The step, what it is best by, and that measure's mean over the rows that chose it and over the others.

    `reported` is NaN where no other row was measured.
    """

    step: int
    measure: str
    chosen: float
    chosen_rows: int
    reported: float
    reported_rows: int


def _number(column: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda row: math.nan if row[column] is None else float(row[column])


def _answer_logprob(row: Mapping[str, Any]) -> float:
    return math.nan if row["answer_logprobs"] is None else math.fsum(row["answer_logprobs"])


MEASURES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "accuracy_thinking": _number("thinking_score"),
    "accuracy_direct": _number("direct_score"),
    "gain": _number("gain"),
    "answer_logprob": _answer_logprob,
}
"""What a checkpoint can be best by; the first that was measured at every step decides."""

COLUMNS = ("example", "thinking_score", "direct_score", "gain", "answer_logprobs")
"""What is read of a held-out row; None where it was not measured."""


def best_step(scored: Mapping[int, Sequence[Mapping[str, Any]]]) -> Best | None:
    """The best of some steps, given each one's held-out rows: of equals the latest. None where no row was measured."""
    for measure, of in MEASURES.items():
        found = {step: _mean(rows, of, parity=0) for step, rows in scored.items()}
        if found and all(n for _, n in found.values()):
            step = max(found, key=lambda step: (found[step][0], step))
            return Best(step, measure, *found[step], *_mean(scored[step], of, parity=1))
    return None


def _mean(
    rows: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], float], parity: int
) -> tuple[float, int]:
    """Mean over the measured rows whose number is even (0) or odd (1), and how many these are."""
    values = [value for row in rows if row["example"] % 2 == parity and not math.isnan(value := of(row))]
    return (math.fsum(values) / len(values) if values else math.nan), len(values)
