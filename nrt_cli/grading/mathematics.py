r"""Whether two answers in LaTeX are equal, by math-verify in a process of its own.

A model may well write `\boxed{9^{9^{9^{9}}}}`: computing that holds the interpreter in one call that no signal ends.
So the comparison runs beside us, within a memory limit, and is killed when it takes too long; what was not shown to be
equal in time is not equal.
"""

import contextlib
import sys

from nrt_cli.errors import ConfigError
from nrt_cli.grading.served import Served, serve

SECONDS = 10.0
MEMORY = 2 << 30
_PROGRAM = "from nrt_cli.grading.mathematics import _serve; _serve()"


class Verifier:
    """Compares answers one after the other; starts its process when first asked."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        # The time to import sympy and to build its parser is not the answer's.
        self._served = Served(_PROGRAM, ["x^2+1", "1+x^2"])

    def equal(self, gold: str, answer: str) -> bool:
        """True where math-verify shows that the answer is the gold one within the time."""
        if not self._served.start():
            raise ConfigError(f"math-verify does not start in {sys.executable}; its own words are above.")
        return self._served.ask([gold, answer], self.seconds) is True  # else it ran into its time or its memory limit

    def close(self) -> None:
        """End the process."""
        self._served.close()


def _serve() -> None:
    import logging

    from math_verify import parse, verify
    from sympy.core.random import seed

    logging.disable()  # math-verify reports every answer that it cannot parse
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def equal(pair: list[str]) -> bool:
        seed(0)  # terms are also compared at random points
        try:
            return bool(verify(parse(f"${pair[0]}$"), parse(f"${pair[1]}$")))
        except Exception:  # parsers of untrusted text raise what they like
            return False

    serve(equal)
