"""What is known of a GPU, from the name that torch gives it; and memory that a process keeps."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from nrt_cli.backends import machine


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("NVIDIA H100 80GB HBM3", (989, 3.35)),
        ("NVIDIA H100 PCIe", (756, 2.0)),
        ("NVIDIA A100-SXM4-40GB", (312, 1.55)),
        ("NVIDIA A100-SXM4-80GB", (312, 2.04)),
        ("NVIDIA L4", (121, 0.3)),
        ("NVIDIA L40S", (362, 0.86)),
        ("NVIDIA GB200", (2250, 8.0)),
        # Others, whose names contain those of the table.
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA RTX A4000", None),
    ],
)
def test_rates_are_those_of_the_very_model(name, rates, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**30))
    found = machine.gpu()
    assert (found.name, found.memory) == (name, 2**30)
    if rates is None:
        assert not found.flops > 0
    else:
        assert (found.flops, found.bandwidth) == pytest.approx((rates[0] * 1e12, rates[1] * 1e12))


FAULTS = """
import resource, torch
from nrt_cli.backends.machine import use_processor
from nrt_cli.config import load
use_processor(load("digits", ["model.path=m", "data.train=d"]))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(16):
    torch.zeros(2**24)
print(faults() - before)
for _ in range(3):
    before = faults()
    held = [torch.zeros(2**26) for _ in range(10)]
    del held
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_a_large_tensor_takes_over_the_memory_of_the_last():
    """16 of 64 MiB each, of which the first few find no room yet; the kernel fills pages of 4 KiB with zeros. And
    2.5 GiB at once, as much as a 0.5B model's weights take."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    alone, together = map(int, done.stdout.split())
    assert alone < 5 * 2**26 / 4096
    assert together < 2**28 / 4096
