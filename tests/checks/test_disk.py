"""What a run takes on the disk: as predicted, and nothing twice."""

import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nrt_cli.checks import estimate, preflight
from nrt_cli.errors import ConfigError
from nrt_cli.progress import Progress
from nrt_cli.store import Run
from nrt_cli.store.housekeeping import size_of, sweepable
from nrt_cli.training import start
from nrt_cli.training.locate import locate_model
from nrt_cli.workflows.train import train

SETTINGS = ("method=am", "train.steps=3", "train.trace_groups=0")


def tensors_of(run):
    """Bytes of all weights and moments below a run, each file once."""
    files = {path.stat().st_ino: path.stat().st_size for path in run.path.rglob("*.safetensors")}
    return sum(files.values())


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.dtype=bfloat16",),
        ("method=sft", "train.keep_checkpoints=1"),
        ("model.lora.rank=2",),
        ("train.keep_checkpoints=5", "train.checkpoint_every=2"),
    ],
)
def test_a_plans_disk_is_what_a_run_takes(settings, tiny_config, tmp_path):
    config = tiny_config(*SETTINGS, *settings)
    predicted = estimate.plan_for(config, start.load_inputs(config).train)
    train(tmp_path / "run", config, False, Progress)
    found = tensors_of(Run(tmp_path / "run"))
    # Files have headers; rows of think tokens are trained beside a low-rank update.
    assert predicted.disk_kept == pytest.approx(found, rel=0.2 if "model.lora.rank=2" in settings else 0.1)


def test_in_float32_a_model_is_the_weights_of_its_checkpoint(train_run):
    run = train_run(*SETTINGS, "train.steps=2")
    last = run.checkpoint_path(2) / "model.safetensors"
    assert os.path.samefile(run.export_path / "model.safetensors", last)
    assert os.path.samefile(
        locate_model(f"{run.path}@1").folder / "model.safetensors", run.checkpoint_path(1) / last.name
    )
    assert size_of(run.path) < sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    # What is the trained model's too is not freed with its checkpoint, and stays.
    freed = {item.path.name: item.size for item in sweepable(run.path.parent, [run], checkpoints=True)}
    assert freed["step-000002"] < size_of(run.checkpoint_path(2)) - last.stat().st_size + 1
    shutil.rmtree(run.path / "checkpoints")
    assert load_file(run.export_path / "model.safetensors")


def test_both_checkpoints_are_whole(train_run):
    run = train_run(*SETTINGS)
    assert run.checkpoint_steps() == [2, 3]
    for step in run.checkpoint_steps():
        tensors = run.load_checkpoint(step).tensors
        kinds = {name.partition(".")[0] for name in tensors}
        assert kinds == {"weight", "exp_avg", "exp_avg_sq", "step"}


def test_a_checkpoint_of_an_older_run_has_all_in_one_file(tmp_path):
    run = Run.create(tmp_path / "run", "", {})
    tensors = {"weight.a": torch.ones(2), "exp_avg.a": torch.zeros(2)}
    folder = run.save_checkpoint(1, {"updates": 1}, tensors, keep=1)
    assert run.load_checkpoint(1).tensors.keys() == tensors.keys()
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "tensors.safetensors")
    from nrt_cli.files import sha256

    sums = {name: sha256(folder / name) for name in ("state.json", "tensors.safetensors")}
    (folder / "checksums.json").write_text(json.dumps(sums))
    assert run.load_checkpoint(1).tensors.keys() == tensors.keys()


def test_a_run_that_the_disk_cannot_hold_is_not_begun(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(*SETTINGS)
    need = estimate.plan_for(config, start.load_inputs(config).train).disk
    free = shutil.disk_usage(tmp_path)._replace(free=math.floor(need) - 1)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: free)
    with pytest.raises(ConfigError, match=r"predicted, .* free at .*train.keep_checkpoints"):
        train(tmp_path / "run", config, False, Progress)
    assert not (tmp_path / "run").exists()
