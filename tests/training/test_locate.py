"""Which folder a name on the command line stands for."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from nrt_cli.errors import ModelError, StoreError
from nrt_cli.files import read_record
from nrt_cli.models.prepare import Prepared
from nrt_cli.training import locate as models
from nrt_cli.training.locate import locate_model


def same_model(one, other):
    """Whether two folders hold the same weights and say the same of themselves."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    said = [{**read_record(folder / "nrt.json"), "files": None} for folder in (one, other)]
    assert said[0] == said[1]
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def run(shared_run, tmp_path):
    """A finished run of 3 steps with checkpoints of the last two."""
    shutil.copytree(shared_run("method=am").path, tmp_path / "run")
    return tmp_path / "run"


def test_a_name_is_a_folder_a_run_or_one_of_its_steps(run, tiny_model_dir, tmp_path):
    at_sign = shutil.copytree(tiny_model_dir, tmp_path / "model@7")
    for ref, folder, of, step, name in (
        (tiny_model_dir, tiny_model_dir, None, None, "prepared"),
        (at_sign, at_sign, None, None, "model@7"),
        (str(run), run / "export", run, 3, "run"),
        (f"{run}@3", run / "models" / "step-000003", run, 3, "run@3"),
        (f"{run}@0", tiny_model_dir, run, 0, "run@0"),
    ):
        found = locate_model(ref)
        assert (found.folder, found.run, found.step, found.name) == (folder, of, step, name)
    assert same_model(run / "models" / "step-000003", run / "export")
    earlier = locate_model(f"{run}@2").folder
    assert not same_model(earlier, run / "export")
    assert read_record(earlier / "nrt.json")["training"]["method"] == "am"


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("run@1", "has no checkpoint of step 1; there is run@0, run@2, run@3"),
        ("run@2-3", "one model is asked for here"),
        ("nowhere", "no model there"),
        ("nowhere@3", "no such run directory"),
    ],
)
def test_what_is_no_model_is_refused(ref, says, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ModelError, StoreError), match=says):
        locate_model(ref)


def test_master_weights_are_rounded_to_the_compute_dtype(train_run):
    run = train_run("method=sft", "model.dtype=bfloat16", "train.steps=1")
    assert same_model(locate_model(f"{run.path}@1").folder, run.export_path)


def test_a_checkpoint_is_written_out_once(run, monkeypatch):
    first = locate_model(f"{run}@3").folder
    shutil.rmtree(run / "checkpoints")
    assert locate_model(f"{run}@3").folder == first


def test_an_unfinished_run_has_checkpoints(run):
    shutil.rmtree(run / "export")
    assert locate_model(f"{run}@3").step == 3
    with pytest.raises(ModelError, match=r"no exported model yet; finish it with .* name one of its checkpoints: .*@2"):
        locate_model(run)


def test_a_damaged_checkpoint_is_not_used(run):
    file = run / "checkpoints" / "step-000002" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="damaged"):
        locate_model(f"{run}@2")
    assert not (run / "models").exists() or not any((run / "models").iterdir())


def test_a_builtin_model_is_prepared_in_the_users_cache(tmp_path, monkeypatch):
    # Preparing the real one takes a minute and is tested with `nrt model prepare`.
    source = type("Source", (), {"fingerprint": "0123456789abcdef"})
    asked = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(models, "find_source", lambda name: source)
    monkeypatch.setattr(models, "prepare_model", lambda *args: asked.append(args) or Prepared(args[1], {}, False))
    found = locate_model("builtin:smollm2-135m")
    ((name, folder),) = asked
    assert name == "builtin:smollm2-135m"
    assert (found.folder, found.name) == (folder, "smollm2-135m")
    assert folder.name == "smollm2-135m-0123456789ab"


def test_the_best_step_is_a_model_like_any_other(shared_run, nrt):
    settings = ("train.steps=3", "train.validate_every=1", "train.checkpoint_every=1", "train.keep_checkpoints=1")
    run = shared_run("method=am", *settings)
    best = run.best()
    assert run.checkpoint_steps() == sorted({best.step, 3})
    assert best.chosen_rows + best.reported_rows == run.metrics("held_out")[0]["examples"]
    located = locate_model(f"{run.path}@best")
    assert (located.step, located.run) == (best.step, run.path)
    assert (located.folder / "config.json").is_file()
    shown = nrt("runs", "show", run.path)
    assert f"step {best.step} by {best.measure}" in " ".join(shown.out.split())
