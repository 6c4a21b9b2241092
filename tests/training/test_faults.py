"""What goes wrong is said in one sentence, with a non-zero exit, and nothing is lost or overwritten."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from nrt_cli.store import Run


def said(ended, code=1):
    """The one sentence of a command that failed, unwrapped."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    sentence = " ".join(ended.err[ended.err.rindex("nrt: ") :].split())
    assert sentence.count("nrt: ") == 1
    assert ended.out == ""
    return sentence


@pytest.fixture
def train(nrt, tiny_yaml):
    """`train("--set", ...)` trains the tiny config at ./run."""
    return lambda *more, **kwargs: nrt("train", tiny_yaml, "--run", "run", *more, **kwargs)


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what cannot start leaves nothing behind --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "sentence", "code"),
    [
        (["--model", "nowhere"], "nowhere: no model there (config.json is missing)", 1),
        (["--model", ""], "no model given", 1),
        (["--data", "nowhere.parquet"], "nowhere.parquet: no such file; name it with --data", 1),
        (["--validation", "nowhere.parquet"], "nowhere.parquet: no such file; name it with --validation", 1),
        (["--data", "tiny.yaml"], "tiny.yaml: not a readable Parquet file", 1),
        (["--set", "data.max_answer_tokens=1"], "no pair is within the limits", 1),
        (["--set", "train.batch_size=41"], "train.batch_size=41, but only 40 examples are left", 1),
        (
            ["--set", "rollout.max_trace_tokens=500"],
            "but the model has 512 positions; lower rollout.max_trace_tokens",
            2,
        ),
        (["--method", "reward"], "method 'reward' is unknown", 2),
        (["--method", "no_such_module:f"], "method 'no_such_module:f' cannot be imported", 2),
        (["--set", "tokens.think_end=<|none|>"], "<|none|>; to train with them, add --set", 1),
        (["--set", "trian.steps=3"], "unknown key 'trian' (did you mean 'train'?)", 2),
        (["--steps", "0"], "train.steps=0", 2),
        (["--set", "track.to=[elsewhere]"], "track.to", 2),
        *([] if torch.cuda.is_available() else [(["--set", "model.device=cuda"], "torch sees no GPU here", 1)]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_start_that_cannot_be_is_refused(more, sentence, code, train, tmp_path):
    assert sentence in said(train(*more), code)
    assert not (tmp_path / "run").exists()


def test_without_config_and_data_it_says_what_to_give(nrt, tmp_path):
    assert "no data given; give --data a file" in said(nrt("train"), 2)
    assert "no such config file" in said(nrt("train", "no-such-config"), 2)
    assert "--resume needs --run" in said(nrt("train", "--resume"), 2)
    assert "run: no such run directory" in said(nrt("train", "--resume", "--run", "run"))
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []


def test_a_model_without_think_tokens_is_refused(train, make_tiny_source, tiny_tokenizer, tmp_path):
    make_tiny_source(tmp_path / "plain", tiny_tokenizer)
    assert "run `nrt model prepare` on this model first" in said(train("--model", "plain"))
    assert not (tmp_path / "run").exists()


def test_flags_with_signs_of_yaml_are_taken_as_they_are(train):
    assert said(train("--data", "a: b #c")).startswith("nrt: a: b #c: no such file")
    assert said(train("--model", "2024")).startswith("nrt: 2024: no model there")


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_refused(nrt, tiny_yaml, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is a file; choose another" in said(nrt("train", tiny_yaml, "--run", "file"))
    assert "cannot be written (" in said(nrt("train", tiny_yaml, "--run", "file/below"))
    assert (tmp_path / "file").read_text() == "x"
    if sys.platform == "linux":
        assert "cannot be written (" in said(nrt("train", tiny_yaml, "--run", "/proc/nrt"))


def test_a_folder_with_anything_in_it_is_left_alone(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine")
    assert "is not empty and not a run" in said(train())
    assert everything(tmp_path / "run") == {"config.yaml": b"mine"}
    assert "not a run directory (manifest.json is missing)" in said(train("--resume"))
    (tmp_path / "run" / "manifest.json").write_text("[]")
    assert "run/manifest.json: is damaged (it is not a JSON object)" in said(train("--resume"))
    assert everything(tmp_path / "run") == {"config.yaml": b"mine", "manifest.json": b"[]"}


def test_a_run_is_not_overwritten(train, tmp_path):
    assert train("--steps", 1).code == 0
    before = everything(tmp_path / "run")
    assert "holds a run already; go on with it: `nrt train --run " in said(train("--steps", 1))
    assert everything(tmp_path / "run") == before


def test_a_second_writer_is_refused_while_the_first_goes_on(nrt, tiny_yaml, tmp_path, until):
    first = nrt.start("train", tiny_yaml, "--run", "run", "--steps", 30)
    until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    first.kill(signal.SIGSTOP)
    assert "another process is writing to this run" in said(nrt("train", "--run", "run", "--resume"))
    assert json.loads(nrt("runs", ".", "--json").out)[0]["status"] == "running"
    first.kill(signal.SIGCONT)
    first.kill(signal.SIGINT)
    assert first.wait().code == 130


# --- while it goes on ------------------------------------------------------------------------------------------------


def test_a_users_method_has_its_title_and_one_that_changed_is_told(train, nrt, tiny_yaml, tmp_path):
    source = (
        "import nrt_cli\nclass Mine(nrt_cli.Rowwise):\n    title = 'My own'\n"
        "    def reward(self, logprobs_KT, base_T):\n        return logprobs_KT.mean(-1)\n"
    )
    (tmp_path / "titled.py").write_text(source)
    checked = nrt("config", "check", tiny_yaml, "--set", "method=titled:Nine")
    assert "has no 'Nine' (did you mean 'Mine'?)" in said(checked, 2)
    assert train("--method", "titled:Mine", "--steps", 1).code == 0
    assert json.loads(nrt("runs", ".", "--json").out)[0]["title"] == "My own"
    (tmp_path / "titled.py").write_text(source.replace("mean", "sum"))
    resumed = nrt("train", "--run", "run", "--resume", "--set", "train.steps=2")
    assert "the file of method 'titled:Mine' changed since the run began" in " ".join(resumed.err.split())
    assert "method changed" in [event["kind"] for event in Run.open(tmp_path / "run").events()]


def test_a_loss_that_is_not_finite_leaves_a_post_mortem(train, tmp_path):
    """A scheme that turns NaN once step 2 has been taken, so that step 3 fails."""
    (tmp_path / "sick.py").write_text(
        "from pathlib import Path\n"
        "def reward(logprobs_KT, base_T):\n"
        "    late = Path('run/checkpoints/step-000002').exists()\n"
        "    return logprobs_KT.mean(-1) * (float('nan') if late else 1.0)\n"
    )
    sentence = said(train("--method", "sick:reward", "--steps", 5))
    assert sentence.startswith("nrt: step 3 failed: the loss is nan on example")
    assert "Method 'sick:reward' made rewards that are not finite of log-probs that are" in sentence
    assert "post-mortem/step-000003" in sentence.replace("- ", "-")
    run = Run.open(tmp_path / "run")
    assert run.manifest()["status"] == "failed"
    assert run.checkpoint_steps() == [1, 2]
    folder = run.path / "post-mortem" / "step-000003"
    before = run.checkpoint_path(2)
    for name in ("model.safetensors", "tensors.safetensors"):
        kept, good = load_file(folder / name), load_file(before / name)
        assert kept.keys() == good.keys()
        assert all(torch.equal(kept[each], good[each]) for each in good)
    state = json.loads((folder / "state.json").read_text())
    assert len(state["examples"]) == 4
    assert state["updates"] == 2
    assert run.events()[-1]["kind"] == "failed"
    assert [r["step"] for r in run.metrics()] == [1, 2]


def test_weights_that_are_not_finite_never_become_a_checkpoint(train, tmp_path):
    sentence = said(train("--set", "optimiser.lr=1e38", "--set", "optimiser.weight_decay=100"))
    assert "step 1 left weights that are not finite" in sentence
    assert Run.open(tmp_path / "run").checkpoint_steps() == []


def test_a_huge_learning_rate_ends_in_a_sentence(train):
    assert "failed: " in said(train("--set", "optimiser.lr=1e30", "--set", "train.steps=4"))


def test_a_full_disk_costs_no_checkpoint(train, nrt, tmp_path):
    assert train("--steps", 2).code == 0
    path = tmp_path / "run"
    before = everything(path / "checkpoints")
    limit = (path / "checkpoints" / "step-000002" / "tensors.safetensors").stat().st_size // 2
    sentence = said(nrt("train", "--run", "run", "--resume", "--steps", 4, file_limit=limit))
    assert "run: the disk is full (File too large). Make room and continue with --resume" in sentence
    assert everything(path / "checkpoints") == before
    assert not list(path.rglob("*.tmp"))
    assert Run.open(path).manifest()["status"] == "failed"
    assert nrt("train", "--run", "run", "--resume", "--steps", 4).code == 0
    # The newest two, and the best of those that were scored: 2 was the last of its command.
    assert Run.open(path).checkpoint_steps() == sorted({Run.open(path).best().step, 3, 4})


@pytest.mark.full
def test_a_full_disk_in_a_process_of_its_own(tiny_yaml, tmp_path):
    """The installed command, started as a user does, with a limit set by its parent."""
    command = [sys.executable, "-m", "nrt_cli", "train", "tiny.yaml", "--run", "run"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "the disk is full (File too large)" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert Run.open(tmp_path / "run").checkpoint_steps() == []
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_that_fills_up(small_disk, nrt, tiny_yaml):
    keep = ("--set", "train.keep_checkpoints=9")
    # What is known not to fit is not begun.
    sentence = said(nrt("train", tiny_yaml, "--run", "disk/run", "--steps", 20, *keep), 2)
    assert "free some, or lower train.keep_checkpoints" in sentence
    assert nrt("train", tiny_yaml, "--run", "disk/run", "--steps", 2, *keep).code == 0
    sentence = said(nrt("train", "--run", "disk/run", "--resume", "--steps", 20))
    assert "the disk is full (No space left on device)" in sentence
    run = Run.open(small_disk / "run")
    newest = run.checkpoint_steps()[-1]
    run.load_checkpoint(newest)
    assert not list(run.path.rglob("*.tmp"))
    # Room is made by keeping fewer.
    shutil.rmtree(run.path / "checkpoints" / "step-000001")
    ended = nrt("train", "--run", "disk/run", "--resume", "--steps", newest + 1, "--set", "train.keep_checkpoints=1")
    assert ended.code == 0, ended.err
    assert run.checkpoint_steps() == sorted({run.best().step, newest + 1})
