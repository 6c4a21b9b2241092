"""Which checkpoint of a run is best, by its held-out rows: chosen on one part of them, reported on the other.

The best of several looks better than it is on the rows that it was chosen by. So rows with an even number choose, and
what is said of the choice is over those with an odd one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nrt_cli.core.held_out import DIRECT, THINKING, PairRow


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


CHOOSING = ("accuracy_thinking", "accuracy_direct", "gain", "answer_logprob")
"""What a checkpoint can be best by; the first that was measured at every step decides."""

_OF = {measure.key: measure.of for measure in (*THINKING, *DIRECT)}


def best_step(scored: Mapping[int, Sequence[PairRow]]) -> Best | None:
    """The best of some steps, given each one's held-out rows: of equals the latest. None where no row was measured."""
    for measure in CHOOSING:
        of = _OF[measure]
        found = {step: _mean(rows, of, parity=0) for step, rows in scored.items()}
        if found and all(n for _, n in found.values()):
            step = max(found, key=lambda step: (found[step][0], step))
            return Best(step, measure, *found[step], *_mean(scored[step], of, parity=1))
    return None


def _mean(rows: Sequence[PairRow], of: Callable[[PairRow], float], parity: int) -> tuple[float, int]:
    """Mean over the measured rows whose number is even (0) or odd (1), and how many these are."""
    values = [value for row in rows if row["example"] % 2 == parity and not math.isnan(value := of(row))]
    return (math.fsum(values) / len(values) if values else math.nan), len(values)
