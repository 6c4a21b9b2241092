"""A group's loss from its flat scores: where an engine's forward pass meets `core`.

Shapes: N scored tokens of a group's rows, one row after another.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from nrt_cli.config import RunConfig
from nrt_cli.errors import TrainingError
from nrt_cli.objective.layout import Layout
from nrt_cli.objective.losses import group_loss
from nrt_cli.objective.metrics import GroupScore
from nrt_cli.objective.rows import Row
from nrt_cli.objective.schemes import get_scheme
from nrt_cli.records import Example, HeldOut, RolloutGroup

Score = Callable[[Sequence[Row]], Sequence[tuple[Tensor, Tensor]]]
"""What a model says of rows: log-probabilities and entropies of each one's scored tokens."""


class Objective:
    """The scheme, the constants and the layout that a run's losses are made with."""

    def __init__(self, config: RunConfig, layout: Layout) -> None:
        self.settings, self.layout = config.objective, layout
        self.scheme = get_scheme(config.method, config.objective.weight_cap, config.objective.weighted_sum)
        divisor = config.objective.length_divisor
        self.divisor = config.rollout.max_trace_tokens if divisor == "cap" else divisor

    def score(
        self, group: RolloutGroup, known: dict[str, Tensor], logprobs_N: Tensor, entropies_N: Tensor, rows: int
    ) -> GroupScore:
        """A group's loss as a function of its flat scores; those of a null trace, at the end, are not read.

        Args:
            known: what pi_old, the sampler and the starting model say of the group (`GroupContext`); without
                `base_logprobs_T`, the null trace's row is the last of the flat scores.
            rows: traces in the whole minibatch.

        Raises:
            TrainingError: the loss is not finite.
        """
        if "base_logprobs_T" not in known:
            known = known | {"base_logprobs_T": logprobs_N[-len(group.example.answer_ids) :].detach()}
        context = self.layout.context(group, known)
        logprobs = self.layout.assemble(group, logprobs_N, entropies_N)
        loss = group_loss(self.scheme, logprobs, context, self.settings, rows, self.divisor)
        if not math.isfinite(float(loss.total.detach())):
            raise TrainingError(f"the loss is {float(loss.total.detach())} on example {group.example.index}")
        return GroupScore(logprobs, context, loss)


def held_out_scores(groups: Sequence[RolloutGroup], layout: Layout, score: Score) -> HeldOut:
    """log P(y*) in nats, given each group's one trace and given the null trace, and what the traces are like."""
    examples, traces = [group.example for group in groups], [group.rollouts[0] for group in groups]
    with_trace = answer_logprobs([layout.rows(group)[0] for group in groups], examples, score)
    with_null = answer_logprobs([layout.null_row(example) for example in examples], examples, score)
    metrics = {
        "answer_logprob": mean_total(with_trace),
        "null_logprob": mean_total(with_null),
        "gain": mean_total(with_trace) - mean_total(with_null),
        "trace_length": sum(len(trace.trace_ids) for trace in traces) / len(traces),
        "forced_share": sum(trace.forced for trace in traces) / len(traces),
    }
    return HeldOut(metrics, with_trace, tuple(groups), with_null)


def direct_scores(rows: Sequence[Row], examples: Sequence[Example], score: Score) -> HeldOut:
    """log P(y*) in nats where there is no trace: SFT's rows."""
    logprobs = answer_logprobs(rows, examples, score)
    return HeldOut({"answer_logprob": mean_total(logprobs)}, logprobs)


def answer_logprobs(rows: Sequence[Row], examples: Sequence[Example], score: Score) -> tuple[tuple[float, ...], ...]:
    """Of each row, the log-probs of y*, its last tokens."""
    scored = zip(score(rows), examples, strict=True)
    return tuple(tuple(logprobs_N[-len(e.answer_ids) :].tolist()) for (logprobs_N, _), e in scored)


def mean_total(logprobs: Sequence[Sequence[float]]) -> float:
    """Mean over examples of log P(y*), in nats."""
    return sum(map(sum, logprobs)) / len(logprobs)


def mean_of(reports: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of what a step's minibatches report, by name."""
    return {key: sum(report[key] for report in reports) / len(reports) for key in reports[0]}
