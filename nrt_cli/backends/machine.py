"""The devices of this machine, and what is known of common ones."""

import re

import psutil
import torch

from nrt_cli.records import Gpu

TERA = 1e12
RATES = {
    "B200": (2250, 8.0),
    "GB200": (2250, 8.0),
    "H200": (989, 4.8),
    "H100 PCIe": (756, 2.0),
    "H100": (989, 3.35),
    "H800": (989, 3.35),
    "A100-SXM4-40GB": (312, 1.55),
    "A100": (312, 2.04),
    "A800": (312, 2.04),
    "L40S": (362, 0.86),
    "L4": (121, 0.3),
    "A40": (150, 0.7),
    "A10": (125, 0.6),
    "RTX 4090": (165, 1.01),
    "RTX 3090": (71, 0.94),
}
"""Dense bfloat16 TFLOP/s and TB/s of memory, as the makers state them, by part of the name that torch gives a GPU."""

ASSUMED = Gpu("H100 80GB", 80 * 2**30, 989 * TERA, 3.35 * TERA)
"""What a plan is for where no GPU is here to ask."""


def gpus() -> int:
    """GPUs that torch sees here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


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
