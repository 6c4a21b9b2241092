"""Where a policy is computed: a folder for each backend, found here by its module `facts`. Imports no torch."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig


class Facts(Protocol):
    """What is known of a backend without importing what it computes with; `engine.name` is set to its folder's name."""

    SUMMARY: str
    """What it is, for the setting's description."""
    DISTRIBUTED: bool
    """Whether it is processes of its own, over which weights and moments are spread, or this one."""
    PACKAGES: tuple[str, ...]
    """What it needs besides what every run needs."""
    VERSIONS: tuple[str, ...]
    """Packages whose versions a run records, besides."""
    OTHER_SAMPLING: str
    """A sentence: what to do where its sampler runs other weights than the policy's."""

    def contradictions(self, config: "RunConfig") -> Iterator[str]:
        """Settings that it does not have, or cannot divide its work by."""

    def sampler(self, config: "RunConfig") -> str | None:
        """The one that samples its traces; None: what `rollout.engine` says."""

    def opening(self, config: "RunConfig", run_dir: Path, steps: int) -> AbstractContextManager[Any]:
        """The backend of a run (`training.trainer.Backend`), for the length of a `with`.

        Raises ConfigError where it cannot do what is asked or is not installed, TrainingError where it did not start.
        """


BACKENDS = {
    folder.name: cast(Facts, importlib.import_module(f"{__name__}.{folder.name}.facts"))
    for folder in pkgutil.iter_modules(__path__)
    if folder.ispkg and importlib.util.find_spec(f"{__name__}.{folder.name}.facts")
}
"""By the name of their folder."""
