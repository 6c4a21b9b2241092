"""Decoding: each prompt computed and kept once, however many rows go on from it; rows join and leave between steps.

Shapes: P prompts, N rows of a prompt at most, R rows in flight, S tokens of the longest prompt, U columns decoded since
the oldest row joined, G key-value heads, H query heads, Q = H / G, D channels of a head, V vocabulary, X whatever.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nrt_cli.backends.local import attention
from nrt_cli.backends.local.batch import Batch
from nrt_cli.backends.local.packing import Segments, common_prefix, pack
from nrt_cli.models.lora import is_low_rank, merged, table_of

PREFILL_TOKENS = 16384
"""Prompt tokens of one forward pass; a single longer prompt goes alone."""

ROOM = 64
"""Columns that a row's own keys and values grow by: growing copies them."""


class Rows(Protocol):
    """Rows in flight. Every method that reads tokens returns what comes after them: logits [R, V]."""

    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Let rows join, after those that are here; equal prompts are read once. Their logits only."""

    def step(self, tokens: Sequence[int], live: Sequence[bool]) -> Tensor:
        """Let every row read a token; what rows that are not live are told means nothing."""

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order."""


def open_batch(model: PreTrainedModel, pad_id: int) -> Rows:
    """An empty batch: prompts shared where the model attends by patterns, transformers' own cache elsewhere."""
    return SharedBatch(model) if attention.enabled(model) else Batch(model, pad_id)


class SharedBatch:
    """Rows whose queries see one copy of their prompt's keys and values, and those of their own tokens since.

    It is also the attention pattern of its forward passes (`attention.Pattern`).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        empty = torch.zeros(0, dtype=torch.long, device=model.device)
        self.lengths_P, self.prompt_R, self.joined_R = empty, empty, empty
        # For each layer its keys and values: of prompts [2, P, G, S, D], and of rows [2, R, G, room, D].
        self.shared: list[Tensor] = []
        self.own: list[Tensor] = []
        self.columns = 0

    @torch.no_grad()
    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Let rows join, after those that are here; equal prompts are read once. Their logits only."""
        rows = [tuple(prompt) for prompt in prompts]
        # A prompt whose rows are all new is read anew even if it is here: what follows it was not kept.
        fresh = list(dict.fromkeys(rows))
        logits = [self._read(part) for part in _within(fresh, PREFILL_TOKENS)]
        first = len(self.lengths_P) - len(fresh)
        place = {prompt: i for i, prompt in enumerate(fresh)}
        at_R = torch.tensor([place[prompt] for prompt in rows], device=self.model.device)
        self.prompt_R = torch.cat([self.prompt_R, first + at_R])
        self.joined_R = torch.cat([self.joined_R, torch.full_like(at_R, self.columns)])
        self.own = [_longer(layer, 1, len(rows)) for layer in self.own]
        self._arrange()
        return torch.cat(logits)[at_R].float()

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Keep keys and values of prompts, read side by side in one pass; the logits after each, [P, V]."""
        device = self.model.device
        # What all of them begin with, such as worked examples, is computed once if it is worth a second attention call.
        together = common_prefix(prompts) * (len(prompts) - 1) > sum(map(len, prompts)) // 4
        packed = pack([prompts] if together else [[prompt] for prompt in prompts])
        reading = _Reading(packed.pattern)
        ids, positions = (torch.tensor([column], device=device) for column in (packed.ids, packed.positions))
        ends = torch.tensor([at[-1] for at in packed.at], device=device)
        logits = attention.run(self.model, reading, ids, positions, logits_to_keep=ends).logits[0]
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self.lengths_P = torch.cat([self.lengths_P, lengths_P])
        places = [torch.tensor(at, device=device) for at in packed.at]
        new = [_stack([layer[:, :, at] for at in places]) for layer in reading.layers]
        self.shared = [_join(*pair) for pair in zip(self.shared, new, strict=True)] if self.shared else new
        return logits

    @torch.no_grad()
    def step(self, tokens: Sequence[int], live: Sequence[bool]) -> Tensor:
        """Let every row read a token; what rows that are not live are told means nothing."""
        ids_R = torch.tensor(tokens, device=self.model.device)
        # The first token of a row stands where its prompt's length points.
        positions_R = self.lengths_P[self.prompt_R] + self.columns - self.joined_R
        out = attention.run(self.model, self, ids_R[:, None], positions_R[:, None])
        self.columns += 1
        return out.logits[:, -1].float()

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order; prompts and columns that none of them uses are forgotten."""
        if not rows:
            self.__init__(self.model)  # type: ignore[misc]
            return
        at_R = torch.tensor(rows, device=self.model.device)
        left_P, self.prompt_R = self.prompt_R[at_R].unique(return_inverse=True)
        first = int(self.joined_R[at_R].min())
        self.joined_R = self.joined_R[at_R] - first
        self.own = [layer[:, at_R, :, first:] for layer in self.own]
        self.columns -= first
        if len(left_P) < len(self.lengths_P):
            self.lengths_P = self.lengths_P[left_P]
            longest = int(self.lengths_P.max())
            self.shared = [layer[:, left_P, :, :longest] for layer in self.shared]
        self._arrange()

    def _arrange(self) -> None:
        """Give each row its place in a grid of prompts times rows: products with a prompt's keys are done for all."""
        order_R = self.prompt_R.argsort(stable=True)
        counts_P = self.prompt_R.bincount(minlength=len(self.lengths_P))
        self.width = int(counts_P.max())
        first_P = counts_P.cumsum(0) - counts_P
        within_R = torch.empty_like(order_R)
        sorted_R = self.prompt_R[order_R]
        within_R[order_R] = torch.arange(len(order_R), device=order_R.device) - first_P[sorted_R]
        self.place_R = self.prompt_R * self.width + within_R
        full = torch.arange(len(self.lengths_P) * self.width, device=order_R.device)
        self.in_place = torch.equal(self.place_R, full)
        beyond_PS = torch.arange(int(self.lengths_P.max()), device=order_R.device) >= self.lengths_P[:, None]
        self.beyond_PS = beyond_PS if bool(beyond_PS.any()) else None
        self.late = bool(self.joined_R.any())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The one query of each row, to its prompt and to its own tokens so far."""
        keys_RGUD, values_RGUD = self._append(layer, key, value)
        keys_PGSD, values_PGSD = self.shared[layer]
        # Query heads that share a key head are further queries to it, so nothing is copied for them.
        query_RGQD = (query * scaling).view(len(query), key.shape[1], -1, query.shape[-1])
        queries = query_RGQD.shape[2]
        scores_PGNS = self._to_grid(query_RGQD) @ keys_PGSD.transpose(-1, -2)
        if self.beyond_PS is not None:
            scores_PGNS.masked_fill_(self.beyond_PS[:, None, None], float("-inf"))
        scores_RGQU = query_RGQD @ keys_RGUD.transpose(-1, -2)
        if self.late:
            before_RU = torch.arange(keys_RGUD.shape[2], device=query.device) < self.joined_R[:, None]
            scores_RGQU.masked_fill_(before_RU[:, None, None], float("-inf"))
        scores = torch.cat([self._from_grid(scores_PGNS, queries), scores_RGQU], -1)
        probs = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        to_prompt, to_own = probs.split([keys_PGSD.shape[2], keys_RGUD.shape[2]], -1)
        out_RGQD = self._from_grid(self._to_grid(to_prompt) @ values_PGSD, queries) + to_own @ values_RGUD
        return out_RGQD.reshape(query.shape)

    def _to_grid(self, rows_RGQX: Tensor) -> Tensor:
        """Rows as further queries to their prompt: [R, G, Q, X] to [P, G, N * Q, X]."""
        if not self.in_place:
            grid = rows_RGQX.new_zeros(len(self.lengths_P) * self.width, *rows_RGQX.shape[1:])
            rows_RGQX = grid.index_copy_(0, self.place_R, rows_RGQX)
        return rows_RGQX.unflatten(0, (-1, self.width)).transpose(1, 2).flatten(2, 3)

    def _from_grid(self, grid_PGNX: Tensor, queries: int) -> Tensor:
        """The reverse: [P, G, N * Q, X] to [R, G, Q, X]."""
        rows = grid_PGNX.unflatten(2, (self.width, queries)).transpose(1, 2).flatten(0, 1)
        return rows if self.in_place else rows[self.place_R]

    def _append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's own keys and values so far, this token's included: two of [R, G, U, D]."""
        if layer == len(self.own):
            self.own.append(torch.stack([key, value])[:, :, :, :0])
        if self.own[layer].shape[3] == self.columns:
            self.own[layer] = _longer(self.own[layer], 3, ROOM)
        keys, values = self.own[layer][:, :, :, : self.columns + 1]
        keys[:, :, self.columns], values[:, :, self.columns] = key[:, :, 0], value[:, :, 0]
        return keys, values


class _Reading:
    """The pattern of prompts side by side, which remembers each layer's keys and values: [2, G, tokens, D]."""

    def __init__(self, pattern: Segments) -> None:
        self.pattern = pattern
        self.layers: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As the pattern says; the batch is one packed row."""
        self.layers.append(torch.cat([key, value]))
        return self.pattern.attend(layer, query, key, value, scaling)


def _within(prompts: Sequence[tuple[int, ...]], budget: int) -> Iterator[list[tuple[int, ...]]]:
    """Consecutive prompts of at most so many tokens in all; a single longer one goes alone."""
    part: list[tuple[int, ...]] = []
    for prompt in prompts:
        if part and sum(map(len, part)) + len(prompt) > budget:
            yield part
            part = []
        part.append(prompt)
    if part:
        yield part


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Prompts' [2, G, length, D] as one [2, P, G, S, D]."""
    longest = max(part.shape[2] for part in parts)
    return torch.stack([_longer(part, 2, longest - part.shape[2]) for part in parts], 1)


def _join(here: Tensor, new: Tensor) -> Tensor:
    """More prompts after those that are here."""
    longest = max(here.shape[3], new.shape[3])
    return torch.cat([_longer(layer, 3, longest - layer.shape[3]) for layer in (here, new)], 1)


def _longer(tensor: Tensor, dim: int, by: int) -> Tensor:
    """A tensor with zeros appended to a dimension; zeros, since 0 times what is masked must not be nan."""
    shape = list(tensor.shape)
    shape[dim] = by
    return torch.cat([tensor, tensor.new_zeros(shape)], dim) if by else tensor


@contextlib.contextmanager
def prepacked(model: PreTrainedModel) -> Iterator[None]:
    """On a CPU, lay weights out once for products with few rows, instead of at every call; they are copied for it.

    Low-rank updates are added to the copies. These are those of the moment: whoever changes the weights packs anew.
    """
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table_of(table)  # whose trained rows have to stand in a weight before it is copied
    adapted = [module for module in model.modules() if is_low_rank(module)]
    within = {id(part) for module in adapted for part in module.modules() if part is not module}
    plain = [module for module in model.modules() if type(module) is nn.Linear and id(module) not in within]
    packing = [
        module
        for module in (*adapted, *plain)
        # Within another such block they are laid out already.
        if _packs(module) and not isinstance(vars(module).get("forward"), _PackedProduct)
    ]
    for module in packing:
        # The instance's own forward comes before its class's.
        module.forward = _PackedProduct(module)
    try:
        yield
    finally:
        for module in packing:
            del module.forward


def _packs(layer: nn.Module) -> bool:
    """Whether oneDNN can lay out a weight. Its operators are made for compiled models, so they may go or change."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    # Where the processor lacks bfloat16, oneDNN does not take it.
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class _PackedProduct:
    """A linear layer's product with its weight in oneDNN's own layout."""

    @torch.no_grad()
    def __init__(self, layer: Any) -> None:
        weight = merged(layer) if is_low_rank(layer) else layer.weight.detach()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def __call__(self, inputs: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return product
