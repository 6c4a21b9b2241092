"""What a training run will take: tokens, memory, hours, disk. Arithmetic on shapes, made before anything starts.

The counts of work and bytes are those of the architecture. The rates are assumptions, each stated in the plan that uses
it: they have not been measured on the GPUs that a plan is for.
"""

import math
from dataclasses import replace

from nrt_cli.config import RunConfig, flatten
from nrt_cli.measures.held_out import SLACK
from nrt_cli.objective.logprobs import KEPT_ELEMENTS
from nrt_cli.records import Gpu, Lengths, ModelShape, Plan

UPDATE_RATE = 0.35
"""Share of the peak rate that forward and backward passes reach."""
BANDWIDTH_RATE = 0.6
"""Share of the memory's bandwidth that decoding reaches."""
CPU_UPDATE_RATE = 0.55
"""Share of its own matmul rate that a CPU's updates reach."""
CPU_DECODE_RATE = 0.5
"""The same of decoding. Both were measured on two AVX2 cores with half a billion parameters in float32, 32 rows decoded
together."""
ROLLOUT_FILL = 0.6
"""Mean share of decoding slots in use: towards the end of a step only the longest traces are left."""
TRACE_MORE = 100
"""Most tokens of trace of which a plan says what they would add: how long traces become shows only in training."""
PAUSE = 15.0
"""Seconds of a step with rollouts besides: weights to the sampler, waking and sleeping, storing."""
SLOTS = 256
"""Sequences that one vLLM server decodes at a time at most: verl's default."""
SAMPLER_SHARE = 0.6
"""Share of a GPU that vLLM takes for weights and cache: our default for verl."""
RESERVE = 2 << 30
"""Bytes of the CUDA context, of communication and of fragments."""
LOGIT_BYTES = 10
"""Bytes per logit: bfloat16 values, their gradient, and float32 copies of both while they are scored."""
NARROW, WIDE = 2, 4


def plan(config: RunConfig, model: ModelShape, examples: int, lengths: Lengths, gpu: Gpu) -> Plan:
    """Predict a run. Pure: everything it depends on is an argument.

    Args:
        examples: how many are left to train on after the caps.
        lengths: what to expect; where the caps are lower, those.
    """
    caps = _caps(config)
    least = {key: min(getattr(lengths, key), getattr(caps, key)) for key in ("prompt", "answer", "trace")}
    lengths = replace(lengths, **least)
    steps = config.train.steps or config.train.epochs * (examples // config.train.batch_size)
    minibatch = config.train.minibatch_size or config.train.batch_size
    memory = _update_memory(config, model)
    update = sum(size for _, size in memory)
    seconds, most = (_seconds(config, model, length, gpu) for length in (lengths, caps))
    hours = steps * config.parallel.ranks / 3600
    longer = replace(lengths, trace=min(lengths.trace + TRACE_MORE, caps.trace))
    more = (longer.trace - lengths.trace, hours * (_seconds(config, model, longer, gpu) - seconds))
    trained = _trained(config, model)
    # verl's checkpoints hold the weights as a Hugging Face folder too.
    weights = WIDE * (2 * model.parameters if config.engine.name == "verl" else trained)
    moments = (2 if config.optimiser.states == "8bit" else 2 * WIDE) * trained
    disk, disk_kept = disk_of(config, steps, weights + moments, model.parameters)
    traces = _trace_bytes(config, lengths, steps)
    return Plan(
        method=config.method,
        engine=config.engine.name,
        model=model,
        gpu=gpu,
        nodes=config.parallel.nodes,
        gpus=config.parallel.ranks,
        tensor=config.parallel.tensor,
        sequence=config.parallel.sequence,
        lengths=lengths,
        examples=examples,
        steps=steps,
        updates=steps * (config.train.batch_size // minibatch),
        sequences=config.train.batch_size * _traces(config),
        tokens=_tokens(config, lengths),
        tokens_most=_tokens(config, caps),
        memory=memory,
        memory_update=update,
        memory_rollout=_rollout_memory(config, model, gpu),
        seconds=seconds,
        scoring=_scoring_seconds(config, model, lengths, gpu, steps),
        gpu_hours=seconds * hours,
        gpu_hours_most=most * hours,
        disk=disk + traces,
        disk_kept=disk_kept + traces,
        assumptions=_assumptions(config, lengths, gpu, *more),
    )


def _caps(config: RunConfig) -> Lengths:
    """The most that every row can be."""
    data = config.data
    return Lengths(data.max_prompt_tokens, config.longest_answer, config.rollout.max_trace_tokens, "the caps")


def _traces(config: RunConfig) -> int:
    """Rows per prompt, without the null trace."""
    return 1 if config.method == "sft" else config.rollout.group_size


def _samples_with_vllm(config: RunConfig) -> bool:
    return config.method != "sft" and (config.engine.name == "verl" or config.rollout.engine == "vllm")


def _row(config: RunConfig, lengths: Lengths) -> float:
    """Tokens of one row: prompt, t_start, trace, t_end, answer; a direct answer has neither trace nor think tokens."""
    if not config.thinks:
        return lengths.prompt + lengths.answer
    return lengths.prompt + min(lengths.trace + 2 + lengths.answer, config.longest_response)


def _tokens(config: RunConfig, lengths: Lengths) -> float:
    """Tokens that a step trains on."""
    return config.train.batch_size * _traces(config) * _row(config, lengths)


# --- memory ----------------------------------------------------------------------------------------------------------


def _block(model: ModelShape) -> int:
    """Parameters of one layer: attention's four matrices and the gated MLP's three."""
    attention = model.hidden * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    return attention + 3 * model.hidden * model.intermediate


def _trained(config: RunConfig, model: ModelShape) -> float:
    """Parameters that have gradients and moments: all, or a low-rank update of every linear layer."""
    rank = config.model.lora.rank
    if rank is None:
        return model.parameters
    inner = model.head_dim * (model.heads + model.kv_heads)
    sides = 4 * model.hidden + 2 * inner + 3 * (model.hidden + model.intermediate)
    return rank * model.layers * sides


def _update_memory(config: RunConfig, model: ModelShape) -> tuple[tuple[str, float], ...]:
    """Bytes per GPU during an update, by part. FSDP shards what is kept; activations are each rank's own."""
    ranks, width = config.parallel.ranks, NARROW if config.model.dtype == "bfloat16" else WIDE
    trained = _trained(config, model)
    # FSDP multiplies with copies that it gathers layer by layer; the local engine keeps a narrow copy of all.
    copies: float = model.parameters * width if width == NARROW else 0.0
    if config.engine.name == "verl":
        copies = width * (3 * _block(model) + model.vocab * model.hidden * (1 if model.tied else 2))
    row = _row(config, _caps(config))
    # No pass holds more than a rank's part of a minibatch.
    most = (config.train.minibatch_size or config.train.batch_size) * (_traces(config) + 1) * row / ranks
    tokens = min(most, max(config.train.micro_batch_tokens, row / config.parallel.sequence))
    return (
        ("float32 weights", WIDE * _masters(config, model) / ranks),
        ("gradients", WIDE * _gathered(config, model) / ranks),
        ("moments", _moment_bytes(config) * trained / ranks),
        ("weights as they are multiplied", copies),
        ("activations", tokens * _activation_bytes(config, model, width)),
        ("logits", _logits(config, model, tokens) * LOGIT_BYTES * width / NARROW),
        ("reserve", RESERVE if config.model.dtype == "bfloat16" else RESERVE / 4),
    )


def _masters(config: RunConfig, model: ModelShape) -> float:
    """Parameters kept in float32 on the device: FSDP keeps all, the local engine copies of what is trained."""
    if config.engine.name == "verl" or config.model.dtype == "float32":
        return model.parameters
    return _gathered(config, model)


def _gathered(config: RunConfig, model: ModelShape) -> float:
    """Parameters whose gradients are summed on the device."""
    return 0.0 if config.optimiser.states == "cpu" else _trained(config, model)


def _logits(config: RunConfig, model: ModelShape, tokens: float) -> float:
    """Logits there at a time: verl makes all of a pass at once, the local engine keeps a bounded number."""
    return tokens * model.vocab if config.engine.name == "verl" else min(tokens * model.vocab, KEPT_ELEMENTS)


def _moment_bytes(config: RunConfig) -> int:
    """Bytes per parameter that AdamW keeps beside the model."""
    return {"float32": 2 * WIDE, "8bit": 2, "cpu": 0}[config.optimiser.states]


def _activation_bytes(config: RunConfig, model: ModelShape, width: int) -> float:
    """Bytes per token of what the backward pass needs: each layer's inputs, and one layer's inside if recomputed."""
    inside = width * (8 * model.hidden + 2 * model.kv_heads * model.head_dim + 4 * model.intermediate)
    if config.model.gradient_checkpointing:
        return model.layers * model.hidden * width + inside
    return model.layers * inside


def _cache_bytes(model: ModelShape, width: int) -> int:
    """Bytes of keys and values per token."""
    return 2 * model.layers * model.kv_heads * model.head_dim * width


def _rollout_memory(config: RunConfig, model: ModelShape, gpu: Gpu) -> float:
    """Bytes per GPU while traces are sampled; the optimiser's stay where they are unless they are offloaded."""
    if config.method == "sft":
        return 0.0
    width = NARROW if config.model.dtype == "bfloat16" else WIDE
    moments = _moment_bytes(config) * _trained(config, model)
    kept = (WIDE * _masters(config, model) + moments) / config.parallel.ranks
    if _samples_with_vllm(config) and not math.isnan(gpu.bandwidth):
        share = _users(config, "gpu_memory_utilization", SAMPLER_SHARE)
        return share * gpu.memory + (0.0 if config.parallel.offload else kept)
    row = config.data.max_prompt_tokens + config.rollout.max_trace_tokens + 2
    rows = min(config.rollout.batch_rows, config.train.batch_size * config.rollout.group_size)
    return kept + (model.parameters * width if width == NARROW else 0) + rows * row * _cache_bytes(model, width)


def _users(config: RunConfig, name: str, default: float) -> float:
    """A number among verl's rollout settings, where the user gave it."""
    return float(flatten(config.verl).get(f"actor_rollout_ref.rollout.{name}", default))


# --- time ------------------------------------------------------------------------------------------------------------


def _work(model: ModelShape, tokens: float, context: float) -> float:
    """Products (times 2, for the sums) of a forward pass over tokens that each see `context` tokens on average."""
    multiplied = model.parameters - (0 if model.tied else model.vocab * model.hidden)
    attention = 2 * model.layers * model.heads * model.head_dim * context
    return 2 * tokens * (multiplied + attention)


def _seconds(config: RunConfig, model: ModelShape, lengths: Lengths, gpu: Gpu) -> float:
    """Seconds of one step; NaN where the device's rates are not known."""
    if math.isnan(gpu.bandwidth):
        return _cpu_seconds(config, model, lengths, gpu)
    row = _row(config, lengths)
    passes = 4 if config.model.gradient_checkpointing else 3
    work = passes * _work(model, _tokens(config, lengths), row / 2)
    if config.method != "sft":
        # Before the first update, what later minibatches need of the sampling policy; each null trace once.
        minibatch = config.train.minibatch_size or config.train.batch_size
        later = 1 - minibatch / config.train.batch_size
        null = config.train.batch_size * (lengths.prompt + lengths.answer + 2)
        work += _work(model, later * _tokens(config, lengths) + null, row / 2)
    update = work / (config.parallel.ranks * gpu.flops * UPDATE_RATE)
    return update if config.method == "sft" else update + _rollout_seconds(config, model, lengths, gpu) + PAUSE


def _cpu_seconds(config: RunConfig, model: ModelShape, lengths: Lengths, gpu: Gpu) -> float:
    """The same on a CPU, whose arithmetic is what takes time, in decoding too; a group's prompt is computed once."""
    tokens, row, prompts = _tokens(config, lengths), _row(config, lengths), config.train.batch_size
    if config.method != "sft":
        tokens = prompts * (lengths.prompt + _traces(config) * (row - lengths.prompt) + lengths.answer + 2)
    # No gradient is made of frozen weights.
    passes = (2 if config.model.lora.rank else 3) + config.model.gradient_checkpointing
    update = passes * _work(model, tokens, row / 2) / (gpu.flops * CPU_UPDATE_RATE)
    sampled = 0.0 if config.method == "sft" else prompts * (lengths.prompt + _traces(config) * lengths.trace)
    return update + _work(model, sampled, row / 2) / (gpu.flops * CPU_DECODE_RATE)


def _scoring_seconds(config: RunConfig, model: ModelShape, lengths: Lengths, gpu: Gpu, steps: int) -> float:
    """Seconds of all held-out scores on a CPU, where greedy answers are as long as they may be; NaN elsewhere.

    Of one that thinks every score samples a trace and thinks greedily; the first and the last answer with the null
    trace, directly and after another row's trace as well.
    """
    if not math.isnan(gpu.bandwidth):
        return math.nan
    trace, answer, pairs = (
        lengths.trace,
        min(lengths.answer + SLACK, config.longest_answer),
        config.train.validation_size,
    )
    scores = 1 + math.ceil(steps / (config.train.validate_every or steps)) if config.data.validation else 0
    each, ends = (2 * trace + answer, 2 * (trace + answer) + answer) if config.thinks else (trace + answer, 0.0)
    tokens = pairs * (scores * (lengths.prompt + each) + min(scores, 2) * ends)
    return _work(model, tokens, lengths.prompt + (trace + answer) / 2) / (gpu.flops * CPU_DECODE_RATE)


def _rollout_seconds(config: RunConfig, model: ModelShape, lengths: Lengths, gpu: Gpu) -> float:
    """Seconds of sampling: a pass over weights and caches yields one token for every sequence that is decoded."""
    servers = config.parallel.ranks / config.parallel.tensor
    sequences = config.train.batch_size * config.rollout.group_size / servers
    slots = min(_users(config, "max_num_seqs", SLOTS), sequences)
    width = NARROW if config.model.dtype == "bfloat16" else WIDE
    cache = slots * _cache_bytes(model, width) * (lengths.prompt + lengths.trace / 2)
    read = (model.parameters * width + cache) / (config.parallel.tensor * gpu.bandwidth * BANDWIDTH_RATE)
    computed = _work(model, slots, lengths.prompt + lengths.trace / 2) / (
        config.parallel.tensor * gpu.flops * UPDATE_RATE
    )
    passes = sequences * lengths.trace / (slots * ROLLOUT_FILL)
    return passes * max(read, computed)


# --- disk and words --------------------------------------------------------------------------------------------------


def disk_of(config: RunConfig, steps: int, checkpoint: float, parameters: float) -> tuple[float, float]:
    """Bytes of a run's checkpoints and exported model: the most while it goes on, and what is left.

    Args:
        checkpoint: bytes of one.
        parameters: of the model.
    """
    saved = math.ceil(steps / config.train.checkpoint_every)
    exported = parameters * (NARROW if config.model.dtype == "bfloat16" and config.engine.name == "local" else WIDE)
    if exported == parameters * WIDE and config.engine.name == "local" and config.model.lora.rank is None:
        exported = 0.0  # the same file as the last checkpoint's weights
    # The best is kept beside the newest; without scores in between it is the newest.
    best = bool(config.train.validate_every and config.data.validation)
    kept = min(config.train.keep_checkpoints + best, saved)
    # One more is there while it is written.
    most = min(config.train.keep_checkpoints + best + 1, saved)
    return most * checkpoint + exported, kept * checkpoint + exported


def _trace_bytes(config: RunConfig, lengths: Lengths, steps: int) -> float:
    """Bytes of stored traces. Measured on runs of SmolLM2-135M: ids, text and per-token numbers, compressed."""
    if config.method == "sft":
        return 0.0
    rows = steps * min(config.train.trace_groups, config.train.batch_size) * _traces(config)
    return rows * (12 * _row(config, lengths) + 24 * (lengths.trace + lengths.answer))


def _assumptions(config: RunConfig, lengths: Lengths, gpu: Gpu, more: float, hours: float) -> tuple[str, ...]:
    """What the prediction rests on, in sentences. `hours` are the GPU-hours of `more` tokens of trace."""
    said = [f"lengths of {lengths.source}: prompt {lengths.prompt:.0f}, answer {lengths.answer:.0f}"]
    if config.thinks:
        said[0] += f", trace {lengths.trace:.0f} tokens"
    if math.isnan(gpu.flops):
        return (*said, f"no time is predicted, since the rates of {gpu.name} are not known")
    if math.isnan(gpu.bandwidth):
        rates = f"{gpu.name}: {gpu.flops / 1e9:.0f} GFLOP/s, measured now; of which updates reach "
        return (*said, f"{rates}{CPU_UPDATE_RATE:.0%} and decoding {CPU_DECODE_RATE:.0%}, measured on another machine")
    rates = f"{gpu.name}: {gpu.flops / 1e12:.0f} TFLOP/s, of which updates reach {UPDATE_RATE:.0%}"
    if config.method != "sft":
        rates += f"; {gpu.bandwidth / 1e12:.2f} TB/s, of which decoding reaches {BANDWIDTH_RATE:.0%}"
        rates += f"; {PAUSE:.0f} s a step besides"
        said[0] += f"; {more:.0f} more tokens of trace are {hours:,.0f} GPU-hours more" if more else ""
    return (*said, f"{rates}; none of these rates was measured here")
