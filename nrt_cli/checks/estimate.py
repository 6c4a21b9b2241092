"""What a training run will take: tokens, memory, hours, disk; by arithmetic (`plan_for`), or as measured (`refined`).

The counts of work and bytes are those of the architecture. The rates are assumptions, not measured on the GPUs that a
plan is for, each stated in the plan that uses it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nrt_cli import methods
from nrt_cli.backends import machine
from nrt_cli.backends.local.decoding import ROWS
from nrt_cli.backends.local.throughput import matmul_ceiling
from nrt_cli.config import ModelSection, RunConfig, flatten
from nrt_cli.config.schema import SLACK
from nrt_cli.data.examples import ExampleSet
from nrt_cli.data.sources import open_sources
from nrt_cli.measures.statistics import mean
from nrt_cli.models.loading import resolved
from nrt_cli.models.shapes import model_shape
from nrt_cli.objective.logprobs import KEPT_ELEMENTS
from nrt_cli.records import Gpu, Lengths, ModelShape, Plan

if TYPE_CHECKING:
    from nrt_cli.checks.trial import Trial

GIB, GB = 2**30, 1e9

PAPER_EXAMPLES = 204_800
ASSUMED = "(answers: Table 5 and App. D of the paper; traces, of which it prints no number, alike)"
PAPER_LENGTHS = Lengths(256, 416, 416, f"no data here, but assumed {ASSUMED}")
"""Where there is no data to count and measure: the paper's subset of tulu-3-sft-mixture (Table 4)."""
CHARACTERS = 4.0
"""Of a token in English, about."""
TEMPLATE = 32
"""Tokens that a chat template adds to a question, about."""

UPDATE_RATE = 0.2
"""Share of the peak rate that forward and backward passes reach, with all that they wait for. Held against the step
that NeMo RL 0.4 publishes, as `PUBLISHED` says: a test compares."""
PUBLISHED = "NeMo RL 0.4's published 97.7 s a step (Llama-3.1-8B, GRPO, 16 H100, 2,048 rows of 1,060 tokens)"
BANDWIDTH_RATE = 0.6
"""Share of the memory's bandwidth that decoding reaches."""
CPU_UPDATE_RATE = 0.55
"""Share of its own matmul rate that a CPU's updates reach."""
CPU_DECODE_RATE = 0.5
"""The same of decoding. Both measured on two AVX2 cores, half a billion parameters in float32, 32 rows decoded."""
TRACE_MORE = 100
"""Most tokens of trace of which a plan says what they would add: how long traces become shows only in training."""
PAUSE = 15.0
"""Seconds of a step with rollouts besides: weights to the sampler, waking and sleeping, storing."""
SAMPLER_SHARE = 0.6
"""Share of a GPU that vLLM takes for weights and cache: our default for verl."""
RESERVE = 2 << 30
"""Bytes of the CUDA context, of communication and of fragments."""
LOGIT_BYTES = 10
"""Bytes per logit: bfloat16 values, their gradient, and float32 copies of both while they are scored."""
NARROW, WIDE = 2, 4


def plan_for(
    config: RunConfig,
    examples: ExampleSet | int | None = None,
    lengths: Lengths | None = None,
    shape: ModelShape | None = None,
) -> Plan:
    """What a run of this config will take, on the GPUs here or, where there are none to ask, on assumed ones.

    The model need not be there yet if it is one whose shape is known, nor the data: a number of examples and `lengths`
    then say what to expect, or the paper's numbers do. Raises ModelError for a model that is neither there nor known.
    """
    gpu = device(config)
    if config.model.dtype == "auto":
        on_cpu = gpu.name == machine.cpu().name
        dtype = resolved(ModelSection(device="cpu")).dtype if on_cpu else "bfloat16"
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    if isinstance(examples, ExampleSet):
        # How long traces will be shows only in training.
        assumed = (PAPER_LENGTHS.trace, "the data, traces assumed")
        about = assumed if examples.mean_trace is None else (examples.mean_trace, "the data")
        lengths, examples = Lengths(*examples.means, *about), len(examples)
    shape = shape or model_shape(config.model.path)
    return plan(config, shape, examples or PAPER_EXAMPLES, lengths or PAPER_LENGTHS, gpu)


def device(config: RunConfig) -> Gpu:
    """What a run computes on: a GPU that is here, this CPU, or where several GPUs are asked for, an assumed kind."""
    if config.model.device != "cpu" and machine.gpus():
        return machine.gpu()
    if config.model.device != "cpu" and config.parallel.ranks > 1:
        return machine.ASSUMED
    if config.backend.DISTRIBUTED:
        return machine.cpu()
    section = resolved(config.model.model_copy(update={"device": "cpu"}))
    rate = matmul_ceiling(torch.device("cpu"), getattr(torch, section.dtype), torch.get_num_threads())
    return replace(machine.cpu(), flops=rate)


def lengths_of_text(sources: Sequence[str], suffix: str | None) -> Lengths:
    """What to expect of the pairs of sources before there is a tokenizer to count with."""
    rows = [row.values for source in open_sources(sources) for row in source.rows()]
    prompt, answer = (mean([len(row[key]) for row in rows]) / CHARACTERS for key in ("question", "answer"))
    prompt += len(suffix or "") / CHARACTERS + TEMPLATE
    return Lengths(prompt, answer + 1, PAPER_LENGTHS.trace, f"texts, at {CHARACTERS:.0f} characters a token")


def plan(config: RunConfig, model: ModelShape, examples: int, lengths: Lengths, gpu: Gpu) -> Plan:
    """Predict a run. Pure: everything it depends on is an argument, and the dtype is resolved.

    `examples` are left to train on after the caps; `lengths` are what to expect, or the caps where those are lower.
    """
    train, rollout, parallel = config.train, config.rollout, config.parallel
    sampled, distributed = config.samples, config.backend.DISTRIBUTED
    width = NARROW if config.model.dtype == "bfloat16" else WIDE
    caps = Lengths(config.data.max_prompt_tokens, config.longest_answer, rollout.max_trace_tokens, "the caps")
    least = {key: min(getattr(lengths, key), getattr(caps, key)) for key in ("prompt", "answer", "trace")}
    lengths = replace(lengths, **least)
    steps = train.steps or train.epochs * (examples // train.batch_size)
    minibatch = train.minibatch_size or train.batch_size
    traces = rollout.group_size if sampled else 1  # rows per prompt, without the null trace
    answers = "answers" in config.asks  # each trace has a second row, with the answer that was sampled after it
    traces *= 1 + answers
    of_verl = flatten(config.verl)

    def row_of(lengths: Lengths) -> float:
        """Tokens of a row: prompt, t_start, trace, t_end, answer; a direct answer has no trace and no think tokens."""
        if not config.thinks:
            return lengths.prompt + lengths.answer
        return lengths.prompt + min(lengths.trace + 2 + lengths.answer, config.longest_response)

    def tokens_of(lengths: Lengths) -> float:
        return train.batch_size * traces * row_of(lengths)

    # Memory of an update, per GPU. FSDP shards what is kept; activations are each rank's own.
    inner = model.head_dim * (model.heads + model.kv_heads)
    trained: float = model.parameters  # parameters that have gradients and moments
    if config.model.lora.rank is not None:  # a low-rank update of every linear layer
        sides = 4 * model.hidden + 2 * inner + 3 * (model.hidden + model.intermediate)
        trained = config.model.lora.rank * model.layers * sides
    # FSDP keeps all in float32 on the device, the local engine copies of what is trained.
    away = config.optimiser.states == "cpu" and not math.isnan(gpu.bandwidth)  # from a GPU to the CPU's memory
    masters = 0.0 if away else trained
    if distributed or config.model.dtype == "float32":
        masters = model.parameters
    moments = 0.0 if away else (2 if config.optimiser.states == "8bit" else 2 * WIDE) * trained
    # FSDP multiplies with copies that it gathers layer by layer; the local engine keeps a narrow copy of all.
    copies: float = model.parameters * width if width == NARROW else 0.0
    if distributed:
        # Attention's four matrices and the gated MLP's three.
        layer = 2 * model.hidden * inner + 3 * model.hidden * model.intermediate
        copies = width * (3 * layer + model.vocab * model.hidden * (1 if model.tied else 2))
    # No pass holds more than a rank's part of a minibatch.
    longest = row_of(caps)
    most = minibatch * (traces + 1) * longest / parallel.ranks
    budget = max(train.micro_batch_tokens, longest / parallel.sequence)
    in_a_pass = min(most, budget)
    # What the backward pass needs of a token: each layer's inputs, and one layer's inside if it is recomputed.
    inside = width * (8 * model.hidden + 2 * model.kv_heads * model.head_dim + 4 * model.intermediate)
    activation = model.layers * inside
    if config.model.gradient_checkpointing:
        activation = model.layers * model.hidden * width + inside
    # No more logits are kept than that, however long a pass.
    logits = min(in_a_pass * model.vocab, KEPT_ELEMENTS)
    # The starting model as it is multiplied, or FSDP's float32 share of it; the slow copy is as precise as the masters.
    starting = model.parameters * (WIDE / parallel.ranks if distributed else width) if "reference" in config.asks else 0
    slow = WIDE * trained / parallel.ranks if "follower" in config.asks else 0
    memory = (
        ("float32 weights", WIDE * masters / parallel.ranks),
        ("gradients", WIDE * trained / parallel.ranks),
        ("moments", moments / parallel.ranks),
        ("weights as they are multiplied", copies),
        ("starting model", starting),
        ("slow copy", slow),
        ("activations", in_a_pass * activation),
        ("logits", logits * LOGIT_BYTES * width / NARROW),
        ("reserve", RESERVE if width == NARROW else RESERVE / 4),
    )

    # Memory while traces are sampled; the optimiser's stay where they are unless they are offloaded.
    cache = 2 * model.layers * model.kv_heads * model.head_dim * width  # bytes of keys and values per token
    kept = (WIDE * masters + moments) / parallel.ranks + starting + slow
    if not sampled:
        memory_rollout = 0.0
    elif (distributed or rollout.engine == "vllm") and not math.isnan(gpu.bandwidth):
        share = float(of_verl.get("actor_rollout_ref.rollout.gpu_memory_utilization", SAMPLER_SHARE))
        memory_rollout = share * gpu.memory + (0.0 if parallel.offload else kept)
    else:
        decoded = min(rollout.batch_rows or ROWS, train.batch_size * rollout.group_size)
        memory_rollout = kept + (model.parameters * width if width == NARROW else 0)
        memory_rollout += decoded * (caps.prompt + caps.trace + 2 + answers * (caps.answer + SLACK)) * cache

    def work(tokens: float, context: float) -> float:
        """Products (times 2, for the sums) of a forward pass over tokens that each see `context` tokens on average."""
        multiplied = model.parameters - (0 if model.tied else model.vocab * model.hidden)
        attention = 2 * model.layers * model.heads * model.head_dim * context
        return 2 * tokens * (multiplied + attention)

    def seconds_of(lengths: Lengths) -> float:
        """Seconds of one step; NaN where the device's rates are not known."""
        row, tokens, null = row_of(lengths), tokens_of(lengths), lengths.prompt + lengths.answer + 2
        # Read again, and gone on from.
        answered = answers * (lengths.prompt + lengths.trace + lengths.answer)
        if math.isnan(gpu.bandwidth):
            # A CPU, whose arithmetic is what takes time, in decoding too; a group's prompt is computed once.
            decoding = 0.0
            if sampled:
                tokens = train.batch_size * (lengths.prompt + traces * (row - lengths.prompt) + lengths.answer + 2)
                decoding = train.batch_size * (lengths.prompt + rollout.group_size * (lengths.trace + answered))
            # No gradient is made of frozen weights.
            passes = (2 if config.model.lora.rank else 3) + config.model.gradient_checkpointing
            update = passes * work(tokens, row / 2) / (gpu.flops * CPU_UPDATE_RATE)
            return update + work(decoding, row / 2) / (gpu.flops * CPU_DECODE_RATE)
        products = (4 if config.model.gradient_checkpointing else 3) * work(tokens, row / 2)
        if sampled:
            # Before the first update, what later minibatches need of the sampling policy; each null trace once.
            later = 1 - minibatch / train.batch_size
            products += work(later * tokens + train.batch_size * null, row / 2)
            products += len(config.asks & {"reference", "follower", "guide"}) * work(tokens, row / 2)
            # A group that does not fit a pass is scored before it is updated; the local engine has its prompt once.
            shared = 0.0 if distributed else traces * lengths.prompt
            if traces * row + null - shared > budget:
                products += work(tokens, row / 2)
        update = products / (parallel.ranks * gpu.flops * UPDATE_RATE)
        if not sampled:
            return update
        # A pass over weights and caches yields one token for every sequence that is decoded.
        sequences = train.batch_size * rollout.group_size / (parallel.ranks / parallel.tensor)  # of each server
        slots = min(rollout.batch_rows or machine.GPU_ROWS, sequences)  # of a server
        context = lengths.prompt + lengths.trace / 2
        fetch = 1 / (parallel.tensor * gpu.bandwidth * BANDWIDTH_RATE)  # seconds of a byte
        read = (model.parameters * width + slots * cache * context) * fetch
        computed = work(slots, context) / (parallel.tensor * gpu.flops * UPDATE_RATE)
        # In the end the longest trace goes on alone; of so many, one comes to its cap.
        tail = (caps.trace - lengths.trace) * model.parameters * width * fetch
        decoded = lengths.trace + answers * lengths.answer
        return update + sequences * decoded / slots * max(read, computed) + tail + PAUSE

    hours = steps * parallel.ranks / 3600
    seconds, seconds_most = seconds_of(lengths), seconds_of(caps)
    longer = replace(lengths, trace=min(lengths.trace + TRACE_MORE, caps.trace))

    # Held-out scores on a CPU, with greedy answers as long as they may be. Thinking, every score samples a trace and
    # thinks greedily; the first and last answer with the null trace, directly and after another row's trace as well.
    scoring = math.nan
    if math.isnan(gpu.bandwidth):
        trace, answer = lengths.trace, min(lengths.answer + SLACK, caps.answer)
        scores = 1 + math.ceil(steps / (train.validate_every or steps)) if config.data.validation else 0
        each, ends = (2 * trace + answer, 2 * (trace + answer) + answer) if config.thinks else (trace + answer, 0.0)
        scored = train.validation_size * (scores * (lengths.prompt + each) + min(scores, 2) * ends)
        scoring = work(scored, lengths.prompt + (trace + answer) / 2) / (gpu.flops * CPU_DECODE_RATE)

    # verl's checkpoints hold the weights as a Hugging Face folder too.
    checkpoint = WIDE * (2 * model.parameters if distributed else trained)
    checkpoint += parallel.ranks * slow + (2 if config.optimiser.states == "8bit" else 2 * WIDE) * trained
    disk, disk_kept = disk_of(config, steps, checkpoint, model.parameters)
    stored = 0.0
    if sampled:  # traces: measured on runs of SmolLM2-135M, ids, text and per-token numbers, compressed
        rows = steps * min(train.trace_groups, train.batch_size) * traces
        stored = rows * (12 * row_of(lengths) + 24 * (lengths.trace + lengths.answer))

    expected = f"lengths of {lengths.source}: prompt {lengths.prompt:.0f}, answer {lengths.answer:.0f}"
    if config.thinks:
        expected += f", trace {lengths.trace:.0f} tokens"
    if math.isnan(gpu.flops):
        rates = f"no time is predicted, since the rates of {gpu.name} are not known"
    elif math.isnan(gpu.bandwidth):
        rates = f"{gpu.name}: {gpu.flops / 1e9:.0f} GFLOP/s, measured now; of which updates reach "
        rates += f"{CPU_UPDATE_RATE:.0%} and decoding {CPU_DECODE_RATE:.0%}, measured on another machine"
    else:
        rates = f"{gpu.name}: {gpu.flops / 1e12:.0f} TFLOP/s, of which updates reach {UPDATE_RATE:.0%}"
        if sampled:
            rates += f"; {gpu.bandwidth / 1e12:.2f} TB/s, of which decoding reaches {BANDWIDTH_RATE:.0%}"
            rates += f"; {PAUSE:.0f} s a step besides"
            if more := longer.trace - lengths.trace:
                added = hours * (seconds_of(longer) - seconds)
                expected += f"; {more:.0f} more tokens of trace are {added:,.0f} GPU-hours more"
            rates += f"; together they give {PUBLISHED} within a tenth"
        rates += "; none of these rates was measured here"
    besides = methods.asked(methods.loaded(config.method))
    return Plan(
        method=config.method,
        engine=config.engine.name,
        model=model,
        gpu=gpu,
        nodes=parallel.nodes,
        gpus=parallel.ranks,
        tensor=parallel.tensor,
        sequence=parallel.sequence,
        lengths=lengths,
        examples=examples,
        steps=steps,
        updates=steps * (train.batch_size // minibatch),
        sequences=train.batch_size * traces,
        tokens=tokens_of(lengths),
        tokens_most=tokens_of(caps),
        memory=memory,
        memory_update=sum(size for _, size in memory),
        memory_rollout=memory_rollout,
        # Weights, their gradients and two moments.
        memory_host=4 * WIDE * trained if away else 0.0,
        seconds=seconds,
        scoring=scoring,
        gpu_hours=seconds * hours,
        gpu_hours_most=seconds_most * hours,
        disk=disk + stored,
        disk_kept=disk_kept + stored,
        assumptions=(expected, rates, *([f"computed besides: {besides}"] if besides else [])),
    )


def disk_of(config: RunConfig, steps: int, checkpoint: float, parameters: float) -> tuple[float, float]:
    """Bytes of a run's checkpoints (each of `checkpoint`) and exported model: at most, and what is left at its end."""
    train, local = config.train, not config.backend.DISTRIBUTED
    saved = math.ceil(steps / train.checkpoint_every)
    exported = parameters * (NARROW if config.model.dtype == "bfloat16" and local else WIDE)
    if exported == parameters * WIDE and local and config.model.lora.rank is None:
        exported = 0.0  # the same file as the last checkpoint's weights
    # The best is kept beside the newest; without scores in between it is the newest.
    kept = train.keep_checkpoints + bool(train.validate_every and config.data.validation)
    # One more is there while it is written.
    return min(kept + 1, saved) * checkpoint + exported, min(kept, saved) * checkpoint + exported


def refined(plan: Plan, config: RunConfig, trial: "Trial") -> Plan:
    """A plan with what two small steps measured in place of arithmetic; its disk is without stored traces."""
    # Memory: a line through the peaks of both steps, at the tokens that the run's passes may have.
    first, last, metrics = trial.passes[0], trial.passes[-1], trial.update.metrics
    slope = max(0.0, (last.most - first.most) / max(1, last.tokens - first.tokens))
    more = slope * max(0, trial.largest_pass - last.tokens)
    # Time: if traces stay as long as now, and if all run into the cap.
    questions = config.train.batch_size / len(trial.examples)
    low = high = metrics["seconds_update"] * questions
    basis = f"from {len(trial.examples)} questions"
    if trial.groups:
        sampled = len(trial.groups[0].rollouts)
        group, length = config.rollout.group_size / sampled, max(metrics["trace_length"], 1.0)
        rollout = metrics["seconds_rollout"] * questions * group
        traces, longer = config.train.batch_size * config.rollout.group_size, config.rollout.max_trace_tokens - length
        low = low * group + rollout
        high = low + traces * longer * metrics["seconds_update"] / metrics["tokens"] + rollout * longer / length
        basis += f" with {sampled} traces of {length:.0f} tokens"
    parameters = sum(weight.numel() for weight in trial.trainer.backend.policy.model.parameters())
    disk, disk_kept = disk_of(config, plan.steps, trial.checkpoint_bytes, parameters)
    return replace(
        plan,
        memory=(("measured", last.most), ("larger passes", more)),
        memory_update=last.most + more,
        memory_rollout=0.0,
        seconds=low,
        gpu_hours=low * plan.steps / 3600,
        gpu_hours_most=high * plan.steps / 3600,
        disk=disk,
        disk_kept=disk_kept,
        assumptions=(basis, "without held-out scores"),
    )


def describe(plan: Plan) -> list[tuple[str, str]]:
    """A plan as rows of (what, how much) for a table."""
    ranks = f"{plan.gpus} rank{'s' if plan.gpus > 1 else ''}"
    spread = f"{plan.nodes} x {plan.gpus // plan.nodes}, {ranks}"
    rows = [
        ("method, engine", f"{plan.method}, {plan.engine}"),
        ("model", f"{plan.model.name}, {plan.model.parameters:,} parameters"),
        ("nodes x GPUs", f"{spread} on {plan.gpu.name} (tensor {plan.tensor}, sequence {plan.sequence})"),
        ("steps", f"{plan.steps:,} of {plan.examples:,} examples, {plan.updates:,} optimiser steps"),
        ("a step", f"{plan.sequences:,} rows, {plan.tokens:,.0f} tokens expected, {plan.tokens_most:,.0f} at the caps"),
        ("memory per rank", f"{plan.memory_peak / GIB:.1f} of {plan.gpu.memory / GIB:.0f} GiB predicted"),
        ("  update", f"{plan.memory_update / GIB:.1f} GiB: {parts_text(plan)}"),
    ]
    if plan.memory_rollout:
        rows.append(("  rollouts", f"{plan.memory_rollout / GIB:.1f} GiB"))
    if plan.memory_host:
        rows.append(("  in the CPU's memory", f"{plan.memory_host / GIB:.1f} GiB of states"))
    if plan.seconds == plan.seconds:
        hours, on_gpu = plan.gpu_hours / plan.gpus, not math.isnan(plan.gpu.bandwidth)
        more = f", {plan.gpu_hours:,.0f} GPU-hours" if on_gpu else ""
        rows.append(("time", f"{plan.seconds:.{0 if plan.seconds >= 10 else 2}f} s a step, {in_hours(hours)}{more}"))
        most = f"{plan.gpu_hours_most:,.0f} GPU-hours" if on_gpu else in_hours(plan.gpu_hours_most)
        rows.append(("  at the caps", most))
        if plan.scoring == plan.scoring:
            rows.append(("  held-out scores", f"{in_hours(plan.scoring / 3600)} at most"))
    rows.append(("disk", disk_text(plan)))
    return rows + [("assuming", text) for text in plan.assumptions]


def in_hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def parts_text(plan: Plan) -> str:
    return ", ".join(f"{what} {size / GIB:.1f}" for what, size in plan.memory if size)


def disk_text(plan: Plan) -> str:
    return f"{in_bytes(plan.disk)} at most, {in_bytes(plan.disk_kept)} when it is done"


def in_bytes(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"
