"""Units of an update: rows, and their loss as a pure function of what a model says of them.

Shapes: N scored tokens of a unit's rows, one row after another.

A backend computes the two numbers of each scored token and carries the loss's gradient back; what the loss means it
does not know. Units can be sent to other processes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from nrt_cli import methods
from nrt_cli.config import RunConfig
from nrt_cli.errors import TrainingError
from nrt_cli.methods import Method
from nrt_cli.objective.losses import Known, group_loss
from nrt_cli.objective.metrics import GroupScore
from nrt_cli.objective.rows import Layout, Row
from nrt_cli.records import Example, RolloutGroup
from nrt_cli.text.tokens import ThinkTokens


@dataclass(frozen=True)
class Unit:
    """What is differentiated together. A minibatch's loss is the sum over its units.

    `loss` takes logprobs_N and entropies_N and returns a scalar that is differentiable in both, and besides whatever
    the trainer wants to know, detached.
    """

    rows: tuple[Row, ...]
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Any]]


class Objective:
    """The method, the constants and the layout that a run's units are made with."""

    def __init__(self, config: RunConfig, tokens: ThinkTokens) -> None:
        settings = self.settings = config.objective
        self.name, divisor = config.method, settings.length_divisor
        self.layout = Layout(tokens, settings.null_trace == "bare", settings.credit_eos)
        self.divisor = config.rollout.max_trace_tokens if divisor == "cap" else divisor

    @cached_property
    def method(self) -> Method:
        """Made where it is used: a user's is a function of their module, which every process imports itself."""
        return methods.get(self.name, self.settings)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "method"}

    def of_group(self, group: RolloutGroup, known: Known, traces: int) -> Unit:
        """A group's traces of the minibatch's `traces`, and its null trace where that is not known: the last row, which
        no loss reaches."""
        rows = self.layout.rows(group) if known.base_logprobs_T is not None else self.layout.rows_with_null(group)
        return Unit(tuple(rows), partial(self._group, group, known, traces))

    def _group(
        self, group: RolloutGroup, known: Known, traces: int, logprobs_N: Tensor, entropies_N: Tensor
    ) -> tuple[Tensor, GroupScore]:
        """A group's loss, and the group as scored. Raises TrainingError where the loss is not finite."""
        base_T = known.base_logprobs_T
        base_T = logprobs_N[-len(group.example.answer_ids) :].detach() if base_T is None else base_T.to(logprobs_N)
        context = self.layout.context(group, known, base_T)
        logprobs = self.layout.assemble(group, logprobs_N, entropies_N)
        loss = group_loss(self.method, logprobs, context, self.settings, traces, self.divisor)
        if not math.isfinite(float(loss.total.detach())):
            error = TrainingError(f"the loss is {float(loss.total.detach())} on example {group.example.index}")
            made = {"rewards": loss.reward.scaled_K, "token signals": loss.reward.token_KT}
            whose = [what for what, numbers in made.items() if not bool(numbers.isfinite().all())]
            if whose and bool(logprobs.answer_KT.isfinite().all() and base_T.isfinite().all()):
                error.remedy = (
                    f"Method {self.name!r} made {whose[0]} that are not finite of log-probs that are: mend it."
                )
            raise error
        # The same numbers without the graph they came from.
        numbers = {name: value.detach() for name, value in vars(logprobs).items() if value is not None}
        detached = replace(loss, total=loss.total.detach())
        return loss.total, GroupScore(replace(logprobs, **numbers), context, detached)

    def of_examples(self, examples: Sequence[Example]) -> list[Unit]:
        """Cross-entropy on what follows x, per such token of the minibatch: y*, and before it z* where there is one."""
        rows = [self.layout.reference_row(example) for example in examples]
        tokens = sum(row.scored for row in rows)
        return [
            Unit((row,), partial(_reference, len(example.answer_ids), tokens))
            for row, example in zip(rows, examples, strict=True)
        ]


def _reference(
    answer_tokens: int, tokens: int, logprobs_N: Tensor, entropies_N: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A row's share of the mean over the minibatch's `tokens`; besides it, the sum of its answer's log-probs."""
    loss = -logprobs_N.sum() / tokens
    return loss, (loss.detach(), logprobs_N[-answer_tokens:].detach().sum())
