"""Runs programs that a model wrote, so that the worst of them only fails.

Each program gets a process of its own (`sandboxed.py`, isolated from our packages and environment) with no network, no
view of our processes and files, an empty folder in memory, limits on CPU time, memory, files and processes, no
privileges and a wall clock. What a platform cannot enforce, `missing` says; nothing runs there unless asked to.
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
# Seconds of the CPU; bytes; bytes of all files together, where they can be kept in memory, else of each.
LIMITS = {"cpu": 5, "memory": 1 << 30, "file_size": 16 << 20}


def run(programs: Sequence[str], wall_seconds: float = WALL_SECONDS, workers: int | None = None) -> list[bool]:
    """For each Python program, whether it ran to its end without an error. Never raises on what a program does."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return list(pool.map(lambda program: _run(program, wall_seconds)[0], programs))


@lru_cache(maxsize=1)
def missing() -> tuple[str, ...]:
    """What cannot be enforced here, for people; empty where all can."""
    passed, holes = _run("pass", WALL_SECONDS)
    return tuple(holes) if passed else ("running Python in a process of its own",)


def _run(program: str, wall_seconds: float) -> tuple[bool, list[str]]:
    """Whether a program succeeded, and what was not enforced while it ran.

    Success is a word that only the launcher knows, sent after the program has ended: an exit code can be faked with
    `os._exit(0)` before the tests.
    """
    word = secrets.token_hex(16)
    ours, theirs = os.pipe()
    with tempfile.TemporaryDirectory(prefix="nrt-sandbox-", ignore_cleanup_errors=True) as folder:
        try:
            # The launcher, in a session of its own and with nothing of our environment; sets have one order.
            process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-S", str(Path(__file__).with_name("sandboxed.py")), str(theirs)],
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
        question = json.dumps({"program": program, "word": word, "folder": folder, "limits": LIMITS})
        try:
            process.communicate(question.encode(), timeout=wall_seconds)
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
