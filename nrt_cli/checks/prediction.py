"""What a whole run will take, from one small step of it: memory, time, disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from nrt_cli.checks.doctor_environment import available_memory
from nrt_cli.checks.doctor_model import Trial
from nrt_cli.checks.estimate import disk_of, in_bytes
from nrt_cli.checks.findings import Finding
from nrt_cli.config import RunConfig
from nrt_cli.training.start import Inputs

SAFE_SHARE = 0.9
"""Share of the available memory that a prediction may fill without a warning."""

LONG_DAYS = 7.0


def predict(config: RunConfig, inputs: Inputs, trial: Trial) -> Iterator[Finding]:
    """Memory, time and disk of the run that `config` asks for."""
    yield _memory(config, inputs, trial)
    yield _time(config, inputs, trial)
    yield _disk(config, inputs, trial)


def _memory(config: RunConfig, inputs: Inputs, trial: Trial) -> Finding:
    """A line through the peaks of two steps, at the tokens that the config's passes may have."""
    small, large = trial.passes[0], trial.passes[-1]
    most = large.memory.most
    slope = max(0.0, (most - small.memory.most) / max(1, large.tokens - small.tokens))
    target = min(config.train.micro_batch_tokens, config.train.batch_size * _longest_rows(config, inputs))
    need = most + slope * max(0, target - large.tokens)
    room = available_memory(trial.engine.backend.policy.device) + large.memory.after
    found = (
        f"{most / 1e9:.1f} GB at {large.tokens} tokens a pass; about {need / 1e9:.1f} GB at {target}, "
        f"of {room / 1e9:.1f} GB"
    )
    details = {"measured": most, "tokens": large.tokens, "predicted": need, "at_tokens": target, "room": room}
    if need > SAFE_SHARE * room:
        do = (
            "lower train.micro_batch_tokens (same result), or set model.gradient_checkpointing=true, "
            "model.lora.rank=32 or optimiser.states=8bit."
        )
        return Finding("memory", "warning", found, do, details)
    return Finding("memory", "ok", found, details=details)


def _longest_rows(config: RunConfig, inputs: Inputs) -> int:
    """Tokens of one question's rows at the caps."""
    if config.method == "sft":
        return inputs.train.longest
    return (config.rollout.group_size + 1) * inputs.train.longest_with(config.rollout.trace_cap)


def _time(config: RunConfig, inputs: Inputs, trial: Trial) -> Finding:
    """Seconds of a step, if traces stay as long as now and if all run into the cap."""
    metrics = trial.update.metrics
    questions = config.train.batch_size / len(trial.examples)
    per_token = metrics["seconds_update"] / metrics["tokens"]
    low = high = metrics["seconds_update"] * questions
    basis = f"{len(trial.examples)} questions"
    if trial.groups:
        group = config.rollout.group_size / len(trial.groups[0].rollouts)
        length = max(metrics["trace_length"], 1.0)
        sampled = metrics["seconds_rollout"] * questions * group
        traces = config.train.batch_size * config.rollout.group_size
        longer = config.rollout.max_trace_tokens - length
        low = low * group + sampled
        high = low + traces * longer * per_token + sampled * longer / length
        basis += f" with {len(trial.groups[0].rollouts)} traces of {length:.0f} tokens"
    steps = inputs.steps
    found = f"a step {_span(low)} to {_span(high)}, {steps} steps {_span(low * steps)} to {_span(high * steps)}"
    found += f" (from {basis}; without held-out scores)"
    details = {"step_seconds": [low, high], "steps": steps, "total_seconds": [low * steps, high * steps]}
    if low * steps > LONG_DAYS * 86400:
        do = (
            "lower train.batch_size, rollout.group_size, rollout.max_trace_tokens or --steps, or take a faster machine."
        )
        return Finding("time", "warning", found, do, details)
    return Finding("time", "ok", found, details=details)


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _disk(config: RunConfig, inputs: Inputs, trial: Trial) -> Finding:
    """Checkpoints with the moments, and the exported model."""
    tensors = trial.engine.backend.optimiser.state().values()
    checkpoint = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    parameters = sum(weight.numel() for weight in trial.engine.backend.policy.model.parameters())
    need, kept = disk_of(config, inputs.steps, checkpoint, parameters)
    free = shutil.disk_usage(Path.cwd()).free
    found = (
        f"about {in_bytes(need)} for checkpoints and model, {in_bytes(kept)} when it is done; {in_bytes(free)} are free"
    )
    details = {"needed": need, "kept": kept, "free": free, "checkpoint": checkpoint}
    if need > SAFE_SHARE * free:
        do = "make room (`nrt runs gc`), lower train.keep_checkpoints, or name another disk with --run."
        return Finding("disk", "warning", found, do, details)
    return Finding("disk", "ok", found, details=details)
