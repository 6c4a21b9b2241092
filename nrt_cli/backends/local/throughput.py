"""How much work a forward pass is, and how much the machine can do.

Shapes: D hidden size, V vocabulary. One multiply-add is two floating-point operations.
"""

import time
from functools import lru_cache

import torch
from torch import nn
from torch.profiler import profile
from transformers import PreTrainedModel

from nrt_cli.models.loading import native_bfloat16
from nrt_cli.models.lora import table_of

CEILING_SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices whose product is timed: large enough that nothing but arithmetic counts."""


class Work:
    """The floating-point operations of a model's forward pass, from its shapes.

    Only products are counted: those of the weights, of the head, and of queries with keys and of weights with values.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        vocabulary = table_of(head).weight_VD
        linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        weights = [weight for weight in linear if weight.shape != vocabulary.shape]
        self.per_token = 2 * sum(weight.numel() for weight in weights)
        self.per_scored = 2 * vocabulary.numel()
        # Of weights that are frozen, as under LoRA, no gradient is made.
        self.trained_per_token = 2 * sum(weight.numel() for weight in weights if weight.requires_grad)
        self.trained_per_scored = self.per_scored if vocabulary.requires_grad else 0
        # A query meets a key in D multiply-adds over all heads, and its weight meets the value in as many more.
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.per_pair = 4 * config.num_hidden_layers * config.num_attention_heads * width
        # Weights of experts are stacked in three dimensions, and a token meets only some of them.
        self.known = not any(weight.ndim > 2 for weight in model.parameters())

    def forward(self, tokens: int, scored: int, pairs: int) -> float:
        """Of `tokens` tokens, `scored` of them through the head, that see `pairs` tokens in all; NaN if not known."""
        if not self.known:
            return float("nan")
        return float(self.per_token * tokens + self.per_scored * scored + self.per_pair * pairs)

    def backward(self, tokens: int, scored: int, pairs: int) -> float:
        """The same of the way back: each product has one for its input, and one for its weight if that is trained."""
        for_inputs = self.forward(tokens, scored, 2 * pairs)  # attention's products have two inputs and no weight
        return for_inputs + self.trained_per_token * tokens + self.trained_per_scored * scored


def synchronise(device: torch.device) -> None:
    """Wait for what was asked of a GPU; a CPU has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@lru_cache
def matmul_ceiling(device: torch.device, dtype: torch.dtype, threads: int, repeats: int = 4) -> float:
    """The best rate at which a large square product runs here, in floating-point operations a second.

    `threads` are those that torch uses; another number is measured anew.
    """
    del threads
    side = CEILING_SIDE.get(device.type, 1024)
    if dtype == torch.bfloat16 and device.type == "cpu" and not native_bfloat16(device):
        side //= 2  # emulated, and slow
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        torch.matmul(left, right)
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def longest_operators(recorded: profile) -> str:
    """A profile's operators that took longest by themselves, as text."""
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    return str(recorded.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60))
