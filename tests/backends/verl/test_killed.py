"""`kill -9` between steps, inside one, and while a checkpoint is written: a resumed run ends like one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import needs_verl  # noqa: F401
import pytest
import torch
from safetensors.torch import load_file

from nrt_cli import config as configs
from nrt_cli.store import Run

pytestmark = [pytest.mark.slow, pytest.mark.full]

DEATHS = {"between steps": 2, "inside a step": 2, "while saving": 1}
"""Where a run dies, and the step whose checkpoint is its last."""


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory) -> dict[str, Run]:
    """A run of four steps that nothing happened to, and one for each death, resumed."""
    root = tmp_path_factory.mktemp("killed")
    settings = ("engine.name=verl", "method=am", "train.steps=4", "train.minibatch_size=2", "train.validate_every=2")
    config = tiny_config(*settings, "data.max_prompt_tokens=64", "data.max_answer_tokens=32")
    (root / "config.yaml").write_text(configs.to_yaml(config))

    def script(expected: int, *arguments: object) -> None:
        file = Path(__file__).parent / "killed_run.py"
        command = [sys.executable, str(file), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, env=environment, cwd=root, timeout=600, capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stderr

    for where, saved in DEATHS.items():
        script(-signal.SIGKILL, where, "config.yaml", where)
        killed = Run.open(root / where)
        assert killed.manifest()["status"] == "running"
        assert killed.checkpoint_steps()[-1] == saved
    script(0, "nowhere", "config.yaml", "straight", *DEATHS)
    return {name: Run.open(root / name) for name in ("straight", *DEATHS)}


@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_run_ends_like_an_uninterrupted_one(death, runs, untimed):
    run, straight = runs[death], runs["straight"]
    assert run.manifest()["status"] == "finished"
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4]
    assert untimed(run) == untimed(straight)
    ours, theirs = (load_file(each.export_path / "model.safetensors") for each in (run, straight))
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert not list(run.path.rglob("*.tmp"))


def test_what_a_run_leaves_is_laid_out_as_the_local_engines(runs):
    run = runs["straight"]
    assert run.trace_names() == [
        "held-out-000000",
        "held-out-000002",
        "held-out-000004",
        *(f"step-00000{i}" for i in range(1, 5)),
    ]
    rows = run.traces("step-000004")
    assert len(rows) == 16
    assert len({row["example"] for row in rows}) == 4
    assert all(len(row["trace_logprobs"]) == len(row["trace_ids"]) + 1 for row in rows)
    assert rows[0]["gain"] == pytest.approx(sum(rows[0]["answer_logprobs"]) - sum(rows[0]["null_logprobs"]))
    assert run.checkpoint_steps() == [3, 4]
    assert [event["kind"] for event in run.events()] == ["started", *["checkpoint"] * 4, "finished"]


def test_a_checkpoint_of_a_verl_run_is_a_model(runs):
    from nrt_cli.training.locate import locate_model

    run = runs["straight"]
    located = locate_model(f"{run.path}@4")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (located.folder, run.export_path))
    assert ours.keys() == theirs.keys()
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]
