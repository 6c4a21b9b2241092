"""Rows that a transformers model continues together, each at its own length: rows join and leave between steps.

    columns:  padding | prompt | padding | sampled tokens     a row's tokens are where its mask is 1

Shapes: R rows, W columns of the cache, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Columns that a cache grows by: growing copies it."""


class _Layer(DynamicLayer):
    """Keys and values with columns to spare, so that a step writes a column instead of copying all of them."""

    keys: Tensor
    values: Tensor
    spare: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns; all keys and values, [R, heads, W, channels]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.replace(key_states, value_states)
            return self.keys, self.values
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self.spare is None or end > self.spare[0].shape[-2]:
            self.spare = pad(self.keys, (0, 0, 0, end - start + ROOM)), pad(self.values, (0, 0, 0, end - start + ROOM))
        keys, values = self.spare
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Other keys and values in place of these."""
        self.keys, self.values, self.spare = keys, values, None


class Batch:
    """Rows in flight and their cache. Every method that reads tokens returns what comes after them: logits [R, V].

    What a row is told does not depend on the rows beside it, up to the rounding of the matrix products.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self._clear()

    def _clear(self) -> None:
        self.cache = Cache(layer_class_to_replicate=_Layer)
        self.mask_RW = torch.zeros(0, 0, dtype=torch.long, device=self.model.device)

    @property
    def _layers(self) -> list[Any]:
        """The cache's, which are made as the model's layers first update it."""
        return self.cache.layers

    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Let rows join, after those that are here; equal prompts are read once. Their logits only."""
        unique = {tuple(prompt): None for prompt in prompts}
        places = {prompt: i for i, prompt in enumerate(unique)}
        rows = [places[tuple(prompt)] for prompt in prompts]
        new = Batch(self.model, self.pad_id)
        logits_RV = new._read(list(unique))
        new.keep(rows)
        self._append(new)
        return logits_RV[rows]

    def _read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Fill an empty batch with prompts."""
        width = max(map(len, prompts))
        ids_RW = torch.full((len(prompts), width), self.pad_id)
        mask_RW = torch.zeros((len(prompts), width), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            # Padding is on the left here, so that every row's next token has the same place in the cache.
            ids_RW[i, width - len(prompt) :] = torch.tensor(prompt)
            mask_RW[i, width - len(prompt) :] = 1
        self.mask_RW = mask_RW.to(self.model.device)
        return self._forward(ids_RW.to(self.model.device))

    def _append(self, other: "Batch") -> None:
        """The other batch's rows after these."""
        if not len(self.mask_RW):
            self.cache, self.mask_RW = other.cache, other.mask_RW
            return
        width = max(self.mask_RW.shape[1], other.mask_RW.shape[1])
        for mine, its in zip(self._layers, other._layers, strict=True):
            pairs = ((mine.keys, its.keys), (mine.values, its.values))
            mine.replace(*(torch.cat([_left(tensor, width, -2) for tensor in pair]) for pair in pairs))
        self.mask_RW = torch.cat([_left(self.mask_RW, width, -1), _left(other.mask_RW, width, -1)])

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order, without the columns in front that none of them uses."""
        if not rows:
            self._clear()
            return
        mask_RW = self.mask_RW[rows]
        first = int(mask_RW.any(0).int().argmax())
        self.mask_RW = mask_RW[:, first:]
        for layer in self._layers:
            layer.replace(layer.keys[rows, :, first:], layer.values[rows, :, first:])

    def step(self, tokens: Sequence[int], live: Sequence[bool]) -> Tensor:
        """Let every row read a token; rows that are not live keep their place, and what they are told means nothing."""
        column_R1 = torch.tensor(live, device=self.model.device)[:, None].to(self.mask_RW.dtype)
        self.mask_RW = torch.cat([self.mask_RW, column_R1], -1)
        return self._forward(torch.tensor(tokens, device=self.model.device)[:, None])

    @torch.no_grad()
    def _forward(self, ids_RT: Tensor) -> Tensor:
        # A position counts a row's own tokens, so neither padding nor rows that joined earlier shift it.
        positions_RW = (self.mask_RW.cumsum(-1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids_RT,
            attention_mask=self.mask_RW,
            position_ids=positions_RW[:, -ids_RT.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


def _left(tensor: Tensor, width: int, dim: int) -> Tensor:
    """Zeros on the left of a dimension, up to a width."""
    missing = width - tensor.shape[dim]
    return pad(tensor, (missing, 0) if dim == -1 else (0, 0, missing, 0))
