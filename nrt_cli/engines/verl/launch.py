"""The door to the verl engine: sets what verl reads when it is imported, then imports it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nrt_cli.config import RunConfig
from nrt_cli.engines.local.loading import load_tokens, pick_device
from nrt_cli.engines.verl import settings

if TYPE_CHECKING:
    from nrt_cli.engines.verl.run import VerlRun


def open_engine(config: RunConfig, run_dir: Path, steps: int, updates: int) -> "VerlRun":
    """The engine of a run, its processes started.

    Args:
        updates: optimiser steps of the whole run.

    Raises:
        ConfigError: verl cannot do what the config asks, or is not installed.
        TrainingError: something did not start.
    """
    from nrt_cli.engines.verl import cluster

    gpu = pick_device(config.model.device).type == "cuda"
    os.environ.update(cluster.environment(gpu))
    sft = config.method == "sft"
    composed = settings.compose(config, run_dir, steps, {} if sft else cluster.plumbing(gpu))
    if sft:
        from nrt_cli.engines.verl.sft import SftProcesses, VerlSft

        return VerlSft(config, updates, SftProcesses(composed, gpu, config.engine.patience))
    from nrt_cli.engines.verl.engine import VerlEngine
    from nrt_cli.engines.verl.loss import Loss

    _, tokens = load_tokens(config.model.path, config.tokens.think_start, config.tokens.think_end)
    processes = cluster.Cluster(composed, Loss(config, tokens), gpu, config.engine.patience)
    return VerlEngine(config, updates, processes)
