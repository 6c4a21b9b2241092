"""The SFT baseline on verl: the workers, the loss and the checkpoints of its own SFT trainer, on our rows in our order.

verl's trainer shuffles, batches and logs by itself; the baseline must see the batches that every other method sees, and
its records must be those of the local engine. So its loop is left out and its workers are asked for one step at a time.
"""

import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from nrt_cli.backends.local.engine import Update
from nrt_cli.backends.local.optimiser import rate_factor
from nrt_cli.backends.verl.cluster import Processes
from nrt_cli.backends.verl.ranks import SftRank
from nrt_cli.backends.verl.rows import as_rows, nested, scored
from nrt_cli.backends.verl.run import VerlRun
from nrt_cli.config import RunConfig
from nrt_cli.errors import TrainingError
from nrt_cli.objective.group import mean_of, mean_total
from nrt_cli.objective.layout import Layout
from nrt_cli.objective.rows import Row
from nrt_cli.records import Example, HeldOut, RolloutGroup


class SftProcesses(Processes):
    """Ray and the ranks of verl's SFT trainer."""

    def start(self) -> None:
        self.trainer = self.starting("verl's workers to start", lambda: _trainer(self.settings))
        self.workers = self.trainer.training_client

    @property
    def sequence(self) -> int:
        return int(self.settings.engine.ulysses_sequence_parallel_size)

    def update(self, batch: TensorDict) -> dict[str, Any]:
        """One optimiser step on a minibatch; loss and gradient norm."""
        output = self.within("an update", lambda: self.workers.train_batch(batch).get())
        return dict(tu.get(output, "metrics"))

    def score(self, batch: TensorDict) -> TensorDict:
        """`log_probs` of the rows, without gradient."""
        tu.assign_non_tensor(batch, compute_loss=False)
        return self.within("a pass without gradient", lambda: self.workers.infer_batch(batch).get())


def _trainer(settings: DictConfig) -> Any:
    """verl's SFT trainer, set up, without its data and with ranks whose learning rate comes with each update."""
    import ray
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
    from verl.trainer.sft_trainer_ray import SFTTrainer
    from verl.workers.engine_workers import TrainingWorkerConfig
    from verl.workers.utils.losses import sft_loss

    class Trainer(SFTTrainer):
        def _build_dataset(self) -> None:
            """Rows come from our own data."""

        def _build_dataloader(self) -> None:
            self.train_dataloader = None

        def _build_engine(self) -> None:
            config = TrainingWorkerConfig(
                model_type="language_model",
                model_config=self.model_config,
                engine_config=self.engine_config,
                optimizer_config=self.optimizer_config,
                checkpoint_config=self.checkpoint_config,
                profiler_config=self.profiler_config,
            )
            # One process per GPU: nothing else has to find room beside it.
            nodes = [settings.trainer.n_gpus_per_node] * settings.trainer.nnodes
            pool = RayResourcePool(process_on_nodes=nodes, max_colocate_count=1)
            rank = RayClassWithInitArgs(ray.remote(SftRank), config=config)
            self.training_client = RayWorkerGroup(pool, rank, device_name=settings.trainer.device)
            self.training_client.set_loss_fn(loss_fn=functools.partial(sft_loss, config=None))
            self.training_client.reset()

    return Trainer(config=settings)


class VerlSft(VerlRun):
    """An SFT run: cross-entropy on y* given x, per answer token of the minibatch, as the local engine's."""

    processes: SftProcesses

    def __init__(self, config: RunConfig, updates: int, processes: SftProcesses) -> None:
        super().__init__(config, processes)
        self.updates = updates
        self.layout = Layout(self.tokens, torch.device("cpu"))

    def train_step(self, examples: Sequence[Example], step: int) -> tuple[Update, list[RolloutGroup]]:
        """One optimiser step per minibatch."""
        started = time.perf_counter()
        size = self.config.train.minibatch_size or len(examples)
        reports = [self._minibatch(examples[start : start + size]) for start in range(0, len(examples), size)]
        metrics = mean_of(reports)
        tokens = sum(len(e.prompt_ids) + len(e.answer_ids) for e in examples)
        seconds = time.perf_counter() - started
        metrics |= {"answer_logprob_per_token": -metrics["loss"], "tokens": tokens, "seconds": seconds}
        # The ranks' matmul rate is not measured from here.
        metrics |= {"seconds_update": seconds, "tokens_per_second": tokens / seconds, "mfu": math.nan}
        return Update(metrics, []), []

    def _minibatch(self, examples: Sequence[Example]) -> dict[str, float]:
        rate = self.config.optimiser.lr * rate_factor(self.config.optimiser, self.updated, self.updates)
        batch = self._batch([self.layout.direct_row(example) for example in examples])
        tu.assign_non_tensor(batch, learning_rate=rate)
        told = self.processes.update(batch)
        loss, norm = float(told["loss"]), float(told["grad_norm"])
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is {loss} and its gradient's norm {norm} on examples {[e.index for e in examples]}"
            )
        self.updated += 1
        return {"loss": loss, "grad_norm": norm, "lr": rate}

    def _batch(self, rows: Sequence[Row]) -> TensorDict:
        """Rows as verl's SFT workers take them: masks are over whole rows."""
        batch = as_rows(rows, 1.0, entropy=False)
        batch["loss_mask"] = nested([torch.arange(len(row.ids)) >= row.scored_from for row in rows])
        tu.assign_non_tensor(
            batch,
            global_token_num=tu.NonTensorData([len(row.ids) for row in rows]),
            use_remove_padding=self.settings.model.use_remove_padding,
            use_dynamic_bsz=True,
            max_token_len_per_gpu=self.settings.data.max_token_len_per_gpu,
            pad_mode=self.settings.data.pad_mode,
            pad_token_id=self.tokens.pad_id,
        )
        return batch

    def held_out(self, examples: Sequence[Example]) -> HeldOut:
        """log P(y*) of held-out examples, in nats."""
        rows = [self.layout.direct_row(example) for example in examples]
        # Every rank takes as many rows; what is there twice is not counted.
        padded = [*rows, *[rows[-1]] * (-len(rows) % self.processes.ranks)]
        batch = self._batch(padded)
        parts = scored(self.processes.score(batch)["log_probs"], batch)[: len(rows)]
        logprobs = tuple(tuple(part.tolist()) for part in parts)
        return HeldOut({"answer_logprob": mean_total(logprobs)}, logprobs)
