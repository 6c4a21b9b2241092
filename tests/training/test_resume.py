"""A run that was stopped, in whatever way, ends as if it never had been. Processes are real and so are their deaths."""

import json
import shutil
import signal
from pathlib import Path
from shutil import ignore_patterns

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nrt_cli import config as configs
from nrt_cli.store import Run
from nrt_cli.workflows.scoring import Subject, data_file

STEPS = ("--steps", 6)


def final(run):
    return {
        **load_file(run.export_path / "model.safetensors"),
        **run.load_checkpoint(run.checkpoint_steps()[-1]).tensors,
    }


@pytest.fixture
def assert_same_run(untimed):
    def check(run, other):
        a, b = final(run), final(other)
        assert a.keys() == b.keys()
        assert not [name for name in a if not torch.equal(a[name], b[name])]
        assert untimed(run) == untimed(other)
        assert run.trace_names() == other.trace_names()
        for name in run.trace_names():
            assert run.traces(name) == other.traces(name)

    return check


@pytest.fixture(scope="module")
def straight(shared_run):
    """Six steps without interruption."""
    return shared_run("method=am", "train.steps=6", "train.validate_every=2")


@pytest.fixture
def begin(nrt, tiny_yaml, tmp_path):
    """Starts the same six steps as a process; returns it and its run directory."""

    def start(*more):
        arguments = ("train", tiny_yaml, "--run", "run", *STEPS, "--set", "train.validate_every=2", *more)
        return nrt.start(*arguments), tmp_path / "run"

    return start


def resume(nrt, *more):
    return nrt("train", "--run", "run", "--resume", *more)


@pytest.fixture
def copied(straight, tmp_path):
    """A finished run of one's own."""
    shutil.copytree(straight.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_kill_9_and_resume_end_like_an_uninterrupted_run(begin, nrt, straight, until, assert_same_run):
    process, path = begin()
    until(lambda: (path / "checkpoints" / "step-000003").exists())
    process.kill(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    run = Run.open(path)
    assert 3 <= run.checkpoint_steps()[-1] < 6
    assert run.manifest()["status"] == "running"
    listed = json.loads(nrt("runs", ".", "--json").out)
    assert [record["status"] for record in listed] == ["stopped"]
    ended = resume(nrt)
    assert ended.code == 0, ended.err
    assert_same_run(run, straight)
    assert [e["kind"] for e in run.events() if e["kind"] in ("started", "resumed", "finished")] == [
        "started",
        "resumed",
        "finished",
    ]


def test_a_kill_while_a_checkpoint_is_written_loses_at_most_the_steps_since_the_last(
    begin, nrt, straight, until, assert_same_run
):
    process, path = begin()

    def mid_write():
        """Frozen with a checkpoint half-written: the folder is there under its temporary name."""
        if not [p for p in path.glob("checkpoints/step-00000[2-5].tmp") if p.is_dir()]:
            return False
        process.kill(signal.SIGSTOP)
        if list(path.glob("checkpoints/*.tmp/*")):
            return True
        process.kill(signal.SIGCONT)
        return False

    until(mid_write)
    process.kill(signal.SIGKILL)
    process.wait()
    run = Run.open(path)
    (half,) = path.glob("checkpoints/*.tmp")
    step = int(half.name[5:11])
    assert run.checkpoint_steps()[-1] == step - 1
    run.load_checkpoint(step - 1)
    assert run.metrics()[-1]["step"] == step
    ended = resume(nrt)
    assert ended.code == 0, ended.err
    assert not list(path.rglob("*.tmp"))
    assert_same_run(run, straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_saves_it(number, begin, nrt, straight, until, assert_same_run):
    # No checkpoint is due before the end, so only the signal can have made one.
    process, path = begin("--set", "train.checkpoint_every=100")
    until(lambda: (path / "traces" / "step-000002.parquet").exists())
    process.kill(number)
    ended = process.wait()
    assert ended.code == 128 + number
    assert "everything saved; go on with `nrt train --run run --resume`" in " ".join(ended.err.split())
    assert "stopping after this step" in ended.err
    assert "Traceback" not in ended.err
    run = Run.open(path)
    (step,) = run.checkpoint_steps()
    assert run.metrics()[-1]["step"] == step < 6
    assert run.manifest()["status"] == "interrupted"
    assert resume(nrt).code == 0
    assert_same_run(run, straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_stops_at_once(number, begin, nrt, until):
    """Held-out scores of the model before training take minutes for a real one, and nothing is lost with them."""
    process, path = begin("--set", "rollout.max_trace_tokens=400")
    until(lambda: process.err.exists() and "before its first step" in process.err.read_text())
    process.kill(number)
    ended = process.wait()
    assert ended.code == 128 + number
    assert "stopped at once; what was saved is kept" in " ".join(ended.err.split())
    assert "after this step" not in ended.err
    assert Run.open(path).manifest()["status"] == "interrupted"
    assert not list((path / "traces").glob("step-*"))
    assert resume(nrt).code == 0


def test_a_second_ctrl_c_stops_at_once(begin, nrt, straight, until):
    process, path = begin("--set", "rollout.max_trace_tokens=400", "--set", "train.checkpoint_every=1")
    until(lambda: (path / "checkpoints" / "step-000001").exists())
    process.kill(signal.SIGINT)
    until(lambda: "stopping after this step" in process.err.read_text())
    process.kill(signal.SIGINT)
    ended = process.wait()
    assert ended.code == 130
    assert "stopped at once; what was saved is kept" in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    assert Run.open(path).manifest()["status"] == "interrupted"
    Run.open(path).load_checkpoint(1)


def damage(run, step, how):
    file = run.path / "checkpoints" / f"step-{step:06d}" / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(how, copied, nrt, straight, assert_same_run):
    copied.update_manifest(status="running")
    file = damage(copied, 6, how)
    ended = resume(nrt, "--set", "train.keep_checkpoints=1")
    assert ended.code == 0, ended.err
    said = " ".join(ended.err.split())
    assert str(file.relative_to(copied.path)).replace("\n", "") in said.replace(" ", "")
    assert "Going on from step 5." in said
    assert [e["kind"] for e in copied.events()].count("damaged checkpoint") == 1
    assert copied.checkpoint_steps() == [6]
    assert_same_run(copied, straight)


def test_a_damaged_checkpoint_never_crowds_out_a_whole_one(copied):
    damage(copied, 6, "cut")
    tensors = {"weight.x": torch.ones(2)}
    copied.save_checkpoint(5, {"updates": 5}, tensors, keep=1)
    assert copied.checkpoint_steps() == [5, 6]
    copied.save_checkpoint(6, {"updates": 6}, tensors, keep=1)
    assert copied.checkpoint_steps() == [6]
    copied.load_checkpoint(6)


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"tensors.safetensors": "0"}'])
def test_checksums_that_say_nothing_check_nothing(content, copied):
    (copied.path / "checkpoints" / "step-000006" / "checksums.json").write_text(content)
    complaints = []
    checkpoint = copied.latest_checkpoint(complaints.append)
    assert checkpoint is not None
    assert checkpoint.step == 5
    assert "step-000006" in complaints[0]


def test_without_a_whole_checkpoint_it_says_so_and_touches_nothing(copied, nrt):
    copied.update_manifest(status="running")
    files = [damage(copied, step, "cut") for step in copied.checkpoint_steps()]
    before = {p: p.read_bytes() for p in copied.path.rglob("*") if p.is_file()}
    ended = resume(nrt)
    assert ended.code == 1
    assert "no checkpoint is whole" in " ".join(ended.err.split())
    assert ended.err.count("tensors.safetensors") == len(files)
    assert "Traceback" not in ended.err
    assert before == {p: p.read_bytes() for p in copied.path.rglob("*") if p.is_file()}


def test_a_torn_last_line_is_passed_over_and_not_glued_to_the_next(copied, nrt, straight):
    for name in ("metrics.jsonl", "events.jsonl"):
        with (copied.path / name).open("a") as file:
            file.write('{"kind": "train", "step": 6, "lo')
    assert len(copied.metrics()) == 6
    assert resume(nrt, "--steps", 7).code == 0
    assert [r["step"] for r in copied.metrics()] == [1, 2, 3, 4, 5, 6, 7]
    assert copied.events()[-1]["kind"] == "finished"


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(begin, nrt, straight, until, assert_same_run):
    process, path = begin("--set", "train.checkpoint_every=100")
    until(lambda: (path / "traces" / "step-000001.parquet").exists())
    process.kill(signal.SIGKILL)
    process.wait()
    assert not Run.open(path).checkpoint_steps()
    assert resume(nrt).code == 0
    assert_same_run(Run.open(path), straight)


def test_a_start_that_was_killed_before_its_manifest_is_no_obstacle(nrt, tiny_yaml, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".lock", "config.yaml"):
        (tmp_path / "run" / name).write_text("")
    assert nrt("train", tiny_yaml, "--run", "run", "--steps", 1).code == 0


def test_a_finished_run_with_nothing_to_do_is_left_alone(copied, nrt, straight):
    before = {p: p.read_bytes() for p in copied.path.rglob("*") if p.is_file()}
    ended = resume(nrt)
    assert ended.code == 0
    assert "all 6 steps are done, nothing left to do" in " ".join(ended.err.split())
    assert before == {p: p.read_bytes() for p in copied.path.rglob("*") if p.is_file()}


def test_a_finished_run_goes_on_with_more_steps_but_not_with_fewer(copied, nrt, straight):
    ended = resume(nrt, "--steps", 4)
    assert ended.code == 2
    assert "has done 6 steps already" in " ".join(ended.err.split())
    ended = resume(nrt, "--steps", 7, "--json")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [(line["kind"], line.get("step")) for line in lines] == [("train", 7), ("held_out", 7), ("summary", None)]
    assert copied.manifest()["status"] == "finished"
    assert copied.manifest()["steps"] == lines[-1]["steps"] == 7
    assert not torch.equal(final(copied)["lm_head.weight"], final(straight)["lm_head.weight"])


def test_another_config_is_refused_by_key_and_free_keys_are_taken(copied, nrt, tiny_yaml):
    ended = resume(nrt, "--set", "optimiser.lr=0.5", "--set", "train.threads=2", "--steps", 7)
    said = " ".join(ended.err.split())
    assert ended.code == 2
    assert "optimiser.lr (0.001 -> 0.5)" in said
    assert "threads" not in said
    assert "train.steps" not in said
    assert "lr: 0.001" in (copied.path / "config.yaml").read_text()


def test_a_config_that_is_named_does_not_change_a_run_that_goes_on(copied, nrt, tiny_yaml):
    """Neither what decides a step, nor how many checkpoints are kept: only what is typed does."""
    kept = copied.checkpoint_steps()
    assert len(kept) == 2
    values = yaml.safe_load(tiny_yaml.read_text())
    values["optimiser"]["lr"], values["train"]["keep_checkpoints"], values["train"]["steps"] = 0.5, 1, 3
    tiny_yaml.write_text(yaml.safe_dump(values))
    ended = nrt("train", tiny_yaml, "--run", "run", "--resume", "--steps", 7)
    assert ended.code == 0, ended.err
    assert "run goes on with its own settings" in " ".join(ended.err.split())
    assert "are deleted" not in ended.err
    assert copied.config().optimiser.lr == 0.001
    assert copied.checkpoint_steps() == [6, 7]


def test_checkpoints_that_go_for_want_of_a_setting_are_named_before(copied, nrt):
    assert copied.checkpoint_steps() == [5, 6]
    said = " ".join(resume(nrt, "--steps", 7, "--set", "train.keep_checkpoints=1").err.split())
    assert "train.keep_checkpoints is 1 now, and was 2" in said
    assert "those of step 5, 6 are deleted, but for the best" in said
    assert copied.checkpoint_steps() == [7]


@pytest.mark.parametrize("stored", ["absolute", "as older runs have them"])
def test_a_run_begun_with_relative_paths_is_the_same_from_any_folder(stored, nrt_in, tiny_config, tmp_path):
    config, home, away = tiny_config(), tmp_path / "home", tmp_path / "away" / "further"
    away.mkdir(parents=True)
    shutil.copytree(Path(config.data.train).parent, home / "data")
    shutil.copytree(config.model.path, home / "model")
    relative = {
        "model.path": "model",
        "data.train": "data/train.parquet",
        "data.validation": "data/validation.parquet",
    }
    values = config.model_dump(mode="json")
    for key, path in relative.items():
        section, _, name = key.partition(".")
        values[section][name] = path
    (home / "tiny.yaml").write_text(yaml.safe_dump(values))
    assert nrt_in(home)("train", "tiny.yaml", "--method", "am", "--run", "runs/a", "--steps", 2).code == 0
    run = Run.open(home / "runs" / "a")
    written = configs.flatten(configs.read_yaml(run.config_path))
    assert [written[key] for key in relative] == [str(home / path) for path in relative.values()]
    if stored == "as older runs have them":
        text = run.config_path.read_text()
        run.update_config(text.replace(f"{home}/", ""))
    there = "../../home/runs/a"
    ended = nrt_in(away)("train", "--run", there, "--resume", "--steps", 3)
    assert ended.code == 0, ended.err
    assert run.manifest()["status"] == "finished"
    for command in (
        ("generate", f"{there}@0", "What is 3 plus 4?", "--max-trace-tokens", 2, "--max-answer-tokens", 2),
        ("analyze", "xray", there, "--limit", 2),
        ("runs", "show", there),
    ):
        ended = nrt_in(away)(*command)
        assert ended.code == 0, ended.err
    assert data_file(Subject(run.path), None) == home / "data" / "validation.parquet"


def test_under_a_schedule_the_number_of_steps_is_part_of_the_experiment(nrt, tiny_yaml):
    assert nrt("train", tiny_yaml, "--run", "run", "--steps", 1, "--set", "optimiser.schedule=cosine").code == 0
    ended = resume(nrt, "--steps", 2)
    assert ended.code == 2
    assert "train.steps (1 -> 2)" in " ".join(ended.err.split())


@pytest.mark.parametrize("changed", ["train", "validation", "model"])
def test_other_data_or_another_model_is_refused_and_moved_files_are_not(changed, nrt, tiny_yaml, tmp_path, tiny_config):
    config = tiny_config()
    folder, model = tmp_path / "sums", tmp_path / "model"
    # Without the records of how they were made, which would be held against them first.
    shutil.copytree(tmp_path.__class__(config.data.train).parent, folder, ignore=ignore_patterns("manifest.json"))
    shutil.copytree(config.model.path, model, ignore=ignore_patterns("nrt.json"))
    paths = ("--data", folder / "train.parquet", "--validation", folder / "validation.parquet", "--model", model)
    assert nrt("train", tiny_yaml, "--run", "run", "--steps", 1, *paths).code == 0
    if changed == "model":
        tensors = bytearray((model / "model.safetensors").read_bytes())
        tensors[-1] ^= 1
        (model / "model.safetensors").write_bytes(tensors)
    else:
        other = {"train": "validation", "validation": "train"}[changed]
        shutil.copy(folder / f"{other}.parquet", folder / f"{changed}.parquet")
    ended = resume(nrt, "--steps", 2)
    assert ended.code == 1
    kind = "model" if changed == "model" else "data"
    assert f"cannot resume, the {changed} {kind} changed since the run began" in " ".join(ended.err.split())
    # The same files elsewhere are the same experiment.
    original = ("--data", config.data.train, "--validation", config.data.validation, "--model", config.model.path)
    assert resume(nrt, "--steps", 2, *original).code == 0
