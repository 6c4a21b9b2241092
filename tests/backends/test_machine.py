"""What is known of a GPU, from the name that torch gives it."""

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
