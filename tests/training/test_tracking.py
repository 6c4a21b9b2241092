"""Trackers get what the run directory gets, and none of them can end a run."""

import importlib.util
import math

import pytest

from nrt_cli.errors import ConfigError
from nrt_cli.training import tracking
from nrt_cli.training.tracking import Trackers, require_trackers

TRAIN = {"kind": "train", "step": 3, "gain": 0.5, "loss": math.nan}
HELD_OUT = {"kind": "held_out", "step": 3, "gain": -0.25}


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # where this is the first test that imports it
    # Set and removed again, so that what the tracker sets does not outlive the test.
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def follow(tiny_config, tmp_path):
    """Sends two records to a tracker and returns what it complained about."""

    def run(name):
        complaints = []
        config = tiny_config(f"track.to=[{name}]", "track.project=sums")
        require_trackers(config)
        with Trackers(config, tmp_path / "my-run", complaints.append) as trackers:
            trackers.log(TRAIN)
            trackers.log(HELD_OUT)
        return complaints

    return run


def test_nothing_is_opened_unless_asked(tiny_config, tmp_path):
    with Trackers(tiny_config(), tmp_path / "run") as trackers:
        trackers.log(TRAIN)
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_both_kinds_and_the_config(follow, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert follow("tensorboard") == []
    found = {}
    for file in (tmp_path / "my-run" / "trackers" / "tensorboard").rglob("events.out.*"):
        events = accumulator.EventAccumulator(str(file))
        events.Reload()
        found |= {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["train/gain"] == [(3, 0.5)]
    assert found["held_out/gain"] == [(3, -0.25)]
    (hparams,) = (tmp_path / "my-run").rglob("hparams.yml")
    written = hparams.read_text()
    assert all(
        line in written for line in ("optimiser.lr: 0.001", "rollout.group_size: 4", "train.minibatch_size: None")
    )


KILLED_AND_RESUMED = [(None, [1, 2, 3]), (2, [3, 4])]
"""After which step each process begins, and the steps that it logs: step 3 is taken twice."""


def resume(name, tiny_config, path, project="sums"):
    config = tiny_config(f"track.to=[{name}]", f"track.project={project}")
    logged = set()
    for done, steps in KILLED_AND_RESUMED:
        with Trackers(config, path, pytest.fail, done, set(logged)) as trackers:
            for step in steps:
                trackers.log({"kind": "train", "step": step, "gain": float(step)})
                logged.add(("train", step))


def test_tensorboard_shows_a_step_that_was_taken_again_once(tiny_config, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    resume("tensorboard", tiny_config, tmp_path / "my-run")
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.*") if file.parent.name == "my-run"}
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/gain")] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert len(list(tmp_path.rglob("hparams.yml"))) == 1


def test_mlflow_goes_on_in_its_own_run(tiny_config, tmp_path):
    pytest.importorskip("mlflow")
    resume("mlflow", tiny_config, tmp_path / "my-run")
    (gain,) = [p for p in tmp_path.rglob("gain") if p.parent.name == "train"]
    assert [line.split()[1:] for line in gain.read_text().splitlines()] == [[f"{n}.0", f"{n}"] for n in (1, 2, 3, 4)]


def test_wandb_goes_on_in_its_own_run(tiny_config, tmp_path, until):
    pytest.importorskip("wandb")
    resume("wandb", tiny_config, tmp_path / "my-run")
    first, second = sorted((tmp_path / "my-run").rglob("run-*.wandb"))  # by the time in their folders' names
    assert first.name == second.name  # one id
    until(lambda: b"_step" in second.read_bytes())  # a process of its own writes it


def test_trackio_goes_on_in_its_own_run(tiny_config, tmp_path):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    resume("trackio", tiny_config, tmp_path / "my-run", project=tmp_path.name)
    (run,) = SQLiteStorage.get_runs(tmp_path.name)
    assert [row["step"] for row in SQLiteStorage.get_logs(tmp_path.name, run)] == [1, 2, 3, 4]


def test_mlflow_writes_below_the_run_unless_told_of_a_server(follow, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    assert follow("mlflow") == []
    (gain,) = [p for p in tmp_path.rglob("gain") if p.parent.name == "train"]
    assert gain.read_text().split()[1:] == ["0.5", "3"]
    assert (tmp_path / "my-run" / "trackers" / "mlflow") in gain.parents
    assert [p.name for p in tmp_path.iterdir()] == ["my-run"]


def test_wandb_works_offline(follow, tmp_path):
    pytest.importorskip("wandb")
    assert follow("wandb") == []
    assert list((tmp_path / "my-run" / "trackers" / "wandb").rglob("*.wandb"))


def test_trackio_keeps_its_own_store_and_stdout_clean(follow, capsys):
    pytest.importorskip("trackio")
    assert follow("trackio") == []
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Trackio" in captured.err


@pytest.mark.parametrize("missing", ["accelerate", "tensorboard"])
def test_a_missing_tracker_is_named_before_anything_is_made(missing, tiny_config, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(ConfigError, match=f"'tensorboard', which needs the package {missing}: pip install") as error:
        require_trackers(tiny_config("track.to=[tensorboard]"))
    assert "\n" not in str(error.value)


def test_a_tracker_that_cannot_start_is_an_error_in_one_line(follow, monkeypatch):
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    def refuse(*_, **__):
        raise RuntimeError("no such server\nand a long story")

    monkeypatch.setattr(TensorBoardTracker, "store_init_configuration", refuse)
    with pytest.raises(ConfigError, match=r"which cannot start: no such server$"):
        follow("tensorboard")


def test_a_tracker_that_fails_on_the_way_is_dropped_and_the_run_goes_on(follow, monkeypatch):
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    calls = []

    def fail(self, values, step):
        calls.append(step)
        raise ConnectionError("server gone")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    assert follow("tensorboard") == ["tracker tensorboard failed and gets no more records of this run: server gone"]
    assert calls == [3]
