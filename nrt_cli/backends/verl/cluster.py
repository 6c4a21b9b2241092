"""Ray, verl's training ranks and vLLM's servers, for the length of a run. Every wait has a limit.

Nothing of verl's training loop is used: its trainer sets the workers up and is then asked for one thing at a time.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from nrt_cli.backends.verl.loss import loss
from nrt_cli.backends.verl.settings import environment
from nrt_cli.errors import ConfigError, NrtError
from nrt_cli.records import Rollout

Result = TypeVar("Result")

START = 1800.0
"""Seconds that a part of a run may take to start, however patient the run is."""


class Processes:
    """The ranks of one run, and what they run on, from start to `close`.

    A subclass sets what is declared here in `start`. Raises TimeoutError where something does not start in time.
    """

    workers: Any
    """A worker group of verl's."""
    sequence: int
    """Ranks that share a row."""
    budget: int
    """Tokens of a rank's forward pass."""
    asleep = False
    """Whether vLLM's servers have given their memory back, and their weights with it."""

    def __init__(self, settings: DictConfig, gpu: bool, seconds: float) -> None:
        self.settings, self.gpu, self.seconds = settings, gpu, seconds
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        # A daemon: a call that never returns must not keep the process from ending.
        threading.Thread(target=self._answer, daemon=True).start()
        try:
            self.starting("Ray to start", self._start_ray)
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Bring the ranks up."""
        raise NotImplementedError

    @property
    def ranks(self) -> int:
        """Ranks that hold different rows."""
        return int(self.workers.world_size) // self.sequence

    def save(self, folder: Path, step: int) -> None:
        """The ranks' state below a folder that all of them see."""
        self.within("the ranks to save", lambda: self.workers.save_checkpoint(str(folder), None, step, None))

    def load(self, folder: Path) -> None:
        self.within("the ranks to load", lambda: self.workers.load_checkpoint(str(folder)))

    def close(self) -> None:
        """End every process that was started."""
        with contextlib.suppress(Exception):
            ray.shutdown()
        self._calls.put(None)

    def within(self, what: str, call: Callable[[], Result], seconds: float | None = None) -> Result:
        """The result of a call, if it comes in time; in a thread of its own, so that a signal is heard meanwhile."""
        future: Future[Result] = Future()
        self._calls.put((call, future))
        seconds = self.seconds if seconds is None else seconds
        done, _ = wait([future], seconds)
        if not done:
            # No TrainingError, after which the run would ask the same stuck process to save.
            raise TimeoutError(f"waited {seconds:.0f} s for {what}, in vain; engine.patience is how long to wait")
        return future.result()

    def starting(self, what: str, call: Callable[[], Result]) -> Result:
        """The same of something that starts, which takes minutes where it works at all."""
        return self.within(what, call, min(self.seconds, START))

    def _answer(self) -> None:
        while asked := self._calls.get():
            call, future = asked
            try:
                future.set_result(call())
            except BaseException as error:
                # Ray's wrapper of an error of ours is one of ours too, whose text is a traceback.
                own = getattr(error, "cause", None)
                future.set_exception(own if isinstance(own, NrtError) else error)

    def _start_ray(self) -> None:
        from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

        if ray.is_initialized():
            return
        started: Any = OmegaConf.to_container(self.settings.ray_kwargs.ray_init, resolve=True)
        runtime: Any = OmegaConf.to_container(OmegaConf.create(get_ppo_ray_runtime_env(self.settings)), resolve=True)
        runtime["env_vars"] = {**runtime.get("env_vars", {}), **environment(self.gpu)}
        # Without a GPU, ranks are CPUs that Ray is told are GPUs: not as many as this names, which may be none.
        visible = None if self.gpu else os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        try:
            ray.init(**{**started, "runtime_env": runtime})
        finally:
            os.environ.update({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
        # Ray would wait for the rest to join, and verl's worker groups with it.
        there = ray.cluster_resources().get("GPU", 0)
        asked = self.settings.trainer.nnodes * self.settings.trainer.n_gpus_per_node
        if there < asked:
            raise ConfigError(
                f"parallel.nodes x parallel.gpus_per_node asks for {asked} GPUs, but Ray's cluster has {there:g}; "
                "`ray status` lists its nodes."
            )


class Cluster(Processes):
    """The ranks, vLLM's servers beside them, and the agent-loop workers that ask those for traces."""

    def start(self) -> None:
        actor = self.settings.actor_rollout_ref.actor
        self.sequence, self.budget = int(actor.ulysses_sequence_parallel_size), int(actor.ppo_max_token_len_per_gpu)
        self.sleeps = bool(self.settings.actor_rollout_ref.rollout.free_cache_engine)
        self.trainer = self.starting("the ranks and vLLM's servers to start", lambda: _trainer(self.settings))
        self.workers = self.trainer.actor_rollout_wg
        self.within("the ranks to take the loss", lambda: self.workers.set_loss_fn(loss))
        from nrt_cli.backends.verl.agent_loop import TraceManager

        create = lambda: TraceManager.create(config=self.settings, llm_client=self.trainer.get_llm_client())  # noqa: E731
        self.traces = self.starting("the agent-loop workers to start", create)

    def sample(self, requests: Sequence[dict[str, Any]], temperature: float) -> list[Rollout]:
        rollouts = self.within("traces", lambda: self.traces.sample(requests, temperature, self.seconds))
        if self.sleeps:
            # Their weights and caches make room for the update; `publish` brings both back.
            self.within("vLLM's servers to free their memory", self.trainer.checkpoint_manager.sleep_replicas)
            self.asleep = True
        return rollouts

    def score(self, batch: TensorDict) -> TensorDict:
        return self.within("a pass without gradient", lambda: self.workers.compute_log_prob(batch))

    def score_reference(self, batch: TensorDict) -> TensorDict:
        reference = self.trainer.ref_policy_wg
        return self.within("a pass of the starting model", lambda: reference.compute_ref_log_prob(batch))

    def update(self, batch: TensorDict) -> dict[str, Any]:
        return dict(tu.get(self.within("an update", lambda: self.workers.update_actor(batch)), "metrics"))

    def publish(self, step: int) -> None:
        self.within("vLLM's servers to take the weights", lambda: self.trainer.checkpoint_manager.update_weights(step))
        self.asleep = False


def _trainer(settings: DictConfig) -> Any:
    """verl's synchronous trainer, set up, without its data, its loop and its checkpoints."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    class Trainer(PPOTrainerSync):
        def _build_replay_buffer(self) -> None:
            """Traces come with the call that asks for them."""

        def _init_dataloader(self) -> None:
            """Rows come from our own data."""

        def _load_checkpoint(self) -> None:
            """Resumed once all is up, and only if asked."""
            self.global_steps = 0

        def on_init_end(self) -> None:
            """Weights are published when it is known which."""

    with open_dict(settings):
        settings.transfer_queue.enable = False
    trainer = Trainer(config=settings)
    trainer.init()
    return trainer


class TrainingRanks(Processes):
    """The ranks alone, of verl's SFT trainer: for a method that samples nothing.

    That trainer shuffles, batches and logs by itself; every method must see the same batches, and its records must be
    the trainer's. So its loop is left out and its workers are asked for one step at a time.
    """

    def start(self) -> None:
        self.sequence = int(self.settings.engine.ulysses_sequence_parallel_size)
        self.budget = int(self.settings.data.max_token_len_per_gpu)
        self.trainer = self.starting("verl's workers to start", lambda: _sft_trainer(self.settings))
        self.workers = self.trainer.training_client

    def update(self, batch: TensorDict) -> dict[str, Any]:
        self._dress(batch)
        output = self.within("an update", lambda: self.workers.train_mini_batch(batch).get())
        return dict(tu.get(output, "metrics"))

    def score(self, batch: TensorDict) -> TensorDict:
        self._dress(batch)
        return self.within("a pass without gradient", lambda: self.workers.infer_batch(batch).get())

    def _dress(self, batch: TensorDict) -> None:
        """What the actor's worker adds by itself to a batch."""
        model, data = self.settings.model, self.settings.data
        tu.assign_non_tensor(batch, use_remove_padding=model.use_remove_padding, pad_mode=data.pad_mode)
        tu.assign_non_tensor(batch, use_dynamic_bsz=True, max_token_len_per_gpu=self.budget)


def _sft_trainer(settings: DictConfig) -> Any:
    """verl's SFT trainer, set up, without its data and with ranks whose learning rate comes with each update."""
    from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
    from verl.trainer.sft_trainer_ray import SFTTrainer
    from verl.workers.engine_workers import TrainingWorkerConfig

    from nrt_cli.backends.verl.ranks import TrainingRank

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
            rank = RayClassWithInitArgs(ray.remote(TrainingRank), config=config)
            self.training_client = RayWorkerGroup(pool, rank, device_name=settings.trainer.device)
            self.training_client.set_loss_fn(loss_fn=loss)
            self.training_client.reset()

    return Trainer(config=settings)
