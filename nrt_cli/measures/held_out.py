"""What held-out pairs say of a run: log P(y*), the gain of thinking, accuracies, each with an interval over the pairs.

After minus before flatters: training makes the answers likelier after any trace. So the gain over the null trace, and
accuracy with thinking against accuracy without, stand beside it.

They also say which checkpoint is best; the best of several looks better than it is, so some questions choose, and what
is said of the choice is over the others.
"""

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nrt_cli.measures.statistics import Difference, bounded_over_rows, mean_over_rows, share_over_rows
from nrt_cli.records import ACCURACIES, Overlap

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

    @property
    def text(self) -> dict[str, str]:
        signs = {"before": self.measure.difference, "after": self.measure.difference, "change": True}
        return {when: shown(getattr(self, when), self.measure, sign) for when, sign in signs.items()}


def _total(column: str) -> Callable[[PairRow], float]:
    return lambda row: math.nan if row.get(column) is None else math.fsum(row[column])


def _score(kind: str) -> Callable[[PairRow], float]:
    return lambda row: math.nan if row.get(f"{kind}_score") is None else float(row[f"{kind}_score"])


def _minus(one: Callable[[PairRow], float], other: Callable[[PairRow], float]) -> Callable[[PairRow], float]:
    return lambda row: one(row) - other(row)


ACCURACY_MEASURES = (
    *(Measure(f"accuracy_{kind}", f"accuracy, {title}", _score(kind), True) for kind, title in ACCURACIES.items()),
    *(
        Measure(f"thinking_minus_{kind}", f"thinking - {title}", _minus(_score("thinking"), _score(kind)), True, True)
        for kind, title in ACCURACIES.items()
        if kind != "thinking"
    ),
)
"""How often answers are right, and in pairs, how much more often with thinking than without."""
THINKING = (
    Measure("answer_logprob", "log P(y*), sampled trace", _total("answer_logprobs")),
    Measure("null_logprob", "log P(y*), null trace", _total("null_logprobs")),
    Measure("gain", "gain of thinking", _minus(_total("answer_logprobs"), _total("null_logprobs")), difference=True),
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
        changes = [value for old, new in pairs if math.isfinite(value := measure.of(new) - measure.of(old))]
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


def probability(logprob: float) -> str:
    """exp(log P) with 4 digits, also where it is below what a float holds; `-` where it is no number."""
    if not math.isfinite(logprob):
        return "-"
    if logprob > math.log(1e-4):
        return f"{math.exp(logprob):.4f}"
    exponent = math.floor(logprob / math.log(10))
    return f"{math.exp(logprob - exponent * math.log(10)):.2f}e{exponent}"


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


def best_step(scored: Mapping[int, Sequence[PairRow]], choosing: Container[int]) -> Best | None:
    """The best of some steps, by those held-out rows whose examples are among `choosing`: of equals the latest.

    None where no row was measured.
    """
    equal, by_key = None, {measure.key: measure.of for measure in (*THINKING, *DIRECT)}
    # By the first that was measured at every step and is not the same at all of them.
    for measure in ("accuracy_thinking", "accuracy_direct", "gain", "answer_logprob"):
        of = by_key[measure]
        found = {step: _mean([row for row in rows if row["example"] in choosing], of) for step, rows in scored.items()}
        if found and all(n for _, n in found.values()):
            step = max(found, key=lambda step: (found[step][0], step))
            others = [row for row in scored[step] if row["example"] not in choosing]
            best = Best(step, tuple(sorted(scored)), measure, *found[step], *_mean(others, of))
            if len({mean for mean, _ in found.values()}) > 1:
                return best
            equal = equal or best
    return equal


def _mean(rows: Sequence[PairRow], of: Callable[[PairRow], float]) -> tuple[float, int]:
    """Mean over the rows that were measured, and how many these are."""
    values = [value for row in rows if not math.isnan(value := of(row))]
    return (math.fsum(values) / len(values) if values else math.nan), len(values)


# --- questions that are trained on and asked later: figures on them show memory, not learning


def overlap_warnings(overlap: Overlap) -> Iterator[str]:
    """What a person should know before they believe a held-out figure."""
    if overlap.shared_with_validation:
        yield (
            f"{_of_held_out(overlap)} are in the training data, so held-out figures flatter; split them with "
            "`nrt data prepare ... --validation N`, which holds out questions with all their answers."
        )
    for name, found in overlap.shared_with_benchmarks.items():
        if found:
            yield (
                f"{found:,} of {overlap.benchmark_documents[name]:,} documents of {name} are in the training data, so "
                f"scores on {name} will flatter; leave them out of one of the two."
            )


def overlap_described(overlap: Overlap) -> str:
    """Both numbers in a sentence, to stand beside held-out figures."""
    total, shared = overlap.benchmark_documents, overlap.shared_with_benchmarks.items()
    compared = [f"{name} {found:,} of {total[name]:,}" for name, found in shared]
    benchmarks = ", ".join(compared) or "none were on the machine to compare with"
    held_out = "nothing is held out" if overlap.shared_with_validation is None else _of_held_out(overlap)
    return f"In the training data too: {held_out}; documents of benchmarks: {benchmarks}."


def _of_held_out(overlap: Overlap) -> str:
    return f"{overlap.shared_with_validation:,} of {overlap.validation_questions:,} held-out questions"
