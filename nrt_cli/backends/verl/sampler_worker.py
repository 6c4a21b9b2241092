"""What vLLM's own processes run besides verl's code: named by `worker_extension_cls`, imported nowhere else."""

from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from nrt_cli.backends.vllm_engine import repack_heads


class CpuSamplerWorker(vLLMColocateWorkerExtension):
    """vLLM's CPU build packs its weights when it loads them, and verl's way of replacing them knows nothing of that."""

    model_runner: Any

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Take the trainer's weights and pack them again."""
        received: list[tuple[str, torch.Tensor]] = []

        def keep(weights: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
            # The buffer they lie in is used again for the next ones.
            received.extend((name, weight.clone()) for name, weight in weights)
            weights.clear()

        receiver = BucketedWeightReceiver(zmq_handle=self._get_zmq_handle(), device=torch.device("cpu"), use_shm=True)
        receiver.receive_weights(on_bucket_received=keep)
        self.model_runner.reload_weights(weights_iterator=iter(received))
        repack_heads(self.model_runner.model)
