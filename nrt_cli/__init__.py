"""Native Reasoning Training: teach a language model to reason from plain question-answer pairs.

`nrt_cli.api` says what can be called from Python; its names are here too, imported when first asked for.
"""

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

OPENMP_WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""What says how OpenMP's threads wait for each other, in libgomp, in any OpenMP, in Intel's and LLVM's."""

if not any(name in os.environ for name in OPENMP_WAIT):
    # A thread that waits for others spins, on a busy machine on the very core that they need. libgomp reads how long it
    # may when torch loads it: so this stands here, where all our modules pass first. Processes that we start inherit
    # it. tests/bench/spinning.py measures how long is right.
    os.environ["GOMP_SPINCOUNT"] = "50000"

if TYPE_CHECKING:
    from nrt_cli.api import Group as Group
    from nrt_cli.api import Method as Method
    from nrt_cli.api import Rowwise as Rowwise
    from nrt_cli.api import Signals as Signals
    from nrt_cli.api import analyze as analyze
    from nrt_cli.api import doctor as doctor
    from nrt_cli.api import evaluate as evaluate
    from nrt_cli.api import generate as generate
    from nrt_cli.api import grader as grader
    from nrt_cli.api import list_runs as list_runs
    from nrt_cli.api import load_config as load_config
    from nrt_cli.api import open_run as open_run
    from nrt_cli.api import prepare_data as prepare_data
    from nrt_cli.api import prepare_model as prepare_model
    from nrt_cli.api import push as push
    from nrt_cli.api import reward as reward
    from nrt_cli.api import score as score
    from nrt_cli.api import train as train


def __getattr__(name: str) -> Any:
    # Not `from nrt_cli import api`, which would ask here for the name `api` again.
    from importlib import import_module

    if not name.startswith("_"):
        api = import_module("nrt_cli.api")
        if name in api.__all__:
            return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from importlib import import_module

    return [*globals(), *import_module("nrt_cli.api").__all__]
