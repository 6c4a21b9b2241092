"""Decoding and sampling: each prompt computed and kept once, however many rows go on from it; rows come and go.

Shapes: P prompts, N rows of a prompt at most, R rows in flight, S tokens of the longest prompt, U columns decoded since
the oldest row joined, G key-value heads, H query heads, Q = H / G, D channels of a head, V vocabulary, X whatever; W
columns of a padded cache; C trace cap. Where one token is picked: B blocks of the vocabulary, X tokens of one.
"""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import compress, islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutput

from nrt_cli.backends.local import attention, fused
from nrt_cli.backends.local.attention import Reading, common_prefix, pack, up_to, within
from nrt_cli.config import RolloutSection
from nrt_cli.models.lora import is_low_rank, merged, table_of
from nrt_cli.objective.logprobs import HAS_ONEDNN, block_rows
from nrt_cli.objective.rows import trace_prompt
from nrt_cli.records import Example, Rollout, RolloutGroup, SampledAnswer, Stop
from nrt_cli.text.tokens import ThinkTokens

ROWS = 64
"""Traces decoded together where nothing else is asked."""

PREFILL_TOKENS = 16384
"""Prompt tokens of one forward pass; a single longer prompt goes alone."""

ROOM = 64
"""Columns that keys and values grow by: growing copies them."""

REFILL_SHARE = 0.25
"""Finished rows leave, and others join, once this share is finished: either copies the cache."""

ANSWER_STREAM = 1
"""Last part of the key of the random streams that answers are sampled from."""

SMALL = 2**16
"""Numbers of a float32 weight up to which oneDNN's product takes longer than torch's own (MKL), for what each call of
it takes by itself: 3 times as long for 8 rows of a 128 x 128 weight, as long for 16 of a 576 x 192 one."""

FLASH_TYPES = (torch.bfloat16,)
"""Types in which torch's kernel for attention on a CPU, which sums in float32, is sooner than many small products."""

BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed together when one is picked."""


# --- rows in flight --------------------------------------------------------------------------------------------------


class SharedBatch:
    """Rows whose queries see one copy of their prompt's keys and values, and those of their own tokens since.

    What reads tokens returns logits [R, V] of the next. Of its forward passes it is the attention pattern, too.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        empty = torch.zeros(0, dtype=torch.long, device=model.device)
        self.lengths_P, self.prompt_R, self.joined_R = empty, empty, empty
        # For each layer its keys and values: of prompts [2, P, G, S, D], and of rows [2, R, G, room, D].
        self.shared: list[Tensor] = []
        self.own: list[Tensor] = []
        self.columns = 0

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Let rows join, after those that are here; equal prompts are read once. Their logits only."""
        rows = [tuple(prompt) for prompt in prompts]
        # A prompt whose rows are all new is read anew even if it is here: what follows it was not kept.
        fresh = list(dict.fromkeys(rows))
        logits = [self._read(part) for part in within(fresh, PREFILL_TOKENS, lambda part: sum(map(len, part)))]
        first = len(self.lengths_P) - len(fresh)
        place = {prompt: i for i, prompt in enumerate(fresh)}
        at_R = torch.tensor([place[prompt] for prompt in rows], device=self.model.device)
        self.prompt_R = torch.cat([self.prompt_R, first + at_R])
        self.joined_R = torch.cat([self.joined_R, torch.full_like(at_R, self.columns)])
        self.own = [pad(layer, (0,) * 7 + (len(rows),)) for layer in self.own]
        self._arrange()
        return torch.cat(logits)[at_R]

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Keep keys and values of prompts, read side by side in one pass; the logits after each, [P, V]."""
        device = self.model.device
        # What all of them begin with, such as worked examples, is computed once if it is worth a second attention call.
        together = common_prefix(prompts) * (len(prompts) - 1) > sum(map(len, prompts)) // 4
        packed = pack([prompts] if together else [[prompt] for prompt in prompts])
        reading = Reading(packed.pattern)
        ids, positions = (torch.tensor([column], device=device) for column in (packed.ids, packed.positions))
        ends = torch.tensor([at[-1] for at in packed.at], device=device)
        logits: Tensor = attention.run(self.model, reading, ids, positions, logits_to_keep=ends).logits[0]
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths_P.max())
        self.lengths_P = torch.cat([self.lengths_P, lengths_P])
        places = [torch.tensor(at, device=device) for at in packed.at]
        new = [torch.stack([up_to(longest, layer[:, :, at]) for at in places], 1) for layer in reading.layers]
        if self.shared:
            longest = max(longest, self.shared[0].shape[3])
            pairs = zip(self.shared, new, strict=True)
            self.shared = [torch.cat([up_to(longest, layer) for layer in pair], 1) for pair in pairs]
        else:
            self.shared = new
        return logits

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], live: Sequence[bool]) -> Tensor:
        """Let every row read a token; what rows that are not live are told means nothing."""
        ids_R = torch.tensor(tokens, device=self.model.device)
        # The first token of a row stands where its prompt's length points.
        positions_R = self.lengths_P[self.prompt_R] + self.columns - self.joined_R
        # One mask of what was before a row joined for all layers.
        before_RU = torch.arange(self.columns + 1, device=self.model.device) < self.joined_R[:, None]
        self.before = attention.hiding(before_RU, self.model.dtype)
        out = attention.run(self.model, self, ids_R[:, None], positions_R[:, None])
        self.columns += 1
        return out.logits[:, -1]

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
        within_R[order_R] = torch.arange(len(order_R), device=order_R.device) - first_P[self.prompt_R[order_R]]
        self.place_R = self.prompt_R * self.width + within_R
        full = torch.arange(len(self.lengths_P) * self.width, device=order_R.device)
        self.in_place = torch.equal(self.place_R, full)
        beyond_PS = torch.arange(int(self.lengths_P.max()), device=order_R.device) >= self.lengths_P[:, None]
        self.beyond = attention.hiding(beyond_PS, self.model.dtype)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The one query of each row, to its prompt and to its own tokens so far."""
        if layer == len(self.own):
            self.own.append(torch.stack([key, value])[:, :, :, :0])
        if self.own[layer].shape[3] == self.columns:
            self.own[layer] = up_to(self.columns + ROOM, self.own[layer])
        keys_RGUD, values_RGUD = self.own[layer][:, :, :, : self.columns + 1]
        keys_RGUD[:, :, self.columns], values_RGUD[:, :, self.columns] = key[:, :, 0], value[:, :, 0]
        keys_PGSD, values_PGSD = self.shared[layer]
        # Query heads that share a key head are further queries to it, so nothing is copied for them.
        query_RGQD = query.view(len(query), key.shape[1], -1, query.shape[-1])
        queries = query_RGQD.shape[2]
        if query.dtype in FLASH_TYPES and attention.has_flash(query):
            parts_PGND, sums_PGN = attention.unordered(
                self._to_grid(query_RGQD), keys_PGSD, values_PGSD, self.beyond, scaling
            )
            own = attention.unordered(query_RGQD, keys_RGUD, values_RGUD, self.before, scaling)
            sums_RGQ = self._from_grid(sums_PGN[..., None], queries)[..., 0]
            out_RGQD, _ = attention.join(*own, self._from_grid(parts_PGND, queries), sums_RGQ)
            return out_RGQD.view(query.shape)
        query_RGQD = query_RGQD * scaling
        scores_PGNS = self._to_grid(query_RGQD) @ keys_PGSD.mT
        scores_RGQU = query_RGQD @ keys_RGUD.mT
        for scores, mask in ((scores_PGNS, self.beyond), (scores_RGQU, self.before)):
            if mask is not None:
                scores += mask
        # One softmax over both.
        scores_RGQX = torch.cat([self._from_grid(scores_PGNS, queries), scores_RGQU], -1)
        shares_RGQX = scores_RGQX.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
        shares_RGQS, shares_RGQU = shares_RGQX.tensor_split([keys_PGSD.shape[2]], -1)
        of_prompt_RGQD = self._from_grid(self._to_grid(shares_RGQS) @ values_PGSD, queries)
        return (shares_RGQU @ values_RGUD).add_(of_prompt_RGQD).view(query.shape)

    def _to_grid(self, rows_RGQD: Tensor) -> Tensor:
        """Rows as further queries to their prompt: [R, G, Q, D] to [P, G, N * Q, D]."""
        if not self.in_place:
            grid = rows_RGQD.new_zeros(len(self.lengths_P) * self.width, *rows_RGQD.shape[1:])
            rows_RGQD = grid.index_copy_(0, self.place_R, rows_RGQD)
        return rows_RGQD.unflatten(0, (-1, self.width)).transpose(1, 2).flatten(2, 3)

    def _from_grid(self, grid_PGNX: Tensor, queries: int) -> Tensor:
        """The reverse: [P, G, N * Q, X] to [R, G, Q, X]."""
        rows = grid_PGNX.unflatten(2, (self.width, queries)).transpose(1, 2).flatten(0, 1)
        return rows if self.in_place else rows[self.place_R]


class Decoding(Protocol):
    """A row in flight: what it begins with, the token that it reads next, and whether it goes on."""

    @property
    def prompt(self) -> Sequence[int]: ...

    @property
    def reads(self) -> int: ...

    @property
    def live(self) -> bool: ...


Each = TypeVar("Each", bound=Decoding)


def decoded(
    batch: "SharedBatch | Batch", waiting: Iterator[Each], most: int, together: int = 1
) -> Iterator[tuple[list[Each], Tensor]]:
    """Step by step the rows in flight, at most so many, and the logits of their next tokens, [R, V], which whoever asks
    lets them take. Rows that end make room for those that wait, `together` of which join at once."""
    rows: list[Each] = []
    while True:
        live = [row.live for row in rows]
        if live.count(False) >= REFILL_SHARE * len(rows):
            batch.keep([i for i, lives in enumerate(live) if lives])
            rows, live = list(compress(rows, live)), [True] * sum(live)
        logits = [batch.step([row.reads for row in rows], live)] if rows else []
        if new := list(islice(waiting, (most - len(rows)) // together * together)):
            logits.append(batch.add([row.prompt for row in new]))
            rows = [*rows, *new]
        if not rows:
            return
        yield rows, torch.cat(logits) if len(logits) > 1 else logits[0]


class Batch:
    """The same with transformers' own cache, for models that attend by no pattern: a copy of the prompt for each row.

        columns:  padding | prompt | padding | sampled tokens     a row's tokens are where its mask is 1

    What a row is told does not depend on the rows beside it, up to the rounding of the matrix products.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id
        self.cache: Any = Cache(layer_class_to_replicate=_Layer)
        self.mask_RW = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Let rows join, after those that are here; equal prompts are read once. Their logits only."""
        unique = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        rows = [unique[tuple(prompt)] for prompt in prompts]
        width = max(map(len, unique))
        ids_RW = torch.full((len(unique), width), self.pad_id)
        mask_RW = torch.zeros((len(unique), width), dtype=torch.long)
        for i, prompt in enumerate(unique):
            # Padding is on the left here, so that every row's next token has the same place in the cache.
            ids_RW[i, width - len(prompt) :] = torch.tensor(prompt)
            mask_RW[i, width - len(prompt) :] = 1
        new = Batch(self.model, self.pad_id)
        new.mask_RW = mask_RW.to(self.model.device)
        logits_RV = new._forward(ids_RW.to(self.model.device))
        new.keep(rows)
        if len(self.mask_RW):
            width = max(self.mask_RW.shape[1], new.mask_RW.shape[1])
            for mine, its in zip(self.cache.layers, new.cache.layers, strict=True):
                pairs = ((mine.keys, its.keys), (mine.values, its.values))
                left = lambda tensor: pad(tensor, (0, 0, width - tensor.shape[-2], 0))  # noqa: E731
                mine.replace(*(torch.cat([left(tensor) for tensor in pair]) for pair in pairs))
            masks = (self.mask_RW, new.mask_RW)
            self.mask_RW = torch.cat([pad(mask_RW, (width - mask_RW.shape[1], 0)) for mask_RW in masks])
        else:
            self.cache, self.mask_RW = new.cache, new.mask_RW
        return logits_RV[rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order, without the columns in front that none of them uses."""
        if not rows:
            self.__init__(self.model, self.pad_id)  # type: ignore[misc]
            return
        mask_RW = self.mask_RW[rows]
        first = int(mask_RW.any(0).int().argmax())
        self.mask_RW = mask_RW[:, first:]
        for layer in self.cache.layers:
            layer.replace(layer.keys[rows, :, first:], layer.values[rows, :, first:])

    def step(self, tokens: Sequence[int], live: Sequence[bool]) -> Tensor:
        """Let every row read a token; rows that are not live keep their place, and what they are told means nothing."""
        column_R1 = torch.tensor(live, device=self.model.device)[:, None].to(self.mask_RW.dtype)
        self.mask_RW = torch.cat([self.mask_RW, column_R1], -1)
        return self._forward(torch.tensor(tokens, device=self.model.device)[:, None])

    @torch.inference_mode()
    def _forward(self, ids_RT: Tensor) -> Tensor:
        # A position counts a row's own tokens, so neither padding nor rows that joined earlier shift it.
        positions_RW = (self.mask_RW.cumsum(-1) - 1).clamp(min=0)
        given = {"input_ids": ids_RT, "attention_mask": self.mask_RW, "past_key_values": self.cache, "use_cache": True}
        out = self.model(**given, position_ids=positions_RW[:, -ids_RT.shape[1] :], logits_to_keep=1)
        return out.logits[:, -1]


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
            self.spare = up_to(end + ROOM, self.keys), up_to(end + ROOM, self.values)
        keys, values = self.spare
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.spare = keys, values, None


def open_batch(model: PreTrainedModel, pad_id: int) -> SharedBatch | Batch:
    """An empty batch: prompts shared where the model attends by patterns, transformers' own cache elsewhere."""
    return SharedBatch(model) if attention.enabled(model) else Batch(model, pad_id)


# --- the model while it decodes --------------------------------------------------------------------------------------


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """A model in training mode that checkpoints is given no cache by transformers: it would see its last token only."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def prepacked(model: PreTrainedModel) -> Iterator[None]:
    """On a CPU, lay weights out once for products with few rows, instead of at every call; they are copied for it.

    Low-rank updates are added to the copies. These are those of the moment: whoever changes the weights packs anew.
    """
    if any(isinstance(vars(module).get("forward"), PACKED) for module in model.modules()):
        yield  # within another such block
        return
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table_of(table)  # whose trained rows have to stand in a weight before it is copied
    before: list[tuple[Any, Any]] = []

    def replace(module: Any, forward: Any) -> None:
        before.append((module, vars(module).get("forward")))
        # The instance's own forward comes before its class's.
        module.forward = forward

    inside: set[int] = set()
    modules: list[Any] = list(model.modules()) if model.device.type == "cpu" else []
    by_pattern = attention.enabled(model)
    for module in modules:
        if by_pattern and (attending := _packed_attention(module)):
            replace(module, attending)
            parts = [module.q_proj, module.k_proj, module.v_proj]
        elif id(module) not in inside and (is_low_rank(module) or type(module) is nn.Linear):
            parts = [module]
            if _packs(module.weight):
                replace(module, _PackedProduct(module))
        else:
            continue
        inside |= {id(each) for part in parts for each in part.modules()}
    for module in filter(fused.is_gated, modules):
        parts = [vars(part).get("forward") for part in (module.gate_proj, module.up_proj, module.down_proj)]
        if all(isinstance(part, _PackedProduct) for part in parts):
            replace(module, _PackedGated(*parts))
    if modules and by_pattern and (straight := _straight(model)):
        replace(model, straight)
    try:
        yield
    finally:
        for module, own in before:
            del module.forward
            if own is not None:
                module.forward = own


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN has products for its type on this processor, and is sooner."""
    if not HAS_ONEDNN or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    if weight.dtype == torch.float32:
        return weight.numel() >= SMALL
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


class _PackedProduct:
    """The product with a linear layer's weight, or with those of several side by side, in oneDNN's own layout."""

    @torch.no_grad()
    def __init__(self, *layers: Any) -> None:
        weights = [merged(layer) if is_low_rank(layer) else layer.weight.detach() for layer in layers]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None) if _packs(weight) else weight
        biases = [layer.bias for layer in layers]
        self.bias = None if all(bias is None for bias in biases) else torch.cat(biases).detach()

    def __call__(self, inputs: Tensor) -> Tensor:
        if self.packed.is_mkldnn:
            return torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return linear(inputs, self.packed, self.bias)


class _PackedAttention:
    """o(attend(turned q(x), turned k(x), v(x))): one product makes all three, and what is turned is so at once."""

    def __init__(self, module: Any) -> None:
        self.module, self.plain = module, module.forward
        parts = module.q_proj, module.k_proj, module.v_proj
        self.product = _PackedProduct(*parts)
        self.heads = [part.out_features // module.head_dim for part in parts[:2]]

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        nrt_pattern: attention.Pattern | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        if nrt_pattern is None:
            plain: tuple[Tensor, None] = self.plain(hidden_states, position_embeddings, attention_mask, **others)
            return plain
        H, G = self.heads
        size = self.module.head_dim
        made_RHTD = self.product(hidden_states).view(*hidden_states.shape[:2], -1, size).transpose(1, 2)
        before_RHTD, value_RGTD = made_RHTD.split([H + G, G], 1)
        cos_R1TD, sin_R1TD = (table[:, None] for table in position_embeddings)
        # (x, y) turned is (x cos - y sin, y cos + x sin): x is the first half of the channels, y the second.
        turned_RHTD, half = before_RHTD * cos_R1TD, size // 2
        turned_RHTD[..., :half].addcmul_(before_RHTD[..., half:], sin_R1TD[..., :half], value=-1)
        turned_RHTD[..., half:].addcmul_(before_RHTD[..., :half], sin_R1TD[..., half:])
        query, key = turned_RHTD.split([H, G], 1)
        out = nrt_pattern.attend(self.module.layer_idx, query, key, value_RGTD, self.module.scaling)
        return self.module.o_proj(out.transpose(1, 2).flatten(2)), None


_plain: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
"""Whether a module and its `_PackedAttention`, or a model and its `_Straight`, said the same when they were asked."""


@torch.no_grad()
def _packed_attention(module: Any) -> _PackedAttention | None:
    """None for what is no attention, and for other kinds of it, which have norms of queries and keys, turn some of the
    channels, or neighbours among them."""
    if not all(
        hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "config", "head_dim", "scaling")
    ):
        return None
    if getattr(module.config, "clip_qkv", None) is not None:  # which one token need not show
        return None
    if module in _plain:
        return _PackedAttention(module) if _plain[module] else None
    _plain[module] = False
    with contextlib.suppress(Exception):  # it turns by complex numbers, say, or makes a gate with the queries
        packed = _PackedAttention(module)
        weight = next(module.q_proj.parameters())
        x, cos, sin = (
            torch.linspace(start, 3, size, dtype=weight.dtype)[None, None]
            for start, size in ((-3, module.q_proj.in_features), (-1, module.head_dim), (-2, module.head_dim))
        )
        asked = [_Asked(), _Asked()]
        said = [
            way(x, position_embeddings=(cos, sin), attention_mask=None, nrt_pattern=pattern)[0]
            for way, pattern in zip((module.forward, packed), asked, strict=True)
        ]
        pairs = [said, *zip(*(pattern.given for pattern in asked), strict=True)]
        _plain[module] = all(
            a.shape == b.shape and bool((a - b).abs().max() <= 16 * torch.finfo(a.dtype).eps * b.abs().max())
            for a, b in pairs
        )
    return packed if _plain[module] else None


class _Asked:
    """A pattern that keeps what it is asked, and answers with the queries."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self.given = torch.tensor([layer, scaling]), query, key, value
        return query


class _PackedGated:
    """down(silu(gate(x)) * up(x)), the activation and the product with it done while sums are still at hand."""

    def __init__(self, gate: _PackedProduct, up: _PackedProduct, down: _PackedProduct) -> None:
        self.gate, self.up, self.down = gate, up, down

    def __call__(self, inputs: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        gate = product(inputs, self.gate.packed, self.gate.bias, "swish", [], "")
        return self.down(product.binary(inputs, gate, self.up.packed, self.up.bias, "mul"))


class _Straight:
    """head(norm(x)), where each layer made of x first x + attention(norm(x)), then x + feed_forward(norm(x)).

    Asked by a pattern: the same functions without what modules and transformers do between them.
    """

    def __init__(self, model: Any) -> None:
        inner = model.base_model
        self.plain, self.head = model.forward, model.get_output_embeddings()
        self.embed, self.turning, self.norm = inner.embed_tokens, inner.rotary_emb, inner.norm
        self.layers = [
            [part.forward for part in (one.input_layernorm, one.self_attn, one.post_attention_layernorm, one.mlp)]
            for one in inner.layers
        ]

    def __call__(self, *args: Any, **given: Any) -> Any:
        pattern = given.get("nrt_pattern")
        if pattern is None:
            return self.plain(*args, **given)
        hidden_RTD = self.embed(given["input_ids"])
        turning = self.turning(hidden_RTD, given["position_ids"])
        for norm, attend, norm_after, feed_forward in self.layers:
            said, _ = attend(norm(hidden_RTD), turning, given["attention_mask"], nrt_pattern=pattern)
            hidden_RTD = hidden_RTD + said
            hidden_RTD = hidden_RTD + feed_forward(norm_after(hidden_RTD))
        if (kept := given.get("logits_to_keep")) is not None:
            hidden_RTD = hidden_RTD[:, kept]
        return CausalLMOutput(logits=self.head(self.norm(hidden_RTD)))


@torch.no_grad()
def _straight(model: PreTrainedModel) -> _Straight | None:
    """None for a model of another build, or that scales something: both say the same bit for bit, or it is not used."""
    if model not in _plain:
        _plain[model] = False
        with contextlib.suppress(Exception), evaluating(model):
            ids = torch.linspace(0, model.config.get_text_config().vocab_size - 1, 8).long()[None]
            ways = model, _Straight(model)
            said = [attention.run(way, _Asked(), ids, torch.arange(8)[None]).logits for way in ways]
            _plain[model] = torch.equal(*said)
    return _Straight(model) if _plain[model] else None


PACKED = _PackedProduct, _PackedAttention


# --- sampling --------------------------------------------------------------------------------------------------------


def random_stream(length: int, *key: int) -> np.ndarray:
    """`length` uniforms in [0, 1) that depend on nothing but the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(length)


def pick(logits_RV: Tensor, uniforms_R: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability, float32 or wider: tokens_R, logprobs_R.

    Inverts the cumulative distribution at `uniforms_R`, in [0, 1).
    """
    rows = block_rows(logits_RV)
    wide = torch.promote_types(logits_RV.dtype, torch.float32)
    parts = zip(logits_RV.split(rows), uniforms_R.split(rows), strict=True)
    tokens, logprobs = zip(*(_picked(some.to(wide) / temperature, uniforms) for some, uniforms in parts), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _picked(logits_RV: Tensor, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    top_R1 = logits_RV.amax(-1, keepdim=True)
    vocabulary = logits_RV.shape[-1]
    # exp(logits - top) in blocks; what fills the last block up weighs nothing.
    weights = logits_RV.new_empty(len(logits_RV), vocabulary + -vocabulary % BLOCK)
    weights[:, vocabulary:] = 0
    torch.sub(logits_RV, top_R1, out=weights[:, :vocabulary]).exp_()
    weights_RBX = weights.unflatten(-1, (-1, BLOCK))
    # Running sums are double: float32 over a large vocabulary drifts by more than a rare token's probability.
    sums_RB = weights_RBX.sum(-1).cumsum(-1, dtype=torch.float64)
    # First which block of the vocabulary, then which token in it.
    block_R1, rest_R1 = _find(sums_RB, uniforms_R[:, None].double())
    chosen_RX = weights_RBX.gather(1, block_R1[..., None].expand(-1, -1, BLOCK))[:, 0]
    within_R1, _ = _find(chosen_RX.cumsum(-1, dtype=torch.float64), rest_R1)
    tokens_R1 = block_R1 * BLOCK + within_R1
    logprobs_R1 = logits_RV.gather(-1, tokens_R1) - top_R1 - sums_RB[:, -1:].log().to(logits_RV.dtype)
    return tokens_R1[:, 0], logprobs_R1[:, 0]


def _find(sums_RN: Tensor, share_R1: Tensor) -> tuple[Tensor, Tensor]:
    """The entry in which a share (0 to 1) of the total falls, and how far into that entry, as a share of it."""
    total_R1 = sums_RN[:, -1:]
    # Kept below the total, so that rounding cannot leave a share beyond the last entry that has any width.
    target_R1 = torch.minimum(share_R1 * total_R1, total_R1.nextafter(torch.zeros_like(total_R1)))
    at_R1 = torch.searchsorted(sums_RN, target_R1, right=True)
    before_R1 = torch.where(at_R1 > 0, sums_RN.gather(-1, (at_R1 - 1).clamp(min=0)), 0.0)
    return at_R1, (target_R1 - before_R1) / (sums_RN.gather(-1, at_R1) - before_R1)


@torch.inference_mode()
def sample_groups(
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokens: ThinkTokens,
    settings: RolloutSection,
    group_size: int,
    key: Sequence[int],
) -> list[RolloutGroup]:
    """K traces for each example, at most `settings.batch_rows` (`ROWS`) rows at a time, in the examples' order.

    Every trace has a random stream of its own, keyed by (*key, example, k) with a key such as (seed, step), so what it
    samples does not depend on what it shares a batch with, and a resumed run continues as if it had never stopped.
    """
    asked = [
        (trace_prompt(example, tokens), settings.trace_cap(len(example.answer_ids)), (*key, example.index, k))
        for example in examples
        for k in range(group_size)
    ]
    of = iter(rollout_of(*sampled, tokens) for sampled in _sampled(model, asked, tokens, settings, group_size))
    return [RolloutGroup(example, tuple(next(of) for _ in range(group_size))) for example in examples]


@torch.inference_mode()
def sample_answers(
    model: PreTrainedModel,
    groups: Sequence[RolloutGroup],
    tokens: ThinkTokens,
    settings: RolloutSection,
    key: Sequence[int],
) -> list[list[SampledAnswer]]:
    """An answer after each trace and t_end, as the policy goes on: for each group those of its K traces."""
    asked = [each for group in groups for each in answer_requests(group, tokens, settings, key)]
    of = iter(answer_of(*sampled, tokens) for sampled in _sampled(model, asked, tokens, settings, 1))
    return [[next(of) for _ in group.rollouts] for group in groups]


Asked = tuple[Sequence[int], int, tuple[int, ...]]
"""A prompt, the most tokens that may follow it, and the key of their random stream."""


def answer_requests(
    group: RolloutGroup, tokens: ThinkTokens, settings: RolloutSection, key: Sequence[int]
) -> Iterator[Asked]:
    """What answers are sampled after. A trace's stream has a key one number shorter."""
    cap, opening = settings.answer_cap(len(group.example.answer_ids)), trace_prompt(group.example, tokens)
    for k, rollout in enumerate(group.rollouts):
        yield (*opening, *rollout.trace_ids, tokens.end_id), cap, (*key, group.example.index, k, ANSWER_STREAM)


def _sampled(
    model: PreTrainedModel, asked: Sequence[Asked], tokens: ThinkTokens, settings: RolloutSection, together: int
) -> Iterator[tuple[list[int], list[float]]]:
    """Tokens and log-probs after each prompt, up to its cap or a token that ends a trace, in their order.

    Rows that end make room for those that wait; `together` of them, of one prompt, join at once and read it once.
    """
    most, ends = settings.batch_rows or ROWS, set(tokens.trace_ends)
    rows = [_Sampled(*each) for each in asked]
    with prepacked(model), evaluating(model):
        for some, logits_RV in decoded(open_batch(model, tokens.pad_id), iter(rows), most, min(together, most)):
            uniforms_R = torch.tensor([row.uniform for row in some], dtype=torch.float64, device=model.device)
            picked = pick(logits_RV, uniforms_R, settings.temperature)
            for row, token, logprob in zip(some, *(column_R.tolist() for column_R in picked), strict=True):
                if row.live:
                    row.ids.append(token)
                    row.logprobs.append(logprob)
                    row.live = token not in ends and len(row.ids) < row.cap
    yield from ((row.ids, row.logprobs) for row in rows)


class _Sampled:
    """A row of what is asked: what it has sampled, and its random stream."""

    def __init__(self, prompt: Sequence[int], cap: int, key: tuple[int, ...]) -> None:
        self.prompt, self.cap, self.key, self.live = prompt, cap, key, True
        self.ids: list[int] = []
        self.logprobs: list[float] = []

    @property
    def reads(self) -> int:
        return self.ids[-1]

    @cached_property
    def stream(self) -> np.ndarray:
        return random_stream(self.cap, *self.key)

    @property
    def uniform(self) -> float:
        """The random number of the next token; what a row that has ended is told means nothing."""
        return float(self.stream[len(self.ids)]) if self.live else 0.0


def rollout_of(ids: Sequence[int], logprobs: Sequence[float], tokens: ThinkTokens) -> Rollout:
    """Cut off the token that ended the trace."""
    stop: Stop = "end" if ids[-1] == tokens.end_id else "eos" if ids[-1] in tokens.trace_ends else "cap"
    if stop == "cap":
        return Rollout(tuple(ids), tuple(logprobs), stop)
    return Rollout(tuple(ids[:-1]), tuple(logprobs), stop, ids[-1])


def answer_of(ids: Sequence[int], logprobs: Sequence[float], tokens: ThinkTokens) -> SampledAnswer:
    """A think token ends it as well, since none may stand in an answer, but does not finish it."""
    return SampledAnswer(tuple(ids), tuple(logprobs), ids[-1] in tokens.stop_ids)
