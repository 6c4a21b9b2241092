"""Native Reasoning Training: teach a language model to reason from plain question-answer pairs.

`nrt_cli.api` says what can be called from Python; its names are here too, imported when first asked for.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nrt_cli.renamed import Moved

__version__ = "0.1.0"

OPENMP_WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""What says how OpenMP's threads wait for each other, in libgomp, in any OpenMP, in Intel's and LLVM's."""

if not any(name in os.environ for name in OPENMP_WAIT):
    # A thread that waits for others spins, on a busy machine on the very core that they need. libgomp reads how long it
    # may when torch loads it: so this stands here, where all our modules pass first. Processes that we start inherit
    # it. tests/bench/spinning.py measures how long is right.
    os.environ["GOMP_SPINCOUNT"] = "50000"

sys.meta_path.append(Moved)

if TYPE_CHECKING:
    from nrt_cli.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # Not `from nrt_cli import api`, which would ask here for the name `api` again.
    if not name.startswith("_"):
        api = import_module("nrt_cli.api")
        if name in api.__all__:
            return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *import_module("nrt_cli.api").__all__]
