"""What is waited for, without Ray: every wait ends, and says what it was for."""

import subprocess
import sys
import threading
from pathlib import Path

import needs_verl  # noqa: F401
import pytest

from nrt_cli.backends.verl.cluster import Processes
from nrt_cli.backends.verl.settings import environment
from nrt_cli.errors import TrainingError


class Quiet(Processes):
    """Processes that are none."""

    closed = 0

    def start(self):
        pass

    def _start_ray(self):
        pass

    def close(self):
        Quiet.closed += 1
        super().close()


class Stuck(Quiet):
    release = threading.Event()

    def start(self):
        self.within("the ranks to start", self.release.wait)


def test_a_wait_has_a_limit_and_says_what_it_was_for():
    processes = Quiet(None, False, 0.05)
    release = threading.Event()
    with pytest.raises(TimeoutError, match=r"waited 0 s for traces, in vain; engine\.patience"):
        processes.within("traces", release.wait)
    release.set()


def test_what_comes_in_time_comes_back_and_so_does_what_goes_wrong():
    processes = Quiet(None, False, 60)
    assert processes.within("an answer", lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        processes.within("an answer", lambda: 1 / 0)


def test_a_start_that_does_not_end_is_given_up_and_cleaned_up_after():
    before = Quiet.closed
    with pytest.raises(TimeoutError, match="for the ranks to start"):
        Stuck(None, False, 0.05)
    assert Quiet.closed == before + 1
    Stuck.release.set()


def test_a_call_that_never_returns_does_not_keep_the_process_alive():
    program = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
from test_cluster import Stuck
try:
    Stuck(None, False, 0.05)
finally:
    print("given up")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "given up\n"
    assert done.returncode == 1
    assert "waited 0 s for the ranks to start" in done.stderr


def test_a_tempered_row_can_be_shared_by_ranks(tiny_config):
    shared = ("engine.name=verl", "parallel.gpus_per_node=2", "parallel.sequence=2", "train.minibatch_size=4")
    assert tiny_config(*shared, "rollout.temperature=0.7").parallel.sequence == 2


def test_processes_find_a_users_scheme_where_the_command_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "there")
    assert environment(gpu=False)["PYTHONPATH"] == f"{tmp_path}:there"
    assert "VERL_PLATFORM" not in environment(gpu=True)


def test_an_error_of_ours_comes_back_as_itself_not_as_rays_traceback() -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="Ray is not installed")
    ours = TrainingError("the loss is nan on example 3")

    def raising() -> None:
        raise exceptions.RayTaskError("update", "Traceback (most recent call last): ...", ours).as_instanceof_cause()

    with pytest.raises(TrainingError) as caught:
        Quiet(None, False, 60).within("an update", raising)
    assert str(caught.value) == "the loss is nan on example 3"


def test_workers_wait_for_each_others_threads_as_this_process_does(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    for gpu in (True, False):
        found = environment(gpu)
        assert found["OMP_WAIT_POLICY"] == "passive"
        assert "GOMP_SPINCOUNT" not in found
