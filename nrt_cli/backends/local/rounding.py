"""What rounding explains: two ways of computing the same log-probabilities never agree to the last bit.

How far they may differ depends on model, rows, dtype and kernels, so no number in nats is right everywhere. It is
measured: the same weights, multiplied once in a type that rounds far less, are at the distance of rounding here.

Shapes: N scored tokens, X sets of them.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}

SPREAD = 4.0
"""Two ways that round independently are about 1.4 times as far from each other as either is from the truth; few tokens
are few samples, so twice that and more is still taken for rounding."""

FLOOR = 1e-5
"""Nats that nobody minds, whatever explains them."""

UNMEASURED = {torch.bfloat16: 0.2, torch.float16: 0.02, torch.float32: 1e-3}
"""Nats that rounding explains of a model that cannot be computed in a wider type."""


@torch.no_grad()
def allowed_gap(
    model: PreTrainedModel,
    *ways: Callable[[], Tensor],
    floor: float = FLOOR,
    weights_N: Tensor | None = None,
    gap: float = math.inf,
) -> float:
    """The mean difference, in nats, that rounding explains between ways to the same log-probs.

    Args:
        ways: those of them that are computed by `model`'s weights as they are now: each logprobs_N. One may round
            twenty times as much as another, where sums are taken in another order; a fault is there in both types.
            Of several sets of tokens, logprobs_XN, the one that rounding moves most counts.
        floor: what is allowed even where nothing is rounded.
        weights_N: of the mean, adding up to 1; None weighs all tokens alike. Of several sets, weights_XN.
        gap: what is to be explained; where the floor does, nothing is computed to find out more.
    """
    if gap <= floor:
        return floor
    here = [way().double() for way in ways]
    try:
        with widened(model):
            errors = [(here_N - way().double()).abs() for here_N, way in zip(here, ways, strict=True)]
    except RuntimeError:  # code that names a type, as some routers of experts do, or no memory for a layer more
        return floor + UNMEASURED.get(model.dtype, 0.0)
    means = [error_N.mean(-1) if weights_N is None else (error_N * weights_N).sum(-1) for error_N in errors]
    return floor + SPREAD * max(float(mean.max()) for mean in means)


@contextlib.contextmanager
def widened(model: PreTrainedModel) -> Iterator[None]:
    """The same weights in a wider type; the exact same tensors are back afterwards. For passes without gradient.

    Layers are widened one at a time while they are computed: memory grows by the tables and one layer.
    """
    wide = WIDER.get(model.dtype, model.dtype)
    narrow: dict[nn.Parameter, Tensor] = {}
    layers = list(_layers(model))
    inside = {id(weight) for layer in layers for weight in layer.parameters()}

    def widen(weights: Iterator[nn.Parameter]) -> None:
        for weight in weights:
            if weight not in narrow:
                narrow[weight] = weight.data
                weight.data = weight.data.to(wide)

    def restore(weights: Iterator[nn.Parameter]) -> None:
        for weight in weights:
            weight.data = narrow.pop(weight, weight.data)

    hooks = [layer.register_forward_pre_hook(lambda module, _: widen(module.parameters())) for layer in layers]
    # Before those that are there: of two calls of this function, the inner one hands back to the outer one.
    hooks += [
        layer.register_forward_hook(lambda module, *_: restore(module.parameters()), prepend=True, always_call=True)
        for layer in layers
    ]
    try:
        widen(weight for weight in model.parameters() if id(weight) not in inside)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        restore(model.parameters())


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules: a model's layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)
