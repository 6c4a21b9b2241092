"""verl's FSDP engine with five things that ours has and it does not; imported by every rank (`model.external_lib`).

Scores come from our own head (`head.py`), each token's at its own temperature; no layer drops anything at random; an
update brings its learning rate; the gradient of a step may come in several batches.
"""

import math
from typing import Any

import torch
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


def _packed(micro_batch: TensorDict) -> bool:
    """Whether rows lie one after another in one, without padding."""
    packed: bool = tu.get_non_tensor_data(micro_batch, "use_remove_padding", True)
    return packed


class TrainingRank(TrainingWorker):
    """verl's own. A process that makes one imports this module first, and with it the engine above."""
