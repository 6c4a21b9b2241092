"""When traces have collapsed (Sec. 4.3 of the paper): one definition, shared by training and analysis.

A run has collapsed if it ends no better than it began. What is seen of that on the way is compared with the run's own
start, since lengths and entropies of different models and tasks are not comparable:

- Traces that become shorter, more certain or more alike are a sign, but a run that learns to work something out does
  the same. So such a sign counts only while nothing speaks for learning: traces that help (a gain clearly above 0), a
  gain clearly above the start's, or a held-out accuracy clearly above the start's.
- A trace that is all but gone gains nothing, whatever it gained before. So a gain that rises to 0 with it is no excuse.
- The gain itself has collapsed when it fell clearly and traces help no longer.
- Held-out accuracy, where it is measured, decides: once it is clearly above the start's no sign counts. Where it was
  and is no longer, that is a collapse of its own; and so it is, after the last step, where it is no better than at the
  start: a trace that rehearses a guess gains many nats over the null trace, and helps nothing. Before the last step it
  may still rise: a run measured was at chance after three quarters of its steps, and solved 98 % at its end.

A warning that does not come costs less than one that ends a good run. What it cannot see without accuracies: traces
that rehearse a guess, which gain over a null trace that gets worse. tests/bench/sentinel.py counts both errors.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from nrt_cli.records import RolloutGroup

NGRAM = 4
"""Tokens of the n-grams whose repetition is measured (seq-rep-4 of Welleck et al., 2020)."""

WINDOW = 10
"""Steps that are averaged: the first ones are the run's start, the last ones its present."""

FALLEN, GONE = 0.5, 0.2
"""A length, entropy or n-gram share below this part of its start has fallen; traces below the second are gone."""

SPREADS = 3.0
"""The gain, which may be negative, has fallen this many standard deviations of the start's steps below their mean."""

CLEARLY = 2.0
"""Standard errors that make a difference clear."""

SIGNS = {
    "trace_length": "trace length (tokens)",
    "entropy": "trace entropy (nats)",
    "distinct_ngrams": f"distinct {NGRAM}-gram share",
    "gain": "gain over the null trace (nats)",
    "accuracy_thinking": "held-out accuracy",
}
"""What may fall, with what it is called; the last is measured on held-out pairs, all others in training."""


def trace_health(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """What a step's traces say without any score: `truncated_share` (ran into the cap) and `distinct_ngrams`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if not rollouts:
        return {}
    return {
        "truncated_share": fmean(rollout.stop == "cap" for rollout in rollouts),
        "distinct_ngrams": distinct_ngrams([r.trace_ids for r in group.rollouts] for group in groups),
    }


def distinct_ngrams(groups: Iterable[Sequence[Sequence[int]]], n: int = NGRAM) -> float:
    """Distinct n-grams / all n-grams of a group's traces, mean over groups; 1 if no trace repeats itself or another.

    Groups without any trace of n tokens are left out; NaN where that leaves none.
    """
    shares = []
    for traces in groups:
        ngrams = [tuple(trace[i : i + n]) for trace in traces for i in range(len(trace) - n + 1)]
        if ngrams:
            shares.append(len(set(ngrams)) / len(ngrams))
    return fmean(shares) if shares else math.nan


@dataclass(frozen=True)
class Fall:
    """A collapse: the sign that fell, after which step, from where to where, below which limit; and it all in words."""

    sign: str
    step: int
    start: float
    now: float
    limit: float
    seen: str

    def __str__(self) -> str:
        return self.seen


class _Mean(NamedTuple):
    """A mean with its standard error and the standard deviation of single values; NaN where too few were measured."""

    value: float
    error: float
    spread: float = math.nan

    def above(self, other: "_Mean") -> bool:
        """Whether this is clearly more."""
        return self.value - other.value > CLEARLY * math.hypot(self.error, other.error)


_ZERO = _Mean(0.0, 0.0)


@dataclass
class Sentinel:
    """Watches the records of a run as they are made; each sign is reported once.

    `steps` are those that the run is to take; None where nobody knows.
    """

    steps: int | None = None
    began: dict[str, _Mean] = field(default_factory=dict)
    """Of the first `WINDOW` steps, once they are taken."""
    last: dict[str, deque[float]] = field(default_factory=lambda: {sign: deque(maxlen=WINDOW) for sign in SIGNS})
    """Each sign's values at the last `WINDOW` steps."""
    accuracies: list[_Mean] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)

    def add(self, record: Mapping[str, float]) -> list[Fall]:
        """Take metrics of a step, or held-out scores (`kind: held_out`); returns what collapsed. NaN is passed over."""
        if record.get("kind") == "held_out":
            found = self._no_better(record)
        else:
            for sign, values in self.last.items():
                values.append(record.get(sign, math.nan))
            found = self._falls(record["step"]) if self.began and not self._learned else []
            if not self.began and len(self.last["gain"]) == WINDOW:
                self.began = {sign: _mean(values) for sign, values in self.last.items()}
        falls = [fall for fall in found if fall.sign not in self.reported]
        self.reported.update(fall.sign for fall in falls)
        return falls

    @property
    def _learned(self) -> bool:
        return bool(self.accuracies) and self.accuracies[-1].above(self.accuracies[0])

    def _no_better(self, record: Mapping[str, float]) -> list[Fall]:
        """Held-out accuracy that is where it began: again, after it was clearly above; or still, after the end."""
        share, n = record.get("accuracy_thinking", math.nan), record.get("graded", 0)
        if not n or not math.isfinite(share):
            return []
        self.accuracies.append(_share(share, n))
        self.shares.append(share)
        start, now = self.accuracies[0], self.accuracies[-1]
        best = max(self.accuracies, key=lambda each: each.value)
        noise = math.hypot(start.error, now.error)
        limit = start.value + CLEARLY * noise
        if self._learned:
            return []
        if best.above(start):
            if not best.above(now):
                return []
            seen = f"held-out accuracy is back at {share:.0%}, where the run began ({self.shares[0]:.0%}), from "
            seen += f"{max(self.shares):.0%} at its best"
        else:
            ended = self.steps is not None and record["step"] >= max(self.steps, 2 * WINDOW)
            # A slow rise is no collapse; an accuracy that never left 0 says nothing of the traces, and one that began
            # so high that all right would not be clearly more cannot rise.
            if not ended or now.value - start.value > noise or not any(self.shares) or not _share(1, n).above(start):
                return []
            limit = start.value + noise
            seen = f"held-out accuracy is {share:.0%} of {n} after the last step, no better than where the run began "
            seen += f"({self.shares[0]:.0%})"
        return [Fall("accuracy_thinking", int(record["step"]), self.shares[0], share, limit, seen)]

    def _falls(self, step: float) -> list[Fall]:
        """What has fallen while nothing speaks for learning."""
        begin, gain = self.began["gain"], _mean(self.last["gain"])
        if gain.above(_ZERO):
            return []
        fallen = []
        helps = f"gain over the null trace {gain.value:+.2g} nats (from {begin.value:+.2g})"
        for sign in ("trace_length", "entropy", "distinct_ngrams"):
            start, now = self.began[sign].value, _mean(self.last[sign]).value
            limit = start * (GONE if gain.above(begin) and sign == "trace_length" else FALLEN)
            if now < limit and (not gain.above(begin) or sign == "trace_length"):
                fallen.append((sign, start, now, limit, helps))
        if gain.value < (limit := begin.value - SPREADS * begin.spread):
            fallen.append(("gain", begin.value, gain.value, limit, "traces do not help"))
        falls = []
        for sign, start, now, limit, why in fallen:
            seen = f"{SIGNS[sign]} fell to {now:.3g} (mean of the last {WINDOW} steps) from {start:.3g} at the run's "
            seen += f"start, below {limit:.3g}, and nothing speaks for learning: {why}"
            falls.append(Fall(sign, int(step), start, now, limit, seen))
        return falls


def watched(
    steps: Iterable[Mapping[str, float]], held_out: Iterable[Mapping[str, float]]
) -> Iterator[Mapping[str, float]]:
    """A run's records as the sentinel sees them: held-out scores after the step that they are of."""
    return heapq.merge(steps, held_out, key=lambda record: record["step"])


def _mean(values: Iterable[float]) -> _Mean:
    values = [value for value in values if math.isfinite(value)]
    if len(values) < 2:
        return _Mean(math.nan, math.nan)
    mean = math.fsum(values) / len(values)
    # In floats: statistics.stdev computes with fractions, for minutes over a long run.
    spread = math.sqrt(math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1))
    return _Mean(mean, spread / math.sqrt(len(values)), spread)


def _share(share: float, n: float) -> _Mean:
    """A share of n with two trials more, a success and a failure, so that 0 of n is not certain: differences of such
    shares are clear when Agresti and Caffo's interval says so (The American Statistician, 2000)."""
    adjusted = (share * n + 1) / (n + 2)
    return _Mean(adjusted, math.sqrt(adjusted * (1 - adjusted) / (n + 2)))
