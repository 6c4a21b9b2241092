"""What held-out pairs say of a run: log P(y*), the gain of thinking, accuracies, each with an interval over the pairs.

After minus before flatters: training makes the answers likelier after any trace. So the gain over the null trace, and
accuracy with thinking against accuracy without, stand beside it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nrt_cli.measures.statistics import Difference, bounded_over_rows, mean_over_rows, share_over_rows
from nrt_cli.records import ACCURACIES

SLACK = 16
"""Tokens that an answer may have beyond the longest reference: it may be said in other words."""

PairRow = Mapping[str, Any]
"""`answer_logprobs`, `null_logprobs` and `KIND_score` of one held-out pair; None where that was not measured."""


@dataclass(frozen=True)
class Measure:
    """One number of a held-out pair, as a function of its row; NaN where it has none."""

    key: str
    title: str
    of: Callable[[PairRow], float]
    share: bool = False
    """Whether it is a share, shown in percent; else nats."""
    difference: bool = False
    """Whether it is a difference within the pair."""


@dataclass(frozen=True)
class Found:
    """A measure's means before and after training, and of its change within the pairs."""

    measure: Measure
    before: Difference
    after: Difference
    change: Difference


def _total(column: str) -> Callable[[PairRow], float]:
    return lambda row: math.nan if row.get(column) is None else math.fsum(row[column])


def _score(kind: str) -> Callable[[PairRow], float]:
    return lambda row: math.nan if row.get(f"{kind}_score") is None else float(row[f"{kind}_score"])


def _gain(row: PairRow) -> float:
    return _total("answer_logprobs")(row) - _total("null_logprobs")(row)


def _more_than(kind: str) -> Callable[[PairRow], float]:
    return lambda row: _score("thinking")(row) - _score(kind)(row)


ACCURACY_MEASURES = (
    *(
        Measure(f"accuracy_{kind}", f"accuracy, {title}", _score(kind), share=True)
        for kind, title in ACCURACIES.items()
    ),
    *(
        Measure(f"thinking_minus_{kind}", f"thinking - {ACCURACIES[kind]}", _more_than(kind), True, True)
        for kind in ("null", "direct", "other_trace")
    ),
)
"""How often answers are right, and in pairs, how much more often with thinking than without."""
THINKING = (
    Measure("answer_logprob", "log P(y*), sampled trace", _total("answer_logprobs")),
    Measure("null_logprob", "log P(y*), null trace", _total("null_logprobs")),
    Measure("gain", "gain of thinking", _gain, difference=True),
    *ACCURACY_MEASURES,
)
"""What a run whose model thinks is measured by."""
DIRECT = (
    Measure("answer_logprob", "log P(y*), direct", _total("answer_logprobs")),
    Measure("accuracy_direct", "accuracy, direct", _score("direct"), share=True),
)
"""What one whose model answers directly, as after SFT on pairs, is measured by."""
COLUMNS = ("example", "answer_logprobs", "null_logprobs", *(f"{kind}_score" for kind in ACCURACIES))
"""The columns of a row that are read."""


def measures(thinks: bool) -> tuple[Measure, ...]:
    """The measures of a run whose model thinks, or answers directly."""
    return THINKING if thinks else DIRECT


def over_rows(measure: Measure, rows: Sequence[PairRow]) -> Difference:
    """A measure's mean over the pairs that have it, with its 95 % interval over them."""
    found = [value for row in rows if math.isfinite(value := measure.of(row))]
    if not measure.share:
        return mean_over_rows(found)
    return bounded_over_rows(found) if measure.difference else share_over_rows(found)


def before_and_after(thinks: bool, before: Sequence[PairRow], after: Sequence[PairRow]) -> list[Found]:
    """All measures of a run from the rows of its first and of its last held-out score, matched by example."""
    then = {row["example"]: row for row in before}
    pairs = [(then[row["example"]], row) for row in after if row["example"] in then]
    found = []
    for measure in measures(thinks):
        changes = [measure.of(new) - measure.of(old) for old, new in pairs]
        changes = [value for value in changes if math.isfinite(value)]
        # A difference of two shares lies between -1 and 1, and that of two such differences between -2 and 2.
        change = bounded_over_rows(changes, 1.0 + measure.difference) if measure.share else mean_over_rows(changes)
        found.append(Found(measure, over_rows(measure, before), over_rows(measure, after), change))
    return found


def shown(found: Difference, measure: Measure, signed: bool) -> str:
    """A mean with its interval in words: percent with one decimal, nats with two; `-` where nothing was measured."""
    if not found.n:
        return "-"
    scale, form = (100, ".1f") if measure.share else (1, ".2f")
    value, low, high = (format(scale * x, ("+" if signed else "") + form) for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"
