"""Attention over a packed row on a CPU, forward and backward, without a mask and without a copy of the prefix's keys.

Shapes: H query heads, G key-value heads, Q = H / G, T tokens of whatever stretch is meant, C channels of a head. The
batch is the one packed row, so tensors are [1, H, T, C].

A tail attends to two stretches: to the prefix, all of which it may see, and causally to itself. Each is a plain call of
torch's CPU kernel, which also gives the log of the sum of the exponentiated scores, and two results are joined by the
weights that these sums say. Backward, the kernel makes the scores anew and weighs them by the sum it is given: with
that of both stretches, each call's gradients are those of its part.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Stretch = tuple[int, int]


class Segment(Protocol):
    """Where a segment lies in the packed row; tails follow the prefix and each other without a gap."""

    @property
    def prefix(self) -> Stretch: ...

    @property
    def tails(self) -> tuple[Stretch, ...]: ...


def supported(query: Tensor) -> bool:
    """Whether torch has the kernel for this tensor. It is not documented, so it may go or change."""
    return query.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def attend_segments(query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scaling: float) -> Tensor:
    """Prefixes causally, each tail to its prefix and causally to itself."""
    out: Tensor = _Attend.apply(query, key, value, segments, scaling)
    return out


class _Attend(torch.autograd.Function):
    """Saves queries, keys, values and the result, each once, and a number for each query."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scaling: float
    ) -> Tensor:
        # A token's heads side by side in memory: the projection that follows takes it so, and keeps no copy.
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = torch.empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for queries, keys, causal, joins in _calls(segments):
            part, part_sums = _forward(query[:, :, queries], key[:, :, keys], value[:, :, keys], causal, scaling)
            if joins:
                part, part_sums = _join(out[:, :, queries], sums[:, :, queries], part, part_sums)
            out[:, :, queries], sums[:, :, queries] = part, part_sums
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.segments, ctx.scaling = segments, scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.zeros_like(t) for t in (query, key, value))
        for queries, keys, causal, _ in _calls(ctx.segments):
            whole = (grad_out[:, :, queries], query[:, :, queries], out[:, :, queries], sums[:, :, queries])
            parts = _backward(*whole, key[:, :, keys], value[:, :, keys], causal, ctx.scaling)
            grad_query[:, :, queries] += parts[0]
            grad_key[:, :, keys] += parts[1]
            grad_value[:, :, keys] += parts[2]
        return grad_query, grad_key, grad_value, None, None


def _calls(segments: Sequence[Segment]) -> list[tuple[slice, slice, bool, bool]]:
    """Each call: a prefix, all tails to their prefix, then each tail to itself.

    Queries, keys, whether causal, and whether the result joins that of an earlier call.
    """
    calls = []
    for segment in segments:
        prefix = slice(*segment.prefix)
        has_prefix = prefix.stop > prefix.start
        if has_prefix:
            calls.append((prefix, prefix, True, False))
        if segment.tails and has_prefix:
            calls.append((slice(segment.tails[0][0], segment.tails[-1][1]), prefix, False, False))
        calls += [(slice(*tail), slice(*tail), True, has_prefix) for tail in segment.tails]
    return calls


def _join(out: Tensor, sums: Tensor, part: Tensor, part_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two stretches from attention to each."""
    both = torch.logaddexp(sums, part_sums)
    weight, part_weight = (sums - both).exp()[..., None], (part_sums - both).exp()[..., None]
    return (out * weight + part * part_weight).to(out.dtype), both


def _forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float) -> tuple[Tensor, Tensor]:
    """The kernel's result and the log of its sums: [1, H, T, C] and [1, H, T]."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if causal:
        out, sums = flash(query, _per_head(key, query), _per_head(value, query), 0.0, True, scale=scaling)
        return out, sums
    # Without an order among queries, those of all heads that share a key head are just more queries to it.
    out, sums = flash(_per_key_head(query, key), key, value, 0.0, False, scale=scaling)
    return out.reshape(query.shape), sums.reshape(query.shape[:3])


def _backward(
    grad_out: Tensor, query: Tensor, out: Tensor, sums: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values by the kernel."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    if not causal:
        folded = (_per_key_head(tensor, key) for tensor in (grad_out, query))
        folded_out, folded_sums = _per_key_head(out, key), sums.reshape(1, key.shape[1], -1)
        grads = flash(*folded, key, value, folded_out, folded_sums, 0.0, False, scale=scaling)
        return grads[0].reshape(query.shape), grads[1], grads[2]
    keys, values = _per_head(key, query), _per_head(value, query)
    grad_query, grad_keys, grad_values = flash(
        grad_out.contiguous(), query, keys, values, out.contiguous(), sums.contiguous(), 0.0, True, scale=scaling
    )
    shape = (1, key.shape[1], -1, *key.shape[2:])
    return grad_query, grad_keys.reshape(shape).sum(2), grad_values.reshape(shape).sum(2)


def _per_head(shared: Tensor, query: Tensor) -> Tensor:
    """Keys or values, once for each query head."""
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], 1)


def _per_key_head(queries: Tensor, key: Tensor) -> Tensor:
    """[1, H, T, C] to [1, G, Q * T, C]."""
    return queries.reshape(1, key.shape[1], -1, queries.shape[-1])
