"""Where the time of a step goes, by torch's profiler."""

import contextlib
from collections.abc import Iterator

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 40


@contextlib.contextmanager
def profiled() -> Iterator[profile]:
    """Record what happens within, on the CPU and a GPU."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as recorded:
        yield recorded


def table(recorded: profile) -> str:
    """The operators that took longest by themselves, as text."""
    gpu = torch.cuda.is_available()
    order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    text: str = recorded.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
    return text
