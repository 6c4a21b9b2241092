"""Token sequences as verl's workers take them, what these say of them, and the loss that they compute.

Two ways to the same gradient. Where whole units fit a forward pass, their losses are computed in it. Else the driver
has differentiated them by the log-probabilities of a pass without gradient, and the worker carries that gradient on.

Shapes: R rows of any lengths, as nested tensors; N scored tokens of some rows, one row after another.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from nrt_cli.objective.rows import Row


def nested(tensors: Sequence[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(list(tensors), layout=torch.jagged)


def as_rows(rows: Sequence[Row], temperature: float, entropy: bool, **columns: Sequence[Any]) -> TensorDict:
    """Rows in verl's layout: what is scored of each is its response.

    The tokens of `Row.tempered` count at `temperature`, all others at 1; `columns` have an object for each row besides.
    """
    ids = [torch.tensor(row.ids) for row in rows]
    responses = [row_ids[row.scored_from :] for row_ids, row in zip(ids, rows, strict=True)]
    masks = nested([torch.ones_like(response) for response in responses])
    tensors: dict[str, Any] = {
        "prompts": nested([row_ids[: row.scored_from] for row_ids, row in zip(ids, rows, strict=True)]),
        "responses": nested(responses),
        "response_mask": masks,
        "loss_mask": masks.clone(),
        "input_ids": nested(ids),
        "position_ids": nested([torch.arange(len(row.ids)) for row in rows]),
    }
    if temperature != 1.0:
        # What the logits of each position are divided by; those at position t predict token t + 1.
        temperatures = [torch.ones(len(row.ids)) for row in rows]
        for row, values in zip(rows, temperatures, strict=True):
            values[row.tempered[0] - 1 : row.tempered[1] - 1] = temperature
        tensors["temperatures"] = nested(temperatures)
    batch: TensorDict = tu.get_tensordict(tensors)
    for name, column in columns.items():
        tu.assign_non_tensor_stack(batch, name, list(column))
    tu.assign_non_tensor(batch, temperature=1.0, calculate_entropy=entropy)
    return batch


def scored(values: Tensor, batch: TensorDict) -> list[Tensor]:
    """Of one number per token of each row, those of its response: what position t says is of token t + 1."""
    lengths = batch["responses"].offsets().diff().tolist()
    return [row[-length - 1 : -1] for row, length in zip(values.unbind(), lengths, strict=True)]


def loss(model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """The micro-batch's share of the loss; among its metrics, what the rows of whole units scored."""
    logprobs = scored(model_output["log_probs"], data)
    metrics: dict[str, Any] = {}
    parts = []
    if "gradient" in data.keys():  # noqa: SIM118  a TensorDict has no `in`
        # A function whose gradient is the one that each row brought along.
        for name, column in (("log_probs", "gradient"), ("entropy", "entropy_gradient")):
            if column in data.keys():  # noqa: SIM118
                values_N = torch.cat(scored(model_output[name], data))
                parts.append((values_N * torch.cat([row.to(values_N) for row in data[column]])).sum())
    else:
        # Units whose rows are all here, side by side; the first row of each carries its loss.
        entropies, start = scored(model_output["entropy"], data), 0
        for unit_loss, size in (carried for carried in data["carried"] if carried is not None):
            scores = (torch.cat(rows[start : start + size]).double() for rows in (logprobs, entropies))
            parts.append(unit_loss(*scores)[0])
            start += size
        metrics["scored"] = [
            (int(i), *(values.detach().cpu().numpy() for values in pair))
            for i, *pair in zip(data["row"], logprobs, entropies, strict=True)
        ]
    # FSDP takes the mean of the ranks' gradients; ours is a sum with a constant divisor.
    return torch.stack(parts).sum().to(logprobs[0].dtype) * data["dp_size"], metrics
