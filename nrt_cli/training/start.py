"""Before the first step: which config holds, what the run starts from, and whether it may start or go on there."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nrt_cli import config as configs
from nrt_cli import console, methods
from nrt_cli.backends.machine import PACKAGES, cpu_name, version
from nrt_cli.backends.samplers import pick_engine
from nrt_cli.commandline import pasted, resume, settings, this_command
from nrt_cli.config import RunConfig
from nrt_cli.data.examples import ExampleSet, Pairs, References, graded_pairs, load_examples, suffix_of
from nrt_cli.data.prepare import made_with
from nrt_cli.errors import ConfigError, DataError, ModelError, StoreError
from nrt_cli.files import digest_of_digests
from nrt_cli.grading.grading import Pair, find
from nrt_cli.grading.verdicts import require_verifier
from nrt_cli.models.loading import load_tokens, pick_device, positions, require_model, resolved
from nrt_cli.models.metadata import model_fault, read_metadata
from nrt_cli.models.sources import METADATA, model_files
from nrt_cli.records import Example, Overlap
from nrt_cli.store import Run
from nrt_cli.text.tokens import ThinkTokens
from nrt_cli.training.locate import locate_inputs
from nrt_cli.training.verifying import Verifying

FREE_ON_RESUME = (
    *("model.path", "model.gradient_checkpointing", "engine.packing", "engine.patience", "rollout.batch_rows"),
    *("data.train", "data.validation", "data.strict", "train.steps", "train.epochs", "train.micro_batch_tokens"),
    *("train.checkpoint_every", "train.keep_checkpoints", "train.validate_every", "train.trace_groups"),
    *("train.on_collapse", "train.threads", "track.to", "track.project"),
)
"""Keys that may change when a run is resumed: none changes what a step does. Moved files must be the same files."""

OTHER_COMMANDS = ("eval.", "judge.")
"""Sections that training does not read."""


@dataclass(frozen=True)
class Inputs:
    """What a run starts from, tokenised and counted. `held_out` are the validation examples that are scored."""

    train: ExampleSet
    validation: ExampleSet | None
    held_out: list[Example]
    pairs: list[Pair]
    """Of each held-out example, the reference answer as text and the name of its grader."""
    steps: int
    fingerprints: dict[str, str]
    judged: Pairs | None = None
    """The pairs that are trained on, where answers to them are sampled and judged."""

    def verifying(self, tokenizer: Any, tokens: ThinkTokens) -> Verifying | None:
        """Who judges, where the method asks for verdicts."""
        return Verifying(self.judged, tokenizer, tokens) if self.judged else None

    def left_out(self) -> list[str]:
        """What was dropped of both, in words, and how many examples have a reference trace."""
        held_out = self.validation.left_out("of what is held out") if self.validation else []
        traces, reads = [], f"--method {methods.SUPERVISED.name} --set data.traces=true"
        if self.train.traces:
            how = "" if self.train.mean_trace is not None else f", not read without {reads}"
            traces = [f"reference traces: {self.train.traces:,} of {len(self.train):,} examples have one{how}"]
        return self.train.left_out("before training") + held_out + traces


def new_config(config: RunConfig | None) -> RunConfig:
    """Each `auto` becomes what it means on this machine, so that the record says what was computed."""
    if config is None:
        raise ConfigError(
            "give a config, for example `nrt train laptop --model MODEL --data PARQUET`, or --resume with --run."
        )
    config = locate_inputs(config)
    methods.get(config.method, config.objective)  # a user's own is refused before anything is begun
    device = pick_device(config.model.device)
    engine = config.backend.sampler(config) or pick_engine(config.rollout.engine, config.samples, device)
    return config.model_copy(
        update={"model": resolved(config.model), "rollout": config.rollout.model_copy(update={"engine": engine})}
    )


def resumed_config(run: Run, config: RunConfig | None, changes: Sequence[Mapping[str, Any]]) -> RunConfig:
    """The run's own config with changes on top, or the one given; never a different experiment."""
    stored = run.config()
    old = new_config(stored)
    config = new_config(run.config(*changes) if config is None else configs.as_old(config, stored))
    differences = [row for row in configs.diff(old, config) if not row[0].startswith(OTHER_COMMANDS)]
    free = set(FREE_ON_RESUME)
    if config.optimiser.schedule != "constant" or config.optimiser.warmup:
        free -= {"train.steps", "train.epochs"}  # the schedule is a function of the number of steps
    if changed := [row for row in differences if row[0] not in free]:
        keys = ", ".join(f"{key} ({before} -> {after})" for key, before, after in changed)
        raise ConfigError(
            f"{run.path}: cannot resume with another config: {keys}. Start a new run, or drop the change; "
            f"`{resume(run.path)}` goes on with the run's own config."
        )
    return config


def load_inputs(config: RunConfig) -> Inputs:
    """Tokenise the data and check that it fits model and batch."""
    if not config.data.train:
        raise ConfigError(
            "no data given; give --data a file made by `nrt data prepare`, or try `nrt quickstart`, which makes some."
        )
    named = {"train": config.data.train, "validation": config.data.validation}
    files = {name: Path(file) for name, file in named.items() if file}
    for name, file in files.items():
        if not file.is_file():
            option = "--data" if name == "train" else "--validation"
            raise DataError(
                f"{file}: no such file; name it with {option} if it was moved, or make it with `nrt data prepare`."
            )
    model = require_model(config.model.path)
    fingerprints = {"model": digest_of_digests((weights := model_files(model)).items())}
    if (model / METADATA).is_file() and (fault := model_fault(model, weights)):
        raise ModelError(fault)
    tokenizer, tokens = require_think_tokens(config)
    limits = (config.data.max_prompt_tokens, config.longest_answer, config.data.strict)
    # As long as the model may think, and as it ends.
    references = References(config.rollout.trace_cap, tokens.trace_ends) if config.data.traces else None
    sets: dict[str, ExampleSet] = {}
    limit = positions(config.model.path)
    for name, file in files.items():
        # Held-out pairs are scored with traces that the model samples, so theirs are not read.
        examples = load_examples(file, tokenizer, *limits, references if name == "train" else None)
        sets[name], fingerprints[name] = examples, examples.fingerprint
        if made_with(file) not in (None, examples.fingerprint):
            raise DataError(
                f"{file}: is not the file that the manifest.json beside it describes: damaged, copied in part, or "
                "changed. Make it again with `nrt data prepare`, or, if you changed it, move it away from there."
            )
        longest = examples.longest_with(config.rollout.trace_cap) if config.thinks else examples.longest
        if "guide" in config.asks:
            longest += examples.longest
        if "answers" in config.asks:
            longest = examples.longest_with(
                lambda a: config.rollout.trace_cap(a) + max(0, config.rollout.answer_cap(a) - a)
            )
        if limit is not None and longest > limit:
            with_trace, cap = (" with its trace", "rollout.max_trace_tokens, ") if config.thinks else ("", "")
            raise ConfigError(
                f"{file}: the longest example would be {longest} tokens{with_trace}, but the model has {limit} "
                f"positions; lower {cap}data.max_prompt_tokens or data.max_answer_tokens."
            )
    held_out = sets.get("validation")
    shown = [held_out[i] for i in range(min(config.train.validation_size, len(held_out)))] if held_out else []
    pairs = graded_pairs(files["validation"], [example.index for example in shown]) if shown else []
    try:
        for name in {pair.grader for pair in pairs}:
            find(name)
    except ConfigError as error:  # training does not depend on graders
        console.warn(f"held-out accuracy is not measured: {error}")
        pairs = [replace(pair, grader="none") for pair in pairs]
    batch, left = config.train.batch_size, len(sets["train"])
    if left < batch:
        raise DataError(f"train.batch_size={batch}, but only {left} examples are left to train on; lower it.")
    steps = config.train.steps or config.train.epochs * (left // batch)
    judged = require_rows(config, files["train"], sets["train"])
    return Inputs(sets["train"], held_out, shown, pairs, steps, fingerprints, judged)


def require_rows(config: RunConfig, file: Path, examples: ExampleSet) -> Pairs | None:
    """The rows' own verifiers, for a method that asks for verdicts. Refuses rows that a method cannot learn from."""
    method = methods.loaded(config.method)
    if method.text and examples.spans < len(examples):
        raise ConfigError(
            f"{file}: {len(examples) - examples.spans:,} of {len(examples):,} rows are questions and answers, and "
            f"method {config.method!r} learns from plain text; cut some with `nrt data prepare book.txt --spans 256:64 "
            "--tokenizer MODEL`."
        )
    if "verdicts" not in config.asks:
        return None
    pairs = Pairs(file)
    without = {source: count for (source, grader), count in pairs.graders.items() if grader == "none"}
    few = ", ".join(f"{count:,} of {source}" for source, count in sorted(without.items())[:3])
    if method.every_row and without:
        raise ConfigError(
            f"{file}: {sum(without.values()):,} rows have no verifier ({few}), and method {config.method!r} rewards "
            "nothing but a verdict; name a grader with `nrt data prepare --grader NAME`, or train with "
            f"`{methods.MIXED}`, which rewards these rows by the likelihood of their answers."
        )
    if sum(without.values()) == len(pairs.places):
        raise ConfigError(
            f"{file}: no row has a verifier ({few}); name one with `nrt data prepare --grader NAME`, or choose a "
            f"method without, such as {methods.DEFAULT}."
        )
    require_verifier([pair for pair in pairs.of_graders() if pair.grader != "none"])
    return pairs


def require_think_tokens(config: RunConfig) -> tuple[PreTrainedTokenizerBase, ThinkTokens]:
    """Tokenizer and think tokens; refuses a config whose think tokens are not those of its model."""
    start, end = config.tokens.think_start, config.tokens.think_end
    try:
        return load_tokens(config.model.path, start, end)
    except ModelError as error:
        try:
            about = read_metadata(Path(config.model.path))
            load_tokens(config.model.path, about.think_start, about.think_end)
        except ModelError:
            raise error from None  # the model has no think tokens that would do
        own = {"tokens.think_start": about.think_start, "tokens.think_end": about.think_end}
        raise ModelError(
            f"{config.model.path}: its think tokens are {about.think_start} and {about.think_end}, not {start} and "
            f"{end}; to train with them, add {pasted(settings(own))}."
        ) from None


def manifest(config: RunConfig, inputs: Inputs, overlap: Overlap) -> dict[str, Any]:
    """What a run began as."""
    gpu = torch.cuda.is_available() and config.model.device != "cpu"
    suffix, own = suffix_of(Path(config.data.train)), methods.get(config.method, config.objective)
    formulas = asdict(own.formulas) if own.formulas else None
    kept = {"title": own.title, "formulas": formulas, "method_source": methods.source(config.method)}
    return {
        "command": this_command(),
        "method": config.method,
        **(kept if ":" in config.method else {}),
        **({"departs": said} if (said := configs.departs(config)) else {}),
        "engine": config.engine.name,
        "status": "created",
        "steps": inputs.steps,
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "device": {
            "name": torch.cuda.get_device_name() if gpu else "cpu",
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
        },
        "fingerprints": inputs.fingerprints,
        "data": {"examples": len(inputs.train), "dropped": inputs.train.dropped, **asdict(overlap)}
        | ({"suffix": suffix} if suffix else {}),
    }


def limits_here(config: RunConfig) -> Iterator[str]:
    """What a person should know of this machine before a run."""
    if config.model.device != "cuda" and torch.backends.mps.is_available():
        yield "Apple's GPU is not used, since rewards need float64, which it lacks: this runs on the CPU."
    if os.name == "nt":
        yield "Windows is not tested; Linux is, and runs on Windows as WSL."


def same_inputs(run: Run, now: dict[str, str]) -> None:
    """Refuse to continue on other data or another starting model."""
    then = run.manifest().get("fingerprints", {})
    for name in sorted(then.keys() | now.keys()):
        before, after = then.get(name, "none"), now.get(name, "none")
        if before != after:
            raise StoreError(
                f"{run.path}: cannot resume, the {name} {'model' if name == 'model' else 'data'} changed since the run "
                f"began (fingerprint {before[:12]} then, {after[:12]} now). Restore it or start a new run."
            )


def changed_method(run: Run, method: str) -> list[str]:
    """What to warn of where a user's method is not the code that the run began with; an event says so too."""
    if run.manifest().get("method_source", now := methods.source(method)) == now:
        return []
    said = f"the file of method {method!r} changed since the run began: steps from here on are of another method"
    run.event("method changed", message=said)
    return [f"{said}; restore it, or start a new run."]


def done_already(run: Run, steps: int) -> dict[str, Any] | None:
    """The summary of a finished run that has nothing left to do; refuses to go back in time."""
    at = max(run.checkpoint_steps(), default=0)
    if at > steps:
        raise ConfigError(f"{run.path}: has done {at} steps already, more than the {steps} asked for.")
    found = run.manifest()
    summary = found.get("summary", {})
    if found.get("status") != "finished" or summary.get("steps") != steps:
        return None
    if fault := model_fault(run.export_path):
        console.warn(f"{fault} It is made again from the last checkpoint.")
        return None
    more = f"`{resume(run.path)} --steps N` goes on to step N"
    console.note(f"{run.path}: all {steps} steps are done, nothing left to do; {more}.")
    # The run may have been moved since it was written down.
    return summary | {"run": str(run.path), "export": str(run.export_path)}


def restore(run: Run, load: Callable[[Path, Mapping[str, Any], Mapping[str, Any]], None]) -> int:
    """Give the newest whole checkpoint (folder, state, tensors) to `load`; the step to go on after."""
    damaged: list[str] = []
    checkpoint = run.latest_checkpoint(damaged.append)
    if checkpoint is None:
        if damaged:
            raise StoreError(
                f"{run.path}: no checkpoint is whole, so there is nothing to go on from. {' '.join(damaged)}"
            )
        return 0  # stopped before the first checkpoint: step 1 is redone from the same random streams
    for message in damaged:
        run.event("damaged checkpoint", message=message)
        console.warn(f"{message} Going on from step {checkpoint.step}.")
    load(checkpoint.folder, checkpoint.state, checkpoint.tensors)
    return checkpoint.step
