"""verl's FSDP engine with three things that ours has and it does not; imported by every rank (`model.external_lib`).

Each token is scored at its own temperature, no layer drops anything at random, an update brings its learning rate.
"""

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name, get_vendor
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine_workers import TrainingWorker


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device=get_device_name(), vendor=get_vendor()
)
class NrtEngine(FSDPEngineWithLMHead):
    """Registered for this machine's vendor, which verl asks for before its own."""

    def _build_module(self) -> torch.nn.Module:
        module = super()._build_module()
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            if hasattr(part, "attention_dropout"):
                part.attention_dropout = 0.0
        return module

    def train_batch(self, data: TensorDict, loss_function: Any) -> Any:
        for group in self.optimizer.param_groups:
            group["lr"] = tu.get_non_tensor_data(data, "learning_rate", group["lr"])
        return super().train_batch(data, loss_function)

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, torch.Tensor]:
        if "temperatures" in micro_batch.keys():  # noqa: SIM118  a TensorDict has no `in`
            temperatures = micro_batch["temperatures"]
            # Packed: rows lie one after another in one, without padding.
            if tu.get_non_tensor_data(micro_batch, "use_remove_padding", True):
                values = temperatures.values()[None]
                values = torch.nn.functional.pad(values, (0, output.logits.shape[1] - values.shape[1]), value=1.0)
            else:
                values = temperatures.to_padded_tensor(1.0, output_size=output.logits.shape[:2])
            output.logits = output.logits / values[..., None].to(output.logits.dtype)
        return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)


class TrainingRank(TrainingWorker):
    """verl's own. A process that makes one imports this module first, and with it the engine above."""
