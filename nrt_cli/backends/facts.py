"""What is known of a backend without importing what it computes with."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig


class Facts(Protocol):
    """A backend's module `facts`, found by its folder's name: what `engine.name` is set to."""

    SUMMARY: str
    """What it is, for the setting's description."""
    DISTRIBUTED: bool
    """Whether it is processes of its own, over which weights and moments are spread, or this one."""
    PACKAGES: tuple[str, ...]
    """What it needs besides what every run needs."""
    VERSIONS: tuple[str, ...]
    """Packages whose versions a run records, besides."""

    def contradictions(self, config: "RunConfig") -> Iterator[str]:
        """Settings that it does not have, or cannot divide its work by."""

    def sampler(self, config: "RunConfig") -> str | None:
        """The one that samples its traces; None: what `rollout.engine` says."""

    def opening(self, config: "RunConfig", run_dir: Path, steps: int) -> AbstractContextManager[Any]:
        """The backend of a run (`training.trainer.Backend`), for the length of a `with`.

        Raises:
            ConfigError: it cannot do what the config asks, or is not installed.
            TrainingError: something did not start.
        """
