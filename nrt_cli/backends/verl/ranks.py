"""verl's FSDP engine with six things that ours has and it does not; imported by every rank (`model.external_lib`).

Scores come from our own head (`head.py`), each token's at its own temperature; no layer drops anything at random; an
update brings its learning rate; the gradient of a step may come in several batches; a copy of the weights follows them
slowly, each rank keeping its part, and can be asked in their place.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name, get_vendor
from verl.utils.ulysses import get_ulysses_sequence_parallel_rank
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker

from nrt_cli.backends.verl.head import scored_tokens, use_chunked_head


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device=get_device_name(), vendor=get_vendor()
)
class NrtEngine(FSDPEngineWithLMHead):
    """Registered for this machine's vendor, which verl asks for before its own."""

    gathering = False
    """Whether the gradients that are there wait for others of the same step."""
    slow: dict[str, torch.Tensor] | None = None
    """This rank's part of the slow copy; None before it was first asked: it begins as the policy."""

    def _build_module(self) -> torch.nn.Module:
        module = super()._build_module()
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            if hasattr(part, "attention_dropout"):
                part.attention_dropout = 0.0
        use_chunked_head(module)
        return module

    def train_batch(self, data: TensorDict, loss_function: Any) -> Any:
        for group in self.optimizer.param_groups:
            group["lr"] = tu.get_non_tensor_data(data, "learning_rate", group["lr"])
        self.optimizer_zero_grad()
        self.gathering = tu.get_non_tensor_data(data, "more", False)
        outputs = self.forward_backward_batch(data, loss_function, forward_only=False)
        norm = math.nan if self.gathering else self.optimizer_step()
        if self.is_mp_src_rank_with_outputs():
            outputs["metrics"]["grad_norm"] = norm
        return outputs

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        keep = tu.get_non_tensor_data(data, "follow", None)
        if keep is not None and self.slow is not None:
            for name, part in self._parts().items():
                self.slow[name].mul_(keep).add_(part.to(self.slow[name]), alpha=1 - keep)
        slow = tu.get_non_tensor_data(data, "whose", "policy") == "follower"
        with self._slow_in_place() if slow else contextlib.nullcontext():
            return super().forward_backward_batch(data, loss_function, forward_only=forward_only)

    def _parts(self) -> dict[str, torch.Tensor]:
        """This rank's part of each weight, as it lies."""
        weights = {name: weight.detach() for name, weight in self.module.named_parameters()}
        return {name: w.to_local() if hasattr(w, "to_local") else w for name, w in weights.items()}

    @contextlib.contextmanager
    def _slow_in_place(self) -> Iterator[None]:
        """The policy's weights and the slow copy's change places, for passes without gradient."""
        if self.slow is None:
            self.slow = {name: part.clone() for name, part in self._parts().items()}
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        assert self.slow is not None
        # What FSDP gathered of the root module is kept after a pass; it is to be gathered again.
        if hasattr(self.module, "reshard"):
            self.module.reshard()
        for name, part in self._parts().items():
            own = part.clone()
            part.copy_(self.slow[name])
            self.slow[name].copy_(own)

    def save_checkpoint(self, local_path: str, *arguments: Any, **settings: Any) -> None:
        super().save_checkpoint(local_path, *arguments, **settings)
        if self.slow is not None:
            save_file({name: part.cpu().contiguous() for name, part in self.slow.items()}, _slow_file(local_path))

    def load_checkpoint(self, local_path: str, *arguments: Any, **settings: Any) -> None:
        super().load_checkpoint(local_path, *arguments, **settings)
        self.slow = None
        if _slow_file(local_path).is_file():
            device = {name: part.device for name, part in self._parts().items()}
            self.slow = {name: part.to(device[name]) for name, part in load_file(_slow_file(local_path)).items()}

    def optimizer_zero_grad(self) -> None:
        """verl asks before every batch and after it."""
        if not self.gathering:
            super().optimizer_zero_grad()

    def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs, output_args = super().prepare_model_inputs(micro_batch)
        shape, rank = inputs["input_ids"].shape, get_ulysses_sequence_parallel_rank()
        inputs["scored"] = scored_tokens(micro_batch, shape, _packed(micro_batch), rank)
        return inputs, output_args

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        if not tu.get_non_tensor_data(micro_batch, "calculate_entropy", False):
            output = {"log_probs": output["log_probs"]}
        if _packed(micro_batch):
            output = {
                name: self._gather_and_unpad_packed(values, output_args["pad_size"]) for name, values in output.items()
            }
        offsets = micro_batch["input_ids"].offsets()
        return {name: torch.nested.nested_tensor_from_jagged(values, offsets) for name, values in output.items()}


def _slow_file(folder: str) -> Path:
    """Where a rank keeps its part of the slow copy."""
    return Path(folder, f"slow-{torch.distributed.get_rank()}.safetensors")


def _packed(micro_batch: TensorDict) -> bool:
    """Whether rows lie one after another in one, without padding."""
    packed: bool = tu.get_non_tensor_data(micro_batch, "use_remove_padding", True)
    return packed


class TrainingRank(TrainingWorker):
    """verl's own. A process that makes one imports this module first, and with it the engine above."""
