"""A trainer whose backend is this process, for those who look inside: checks, benchmarks, tests."""

from typing import Any

from nrt_cli.backends.local.backend import Loaded, LocalBackend
from nrt_cli.config import RunConfig
from nrt_cli.training.trainer import Trainer


class LocalTrainer(Trainer):
    """The same, with its policy, sampler and optimiser within reach as `backend`."""

    backend: LocalBackend

    def __init__(self, config: RunConfig, updates: int, loaded: Loaded | None = None, **settings: Any) -> None:
        super().__init__(config, LocalBackend(config, loaded), updates, **settings)
