"""The loss as verl's workers compute it: our `core` on the log-probabilities of their forward pass.

Two ways to the same gradient. Where whole groups fit a forward pass, it yields their rewards, advantages and loss too
(`group_loss`), and nothing is computed before it. Else the driver has differentiated the loss by the log-probabilities
of a pass without gradient, and the worker carries that gradient on (`linear_loss`).

Shapes: R rows of a micro-batch, N scored tokens of a row.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from nrt_cli.backends.verl.rows import scored
from nrt_cli.config import RunConfig
from nrt_cli.objective.group import Objective
from nrt_cli.objective.layout import Layout
from nrt_cli.records import RolloutGroup
from nrt_cli.text.tokens import ThinkTokens

Output = dict[str, Tensor]


class Loss:
    """What verl calls as its loss function; sent to the workers once, and told by each batch which way to go."""

    def __init__(self, config: RunConfig, tokens: ThinkTokens) -> None:
        self.config, self.tokens = config, tokens
        self._objective: Objective | None = None

    def __call__(self, model_output: Output, data: TensorDict, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """The micro-batch's share of the loss; among its metrics, what the rows of whole groups scored."""
        way = self.linear if "gradient" in data.keys() else self.whole  # noqa: SIM118  a TensorDict has no `in`
        loss, metrics = way(model_output, data)
        # FSDP takes the mean of the ranks' gradients; ours is a sum with a constant divisor.
        return loss * data["dp_size"], metrics

    def linear(self, model_output: Output, data: TensorDict) -> tuple[Tensor, dict[str, Any]]:
        """A function whose gradient is the one that each row brought along: logprobs_N and entropies_N of it."""
        parts = []
        for name, column in (("log_probs", "gradient"), ("entropy", "entropy_gradient")):
            if column in data.keys():  # noqa: SIM118
                values_N = torch.cat(scored(model_output[name], data))
                parts.append((values_N * torch.cat([row.to(values_N) for row in data[column]])).sum())
        return torch.stack(parts).sum(), {}

    def whole(self, model_output: Output, data: TensorDict) -> tuple[Tensor, dict[str, Any]]:
        """The loss of groups whose rows are all here, side by side, the null trace last if it rides along."""
        logprobs, entropies = (scored(model_output[name], data) for name in ("log_probs", "entropy"))
        totals, start = [], 0
        objective = self._with_objective(logprobs[0].device)
        for group, known, size in _groups(data):
            own = slice(start, start + size)
            logprobs_N, entropies_N = (torch.cat(rows[own]).double() for rows in (logprobs, entropies))
            known = {name: tensor.to(logprobs[0].device) for name, tensor in known.items()}
            score = objective.score(group, known, logprobs_N, entropies_N, data["rows_in_minibatch"])
            totals.append(score.loss.total)
            start += size
        numbers = [
            (int(i), *(values.detach().cpu().numpy() for values in pair))
            for i, *pair in zip(data["row"], logprobs, entropies, strict=True)
        ]
        return torch.stack(totals).sum().to(logprobs[0].dtype), {"scored": numbers}

    def _with_objective(self, device: torch.device) -> Objective:
        """Made where it is used: a user's scheme is a function of their module, which every worker imports itself."""
        if self._objective is None:
            layout = Layout.of(self.config.objective, self.tokens, device)
            self._objective = Objective(self.config, layout)
        return self._objective

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_objective": None}


def _groups(data: TensorDict) -> list[tuple[RolloutGroup, dict[str, Tensor], int]]:
    """Each group, what is known of it and how many rows it has; its first row carries them."""
    return [carried for carried in data["carried"] if carried is not None]
