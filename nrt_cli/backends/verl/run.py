"""What any verl run keeps and how it is closed; the steps are its subclasses'."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nrt_cli.backends.local.engine import Update
from nrt_cli.backends.verl.cluster import Processes
from nrt_cli.config import RunConfig
from nrt_cli.errors import StoreError
from nrt_cli.models.export import RANKS, export_checkpoint, ranks_weights
from nrt_cli.models.loading import load_tokens
from nrt_cli.records import Example, HeldOut, RolloutGroup


class VerlRun:
    """A run's processes, and the checkpoints that they write. `updated` counts the optimiser steps."""

    updated: int = 0

    def __init__(self, config: RunConfig, processes: Processes) -> None:
        self.config, self.processes, self.settings = config, processes, processes.settings
        names = config.tokens
        self.tokenizer, self.tokens = load_tokens(config.model.path, names.think_start, names.think_end)

    def train_step(self, examples: Sequence[Example], step: int) -> tuple[Update, list[RolloutGroup]]:
        """One step of the run."""
        raise NotImplementedError

    def held_out(self, examples: Sequence[Example]) -> HeldOut:
        """Scores of held-out examples."""
        raise NotImplementedError

    def reasoner(self) -> None:
        """Nobody to ask questions: the samplers end with their trace, and so accuracies are not measured."""

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what a person should know of how this run computes."""
        say(f"verl is up: {self.processes.ranks} of its ranks hold different rows")

    def close(self) -> None:
        """End the processes."""
        self.processes.close()

    def state(self) -> dict[str, Any]:
        """What a checkpoint says besides the ranks' files."""
        return {"updates": self.updated, "ranks": int(self.processes.workers.world_size)}

    def content(self) -> Callable[[Path], None]:
        """Writes the ranks' weights and moments, each rank its own, and the weights as a Hugging Face folder."""
        return lambda folder: self.processes.save(folder.absolute() / RANKS, self.updated)

    def broken_weight(self) -> None:
        """Weights are finite as long as gradients are, and the ranks take no step with one that is not."""

    def restore(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint of as many ranks. Raises StoreError for another number."""
        ranks = int(self.processes.workers.world_size)
        if state.get("ranks") != ranks:
            raise StoreError(
                f"{folder}: was saved by {state.get('ranks')} ranks and this run has {ranks}; resume with as many."
            )
        self.processes.load(folder.absolute() / RANKS)
        self.updated = state["updates"]

    def export(self, folder: Path, checkpoint: Path) -> None:
        """A checkpoint's weights as the local engine exports them."""
        export_checkpoint(ranks_weights(checkpoint), self.config, Path(self.config.model.path), folder)
