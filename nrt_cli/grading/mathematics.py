r"""Whether two answers in LaTeX are equal, by math-verify in a process of its own.

A model may well write `\boxed{9^{9^{9^{9}}}}`: computing that holds the interpreter in one call that no signal ends.
So the comparison runs beside us, within a memory limit, and is killed when it takes too long; what was not shown to be
equal in time is not equal. It is a process of `subprocess`, since those of `multiprocessing` run the user's script
again where that has no `if __name__ == "__main__"`.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading

from nrt_cli.errors import ConfigError

SECONDS = 10.0
MEMORY = 2 << 30
_PROGRAM = "from nrt_cli.grading.mathematics import _serve; _serve()"


class Verifier:
    """Compares answers one after the other; starts its process when first asked."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def equal(self, gold: str, answer: str) -> bool:
        """True where math-verify shows that the answer is the gold one within the time."""
        process = self._process
        if process is None or process.poll() is not None:
            self.close()
            path = os.pathsep.join(filter(None, sys.path))
            process = self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="ascii",
                env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},
            )
            # The time to import sympy and to build its parser is not the answer's.
            if not _ask(process, ["x^2+1", "1+x^2"]):
                self.close()
                raise ConfigError(f"math-verify does not start in {sys.executable}; its own words are above.")
        end = threading.Timer(self.seconds, process.kill)
        end.start()
        try:
            told = _ask(process, [gold, answer])
        finally:
            end.cancel()
        if not told:  # it ran into its time or its memory limit
            self.close()
        return told == "true\n"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):
                self._process.communicate()
        self._process = None


def _ask(process: "subprocess.Popen[str]", pair: list[str]) -> str:
    """A line that the process says of two answers; empty where it is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(pair) + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return ""


def _serve() -> None:
    """Answer questions, a line each, until the other side goes away."""
    import logging

    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever parsers print is no reply

    from math_verify import parse, verify
    from sympy.core.random import seed

    logging.disable()  # math-verify reports every answer that it cannot parse
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin:
            gold, answer = json.loads(line)
            seed(0)  # terms are also compared at random points
            try:
                equal = verify(parse(f"${gold}$"), parse(f"${answer}$"))
            except Exception:  # parsers of untrusted text raise what they like
                equal = False
            replies.write(f"{json.dumps(bool(equal))}\n")
            replies.flush()
