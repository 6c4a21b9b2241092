"""The loss as verl's workers compute it: units' losses on the log-probabilities of their forward pass.

Two ways to the same gradient. Where whole units fit a forward pass, their losses are computed in it, and nothing before
it. Else the driver has differentiated them by the log-probabilities of a pass without gradient, and the worker carries
that gradient on.

Shapes: N scored tokens of some rows, one row after another.
"""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from nrt_cli.backends.verl.rows import scored


def loss(model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """The micro-batch's share of the loss; among its metrics, what the rows of whole units scored."""
    total, metrics = (_carried_on if "gradient" in data.keys() else _of_units)(model_output, data)  # noqa: SIM118
    # FSDP takes the mean of the ranks' gradients; ours is a sum with a constant divisor.
    return total * data["dp_size"], metrics


def _carried_on(model_output: dict[str, Tensor], data: TensorDict) -> tuple[Tensor, dict[str, Any]]:
    """A function whose gradient is the one that each row brought along: logprobs_N and entropies_N of it."""
    parts = []
    for name, column in (("log_probs", "gradient"), ("entropy", "entropy_gradient")):
        if column in data.keys():  # noqa: SIM118  a TensorDict has no `in`
            values_N = torch.cat(scored(model_output[name], data))
            parts.append((values_N * torch.cat([row.to(values_N) for row in data[column]])).sum())
    return torch.stack(parts).sum(), {}


def _of_units(model_output: dict[str, Tensor], data: TensorDict) -> tuple[Tensor, dict[str, Any]]:
    """The losses of units whose rows are all here, side by side; the first row of each carries its loss."""
    logprobs, entropies = (scored(model_output[name], data) for name in ("log_probs", "entropy"))
    totals, start = [], 0
    for unit_loss, size in (carried for carried in data["carried"] if carried is not None):
        scores = (torch.cat(rows[start : start + size]).double() for rows in (logprobs, entropies))
        totals.append(unit_loss(*scores)[0])
        start += size
    numbers = [
        (int(i), *(values.detach().cpu().numpy() for values in pair))
        for i, *pair in zip(data["row"], logprobs, entropies, strict=True)
    ]
    return torch.stack(totals).sum().to(logprobs[0].dtype), {"scored": numbers}
