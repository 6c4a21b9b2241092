"""What a CPU's kernels do with the sizes of a step, whose choices the program makes: one thread, processor time.

    python tests/bench/cpu_kernels.py [--head --threads 2]

`products`: a decoding step's linear layers of a 0.5B model in bfloat16 and float32, packed by oneDNN as rollouts have
them, against int8 (torch._int_mm) with a scale for each row and each output channel; `alone` is the int8 product
without what makes rows int8 and its sums bfloat16. `attention`: backward through causal attention, 9 heads of 64
channels, in bfloat16 and in float32 with conversions, which is why short stretches take the latter. `subnormal`: the
same float32 product of numbers of 1e-37, whose products with weights are subnormal, as is and flushed. `adapted`: a
bfloat16 layer with low-rank updates, forward and backward, as peft has it and as we do.

`--head`, a section of its own: the float32 product of hidden states with a head, as torch has it and oneDNN's.
"""

import datetime
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import common
import torch
from common import shown

from nrt_cli.models import lora

LAYERS = ((896, 4864), (4864, 896), (896, 896), (896, 151_936))
"""Inputs and outputs: of the MLP, of a projection, of the head."""
PRODUCTS = (
    *("a decoding step's product", "bfloat16 ms", "float32 ms", "int8 ms", "alone ms"),
    *("int8 faster than bfloat16, times", "alone", "int8 faster than float32, times"),
)
ATTENTION = ("attention backward, tokens", "bfloat16 ms", "float32 ms", "float32 faster, times")
SUBNORMAL = ("product of subnormal numbers", "as is, ms", "flushed ms", "usual numbers ms", "as is slower, times")
ADAPTED = ("layer with updates of rank 32, 1,000 tokens", "peft ms", "ours ms", "ours faster, times")
HEAD = ("rows, inputs to outputs", "torch's ms", "oneDNN's ms", "oneDNN's faster, times")
HEADS = ((576, 49_155), (896, 151_936), (2048, 32_002))
"""Inputs and outputs of SmolLM2-135M, Qwen2.5-0.5B and a Llama 2 tokenizer, as prepared models have them."""
ROWS, LENGTHS, ROUNDS = (16, 32), (32, 64, 128, 256, 384, 512, 1024), 15


def milliseconds(made: Sequence[Callable[[], Any]]) -> list[float]:
    """The median of each, in turns."""
    taken: list[list[float]] = [[] for _ in made]
    for _ in range(1 + ROUNDS):
        for seconds, work in zip(taken, made, strict=True):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
    return [1e3 * statistics.median(seconds[1:]) for seconds in taken]


def product(rows: int, inputs: int, outputs: int) -> list[str]:
    x, weight = torch.randn(rows, inputs), 0.02 * torch.randn(outputs, inputs)
    narrow, scale = x.bfloat16(), weight.abs().amax(1) / 127
    int8 = (weight / scale[:, None]).round().to(torch.int8).t()

    def packed(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        layout = torch.ops.mkldnn._reorder_linear_weight(weight.to(x.dtype), None)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, layout, None, "none", [], "")

    def whole() -> torch.Tensor:
        wide = narrow.float()
        of_rows = wide.abs().amax(1, keepdim=True) / 127
        return (torch._int_mm((wide / of_rows).round().to(torch.int8), int8) * of_rows * scale).bfloat16()

    whole_numbers = torch.randint(-127, 127, (rows, inputs), dtype=torch.int8)
    sides = (packed(narrow), packed(x), whole, lambda: torch._int_mm(whole_numbers, int8))
    bf16, f32, int8_whole, alone = milliseconds(sides)
    times = (bf16 / int8_whole, bf16 / alone, f32 / int8_whole)
    named = (f"{rows} rows, {inputs:,} to {outputs:,}", *map(shown, (bf16, f32, int8_whole, alone, *times)))
    return list(named)


def attention(length: int) -> list[str]:
    query, key, value, grad = (torch.randn(1, 9, length, 64, dtype=torch.bfloat16) for _ in range(4))
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)
    back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    given = (grad, query, key, value, out)

    def wide() -> list[torch.Tensor]:
        return [part.bfloat16() for part in back(*(tensor.float() for tensor in given), sums, 0.0, True)]

    bf16, f32 = milliseconds([lambda: back(*given, sums, 0.0, True), wide])
    return [str(length), shown(bf16), shown(f32), shown(bf16 / f32)]


def subnormal(inputs: int, outputs: int) -> list[str]:
    x, weight = torch.randn(512, inputs), 0.02 * torch.randn(outputs, inputs)
    tiny = 1e-37 * x

    def flushed() -> None:
        torch.set_flush_denormal(True)
        tiny @ weight.t()
        torch.set_flush_denormal(False)

    as_is, none, usual = milliseconds([lambda: tiny @ weight.t(), flushed, lambda: x @ weight.t()])
    return [f"512 rows, {inputs:,} to {outputs:,}", *map(shown, (as_is, none, usual, as_is / usual))]


def adapted(inputs: int, outputs: int) -> list[str]:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    base = torch.nn.Linear(inputs, outputs, bias=False).bfloat16().requires_grad_(False)
    settings = LoraConfig(r=32, lora_alpha=64)
    layer = Linear(base, lora.ADAPTER, config=settings, r=settings.r, lora_alpha=settings.lora_alpha)
    layer.requires_grad_(True).base_layer.requires_grad_(False)
    layer.lora_A.float(), layer.lora_B.float()
    x = torch.randn(1, 1000, inputs, dtype=torch.bfloat16, requires_grad=True)

    def passed(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        forward(x).sum().backward()

    theirs, ours = milliseconds([lambda: passed(layer), lambda: passed(partial(lora.with_low_rank, layer))])
    return [f"{inputs:,} to {outputs:,}", *map(shown, (theirs, ours, theirs / ours))]


def head(rows: int, inputs: int, outputs: int) -> list[str]:
    x, weight = torch.randn(rows, inputs), 0.02 * torch.randn(outputs, inputs)
    ours = lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # noqa: E731
    plain, fast = milliseconds([lambda: x @ weight.t(), ours])
    return [f"{rows} rows, {inputs:,} to {outputs:,}", *map(shown, (plain, fast, plain / fast))]


def main() -> None:
    parser = common.parser(__doc__, rounds=ROUNDS)
    parser.set_defaults(threads=1)
    parser.add_argument("--head", action="store_true", help="the head's product alone")
    args = parser.parse_args()
    common.start(args)
    torch.set_num_threads(args.threads)
    if args.head:
        rows = [head(count, *sizes) for sizes in HEADS for count in (64, 110, 341) if count * sizes[1] <= 2**24]
        about = {"dtype": "float32", "load": os.getloadavg()[0], "date": str(datetime.date.today())}
        common.report("The head's product on a CPU", args, common.table(HEAD, rows), [about])
        return
    about = {"dtype": "bfloat16, float32 and int8", "load": os.getloadavg()[0], "date": str(datetime.date.today())}
    products = common.table(PRODUCTS, [product(rows, *layer) for rows in ROWS for layer in LAYERS])
    lengths = common.table(ATTENTION, [attention(length) for length in LENGTHS])
    tiny = common.table(SUBNORMAL, [subnormal(*layer) for layer in LAYERS[:2]])
    layers = common.table(ADAPTED, [adapted(*layer) for layer in LAYERS[:3]])
    common.report("Kernels of a CPU", args, "\n\n".join((products, lengths, tiny, layers)), [about])


if __name__ == "__main__":
    main()
