"""The door to the verl engine: sets what verl reads when it is imported, then imports it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nrt_cli.backends.verl import settings
from nrt_cli.config import RunConfig
from nrt_cli.models.loading import load_tokens, pick_device

if TYPE_CHECKING:
    from nrt_cli.backends.verl.run import VerlRun


def open_engine(config: RunConfig, run_dir: Path, steps: int, updates: int) -> "VerlRun":
    """The engine of a run, its processes started.

    Args:
        updates: optimiser steps of the whole run.

    Raises:
        ConfigError: verl cannot do what the config asks, or is not installed.
        TrainingError: something did not start.
    """
    from nrt_cli.backends.verl import cluster

    gpu = pick_device(config.model.device).type == "cuda"
    os.environ.update(cluster.environment(gpu))
    sft = config.method == "sft"
    composed = settings.compose(config, run_dir, steps, {} if sft else cluster.plumbing(gpu))
    if sft:
        from nrt_cli.backends.verl.sft import SftProcesses, VerlSft

        return VerlSft(config, updates, SftProcesses(composed, gpu, config.engine.patience))
    from nrt_cli.backends.verl.engine import VerlEngine
    from nrt_cli.backends.verl.loss import Loss

    _, tokens = load_tokens(config.model.path, config.tokens.think_start, config.tokens.think_end)
    processes = cluster.Cluster(composed, Loss(config, tokens), gpu, config.engine.patience)
    return VerlEngine(config, updates, processes)
