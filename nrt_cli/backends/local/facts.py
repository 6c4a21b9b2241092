"""What is known of the local backend."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig

SUMMARY = "one process, a CPU or one GPU"
DISTRIBUTED = False
PACKAGES = ()
VERSIONS = ()
OTHER_SAMPLING = "Set rollout.engine=native, which decodes with the policy itself."


def contradictions(config: "RunConfig") -> Iterator[str]:
    of = f"engine.name={config.engine.name}"
    if config.parallel != type(config.parallel)():
        yield f"parallel has no effect on {of}, which is one process; remove it or use another --engine"
    if config.verl:
        yield f"verl has no effect on {of}; remove it or use another --engine"
    if config.engine.patience != type(config.engine)().patience:
        yield f"engine.patience has no effect on {of}, which waits for nobody; remove it"


def sampler(config: "RunConfig") -> None:
    """The policy's own process samples, with what `rollout.engine` says."""


def opening(config: "RunConfig", run_dir: Path, steps: int) -> contextlib.AbstractContextManager[Any]:
    """Made at once, so that what it refuses is refused before there is a run."""
    from nrt_cli.backends.local.backend import LocalBackend

    return contextlib.nullcontext(LocalBackend(config))
