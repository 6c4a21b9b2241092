"""Attention by patterns of ours. Packing: rows that begin with the same tokens share them in one forward pass, exactly.

    segment:  prefix | tail of row 1 | tail of row 2 | ...          packed row: segment | segment | ...

Shapes: G tokens of the packed row, P of a prefix, L of a tail; H query heads, G key-value heads where heads are meant,
Q = H / G, T tokens of whatever stretch is meant, C channels of a head. The batch is the one packed row: [1, H, T, C].

transformers hands keyword arguments of a model's forward pass on to the attention function of each of its layers. So a
pass may say `nrt_pattern=...`, and layers, positions, norms and all else remain the architecture's own.

A tail attends to its segment's prefix and causally to itself, and its positions go on from the prefix, so every token
sees what it would see alone. A row with which another begins has no tail of its own. Where rows leave the first one at
different places, as a text's truncations do, that one is the prefix, and each tail sees as much of it as its row begins
with. There is no G x G mask.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import groupby, takewhile
from operator import itemgetter
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "nrt"
PIECE = 256
"""Most tokens that attend causally in one call of torch's CPU kernel, which computes what they do not see, too. Up to
so many it goes back sooner in float32 than in bfloat16 (`tests/bench/cpu_kernels.py`: 3.4 times at 32, 2.1 at 128,
alike at 384), conversions included."""
Item = TypeVar("Item")


class Pattern(Protocol):
    """Which tokens see which."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """[batch, heads, tokens, channels] to the same; `key` and `value` may have fewer heads than `query`."""


def enable(model: PreTrainedModel) -> str | None:
    """Let a model attend by patterns where a forward pass is given one; else says why that would not be exact."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not take other attention functions"
    if getattr(config, "v_head_dim", None) is not None:
        return "its values may be narrower than its keys"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are capped"
    if kinds - {"full_attention"} or (window is not None and getattr(config, "use_sliding_window", True)):
        return "not all of its layers attend to everything before"
    model.set_attn_implementation(IMPLEMENTATION)
    return None


def enabled(model: PreTrainedModel) -> bool:
    """Whether a model takes patterns; without one it attends as ever."""
    return model.config.get_text_config()._attn_implementation == IMPLEMENTATION


def run(model: Callable[..., Any], pattern: Pattern, ids: Tensor, positions: Tensor, **others: Any) -> Any:
    """A forward pass of a model, or of its layers without the head, in which tokens see what `pattern` says."""
    # Four dimensions: transformers hands such a mask on as it is, and ours is in the pattern.
    mask = torch.zeros(1, 1, 1, 1, device=ids.device)
    given = {"input_ids": ids, "position_ids": positions, "attention_mask": mask, "use_cache": False}
    return model(**given, nrt_pattern=pattern, **others)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    nrt_pattern: Pattern | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers calls it: query [B, H, T, C] to [B, T, H, C]."""
    if nrt_pattern is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    return nrt_pattern.attend(layer, query, key, value, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


# --- rows side by side -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """Where a segment lies in the packed row, as (start, end); tails follow the prefix and each other without a gap.

    `sees` is up to where in the packed row each tail sees the prefix.
    """

    prefix: tuple[int, int]
    tails: tuple[tuple[int, int], ...] = ()
    sees: tuple[int, ...] = ()


@dataclass(frozen=True)
class Segments:
    """The attention pattern of a packed row: prefixes causally, each tail to its prefix and causally to itself.

    Where there are more keys than queries, the first ones are those of a prefix that asks nothing (`Behind`).
    """

    segments: tuple[Segment, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if has_flash(query):
            out: Tensor = _Attend.apply(query, key, value, self.segments, scaling)
            return out
        return self.attend_anywhere(query, key, value, scaling)

    def attend_anywhere(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The same by documented means alone: for each tail its prefix's keys copied before its own, and a mask."""
        out, before = list[Tensor](), key.shape[2] - query.shape[2]
        attend = partial(scaled_dot_product_attention, scale=scaling, enable_gqa=True)
        for segment in self.segments:
            first = segment.prefix[0]
            spans = zip((segment.prefix, *segment.tails), (first, *segment.sees), strict=True)
            for (start, end), seen in list(spans)[bool(before) :]:
                own, prefix = slice(start, end), slice(first, seen)
                keys, values, mask = key[:, :, own], value[:, :, own], None
                if seen > first:
                    keys = torch.cat([key[:, :, prefix], keys], 2)
                    values = torch.cat([value[:, :, prefix], values], 2)
                    mask = _tail_mask(end - start, seen - first, query.dtype, query.device)
                if end > start:
                    asking = query[:, :, start - before : end - before]
                    out.append(attend(asking, keys, values, mask, is_causal=mask is None))
        return torch.cat(out, 2)


class Reading:
    """A pattern of prompts that remembers each layer's keys and values: [2, heads, tokens, channels]."""

    def __init__(self, pattern: Segments) -> None:
        self.pattern = pattern
        self.layers: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self.layers.append(torch.cat([key, value]))
        return self.pattern.attend(layer, query, key, value, scaling)


@dataclass(frozen=True)
class Behind:
    """The tails of a segment, whose prefix was read in a pass before: by layer, what `Reading` remembered of it."""

    pattern: Segments
    layers: Sequence[Tensor]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        keys, values = self.layers[layer].split(1)
        return self.pattern.attend(layer, query, torch.cat([keys, key], 2), torch.cat([values, value], 2), scaling)


# A few, since all layers of one pass ask for the same: a mask of 2048 x 2348 takes 19 MB.
@lru_cache(maxsize=16)
def _tail_mask(length: int, prefix: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Added to the scores of a tail, [L, P + L]: what it sees of the prefix, and the tail up to oneself."""
    mask = torch.zeros(length, prefix + length, dtype=dtype, device=device)
    mask[:, prefix:] = torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)
    return mask


@dataclass(frozen=True)
class Packed:
    """Rows laid side by side. `at[i]` maps positions of row i to places in the packed row."""

    ids: list[int]
    positions: list[int]
    pattern: Segments
    at: list[list[int]]


def within(items: Sequence[Item], budget: int, size: Callable[[Sequence[Item]], int]) -> Iterator[list[Item]]:
    """Consecutive items that share a pass of at most `budget` tokens; a single larger one goes alone."""
    start = 0
    while start < len(items):
        # Sizes only grow with every item, and each is counted anew: so as few as doubling and halving take.
        fit, beyond = 1, 2
        while start + fit < len(items) and size(items[start : start + beyond]) <= budget:
            fit, beyond = beyond, 2 * beyond
        while start + fit < len(items) and beyond - fit > 1:
            middle = (fit + beyond) // 2
            fit, beyond = (middle, beyond) if size(items[start : start + middle]) <= budget else (fit, middle)
        yield list(items[start : start + fit])
        start += fit


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    # What the first and the last in their order begin with, all between them do.
    ends = min(map(tuple, rows)), max(map(tuple, rows))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False)))


def _hosts(rows: Sequence[Sequence[int]]) -> list[int]:
    """For each row the one that holds its tokens: itself, or a row that begins with it."""
    found = list(range(len(rows)))
    order = sorted(found, key=lambda i: tuple(rows[i]))
    # Sorted, what begins with a row comes directly after it.
    for before, after in zip(order[-2::-1], order[:0:-1], strict=True):
        if rows[after][: len(rows[before])] == rows[before]:
            found[before] = found[after]
    return found


def _branches(rows: Sequence[Sequence[int]], prefix: int | None = None) -> tuple[int, list[int], dict[int, int]]:
    """How long the prefix is, a beginning of the first row's host; each row's host; and where each host leaves it."""
    hosts = _hosts(rows)
    if prefix is not None:
        return prefix, hosts, dict.fromkeys(hosts, prefix)
    shared = common_prefix(rows)
    leaves = {host: common_prefix([rows[hosts[0]], rows[host]]) for host in dict.fromkeys(hosts)}
    whole = len(rows[hosts[0]])
    # A call of attention for each tail has to be worth it, else rows share what all of them begin with.
    saved = sum(leaves.values()) - whole - shared * (len(leaves) - 1)
    if 4 * saved > sum(len(rows[host]) for host in leaves) - shared * (len(leaves) - 1):
        return whole, hosts, leaves
    return shared, hosts, dict.fromkeys(leaves, shared)


def branching(rows: Sequence[Sequence[int]]) -> bool:
    """Whether rows are laid out along the first one, since they leave it at different places."""
    return _branches(rows)[0] > common_prefix(rows)


def pack(groups: Sequence[Sequence[Sequence[int]]], prefix: int | None = None) -> Packed:
    """One segment for each group of rows; rows stay in order. `prefix`: its length, where all need not share more."""
    ids: list[int] = []
    positions: list[int] = []
    segments, at = [], []
    for rows in groups:
        length, hosts, leaves = _branches(rows, prefix)
        start = len(ids)
        ids += rows[hosts[0]][:length]
        positions += range(length)
        tails, sees = [], []
        places: dict[int, list[int]] = {}
        for host, leaving in leaves.items():
            begin = len(ids)
            ids += rows[host][leaving:]
            positions += range(leaving, len(rows[host]))
            places[host] = [*range(start, start + leaving), *range(begin, len(ids))]
            if begin < len(ids):
                tails.append((begin, len(ids)))
                sees.append(start + leaving)
        at += [places[host][: len(row)] for host, row in zip(hosts, rows, strict=True)]
        segments.append(Segment((start, start + length), tuple(tails), tuple(sees)))
    return Packed(ids, positions, Segments(tuple(segments)), at)


def packed_amounts(rows: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Tokens of a group once packed, and pairs of a token and one that it sees, itself included."""
    prefix, _, leaves = _branches(rows)
    tails = [(len(rows[host]) - leaving, leaving) for host, leaving in leaves.items()]
    pairs = prefix * (prefix + 1) // 2 + sum(tail * seen + tail * (tail + 1) // 2 for tail, seen in tails)
    return prefix + sum(tail for tail, _ in tails), pairs


# --- the pattern of a packed row on a CPU ----------------------------------------------------------------------------


class _Attend(torch.autograd.Function):
    """`Segments` without a mask and without a copy of the prefix's keys.

    A tail attends to two stretches: to so much of the prefix, without an order, and causally to itself. Each is a plain
    call of torch's CPU kernel, which also gives the log of the sum of the exponentiated scores, and two results are
    joined by the weights that these sums say. Backward, the kernel makes the scores anew and weighs them by the sum it
    is given: with that of both stretches, each call's gradients are those of its part.

    Saves queries, keys, values and the result, each once, and a number for each query.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scaling: float
    ) -> Tensor:
        flash = partial(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, scale=scaling)
        before = key.shape[2] - query.shape[2]
        lengths, seen = _stretches(segments, before)
        own = (query, *(_per_head(tensor[:, :, before:], query) for tensor in (key, value)))
        parts, parts_sums = zip(*(flash(*given, 0.0, True) for given in _cut(own, lengths)), strict=True)
        # A token's heads side by side in memory: the projection that follows takes it so, and keeps no copy.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        torch.cat(parts, 2, out=out)
        sums = torch.cat(parts_sums, 2)
        for at, of_prefix in seen:
            # Without an order among queries, those of all heads that share a key head are more queries to it.
            queries = query[:, :, at]
            stretch = key[:, :, of_prefix], value[:, :, of_prefix]
            part, part_sums = unordered(_per_key_head(queries, key), *stretch, None, scaling)
            part, part_sums = part.reshape(queries.shape), part_sums.reshape(queries.shape[:3])
            out[:, :, at], sums[:, :, at] = join(out[:, :, at], sums[:, :, at], part, part_sums)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.segments, ctx.scaling = segments, scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, out, sums = ctx.saved_tensors
        before = key.shape[2] - query.shape[2]
        lengths, seen = _stretches(ctx.segments, before)
        # A token's own stretch is one for all: for every query head, and wide, which is sooner.
        keys, values = (_per_head(tensor[:, :, before:], query) for tensor in (key, value))
        wide = torch.promote_types(query.dtype, torch.float32)
        given = [tensor.to(wide) for tensor in (grad_out, query, keys, values, out, sums)]
        own = []
        for grads, *middle, outs, some_sums in _cut(given, lengths):
            outs, some_sums = outs.contiguous(), some_sums.contiguous()
            own.append(flash(grads.contiguous(), *middle, outs, some_sums, 0.0, True, scale=ctx.scaling))
        grad_query, own_key, own_value = (torch.cat(parts, 2) for parts in zip(*own, strict=True))
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        # A thread takes whole heads: three would keep two threads waiting a third of the time, so queries are cut.
        entries = torch.get_num_threads() // math.gcd(torch.get_num_threads(), key.shape[1])
        for at, of_prefix in seen:
            of_queries = [_per_key_head(tensor[:, :, at], key) for tensor in (grad_out, query, out, sums[..., None])]
            count = of_queries[0].shape[2]
            even = [up_to(count + -count % entries, tensor) for tensor in of_queries]
            grads, queries, outs, some_sums = (tensor[0].unflatten(1, (entries, -1)).transpose(0, 1) for tensor in even)
            stretch = (tensor[:, :, of_prefix].expand(entries, -1, -1, -1) for tensor in (key, value))
            parts = flash(grads, queries, *stretch, outs, some_sums[..., 0], 0.0, False, scale=ctx.scaling)
            of_query = parts[0].transpose(0, 1).flatten(1, 2)[:, :count]
            grad_query[:, :, at] += of_query.reshape(grad_query[:, :, at].shape)
            grad_key[:, :, of_prefix] += parts[1].sum(0)
            grad_value[:, :, of_prefix] += parts[2].sum(0)
        # Summed over the query heads that share a key head.
        grad_key[:, :, before:] += own_key.unflatten(1, (key.shape[1], -1)).sum(2)
        grad_value[:, :, before:] += own_value.unflatten(1, (key.shape[1], -1)).sum(2)
        return grad_query.to(query.dtype), grad_key, grad_value, None, None


def _stretches(segments: Sequence[Segment], before: int) -> tuple[list[int], list[tuple[slice, slice]]]:
    """How many tokens each piece of a prefix and of a tail has, which lie side by side and attend causally to
    themselves; and queries with what else they see, without an order: those of tails of their prefix, and those of a
    piece of the pieces before it.

    Neighbouring tails that see as much of the prefix do so together. The first `before` keys, of a prefix, have no
    queries.
    """
    lengths, seen = [], []
    for segment in segments:
        first = segment.prefix[0]
        for begin, end in segment.tails if before else (segment.prefix, *segment.tails):
            for start in range(begin, end, PIECE):
                stop = min(start + PIECE, end)
                lengths.append(stop - start)
                if start > begin:
                    seen.append((slice(start - before, stop - before), slice(begin, start)))
        for sees, tails in groupby(zip(segment.tails, segment.sees, strict=True), key=itemgetter(1)):
            spans = [tail for tail, _ in tails]
            if sees > first:
                seen.append((slice(spans[0][0] - before, spans[-1][1] - before), slice(first, sees)))
    return lengths, seen


def _cut(tensors: Sequence[Tensor], lengths: list[int]) -> Iterator[tuple[Tensor, ...]]:
    """Each stretch of all of them, along their tokens."""
    return zip(*(tensor.split(lengths, 2) for tensor in tensors), strict=True)


def unordered(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention to keys that stand in no order, and the log of the sum of each query's exponentiated scores, by torch's
    kernel for CPUs (`has_flash`).

    Args:
        query, key, value: [B, G, T, C], as many heads in each.
        mask: added to the scores, [B, 1, 1, keys], as `hiding` makes it; at least one key is seen.

    Returns:
        [B, G, T, C] and, float32 or wider, [B, G, T].
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, sums = flash(query, key, value, 0.0, False, attn_mask=mask, scale=scaling)
    return out, sums


def hiding(hidden: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The mask, added to scores, of what no query of an entry sees, true in [B, keys]; None where all is seen."""
    if not bool(hidden.any()):
        return None
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, float("-inf"))[:, None, None]


def has_flash(query: Tensor) -> bool:
    """Whether torch has its kernel for CPUs here, which is not documented, so it may go or change."""
    return query.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def join(out: Tensor, sums: Tensor, part: Tensor, part_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two stretches from attention to each."""
    # What the part's scores have of the sum over both, exponentiated, is its share of the result.
    share = (part_sums - sums).sigmoid()[..., None]
    joined = out.to(share.dtype).lerp(part.to(share.dtype), share).to(out.dtype)
    return joined, torch.logaddexp(sums, part_sums)


def up_to(columns: int, tensor: Tensor) -> Tensor:
    """A tensor with columns, its last dimension but one, added; zeros, since 0 times what is masked must not be nan."""
    missing = columns - tensor.shape[-2]
    return pad(tensor, (0, 0, 0, missing)) if missing else tensor


def _per_head(shared: Tensor, query: Tensor) -> Tensor:
    """Keys or values, once for each query head."""
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], 1)


def _per_key_head(queries: Tensor, key: Tensor) -> Tensor:
    """[1, H, T, C] to [1, G, Q * T, C]."""
    return queries.reshape(1, key.shape[1], -1, queries.shape[-1])


# --- the same on a GPU -----------------------------------------------------------------------------------------------

COMPILATIONS = 64
"""Of the one kernel in a process: with and without gradient, for one block and more, for whole blocks and not. Beyond
torch's own limit of 8 it would go on uncompiled, with all G x G scores in memory, and say so in a log alone."""


@cache
def compiled() -> Any:
    """FlexAttention, compiled for any length. At the limit it fails instead of going on uncompiled."""
    torch._dynamo.config.recompile_limit = max(COMPILATIONS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


class FlexSegments:
    """`Segments` in one kernel: FlexAttention with a mask of blocks, not a call for each tail.

    Tests compare its forward pass with `Segments` on a CPU, where FlexAttention has no backward pass. On a GPU, at its
    start, `Policy` compares packed with padded log-probabilities and takes `Segments` where this fails.
    """

    def __init__(self, pattern: Segments, length: int, device: torch.device) -> None:
        segment_G = torch.zeros(length, dtype=torch.long, device=device)
        # Which tail of its segment a token belongs to; 0 is the prefix.
        tail_G = torch.zeros(length, dtype=torch.long, device=device)
        # Up to where a token sees its segment's prefix, as long as that is before it.
        sees_G = torch.full_like(tail_G, length)
        for number, segment in enumerate(pattern.segments):
            end = segment.tails[-1][1] if segment.tails else segment.prefix[1]
            segment_G[segment.prefix[0] : end] = number
            for k, ((start, stop), seen) in enumerate(zip(segment.tails, segment.sees, strict=True), 1):
                tail_G[start:stop], sees_G[start:stop] = k, seen

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            # Within a prefix, and within a tail, earlier is to the left; a prefix is left of its tails.
            own = ((tail_G[key] == 0) & (key < sees_G[query])) | (tail_G[key] == tail_G[query])
            return (segment_G[key] == segment_G[query]) & (key <= query) & own

        self.mask = create_block_mask(sees, None, None, length, length, device=str(device))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        attend: Any = compiled() if query.is_cuda else flex_attention
        out: Tensor = attend(query, key, value, block_mask=self.mask, scale=scaling, enable_gqa=True)
        return out
