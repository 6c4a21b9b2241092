"""Runs as folders: moved, copied, read while they are written, tagged, swept, removed, packed and unpacked."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from nrt_cli.errors import StoreError
from nrt_cli.records import TraceRow
from nrt_cli.store import Run, find_runs
from nrt_cli.store.housekeeping import (
    STALE_SECONDS,
    remove_run,
    set_tags,
    size_of,
    sweep,
    sweepable,
    tags_of,
    write_archive,
)

MANIFEST = {"method": "am", "status": "running", "steps": 3, "versions": {}, "summary": {}}


def made(path: Path, steps: int = 2, status: str = "finished") -> Run:
    """A run with metrics, traces, two checkpoints, one checkpoint's model and an export."""
    run = Run.create(path, "method: am\n", MANIFEST)
    with run.writing():
        for step in range(1, steps + 1):
            run.append_metrics({"kind": "train", "step": step, "reward": 0.5 * step})
            run.write_traces(f"step-{step:06d}", [TraceRow(step=step, trace=f"trace {step}")])
            run.save_checkpoint(step, {"updates": step}, {"weight": torch.full((4,), float(step))}, keep=2)
        run.event("checkpoint", step=steps)
        run.write_model(1, lambda folder: (folder / "config.json").write_text("{}"), export=True)
        run.write_model(steps, lambda folder: (folder / "config.json").write_text("{}"))
        run.update_manifest(status=status)
    return run


def content(run: Run) -> tuple:
    traces = [run.traces(name) for name in run.trace_names()]
    state = run.load_checkpoint(run.checkpoint_steps()[-1]).tensors["weight"].tolist()
    return run.manifest(), run.metrics(), run.events(), traces, run.checkpoint_steps(), state, tags_of(run)


def test_a_run_that_is_moved_or_copied_is_the_same_run(tmp_path):
    run = made(tmp_path / "here" / "a")
    set_tags(run, ["paper"])
    before = content(run)
    shutil.copytree(run.path, tmp_path / "copy")
    (tmp_path / "elsewhere").mkdir()
    moved = run.path.rename(tmp_path / "elsewhere" / "b")
    assert content(Run.open(moved)) == content(Run.open(tmp_path / "copy")) == before
    assert [found.path for found in find_runs(tmp_path)] == [tmp_path / "copy", moved]
    # Both can be gone on with: no lock was carried along.
    for path in (moved, tmp_path / "copy"):
        with Run.open(path).writing():
            pass


def test_a_copy_of_a_run_in_training_is_not_locked_by_it(tmp_path):
    run = made(tmp_path / "a")
    with run.writing():
        shutil.copytree(run.path, tmp_path / "copy")
        assert run.being_written
        copy = Run.open(tmp_path / "copy")
        assert not copy.being_written
        with copy.writing():
            copy.append_metrics({"kind": "train", "step": 3})
    assert [len(found.metrics()) for found in find_runs(tmp_path)] == [2, 3]


def test_moving_a_run_while_it_is_written_keeps_its_lock(tmp_path):
    run = made(tmp_path / "a")
    with run.writing():
        moved = Run(run.path.rename(tmp_path / "b"))
        assert moved.being_written
        with pytest.raises(StoreError, match="another process is writing"), moved.writing():
            pass
    assert not moved.being_written


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.ENOSYS])
def test_where_the_disk_has_no_locks_a_file_says_who_writes(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    run, owner = made(tmp_path / "a"), tmp_path / "a" / (".lock" if number == errno.ENOSYS else ".owner")
    with run.writing():
        assert run.being_written
        with pytest.raises(StoreError, match="another process is writing"), Run(run.path).writing():
            pass
    assert not run.being_written
    assert not owner.exists()
    # A process of this host that is gone holds nothing; of another host nobody here can know.
    gone = subprocess.Popen(["true"])
    gone.wait()
    (run.path / ".lock").unlink(missing_ok=True)
    owner.write_text(f"{gone.pid}\n{socket.gethostname()}\n")
    with run.writing():
        pass
    owner.write_text(f"{gone.pid}\nanother-host\n")
    with pytest.raises(StoreError, match="another process is writing"), run.writing():
        pass


WRITER = """
import sys, torch
from pathlib import Path
from nrt_cli.store import Run, TraceRow
run = Run(Path(sys.argv[1]))
with run.writing():
    print("ready", flush=True)
    step = 2
    while True:
        step += 1
        run.append_metrics({"kind": "train", "step": step, "reward": float(step), "note": "x" * 5000})
        run.write_traces(f"step-{step:06d}", [TraceRow(step=step, trace="z" * 100)])
        run.save_checkpoint(step, {"updates": step}, {"weight": torch.full((1000,), float(step))}, keep=2)
        run.update_manifest(steps=step)
"""


@pytest.mark.slow
def test_a_reader_of_a_run_that_is_written_sees_whole_records_only(tmp_path):
    run = made(tmp_path / "a", status="running")
    command = [sys.executable, "-c", WRITER, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
        try:
            seen = 0
            while seen < 40:
                assert writer.poll() is None, "the writer died"
                records = run.metrics()
                assert [record["step"] for record in records] == list(range(1, len(records) + 1))
                assert all(record["reward"] == record["step"] for record in records[2:])
                assert run.manifest()["steps"] >= seen - 1  # written last of a step
                for name in run.trace_names()[-2:]:
                    assert len(run.traces(name)) == 1
                assert size_of(run.path) > 0
                write_archive([run], tmp_path / "packed.tar.gz")
                seen = len(records)
        finally:
            writer.kill()
    # Killed in the middle of anything: what is there is whole, and the next writer goes on.
    step = Run.open(run.path).checkpoint_steps()[-1]
    assert run.load_checkpoint(step).tensors["weight"].tolist() == [float(step)] * 1000
    with run.writing():
        assert not list(run.path.glob("checkpoints/*.tmp"))


def test_an_archive_goes_on_where_a_folder_vanishes_while_it_is_listed(tmp_path, monkeypatch):
    run = made(tmp_path / "a")
    (run.path / "checkpoints" / "step-000009.tmp").mkdir(parents=True)
    scan = os.scandir

    def vanished(path="."):
        if str(path).endswith(".tmp"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanished)
    assert write_archive([run], tmp_path / "packed.tar.gz") > 0


# --- tags and removal ------------------------------------------------------------------------------------------------


def test_tags_are_sorted_unique_and_survive_damage(tmp_path):
    run = made(tmp_path / "a")
    assert tags_of(run) == []
    with run.writing():  # training goes on meanwhile
        set_tags(run, ["b", "a", "b"])
    assert tags_of(run) == ["a", "b"]
    (run.path / "tags.json").write_text('{"tags": ["cut')
    assert tags_of(run) == []


def test_a_removed_run_is_gone_and_one_in_training_is_refused(tmp_path):
    run, other = made(tmp_path / "a"), made(tmp_path / "b")
    with run.writing(), pytest.raises(StoreError, match="stop it first"):
        remove_run(run)
    remove_run(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]
    link = tmp_path / "link"
    link.symlink_to(other.path)
    with pytest.raises(StoreError, match="is a link"):
        remove_run(Run(link))
    assert len(other.metrics()) == 2


def test_a_removal_that_was_cut_short_is_swept(tmp_path):
    run = made(tmp_path / "a")
    run.path.rename(tmp_path / ".a.removed.tmp")
    assert find_runs(tmp_path) == []
    (found,) = sweepable(tmp_path, [])
    assert found.what == "rest of a removed run"
    assert sweep([found]) == found.size > 0
    assert list(tmp_path.iterdir()) == []


def names(found) -> list[tuple[str, str]]:
    return [(item.path.name, item.what.split(",")[0]) for item in found]


def test_only_what_can_be_made_again_is_swept(tmp_path):
    run = made(tmp_path / "a")
    before = content(run)
    for name in ("checkpoints/step-000009.tmp", "analysis/x/old.tmp", "analysis/x/new.tmp"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("half")
        if "new" not in name:
            long_ago = time.time() - 2 * STALE_SECONDS
            os.utime(run.path / name, (long_ago, long_ago))
    # The model of a checkpoint that is no longer kept cannot be made again.
    (run.path / "models" / "step-000001").mkdir()
    shutil.rmtree(run.path / "checkpoints" / "step-000001")
    found = list(sweepable(tmp_path, [run]))
    assert names(found) == [
        ("old.tmp", "half-written"),
        ("step-000009.tmp", "half-written"),
        ("step-000002", "model of a checkpoint"),
    ]
    with run.writing():
        assert list(sweepable(tmp_path, [run])) == []
    sweep(sweepable(tmp_path, [run]))
    assert (run.path / "models" / "step-000001").is_dir()
    assert (run.path / "analysis" / "x" / "new.tmp").is_file()
    assert content(run)[:4] == before[:4]


@pytest.mark.parametrize(("status", "kept"), [("finished", []), ("interrupted", [1, 2])])
def test_checkpoints_go_only_when_asked_and_only_of_finished_runs(tmp_path, status, kept):
    run = made(tmp_path / "a", status=status)
    assert all("checkpoints" not in item.path.parts for item in sweepable(tmp_path, [run]))
    sweep(sweepable(tmp_path, [run], checkpoints=True))
    assert run.checkpoint_steps() == kept
    assert run.export_path.is_dir()
    # A checkpoint that goes leaves its model, which could not be made again.
    assert run.model_path(2).is_dir() == (status == "finished")


# --- archives --------------------------------------------------------------------------------------------------------


def test_an_archive_unpacks_to_runs_without_weights(tmp_path):
    runs = [made(tmp_path / "study" / "runs" / name) for name in ("a", "b")]
    set_tags(runs[0], ["kept"])
    (runs[0].path / "analysis.tmp").write_text("half")
    size = write_archive(runs, tmp_path / "out" / "x.tar.gz")
    assert size == (tmp_path / "out" / "x.tar.gz").stat().st_size
    with tarfile.open(tmp_path / "out" / "x.tar.gz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    unpacked = find_runs(tmp_path / "there")
    assert [run.path.name for run in unpacked] == ["a", "b"]
    for run, copy in zip(runs, unpacked, strict=True):
        assert (copy.manifest(), copy.metrics(), tags_of(copy)) == (run.manifest(), run.metrics(), tags_of(run))
        assert copy.traces("step-000001") == run.traces("step-000001")
        kept = {"config.yaml", "events.jsonl", "manifest.json", "metrics.jsonl", "traces"}
        assert {path.name for path in copy.path.iterdir()} - {"tags.json"} == kept


def test_an_archive_with_the_model_and_its_bytes_are_the_same_each_time(tmp_path):
    run = made(tmp_path / "a")
    for name in ("x.tar.gz", "renamed.tar.gz"):
        write_archive([run], tmp_path / name, model=True)
        os.utime(run.path / "manifest.json")  # only its time changes
    first, second = ((tmp_path / name).read_bytes() for name in ("x.tar.gz", "renamed.tar.gz"))
    assert first == second
    with tarfile.open(tmp_path / "x.tar.gz") as archive:
        assert "a/export/config.json" in archive.getnames()
        assert not [name for name in archive.getnames() if "checkpoints" in name or "models" in name]


def test_a_failed_archive_leaves_nothing(tmp_path, monkeypatch):
    run = made(tmp_path / "a")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(StoreError, match="the disk is full"):
        write_archive([run], tmp_path / "x.tar.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
