"""Which checkpoint of a run is best, by its held-out rows: chosen on one part of them, reported on the other.

The best of several looks better than it is on the rows that it was chosen by. So some questions choose, and what is
said of the choice is over the others.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from nrt_cli.measures.held_out import DIRECT, THINKING, PairRow


@dataclass(frozen=True)
class Best:
    """The step, what it is best by, and that measure's mean over the rows that chose it and over the others.

    `reported` is NaN where no other row was measured; `steps` are those that it is the best of.
    """

    step: int
    steps: tuple[int, ...]
    measure: str
    chosen: float
    chosen_rows: int
    reported: float
    reported_rows: int


CHOOSING = ("accuracy_thinking", "accuracy_direct", "gain", "answer_logprob")
"""What a checkpoint can be best by: the first that was measured at every step and is not the same at all of them."""

_OF = {measure.key: measure.of for measure in (*THINKING, *DIRECT)}


def best_step(scored: Mapping[int, Sequence[PairRow]], choosing: Container[int]) -> Best | None:
    """The best of some steps, given each one's held-out rows: of equals the latest. None where no row was measured.

    Args:
        choosing: the examples whose rows choose.
    """
    equal = None
    for measure in CHOOSING:
        of = _OF[measure]
        parts = {
            step: (
                [row for row in rows if row["example"] in choosing],
                [r for r in rows if r["example"] not in choosing],
            )
            for step, rows in scored.items()
        }
        found = {step: _mean(chose, of) for step, (chose, _) in parts.items()}
        if found and all(n for _, n in found.values()):
            step = max(found, key=lambda step: (found[step][0], step))
            best = Best(step, tuple(sorted(scored)), measure, *found[step], *_mean(parts[step][1], of))
            if len({mean for mean, _ in found.values()}) > 1:
                return best
            equal = equal or best
    return equal


def _mean(rows: Sequence[PairRow], of: Callable[[PairRow], float]) -> tuple[float, int]:
    """Mean over the rows that were measured, and how many these are."""
    values = [value for row in rows if not math.isnan(value := of(row))]
    return (math.fsum(values) / len(values) if values else math.nan), len(values)
