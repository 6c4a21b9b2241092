"""A Python program beside ours that answers a line with a line, and is killed when it takes too long.

It is a process of `subprocess`, since those of `multiprocessing` run the user's script again where that has no `if
__name__ == "__main__"`. It leads a group of its own, so that what it started ends with it.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any


class Served:
    """Asks a program one question after the other; it starts when first asked, and anew after one that it failed at.

    `opening` is its first question, whose time, in which it imports what it needs, is no question's.
    """

    def __init__(self, program: str, opening: Any) -> None:
        self.program, self.opening = program, opening
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def start(self) -> Any:
        """What it says to its opening question, where it is not running; None where it does not start."""
        if self._process is not None and self._process.poll() is None:
            return True
        self.close()
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="ascii",
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        if (said := self._said(self.opening)) is None:
            self.close()
        return said

    def ask(self, question: Any, seconds: float) -> Any:
        """Its answer, as JSON has it; None where it gave none in time, or ended."""
        if self.start() is None:
            return None
        timer = threading.Timer(seconds, self._kill)
        timer.start()
        try:
            answer = self._said(question)
        finally:
            timer.cancel()
        if answer is None:
            self.close()
        return answer

    def _said(self, question: Any) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        return None

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process."""
        self._kill()
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.communicate()
        self._process = None


def serve(answer: Callable[[Any], Any]) -> None:
    """The program's side: a line for each line, until the other side goes away."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever is printed on the way is no reply
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for line in sys.stdin:
            replies.write(json.dumps(answer(json.loads(line))) + "\n")
            replies.flush()
