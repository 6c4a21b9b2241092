r"""Whether two answers in LaTeX are equal, by math-verify in a process of its own.

A model may well write `\boxed{9^{9^{9^{9}}}}`: computing that holds the interpreter in one call that no signal ends.
So the comparison runs beside us, within a memory limit, and is killed when it takes too long; what was not shown to be
equal in time is not equal.
"""

import atexit
import contextlib
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

SECONDS = 10.0
MEMORY = 2 << 30


class Verifier:
    """Compares answers one after the other; starts its process when first asked."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        atexit.register(self.close)

    def equal(self, gold: str, answer: str) -> bool:
        """True where math-verify shows that the answer is the gold one within the time."""
        pipe = self._started()
        try:
            pipe.send((gold, answer))
            if pipe.poll(self.seconds):
                return bool(pipe.recv())
        except (EOFError, OSError):
            pass  # it ran into its memory limit
        self.close()
        return False

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe.recv()  # the time to import sympy is not the answer's
        return self._pipe


def _serve(pipe: Connection) -> None:
    """Answer questions until the other side goes away."""
    import logging

    from math_verify import parse, verify

    logging.disable()  # math-verify reports every answer that it cannot parse
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    pipe.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            gold, answer = pipe.recv()
            try:
                equal = verify(parse(f"${gold}$"), parse(f"${answer}$"))
            except Exception:  # parsers of untrusted text raise what they like
                equal = False
            pipe.send(equal)
