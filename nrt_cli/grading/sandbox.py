"""Runs programs that a model wrote, so that the worst of them only fails.

A program and its tests get a process each (`sandboxed.py`, isolated from our packages and environment), between which
only plain values cross. Both have no network, no view of our processes and files, an empty folder in memory, limits on
CPU time, memory, files and processes, no privileges and a wall clock. What a platform cannot enforce, `missing` says;
nothing runs there unless asked to.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

WALL_SECONDS = 20.0
# Seconds of the CPU, of program and tests each; bytes of memory, of both and their files together; bytes of all files
# together, where they can be kept in memory, else of each.
LIMITS = {"cpu": 5, "memory": 1 << 30, "file_size": 16 << 20}


def run(
    programs: Sequence[str],
    tests: str = "",
    entry_point: str = "",
    given: str = "",
    wall_seconds: float = WALL_SECONDS,
    workers: int | None = None,
) -> list[bool]:
    """For each Python program, whether it and then the tests ran to their end without an error.

    Never raises on what a program does.

    Args:
        tests: a program that calls what the first one defines.
        entry_point: the name that is always the first program's, whatever `given` makes of it.
        given: what the first program was to continue. Where that is Python, tests have its names from it; any other
            name that they lack is the first program's.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        one = lambda program: _run((program, tests, entry_point, given), wall_seconds)[0]  # noqa: E731
        return list(pool.map(one, programs))


@lru_cache(maxsize=1)
def missing() -> tuple[str, ...]:
    """What cannot be enforced here, for people; empty where all can."""
    passed, holes = _run(("", "", "", ""), WALL_SECONDS)
    return tuple(holes) if passed else ("running Python in a process of its own",)


def _run(texts: tuple[str, str, str, str], wall_seconds: float) -> tuple[bool, list[str]]:
    """Whether a program and its tests succeeded, and what was not enforced while they ran.

    Success is a word that only the tests' process knows, sent after they have ended: an exit code can be faked with
    `os._exit(0)` before them.
    """
    word = secrets.token_hex(16)
    ours, theirs = os.pipe()
    launcher = str(Path(__file__).with_name("sandboxed.py"))
    with tempfile.TemporaryDirectory(prefix="nrt-sandbox-", ignore_cleanup_errors=True) as folder:
        try:
            # The launcher, in a session of its own and with nothing of our environment; sets have one order.
            process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-S", launcher, str(theirs), folder, json.dumps(LIMITS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PYTHONHASHSEED": "0"},
                pass_fds=(theirs,),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        try:
            process.communicate(json.dumps([word, *texts]).encode(), timeout=wall_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Kill the launcher and its session; what it started dies with it.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                process.kill()
            if process.stdin:
                process.stdin.close()
            process.wait()
            # A survivor that holds the pipe open is not waited for.
            os.set_blocking(ours, False)
            with os.fdopen(ours, "rb") as file:
                told = (file.read(1 << 16) or b"").decode(errors="replace").split("\n")
    holes = json.loads(told[0]) if len(told) > 1 else []
    return word in told[1:], holes
