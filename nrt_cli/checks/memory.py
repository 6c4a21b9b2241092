"""How much memory some work takes: on a GPU as torch counts it, on a CPU as the system does."""

import contextlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch

EVERY_SECONDS = 0.02


@dataclass
class Peak:
    """Bytes in use, known at the end of the work: the most within it, and those after it."""

    most: float = math.nan
    after: float = math.nan


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """What the work in the block takes, of the GPU or of this process."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.most = float(torch.cuda.max_memory_allocated(device))
        found.after = float(torch.cuda.memory_allocated(device))
        return
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(EVERY_SECONDS):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found.most, found.after = float(max(seen)), float(process.memory_info().rss)
