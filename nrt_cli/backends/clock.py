"""How long each phase of a step took, wherever it is computed."""

import contextlib
import time
from collections.abc import Iterator

import torch


def synchronise(device: torch.device) -> None:
    """Wait for what was asked of a GPU; a CPU has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Seconds by phase since it was last read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what happens within."""
        synchronise(self.device)
        started = time.perf_counter()
        try:
            yield
        finally:
            synchronise(self.device)
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """The seconds of each phase, and from 0 again."""
        seconds, self.seconds = self.seconds, {}
        return seconds
