"""Norms and gated feed-forwards that remember less for the backward pass, computing what transformers' own do.

transformers writes both as chains of small operations, and autograd keeps the input or output of each. Here a chain is
one operation, which keeps its inputs alone and makes the rest anew, and so does what multiplies a norm's output: less
than 0.6 of what a layer keeps is left.

Shapes: N tokens of any leading dimensions, D hidden size, F width of the feed-forward.
"""

import contextlib
import types
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@torch.no_grad()
def fuse(model: nn.Module) -> int:
    """Replace, in place, what is known: returns how many modules. Others stay as they are."""
    fused = 0
    line = lambda size, weight: torch.linspace(-3, 3, size, dtype=weight.dtype, device=weight.device)  # noqa: E731
    for module in model.modules():
        known: Any = module
        forward: Any = None
        if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            # down(silu(gate(x)) * up(x)) and nothing else, such as a multiplier.
            probe = torch.linspace(-3, 3, 13)
            if not list(known.act_fn.parameters()) and torch.allclose(known.act_fn(probe), functional.silu(probe)):
                x_D = line(known.gate_proj.in_features, next(known.gate_proj.parameters()))
                if torch.allclose(module(x_D), _gated_forward(module, x_D)):
                    forward = _gated_forward
        elif hasattr(module, "variance_epsilon") and [name for name, _ in module.named_parameters()] == ["weight"]:
            # x / rms(x) * weight; Gemma's multiply by 1 + weight.
            x_D = line(known.weight.shape[-1], known.weight)
            if torch.equal(module(x_D), _RMSNorm.apply(x_D, known.weight, known.variance_epsilon)):
                forward = _norm_forward
        if forward is not None:
            known.forward = types.MethodType(forward, module)
            fused += 1
    return fused


def is_gated(module: nn.Module) -> bool:
    """Whether it computes down(silu(gate(x)) * up(x)) by the forward pass of this file."""
    return getattr(vars(module).get("forward"), "__func__", None) is _gated_forward


def _gated_forward(self: Any, x: Tensor) -> Tensor:
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    if not torch.is_grad_enabled():  # nothing is kept
        projected: Tensor = down(functional.silu(gate).mul_(up))
    elif type(down) is nn.Linear and down.bias is None:
        projected = _GatedDown.apply(gate, up, down.weight)
    else:  # one that LoRA wraps
        projected = down(_Gated.apply(gate, up))
    return projected


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    weight, eps = self.weight, self.variance_epsilon
    if not torch.is_grad_enabled():  # nothing is kept; torch's own takes half as long for the few rows of decoding
        return weight * functional.rms_norm(hidden_states, weight.shape, None, eps)
    normed: Tensor = _RMSNorm.apply(hidden_states, weight, eps)
    if _outputs is not None:
        _outputs[normed.data_ptr()] = weakref.ref(normed), _Output(hidden_states.detach(), weight.detach(), eps)
    return normed


class _Gated(torch.autograd.Function):
    """silu(gate) * up; keeps the two, not the activation and not the product."""

    @staticmethod
    def forward(ctx: Any, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NF, up_NF)
        return functional.silu(gate_NF).mul_(up_NF)

    @staticmethod
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor, Tensor]:
        gate_NF, up_NF = ctx.saved_tensors
        return _gated_backward(gate_NF, up_NF, grad_NF, functional.silu(gate_NF))


class _GatedDown(torch.autograd.Function):
    """(silu(gate) * up) @ weight.T; keeps gate and up, not what the product with the weight is made of."""

    @staticmethod
    def forward(ctx: Any, gate_NF: Tensor, up_NF: Tensor, weight_DF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NF, up_NF, weight_DF)
        return functional.linear(functional.silu(gate_NF).mul_(up_NF), weight_DF)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        gate_NF, up_NF, weight_DF = ctx.saved_tensors
        active_NF, grad_weight_DF = functional.silu(gate_NF), None
        if ctx.needs_input_grad[2]:
            grad_weight_DF = grad_ND.flatten(0, -2).T @ (active_NF * up_NF).flatten(0, -2)
        return *_gated_backward(gate_NF, up_NF, grad_ND @ weight_DF, active_NF), grad_weight_DF


def _gated_backward(gate_NF: Tensor, up_NF: Tensor, grad_NF: Tensor, active_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Of gate and up, from that of the product; in the memory of silu(gate), `active_NF`."""
    grad_gate_NF = torch.ops.aten.silu_backward(grad_NF * up_NF, gate_NF)
    return grad_gate_NF, active_NF.mul_(grad_NF)


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight, in float32 up to the rounding before the weight, as transformers has it; keeps x alone."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        normed_ND, inverse_N1 = _normed(x_ND, weight_D, eps)
        ctx.save_for_backward(x_ND, weight_D, inverse_N1)
        return normed_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_D, inverse_N1 = ctx.saved_tensors
        normed_ND = x_ND.to(inverse_N1.dtype) * inverse_N1
        grad_weight_D = (grad_ND * normed_ND.to(x_ND.dtype)).flatten(0, -2).sum(0)
        inner_ND = (grad_ND * weight_D).to(inverse_N1.dtype)
        # d normed = (d x - normed * mean(normed * d x)) / rms: the mean is the part that changes the rms itself.
        along_N1 = (inner_ND * normed_ND).mean(-1, keepdim=True)
        grad_x_ND = inner_ND.sub_(normed_ND.mul_(along_N1)).mul_(inverse_N1)
        return grad_x_ND.to(x_ND.dtype), grad_weight_D, None


def _normed(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms(x) of each token, [N, 1]."""
    wide_ND = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
    inverse_N1 = torch.rsqrt(wide_ND.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * (wide_ND * inverse_N1).to(x_ND.dtype), inverse_N1


# --- what multiplies a norm's output ---------------------------------------------------------------------------------

_outputs: dict[int, tuple[weakref.ref[Tensor], "_Output"]] | None = None
"""Of the norms of a pass that is recorded sparingly, by their address."""


@contextlib.contextmanager
def sparing() -> Iterator[None]:
    """While a pass is recorded: what keeps a norm's output for its own gradient, as the products with q's, k's and v's
    weights do, is given it made anew, from what the norm keeps anyway."""
    global _outputs

    def kept(tensor: Tensor) -> "Tensor | tuple[_Output, torch.Size]":
        found = (_outputs or {}).get(tensor.data_ptr())
        normed = found[0]() if found else None
        # Once it is gone, another may have its address; what was changed since is not what would be made.
        if found is None or normed is None or tensor._version:
            return tensor
        if tensor.numel() != normed.numel() or not tensor.is_contiguous():
            return tensor
        found[1].keepers += 1
        return found[1], tensor.shape

    def given(found: "Tensor | tuple[_Output, torch.Size]") -> Tensor:
        return found if isinstance(found, Tensor) else found[0].made().view(found[1])

    _outputs = {}
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept, given):
            yield
    finally:
        _outputs = None


class _Output:
    """What a norm's output is made of. It is made for the first that asks for it, and lies there until the last has."""

    def __init__(self, *of: Any) -> None:
        self.of, self.keepers, self.asked = of, 0, 0
        self.normed: Tensor | None = None

    def made(self) -> Tensor:
        if self.normed is None:
            self.normed, self.asked = _normed(*self.of)[0], 0
        normed, self.asked = self.normed, self.asked + 1
        if self.asked == self.keepers:
            self.normed = None
        return normed
