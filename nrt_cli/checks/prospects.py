"""What a few sampled groups say before a run: is there something to choose between, and would a scheme choose it?

Shapes: K traces of one group, T answer tokens, eos included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch

from nrt_cli.config import ObjectiveSection
from nrt_cli.measures.statistics import mean
from nrt_cli.methods import Group, Method
from nrt_cli.objective.advantages import group_advantage
from nrt_cli.records import Rollout, Stop

CUT = 0.5
"""More cut traces than this: most answers are judged after a fragment. Measured with 91 % cut, nothing was learned."""

EMPTY = 0.5
"""More empty traces than this: for most of what is sampled there is nothing that a policy gradient could change."""

FAR = -5.0
"""Nats an answer token: a model that began at -4 learned to lead to its answers, and at -12 none did in 60 steps."""

QUIET = 0.5
"""Fewer groups with any advantage than this: more than half of what a step samples is thrown away."""

AGREES = 0.6
"""Of pairs of a right and a wrong trace, the share in which the right one must have the larger advantage: chance is a
half, and from eight questions less than this is not told from it."""

Mark = Literal["dead", "weak", "signal"]


@dataclass(frozen=True)
class SampledTrace:
    """A trace as far as it decides what is learned. `score` is that of the greedy answer after it; NaN: not graded."""

    tokens: int
    stop: Stop
    logprobs_T: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class SampledGroup:
    """The traces of one question, and the log-probs of its answer's tokens after the null trace."""

    prompt_tokens: int
    null_logprobs_T: tuple[float, ...]
    traces: tuple[SampledTrace, ...]


@dataclass(frozen=True)
class Prospects:
    """Shares over traces, questions or pairs of traces; NaN where nothing was graded or there is no such pair."""

    questions: int
    traces: int
    length: float
    closed: float
    """Traces that sampled t_end, those that ran into the cap, those that ended by eos, and those of no token."""
    cut: float
    eos: float
    empty: float
    graded: int
    """Traces that have a score, of which `right` are right; and in `mixed` of the questions not all are alike."""
    right: int
    right_share: float
    mixed: float
    alive: float
    """Questions whose traces have advantages: not dead."""
    agrees: float
    """Of pairs of traces of one question of which one is better, how often that has the larger advantage; ties half."""
    pairs: int
    gain: float
    """log P(y*) after a trace minus after the null trace, in nats, and the share of traces where it is above 0."""
    helpful: float
    tokens: float
    """Tokens that one question takes in a step's forward pass: K times prompt, trace, answer and think tokens."""

    @property
    def mark(self) -> Mark:
        """Whether there is something to choose between, and the scheme chooses it."""
        if not self.alive or not self.right_share or not self.mixed:
            return "dead"
        # NaN, where nothing is graded, is no reason to doubt.
        return "weak" if self.alive < QUIET or self.agrees < AGREES else "signal"


def prospects(groups: Sequence[SampledGroup], method: Method, objective: ObjectiveSection) -> Prospects:
    """What groups say under a scheme and its way to make advantages."""
    traces = [trace for group in groups for trace in group.traces]
    scores = [trace.score for trace in traces if math.isfinite(trace.score)]
    by_group = [[t.score for t in group.traces if math.isfinite(t.score)] for group in groups]
    graded = [each for each in by_group if each]
    alive, wins = 0, []
    for group in groups:
        advantages = _advantages(group, method, objective)
        alive += advantages is not None
        wins += _wins(group, advantages or [0.0] * len(group.traces))
    gains = [math.fsum(t.logprobs_T) - math.fsum(g.null_logprobs_T) for g in groups for t in g.traces]
    right = sum(score == 1 for score in scores)
    return Prospects(
        questions=len(groups),
        traces=len(traces),
        length=mean([trace.tokens for trace in traces]),
        closed=mean([trace.stop == "end" for trace in traces]),
        cut=mean([trace.stop == "cap" for trace in traces]),
        eos=mean([trace.stop == "eos" for trace in traces]),
        empty=mean([not trace.tokens for trace in traces]),
        graded=len(scores),
        right=right,
        right_share=right / len(scores) if scores else math.nan,
        mixed=mean([max(each) > min(each) for each in graded]),
        alive=alive / len(groups),
        agrees=mean(wins),
        pairs=len(wins),
        gain=mean(gains),
        helpful=mean([gain > 0 for gain in gains]),
        tokens=math.fsum(g.prompt_tokens + t.tokens + 2 + len(t.logprobs_T) for g in groups for t in g.traces)
        / len(groups),
    )


def _advantages(group: SampledGroup, method: Method, objective: ObjectiveSection) -> list[float] | None:
    """As the loss has them; None for a dead group."""
    logprobs_KT = torch.tensor([trace.logprobs_T for trace in group.traces], dtype=torch.float64)
    null_T = torch.tensor(group.null_logprobs_T, dtype=torch.float64)
    signals = method.signals(Group.of(logprobs_KT, null_T, objective))
    found = group_advantage(signals, objective.baseline, objective.advantage, objective.std_floor)
    return None if found.dead else found.advantage_K.tolist()


def _wins(group: SampledGroup, advantages: Sequence[float]) -> list[float]:
    """For each pair of a better and a worse trace: 1 where the better one has the larger advantage, a half for ties."""
    each = list(zip(group.traces, advantages, strict=True))
    return [
        0.5 if ours == theirs else float(ours > theirs)
        for (better, ours), (worse, theirs) in product(each, each)
        if better.score > worse.score
    ]


def cut_to(rollout: Rollout, cap: int) -> Rollout:
    """What the same random stream gives under a smaller cap: what stopped it counts if it is among the first tokens."""
    if rollout.stop == "cap" and len(rollout.trace_ids) <= cap:
        return rollout
    if rollout.stop != "cap" and len(rollout.trace_ids) < cap:
        return rollout
    return Rollout(rollout.trace_ids[:cap], rollout.sampler_logprobs[:cap], "cap")


def split(groups: Sequence[SampledGroup], size: int) -> list[SampledGroup]:
    """Disjoint groups of `size` traces, in their order; what is left over is left out."""
    return [
        replace(group, traces=group.traces[start : start + size])
        for group in groups
        for start in range(0, len(group.traces) - size + 1, size)
    ]
