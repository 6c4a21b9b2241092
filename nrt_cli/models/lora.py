"""LoRA through peft: low-rank updates of every linear layer, and whole rows for the think tokens.

Shapes: V vocabulary, D hidden size, P think tokens whose rows are trained.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from nrt_cli.config import LoraSection
from nrt_cli.errors import ModelError
from nrt_cli.text.tokens import ThinkTokens

ADAPTER = "default"
"""peft's own name for an adapter that is given none."""


def adapt(model: PreTrainedModel, section: LoraSection, tokens: ThinkTokens, seed: int) -> PreTrainedModel:
    """The same model with trainable updates that are zero at first, its own weights frozen.

    The think tokens' rows of the embedding, and of an untied head, are trained whole: a new token's row has to move
    further than a low-rank update of the layers can make up for.

    Raises:
        ModelError: peft is not installed, or does not know the architecture.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ModelError("model.lora.rank needs peft; pip install 'nrt-cli[lora]'.") from None
    names = {id(module): name for name, module in model.named_modules()}
    # A tied head follows the embedding.
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    tables = {id(table), *([] if head.weight is table.weight else [id(head)])}
    new = [token for token in (tokens.start_id, tokens.end_id) if token is not None]
    settings = LoraConfig(
        r=section.rank,  # type: ignore[arg-type]  # not None here
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # its scale is alpha / r, and no integer is asked for
        target_modules="all-linear",
        trainable_token_indices={names[each].rpartition(".")[2]: new for each in tables},
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted: Any = get_peft_model(model, settings).get_base_model()
        except ValueError as error:
            raise ModelError(f"{type(model).__name__}: peft cannot adapt it ({error}).") from None
    for module in adapted.modules():
        # The instance's own forward comes before its class's.
        if hasattr(module, "token_adapter"):
            module.token_adapter.forward = partial(_with_trained_rows, module)
        elif is_low_rank(module):
            module.forward = partial(with_low_rank, module)
    return adapted


class Table(NamedTuple):
    """The weight of an embedding or a head as it is now, and which of its rows are trained apart from it."""

    weight_VD: Tensor
    """Gradients reach it unless it is frozen."""
    trained_P: Tensor | None = None
    rows_PD: Tensor | None = None
    """The same numbers that stand in the weight's rows `trained_P`; gradients reach these."""


@torch.no_grad()
def table_of(module: nn.Module) -> Table:
    """What an embedding or a head computes with. Trained rows are written into the frozen weight when they changed.

    peft copies the whole table at every use, and makes a gradient for all of it.
    """
    adapter: Any = getattr(module, "token_adapter", None)
    if adapter is None:
        return Table(module.weight)  # type: ignore[arg-type]
    weight, rows = adapter.base_layer.weight, adapter.trainable_tokens_delta[ADAPTER]
    trained = torch.tensor(adapter.token_indices[ADAPTER], device=weight.device)
    if not torch.equal(weight[trained], rows.to(weight.dtype)):
        # Past autograd's count of changes, which is for weights that a backward pass still needs: none is under way
        # when an optimiser has just stepped.
        weight.data[trained] = rows.to(weight.dtype)
    return Table(weight, trained, rows)


def _with_trained_rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """The forward pass of an adapted embedding or head: the plain one, and gradients for the trained rows."""
    adapter: Any = module.token_adapter
    _, trained_P, rows_PD = table_of(module)
    # Of a frozen weight and some of the positions, torch would copy the weight for each row on a CPU.
    out: Tensor = adapter.base_layer(inputs.contiguous())
    if not torch.is_grad_enabled():
        return out
    assert trained_P is not None
    assert rows_PD is not None
    rows_PD = rows_PD.to(out.dtype)
    if isinstance(adapter.base_layer, nn.Linear):
        return out.index_copy(-1, trained_P, inputs @ rows_PD.T)
    # Gemma's embedding multiplies what it looks up.
    scale = getattr(adapter.base_layer, "embed_scale", 1.0)
    for token, row in zip(trained_P, rows_PD, strict=True):
        out = torch.where((inputs == token)[..., None], row * scale, out)
    return out


def with_low_rank(layer: Any, inputs: Tensor) -> Tensor:
    """The forward pass of an adapted linear layer."""
    base = layer.base_layer
    out: Tensor = _LowRank.apply(inputs, base.weight, base.bias, *_factors(layer, inputs.dtype))
    return out


def _factors(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A and B of an adapted layer, whose product B A is its update: a_RI, b_OR, scale included."""
    a_RI, b_OR = layer.lora_A[ADAPTER].weight, layer.scaling[ADAPTER] * layer.lora_B[ADAPTER].weight
    return a_RI.to(dtype), b_OR.to(dtype)


class _LowRank(torch.autograd.Function):
    """x W^T + b + (x A^T) B^T, in the type of x, whose sums are float32 inside; keeps x and its products with A.

    peft goes through float32 and whole outputs several times, and keeps a wide copy of x for each layer that reads it.
    W and b are frozen. N tokens of any leading dimensions, I inputs, O outputs, R the rank.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        low_NR = x_NI @ a_RI.T
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, low_NR)
        out_NO = functional.linear(x_NI, weight_OI, bias_O).addmm_(low_NR, b_OR.T)
        return out_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_low_NR = grad_NO @ b_OR
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NO @ weight_OI).addmm_(grad_low_NR, a_RI).view(*grad.shape[:-1], -1)
        return grad_x, None, None, grad_low_NR.T @ x_NI, grad_NO.T @ low_NR


@torch.no_grad()
def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """A model's weights by the names of an unadapted one, low-rank updates and trained rows added; tied ones once.

    An adapted weight is made when its turn comes: all of them at once are a second model.
    """
    updated = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    for name, weight in model.named_parameters():
        holder, _, leaf = name.rpartition(".base_layer.")
        if holder in updated:
            # A bias is left as it is.
            change = merged(updated[holder]) if leaf == "weight" else weight
            yield f"{holder.removesuffix('.token_adapter')}.{leaf}", change.detach()
        elif ".lora_" not in name and ".trainable_tokens_" not in name:
            yield name, weight.detach()


def is_low_rank(module: nn.Module) -> bool:
    """Whether it is a linear layer with a low-rank update."""
    return hasattr(module, "get_delta_weight")


def merged(layer: Any) -> Tensor:
    """The weight of an adapted layer or table with its update, in the frozen weight's type, as a pass has it."""
    if not is_low_rank(layer):
        rows: Tensor = layer.get_merged_weights([ADAPTER])
        return rows.to(layer.base_layer.weight.dtype)
    weight_OI: Tensor = layer.base_layer.weight
    a_RI, b_OR = _factors(layer, weight_OI.dtype)
    return torch.addmm(weight_OI, b_OR, a_RI)
