"""`nrt doctor --gpu`: whether a GPU computes what a CPU does, and how fast. No network, weights made on the spot.

A step is a function of a `Bench` (device, size, folder). Each runs in a process of its own with a limit, so that one
that crashes or hangs is a verdict and not the end. On a CPU the same code runs in small form: the tests do that.

Shapes: H query heads, G key-value heads, T tokens of a packed row, C channels of a head.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor

from nrt_cli.backends import BACKENDS, machine
from nrt_cli.backends.local import attention
from nrt_cli.backends.local.attention import FlexSegments, Packed, pack
from nrt_cli.backends.local.policy import Prefix
from nrt_cli.backends.local.rounding import allowed_gap
from nrt_cli.backends.local.throughput import synchronise
from nrt_cli.backends.machine import PACKAGES, import_error, version
from nrt_cli.checks import estimate
from nrt_cli.checks.estimate import GIB
from nrt_cli.checks.findings import Finding, guarded, judged, ok, problem, skipped, warning
from nrt_cli.checks.trial import peak_memory
from nrt_cli.config import RunConfig, parse_override, resolve, to_yaml
from nrt_cli.models.loading import load_tokenizer, native_bfloat16, resolved
from nrt_cli.models.prepare import prepare_model
from nrt_cli.models.shapes import model_shape
from nrt_cli.objective.rows import Row
from nrt_cli.records import Example, Lengths, Rollout, RolloutGroup, measured
from nrt_cli.store import Run
from nrt_cli.training.pretraining import untrained
from nrt_cli.training.trainer import LocalTrainer

TORCH = ("2.11", "2.13")
"""The oldest and the newest torch that this was made for."""
SHARE = 0.45
"""Of the matmul rate, in an update at long traces: less is a warning."""
ROUNDING = {"float32": 1e-3, "bfloat16": 0.05}
"""Relative difference of losses and gradient norms from those of a CPU in float32 that is taken for rounding; on a CPU
itself, bfloat16 differs by some thousandths. What a GPU's kernels differ by is not known yet."""
RANKS = next(facts for facts in BACKENDS.values() if facts.DISTRIBUTED)
KEPT_LINES = 60
"""Of a step's output, where it is not well."""


@dataclass(frozen=True)
class Size:
    """How large the steps are: a model's shape, and numbers of tokens."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    packed: tuple[int, ...]
    """Tokens of packed rows that FlexAttention is tried on."""
    short: tuple[int, int, int]
    """Prompt, answer and trace where numbers are compared; K is 4."""
    long: tuple[int, int, int]
    """The same where an update is timed; K is 8."""
    rows: tuple[int, ...]
    """Traces decoded together."""
    decoded: int
    """Tokens of each of those."""


SIZES = {
    "card": Size(576, 30, 9, 3, 1536, 49_152, (40, 700, 4096, 16384), (64, 32, 256), (256, 256, 2048), (64, 512), 256),
    "small": Size(64, 2, 2, 1, 128, 120, (40, 300), (12, 6, 90), (12, 6, 120), (8, 16), 12),
}
"""By name: SmolLM2-135M's shape; and one for tests."""


@dataclass(frozen=True)
class Bench:
    """What a step works with: a device, sizes, and a folder for the model and whatever is written."""

    device: torch.device
    size: Size
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def narrow(self) -> str:
        """bfloat16, but where a GPU only emulates it: there `model.dtype=auto` is float32 too."""
        return "bfloat16" if not self.on_gpu or native_bfloat16(self.device) else "float32"

    @cached_property
    def model(self) -> Path:
        """A prepared model folder with random weights in float32; made by the first step that needs it."""
        size, folder = self.size, self.folder / "model"
        if not folder.is_dir():
            untrained(
                [f"w{i}" for i in range(size.vocabulary - 3)],  # three are special
                self.folder / "source",
                hidden_size=size.width,
                intermediate_size=size.inner,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                num_key_value_heads=size.kv_heads,
                max_position_embeddings=8192,
            )
            prepare_model(str(self.folder / "source"), folder, dtype="float32")
        return folder

    def config(self, *changes: str, lengths: tuple[int, int, int] | None = None, group: int = 4) -> RunConfig:
        """A run of this model in float32 whose caps are prompt, answer and trace of `lengths`, all in one minibatch."""
        prompt, answer, trace = lengths or self.size.short
        base: dict[str, Any] = {
            "model": {"path": str(self.model), "device": self.device.type, "dtype": "float32"},
            "data": {"max_prompt_tokens": prompt, "max_answer_tokens": answer},
            "rollout": {"group_size": group, "max_trace_tokens": trace, "engine": "native"},
            # Unclipped, so that random traces do not leave the gradient without a trace term.
            "objective": {"baseline": "none"},
            "optimiser": {"lr": 1e-4},
            "train": {"batch_size": 2, "minibatch_size": None, "micro_batch_tokens": 65536},
        }
        return resolve(base, *map(parse_override, changes))

    def groups(self, lengths: tuple[int, int, int] | None = None, group: int = 4) -> list[RolloutGroup]:
        """Two groups of random tokens, always the same; each trace one token shorter than the one before."""
        prompt, answer, trace = lengths or self.size.short
        draw, eos = np.random.default_rng(0), load_tokenizer(self.model).eos_token_id

        def ids(length: int) -> tuple[int, ...]:
            return tuple(map(int, draw.integers(3, self.size.vocabulary, length)))

        found = []
        for index in range(2):
            example = Example(index, "made", ids(prompt), (*ids(answer - 1), eos))
            traces = (ids(trace - k) for k in range(group))
            found.append(RolloutGroup(example, tuple(Rollout(z, (-1.0,) * len(z), "cap") for z in traces)))
        return found


@dataclass(frozen=True)
class Step:
    """One thing to look at, with the seconds that it may take on a GPU and the packages that it needs there."""

    name: str
    limit: float
    needs: tuple[str, ...]
    look: Callable[[Bench], Iterable[Finding]]


STEPS: dict[str, Step] = {}


def step(name: str, limit: float, *needs: str) -> Callable[..., Any]:
    """Registers a function of a bench that yields findings."""

    def register(look: Callable[[Bench], Iterable[Finding]]) -> Any:
        STEPS[name] = Step(name, limit, needs, look)
        return look

    return register


# --- the steps -------------------------------------------------------------------------------------------------------

DRIVER = "driver and compiler"


@step(DRIVER, 60)
def driver(bench: Bench) -> Iterator[Finding]:
    """What torch needs besides Python packages."""
    here = Version(torch.__version__.partition("+")[0])
    python = platform.python_version()
    about: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": python,
        "system": platform.platform(),
    }
    if bench.on_gpu and not torch.cuda.is_available():
        built = "is a build for CPUs" if torch.version.cuda is None else f"finds no GPU for CUDA {torch.version.cuda}"
        do = "`nvidia-smi` says what the driver is for; `nrt help clusters` what is needed."
        yield problem(f"torch {torch.__version__} {built}", do, about)
        return
    name = "the CPU"
    if bench.on_gpu:
        gpu = machine.gpu()
        about |= {"gpu": gpu.name, "memory": gpu.memory, "capability": torch.cuda.get_device_capability()}
        name = f"{gpu.name} with {gpu.memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
    found = f"torch {torch.__version__} on {name}, Python {python}"
    oldest, newest = map(Version, TORCH)
    known = oldest <= here and here.release[:2] <= newest.release
    yield judged(found, "" if known else f"this was made for torch {TORCH[0]} to {TORCH[1]}.", about)
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang", "cc")), "")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    lacks = [what for what, there in (("a C compiler", compiler), ("Python's headers", headers)) if not there]
    if lacks:
        do = "install them (Debian: gcc and python3-dev): triton compiles with both, and packing falls back without."
        yield warning(f"{' and '.join(lacks)} are missing", do)
    else:
        yield ok(f"compiler {compiler}, with Python's headers")


@step("packages", 240)
def packages(bench: Bench) -> Iterator[Finding]:
    """Whether what is installed can be imported, each in a process of its own."""
    modules = {"triton": "triton", "peft": "peft", "bitsandbytes": "bitsandbytes", "flash-attn": "flash_attn"}
    modules |= {name: name for name in ("vllm", "trl", *RANKS.VERSIONS)} if bench.on_gpu else {}
    found = {name: version(name) for name in (*PACKAGES, *modules)}
    broken = {name: error for name, module in modules.items() if found[name] and (error := import_error(module))}
    shown = ", ".join(f"{name} {there}" for name, there in found.items() if there)
    if broken:
        told = "; ".join(f"{name}: {error}" for name, error in broken.items())
        yield problem(told, "install the builds that go with this torch, or remove them.", {"versions": found})
    else:
        yield ok(shown, details={"versions": found})


@step("FlexAttention", 120)
def flex(bench: Bench) -> Iterator[Finding]:
    """The one kernel against plain attention, both against float32: results and gradients at several lengths."""
    size, dtype = bench.size, getattr(torch, bench.narrow) if bench.on_gpu else torch.float32
    channels, gaps, worst = size.width // size.heads, {}, 0.0
    started = _compilations()
    for length in size.packed:
        rows = _rows_of(length)
        ids, pattern = len(rows.ids), rows.pattern
        one_kernel = FlexSegments(pattern, ids, bench.device)
        generator = torch.Generator().manual_seed(length)
        heads = (size.heads, size.kv_heads, size.kv_heads, size.heads)
        wide = [torch.randn(1, each, ids, channels, generator=generator) for each in heads]
        plain = partial(pattern.attend_anywhere, scaling=channels**-0.5)
        fast = partial(one_kernel.attend, 0, scaling=channels**-0.5)
        exact = _attended(plain, wide, bench, torch.float32)
        rounded = _attended(plain, wide, bench, dtype)
        ours = _attended(fast, wide, bench, dtype, backward=bench.on_gpu)
        # Of the result and each gradient, how far it is from exact, in shares of its own size.
        off = [float((a - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=False)]
        allowed = [4 * float((a - b).norm() / b.norm()) + 1e-5 for a, b in zip(rounded, exact, strict=True)]
        gaps[length] = max(off)
        worst = max(worst, *(gap / limit for gap, limit in zip(off, allowed, strict=False)))
    compiled = _compilations() - started
    told = ", ".join(f"{length} tokens {gap:.1e}" for length, gap in gaps.items())
    found = f"differs from float32 by {told}; {compiled} compilations for {len(gaps)} lengths"
    details = {"gaps": gaps, "compilations": compiled, "limit": attention.COMPILATIONS}
    if worst > 1:
        do = "set engine.packing=off, and report it with the JSON file."
        yield problem(f"{found}: {worst:.1f} times what rounding explains", do, details)
    else:
        # Without and with gradient, and again once lengths are known to differ; the shortest is one block.
        many = bench.on_gpu and compiled > 2 * len(gaps)
        yield judged(found, "it compiles for every length: report this." if many else "", details)
    if not bench.on_gpu:
        yield skipped("its way back has no kernel on a CPU", "look on a GPU.")


def _rows_of(length: int) -> Packed:
    """Two prompts with two traces each, packed: about `length` tokens."""
    part, fresh = max(2, length // 8), iter(range(2 * length + 40))
    take = lambda number: list(islice(fresh, number))  # noqa: E731
    first, second = take(2 * part), take(part)
    return pack([[first + take(part + 3), first + take(part)], [second + take(2 * part), second + take(part - 1)]])


def _attended(
    attend: Callable[..., Tensor], wide: Sequence[Tensor], bench: Bench, dtype: torch.dtype, backward: bool = True
) -> list[Tensor]:
    """What attention makes of queries, keys and values, and gradients of a weighted sum of that; float32, on a CPU."""
    *qkv, weights = (tensor.to(bench.device, dtype) for tensor in wide)
    leaves = [tensor.requires_grad_(backward) for tensor in qkv]
    out = attend(*leaves)
    grads = torch.autograd.grad((out * weights).sum(), leaves) if backward else ()
    return [tensor.detach().float().cpu() for tensor in (out, *grads)]


def _compilations() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@step("two updates", 180)
def updates(bench: Bench) -> Iterator[Finding]:
    """Losses and gradients of two optimiser steps, each way of computing them against a CPU in float32."""
    ways = {
        "float32": ("float32", ()),
        bench.narrow: (bench.narrow, (f"model.dtype={bench.narrow}",)),
        "with checkpointing": ("float32", ("model.gradient_checkpointing=true",)),
        "states=cpu": (bench.narrow, (f"model.dtype={bench.narrow}", "optimiser.states=cpu")),
        "unpacked": ("float32", ("engine.packing=off",)),
    }
    if version("peft"):
        ways["low rank"] = ("float32", ("model.lora.rank=4",))
    else:
        yield skipped("low-rank updates need peft", "pip install 'nrt-cli[lora]'.")
    on_cpu, groups = replace(bench, device=torch.device("cpu")), bench.groups()
    references: dict[tuple[str, ...], tuple[dict[str, Tensor], list[float]]] = {}
    no_kernel = ""
    for way, (dtype, changes) in ways.items():
        trained = tuple(change for change in changes if "lora" in change)
        if trained not in references:
            trainer = LocalTrainer(on_cpu.config(*trained), 2)
            # Where they began, since a GPU draws other low-rank weights than a CPU.
            began = {key: tensor.clone() for key, tensor in trainer.backend.optimiser.state().items()}
            references[trained] = began, _updated(trainer, groups, 2)
        began, expected = references[trained]
        trainer = LocalTrainer(bench.config(*changes), 2)
        trainer.backend.optimiser.load_state(began)
        gap = _gap(_updated(trainer, groups, 2), expected)
        policy = trainer.backend.policy
        no_kernel = no_kernel or policy.no_flex or policy.no_packing or ""
        details = {"gap": gap, "allowed": ROUNDING[dtype], "flex": policy.flex}
        yield _explained(f"{way}: losses and gradient norms", gap, ROUNDING[dtype], details)
    if no_kernel:
        yield warning(f"packed rows have no kernel of their own: FlexAttention {no_kernel}", "report this.")


def _updated(trainer: LocalTrainer, groups: Sequence[RolloutGroup], times: int) -> list[float]:
    """Loss and gradient norm of each of some updates."""
    metrics = [trainer.update(groups).metrics for _ in range(times)]
    return [each[key] for each in metrics for key in ("loss", "grad_norm")]


def _gap(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference; of a loss, in shares of the largest number, since it may be near 0 by chance."""
    largest = max(map(abs, expected))
    return max(abs(a - b) / largest for a, b in zip(found, expected, strict=True))


def _explained(what: str, gap: float, allowed: float, details: Mapping[str, Any]) -> Finding:
    found = f"{what}: {gap:.1e} apart (allowed: {allowed:.0e})"
    if gap <= allowed:  # not a number is not
        return ok(found, "", details)
    return problem(found, "do not train on this machine: report it with the JSON file.", details)


@step("memory that runs out", 120)
def out_of_memory(bench: Bench) -> Iterator[Finding]:
    """An update that does not fit is done again in smaller passes, with the same result."""
    groups = bench.groups()
    trainer = LocalTrainer(bench.config(), 3)
    passes = sum(trainer.backend.policy.size(trainer.layout.rows_with_null(group)) for group in groups)
    _updated(trainer, groups, 2)  # the first makes the moments
    before = torch.cuda.memory_allocated() if bench.on_gpu else 0
    with peak_memory(bench.device) as memory:
        expected = _updated(trainer, groups, 1)
    # As much for another, but for two fifths of what passes and gradients took.
    room = before + 0.6 * (memory.most - before)
    del trainer
    parts = LocalTrainer(bench.config(f"train.micro_batch_tokens={passes}"), 3)
    _updated(parts, groups, 2)
    with _little_memory(parts, room, bench):
        found = _updated(parts, groups, 1)
    tokens = parts.backend.budget.tokens
    details = {"tokens": passes, "in": tokens}
    if tokens == passes:
        yield warning("memory did not run out", "tell us what the JSON file says.", details)
        return
    what = f"a pass of {passes} tokens ran out; in passes of {tokens}"
    yield _explained(what, _gap(found, expected), ROUNDING["float32"], details)


@contextlib.contextmanager
def _little_memory(trainer: LocalTrainer, size: float, bench: Bench) -> Iterator[None]:
    """Only `size` bytes: on a GPU for real; on a CPU, passes with gradient of more than half of all tokens fail."""
    policy = trainer.backend.policy
    if bench.on_gpu:
        torch.cuda.empty_cache()  # what is kept for later counts too
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / torch.cuda.get_device_properties(0).total_memory))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    most, score = trainer.backend.budget.tokens // 2, policy.score

    def failing(rows: Sequence[Row], prefix: Prefix | None = None) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and policy.size(rows) > most:
            raise torch.OutOfMemoryError("as if")
        return score(rows, prefix)

    policy.score = failing  # type: ignore[method-assign]
    try:
        yield
    finally:
        del policy.score


@step("save and resume", 120)
def resume(bench: Bench) -> Iterator[Finding]:
    """A step after a checkpoint, in the trainer that saved it and in another that loaded it."""
    config, groups = bench.config(f"model.dtype={bench.narrow}"), bench.groups()
    trainer = LocalTrainer(config, 2)
    _updated(trainer, groups, 1)
    run = Run.create(bench.folder / "run", to_yaml(config), {})
    run.save_checkpoint(1, trainer.state(), trainer.backend.save(), 1)
    expected = _updated(trainer, groups, 1)
    weights = trainer.backend.optimiser.state()
    resumed, checkpoint = LocalTrainer(config, 2), run.load_checkpoint(1)
    resumed.load(checkpoint.folder, checkpoint.state, checkpoint.tensors)
    found = _updated(resumed, groups, 1)
    again = resumed.backend.optimiser.state()
    same = all(torch.equal(weights[key], again[key]) for key in weights)
    details = {"bit_for_bit": same, "gap": _gap(found, expected)}
    yield _explained("loss and gradient norm of the next step", details["gap"], ROUNDING["float32"], details)
    # Some kernels of a GPU add up in any order.
    do = "" if same or bench.on_gpu else "report it: a CPU resumes to the same bits."
    yield judged(f"the next weights are {'' if same else 'not '}the same bit for bit", do, details)


@step("speed of an update", 180)
def update_rate(bench: Bench) -> Iterator[Finding]:
    """An update's share of the matmul rate at long traces, and its memory against the plan's prediction."""
    lengths, group = bench.size.long, 8
    groups = bench.groups(lengths, group)
    config = bench.config("model.dtype=auto", lengths=lengths, group=group)
    config = config.model_copy(update={"model": resolved(config.model)})
    trainer = LocalTrainer(config, 4)
    backend, policy = trainer.backend, trainer.backend.policy
    # A pass for each group, which a plan then has to predict the memory of.
    backend.budget.tokens = max(policy.size(trainer.layout.rows_with_null(each)) for each in groups)
    trainer.update(groups)  # compiles, and makes the moments
    backend.work = 0.0
    with peak_memory(bench.device) as memory:
        started = time.perf_counter()
        tokens = sum(trainer.update(groups).metrics["tokens"] for _ in range(2))
        synchronise(bench.device)
        seconds = time.perf_counter() - started
    share, rate = backend.mfu(seconds), backend.ceiling / 1e12
    dtype = config.model.dtype
    found = f"{share:.0%} of the matmul rate ({rate:.3g} TFLOP/s in {dtype}), {tokens / seconds:,.0f} tokens/s"
    details: dict[str, Any] = {
        "share": share,
        "tflops": rate,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds / 2,
    }
    details |= {
        "dtype": dtype,
        "flex": policy.flex,
        "packing": policy.packing,
        "why_not": policy.no_packing or policy.no_flex,
    }
    yield judged(found, "" if share >= SHARE or not bench.on_gpu else f"{SHARE:.0%} is the goal: report this.", details)
    train = config.train.model_copy(update={"micro_batch_tokens": backend.budget.tokens})
    prompt, answer, trace = lengths
    expected = Lengths(prompt, answer, trace, "this step")
    config = config.model_copy(update={"train": train})
    plan = estimate.plan(config, model_shape(str(bench.model)), 2, expected, estimate.device(config))
    # The context and what libraries take is not torch's to count.
    predicted = sum(size for what, size in plan.memory if what != "reserve")
    found = f"the plan predicts {predicted / GIB:.2f} GiB in an update, {memory.most / GIB:.2f} GiB were measured"
    parts = {"predicted": predicted, "measured": memory.most, "parts": dict(plan.memory)}
    if not bench.on_gpu:
        yield skipped(f"{found}, of the whole process", "memory is compared on a GPU, where torch counts it.", parts)
        return
    fits = predicted / 2 <= memory.most <= 1.1 * predicted
    yield judged(found, "" if fits else "the plan is off by more than it may: report this.", parts)


@step("speed of rollouts", 180)
def rollout_rate(bench: Bench) -> Iterator[Finding]:
    """Tokens a second of our own decoding, with few and many rows at a time."""
    prompt, answer, _ = bench.size.short
    lengths = (prompt, answer, bench.size.decoded)
    config = bench.config("model.dtype=auto", f"rollout.batch_rows={max(bench.size.rows)}", lengths=lengths, group=8)
    trainer, (group, _) = LocalTrainer(config, 1), bench.groups(lengths, 8)
    rates = {}
    for rows in bench.size.rows:
        examples = [replace(group.example, index=index) for index in range(max(1, rows // 8))]
        trainer.sample(examples[:1], 0)  # loads the kernels
        synchronise(bench.device)
        started = time.perf_counter()
        groups = trainer.sample(examples, 1)
        synchronise(bench.device)
        sampled = sum(len(rollout.sampler_logprobs) for group in groups for rollout in group.rollouts)
        rates[rows] = sampled / (time.perf_counter() - started)
    found = "; ".join(f"{rows} rows: {rate:,.0f} tokens/s" for rows, rate in rates.items())
    few, many = min(rates), max(rates)
    slow = bench.on_gpu and rates[many] < 2 * rates[few]
    yield judged(found, f"{many} rows should be far faster than {few}: report this." if slow else "", {"rates": rates})


@step("optimiser states in 8 bits", 60, "bitsandbytes")
def states(bench: Bench) -> Iterator[Finding]:
    """Where two updates move the weights with moments in 8 bits, against moments in float32."""
    groups, moved = bench.groups(), []
    for kind in ("float32", "8bit"):
        trainer = LocalTrainer(bench.config(f"optimiser.states={kind}"), 2)
        before = {key: tensor.clone() for key, tensor in trainer.backend.optimiser.state().items()}
        _updated(trainer, groups, 2)
        after = trainer.backend.optimiser.state()
        moved.append(torch.cat([(after[key] - before[key]).flatten().float().cpu() for key in before]))
    gap = float((moved[1] - moved[0]).norm() / moved[0].norm())
    details = {"gap": gap, "optimiser": type(trainer.backend.optimiser.adamw).__name__}
    yield _explained(f"where {details['optimiser']} and AdamW move the weights", gap, 0.1, details)


@step("vLLM: rollouts", 300, "vllm")
def vllm_rollouts(bench: Bench) -> Iterator[Finding]:
    """Three rounds of sample, sleep, update and wake; before each, the canary compares weights and raises."""
    trainer = LocalTrainer(bench.config("rollout.engine=vllm"), 3)
    examples, gaps, seconds = [group.example for group in bench.groups()], [], []
    for number in range(3):
        started = time.perf_counter()
        groups = trainer.sample(examples, number)
        seconds.append(time.perf_counter() - started)
        gaps.append(trainer.update(groups).metrics["sampler_gap"])
    rows = trainer.layout.rows(groups[0])
    score = lambda: torch.cat([logprobs_N for logprobs_N, _ in trainer.backend.score(rows)])  # noqa: E731
    allowed = allowed_gap(trainer.backend.policy.model, score, floor=1e-3)
    told = ", ".join(f"{gap:.1e}" for gap in gaps)
    details = {"gaps": gaps, "allowed": allowed, "seconds": seconds}
    found = f"its log-probs differ from the trainer's by {told} nats in three rounds ({allowed:.0e} is rounding)"
    if not max(gaps) <= allowed:
        yield problem(found, "set rollout.engine=native, and report this.", details)
    else:
        yield ok(found, "", details)


@step("vLLM: evaluation", 300, "vllm")
def vllm_evaluation(bench: Bench) -> Iterator[Finding]:
    """Greedy answers and scores of vLLM against those of the trainer's own model."""
    from nrt_cli.backends.vllm_engine import VllmEngine, VllmRequest

    prompt, answer, trace = bench.size.short
    examples = [group.example for group in bench.groups()]
    rows = [Row((*each.prompt_ids, *each.answer_ids), 1) for each in examples]
    trainer = LocalTrainer(bench.config(), 1)
    score = lambda: torch.cat([logprobs_N for logprobs_N, _ in trainer.backend.score(rows)])  # noqa: E731
    allowed = allowed_gap(trainer.backend.policy.model, score, floor=1e-3)
    ours = score().double().cpu()
    engine = VllmEngine(bench.model, "float32", bench.device.type, prompt + answer + trace, len(rows))
    theirs = torch.tensor([value for values in engine.score([row.ids for row in rows]) for value in values])
    gap = float((theirs - ours).abs().mean())
    made = engine.generate([VllmRequest(each.prompt_ids, trace, temperature=0.0) for each in examples])
    details = {"gap": gap, "allowed": allowed}
    tokens = sum(len(output.ids) for output in made)
    found = f"scores differ by {gap:.1e} nats ({allowed:.0e} is rounding); {tokens} greedy tokens"
    if not gap <= allowed:
        yield problem(found, "evaluate with --engine hf, and report this.", details)
    else:
        yield ok(found, "", details)


@step("a step with vLLM", 600, "vllm")
def whole_step(bench: Bench) -> Iterator[Finding]:
    """Seconds of ours at long traces, sampled by vLLM, for comparison with TRL's."""
    group, changes = 8, (f"model.dtype={bench.narrow}", "rollout.engine=vllm")
    trainer = LocalTrainer(bench.config(*changes, lengths=bench.size.long, group=group), STEPS_TIMED)
    examples, ends = [each.example for each in bench.groups(bench.size.long, group)], [time.perf_counter()]
    for number in range(STEPS_TIMED):
        trainer.train_step(examples, number)
        synchronise(bench.device)
        ends.append(time.perf_counter())
    yield _timed_steps(bench, group, ends)


@step("TRL, the same step", 600, "trl", "datasets", "vllm")
def trl_step(bench: Bench) -> Iterator[Finding]:
    """Seconds of a GRPO step with vLLM in TRL's own process; its reward costs nothing, and it trains no answers."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    group, ends, tokenizer = 8, list[float](), load_tokenizer(bench.model)
    prompt, _, trace = bench.size.long
    prompts = [tokenizer.decode(list(each.example.prompt_ids)) for each in bench.groups(bench.size.long, group)]

    def reward(completions: Sequence[str], **_: Any) -> list[float]:
        """Once a step."""
        synchronise(bench.device)
        ends.append(time.perf_counter())
        return [float(len(text) % 2) for text in completions]

    settings = GRPOConfig(
        str(bench.folder / "trl"),
        model_init_kwargs={"dtype": bench.narrow},
        gradient_checkpointing=False,
        use_cpu=not bench.on_gpu,
        bf16=False,  # its weights are in that type already; this is autocast
        per_device_train_batch_size=len(prompts) * group,
        num_generations=group,
        max_completion_length=trace,
        beta=0.0,
        max_steps=STEPS_TIMED + 1,
        save_strategy="no",
        report_to=[],
        use_vllm=bench.on_gpu,
        vllm_mode="colocate",
        vllm_enable_sleep_mode=True,
        vllm_gpu_memory_utilization=0.3,
        vllm_max_model_length=prompt + trace + 1,
    )
    GRPOTrainer(
        str(bench.model),
        reward,
        settings,
        Dataset.from_list([{"prompt": text} for text in prompts * (STEPS_TIMED + 1)]),
        processing_class=tokenizer,
    ).train()
    yield _timed_steps(bench, group, ends)
    if not bench.on_gpu:
        yield skipped("vLLM's build for CPUs takes no weights from TRL", "look on a GPU.")


STEPS_TIMED = 4
"""Of which the first, which loads kernels, does not count."""


def _timed_steps(bench: Bench, group: int, ends: Sequence[float]) -> Finding:
    seconds = [after - before for before, after in pairwise(ends)]
    found = f"{median(seconds[1:]):.2f} s for 2 x {group} traces of up to {bench.size.long[2]:,} tokens"
    return ok(found, "", {"seconds": seconds})


@step("ranks and servers", 1200, *RANKS.VERSIONS, "vllm")
def ranks(bench: Bench) -> Iterator[Finding]:
    """Three steps of a tiny model on one rank, with sleep and checkpoints, then one more from the last checkpoint."""
    run, gpu = bench.folder / "ranks", ("--set", "model.device=cuda", "--set", f"model.dtype={bench.narrow}")
    nrt = [sys.executable, "-c", "from nrt_cli.cli import main; main()", "train"]
    for arguments in (["verl-cpu", *(gpu if bench.on_gpu else ())], ["--resume", "--steps", "4"]):
        done = subprocess.run([*nrt, *arguments, "--run", str(run)], cwd=bench.folder, check=False)
        if done.returncode:
            yield problem(
                f"`nrt train {' '.join(arguments)}` failed", "report it with the JSON file, which has its output."
            )
            return
    gaps = [record["sampler_gap"] for record in Run.open(run).metrics()]
    told = ", ".join(f"{gap:.1e}" for gap in gaps)
    found = f"{len(gaps)} steps, the last of them resumed; the sampler's log-probs differ by {told} nats"
    # Rounding of bfloat16 in a model of this size; a sampler with other weights is off by far more.
    far = len(gaps) < 4 or not max(gaps) < (0.1 if bench.on_gpu else 1e-3)
    yield judged(found, "the sampler does not run the ranks' weights: report this." if far else "", {"gaps": gaps})


# --- a process for each ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of a step: its findings, and the seconds it took of those it had."""

    step: str
    seconds: float
    limit: float
    findings: tuple[Finding, ...]
    log: tuple[str, ...] = ()
    """The end of what it printed, where something is not well."""

    @property
    def verdict(self) -> str:
        """The worst; skipped only where nothing was looked at."""
        verdicts = {finding.verdict for finding in self.findings}
        return next((each for each in ("problem", "warning", "ok") if each in verdicts), "skipped")


def checked(folder: Path, device: str = "cuda", size: str = "card") -> Iterator[Outcome]:
    """What comes of each step, one after another; the model and whatever they write lie in `folder`, some GB."""
    hopeless = ""
    for each in STEPS.values():
        names = [f"{name}-cpu" if device == "cpu" and name == "vllm" else name for name in each.needs]
        lack = [name for name in names if version(name) is None]
        if hopeless or lack:
            found = hopeless or f"{', '.join(lack)} is not installed"
            finding = Finding(each.name, "skipped", found, "`nrt help clusters` says what it takes.")
            yield Outcome(each.name, 0.0, each.limit, (finding,))
            continue
        outcome = in_a_process(each, device, size, folder)
        yield outcome
        if each.name == DRIVER and outcome.verdict == "problem":
            hopeless = "torch has no GPU"


def in_a_process(each: Step, device: str, size: str, folder: Path) -> Outcome:
    """A step in a process of its own, which is ended at its limit with all that it started."""
    said, log = folder / "findings.jsonl", folder / "log"
    said.unlink(missing_ok=True)
    arguments = (each.name, device, size, str(folder), str(said))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()", *arguments],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # so that what it starts in turn can be ended with it
        )
        try:
            code = process.wait(each.limit)
            ended = f"its process ended with {code}" if code else ""
            if code < 0:
                ended = f"its process was ended by {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            ended = f"it was not done after {each.limit:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - started
    lines = said.read_text(encoding="utf-8").splitlines() if said.exists() else []
    findings = [Finding(**json.loads(line)) for line in lines]
    if ended or not findings:
        found = ended or "it found nothing"
        findings.append(Finding(each.name, "problem", found, "report it with the JSON file, which has its output."))
    outcome = Outcome(each.name, seconds, each.limit, tuple(findings))
    if outcome.verdict in ("problem", "warning"):
        printed = log.read_text(encoding="utf-8", errors="replace").splitlines()
        outcome = replace(outcome, log=tuple(printed[-KEPT_LINES:]))
    return outcome


def main() -> None:
    """The process of one step: `NAME DEVICE SIZE FOLDER FILE`, findings as lines of JSON into the file as they come."""
    name, device, size, folder, file = sys.argv[1:]
    bench = Bench(torch.device(device), SIZES[size], Path(folder))
    with Path(file).open("a", encoding="utf-8") as said:
        for finding in guarded(name, lambda: STEPS[name].look(bench)):
            said.write(json.dumps(measured(asdict(finding)), default=str) + "\n")
            said.flush()


def report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything, JSON-ready: what a user can attach to a report."""
    versions = {name: version(name) for name in (*PACKAGES, "triton", "flash-attn", "bitsandbytes", "trl")}
    python = {"python": platform.python_version(), "system": platform.platform(), "cpu": machine.cpu_name()}
    steps = [{**asdict(outcome), "verdict": outcome.verdict} for outcome in outcomes]
    found: dict[str, Any] = measured({"versions": versions | python, "steps": steps})
    return found
