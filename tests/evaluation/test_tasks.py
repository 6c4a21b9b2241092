"""Work in processes of its own: what it says arrives, whatever becomes of it, and it does not outlive its parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nrt_cli.errors import Interrupted
from nrt_cli.evaluation.tasks import Task, run_tasks

WORK = '''
import os, signal, sys, time
from pathlib import Path
from nrt_cli.errors import DataError

def good(tell):
    print("on stdout")
    tell(0.5, "half")
    return "all of it"

def wrong(tell):
    raise DataError("no pairs in qa.jsonl.")

def broken(tell):
    return 1 / 0

def killed(tell):
    os.kill(os.getpid(), signal.SIGKILL)

def leaves(tell):
    os._exit(3)

def lasting(note, tell):
    """Works until it is told to stop."""
    Path(note).write_text(str(os.getpid()))
    tell(0.1, "begun")
    while True:
        time.sleep(0.01)

class Deaf:
    def progress(self, *_): pass
    def ended(self, *_): pass

def stops_parent(tell):
    os.kill(os.getppid(), signal.SIGTERM)
    lasting(os.devnull, tell)
'''


class Seen:
    def __init__(self):
        self.said, self.ends = [], {}

    def progress(self, name, share, what):
        self.said.append((name, share, what))

    def ended(self, name, status, text):
        self.ends[name] = (status, text)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module that a new process can import."""
    (tmp_path / "work_of_tasks.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "work_of_tasks", raising=False)
    import work_of_tasks

    return work_of_tasks


def run(tmp_path, works, at_once=2):
    seen = Seen()
    run_tasks([Task(name, work, tmp_path / "logs" / f"{name}.log") for name, work in works.items()], at_once, seen)
    return seen


def test_each_ends_by_itself_and_says_why(work, tmp_path):
    names = ("good", "wrong", "broken", "killed", "leaves")
    seen = run(tmp_path, {name: getattr(work, name) for name in names} | {"again": work.good})
    logs = tmp_path / "logs"
    assert seen.ends == {
        "good": ("finished", "all of it"),
        "wrong": ("failed", "no pairs in qa.jsonl."),
        "broken": ("failed", f"ZeroDivisionError: division by zero; more in {logs / 'broken.log'}"),
        "killed": (
            "failed",
            "its process was killed by signal 9, often a sign of too little memory; what it said is in "
            f"{logs / 'killed.log'}",
        ),
        "leaves": ("failed", f"its process ended with exit code 3; what it said is in {logs / 'leaves.log'}"),
        "again": ("finished", "all of it"),
    }
    assert seen.said == [("good", 0.5, "half"), ("again", 0.5, "half")]
    assert (logs / "good.log").read_text() == "on stdout\n"
    assert (logs / "wrong.log").read_text() == "nrt: no pairs in qa.jsonl.\n"
    assert "1 / 0" in (logs / "broken.log").read_text()


def test_sigterm_stops_what_runs_and_begins_nothing_more(work, tmp_path):
    works = {"first": work.stops_parent, "second": work.good}
    seen = Seen()
    with pytest.raises(Interrupted, match="the same command goes on") as stopped:
        run_tasks([Task(name, one, tmp_path / f"{name}.log") for name, one in works.items()], 1, seen)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert seen.ends == {"first": ("interrupted", "stopped")}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("preload", [(), ("json",)])
def test_nothing_outlives_a_killed_parent(work, tmp_path, until, preload):
    note = tmp_path / "pid"
    program = (
        "from functools import partial; from pathlib import Path; import work_of_tasks as w\n"
        "from nrt_cli.evaluation.tasks import Task, run_tasks\n"
        "if __name__ == '__main__':\n"
        f"    run_tasks([Task('x', partial(w.lasting, {str(note)!r}), Path('x.log'))], 1, w.Deaf(), {preload!r})"
    )
    (tmp_path / "parent.py").write_text(program)
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([str(tmp_path), root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    ) as parent:
        pid = int(until(lambda: note.is_file() and note.read_text()))
        parent.kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
