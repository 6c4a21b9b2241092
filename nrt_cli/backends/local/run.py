"""The local engine as a training run holds it: what is saved of it, gone on from, and left behind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrt_cli.backends.local.engine import LocalEngine
from nrt_cli.models.export import export_model


class LocalRun(LocalEngine):
    """A local engine with its state as files."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint says besides its tensors."""
        return {"updates": self.optimiser.updates, "budget": self.budget.tokens}

    def content(self) -> Mapping[str, Tensor]:
        """A checkpoint's tensors by name."""
        return self.optimiser.state()

    def broken_weight(self) -> str | None:
        """The name of a weight that is not finite: only whole weights may take a good checkpoint's place."""
        masters = self.optimiser.masters
        return next((name for name, weight in masters.items() if not bool(torch.isfinite(weight).all())), None)

    def restore(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.optimiser.load_state(dict(tensors), state["updates"])
        # Halved where memory ran out: with it, gradients are summed in the same parts as they would have been.
        self.budget.tokens = min(self.budget.tokens, state.get("budget", self.budget.tokens))

    def export(self, folder: Path, checkpoint: Path) -> None:
        """The policy as it is, as a model folder."""
        export_model(self.policy.model, self.tokenizer, self.tokens, self.config, Path(self.config.model.path), folder)
