"""Token sequences as verl's workers take them, and what they say of them cut back to the scored tokens.

Shapes: R rows of any lengths, as nested tensors; N scored tokens of a row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from nrt_cli.objective.rows import Row


def nested(tensors: Sequence[Tensor]) -> Tensor:
    """One jagged tensor of several of different lengths."""
    return torch.nested.as_nested_tensor(list(tensors), layout=torch.jagged)


def as_rows(rows: Sequence[Row], temperature: float, entropy: bool, **columns: Sequence[Any]) -> TensorDict:
    """Rows in verl's layout: what is scored of each is its response.

    Args:
        temperature: at which the tokens of `Row.tempered` were sampled; all others count at 1.
        entropy: whether entropies are computed too.
        columns: besides, an object of any kind for each row.
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
        tensors["temperatures"] = nested([_temperatures(row, temperature) for row in rows])
    batch: TensorDict = tu.get_tensordict(tensors)
    for name, values in columns.items():
        tu.assign_non_tensor_stack(batch, name, list(values))
    tu.assign_non_tensor(batch, temperature=1.0, calculate_entropy=entropy)
    return batch


def _temperatures(row: Row, temperature: float) -> Tensor:
    """What the logits of each position are divided by; those at position t predict token t + 1."""
    values = torch.ones(len(row.ids))
    values[row.tempered[0] - 1 : row.tempered[1] - 1] = temperature
    return values


def scored(values: Tensor, batch: TensorDict) -> list[Tensor]:
    """Of one number per token of each row, those of its response: what position t says is of token t + 1."""
    lengths = batch["responses"].offsets().diff().tolist()
    return [row[-length - 1 : -1] for row, length in zip(values.unbind(), lengths, strict=True)]
