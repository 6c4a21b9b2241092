"""Ray, verl's training ranks and vLLM's servers, for the length of a run. Every wait has a limit.

Nothing of verl's training loop is used: its trainer sets the workers up and is then asked for one thing at a time.
"""

import contextlib
import importlib.resources
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict

import nrt_cli
from nrt_cli.errors import ConfigError, NrtError
from nrt_cli.records import Rollout

Result = TypeVar("Result")

CPU_SHIMS = "nrt_cli.backends.verl.cpu"

START = 1800.0
"""Seconds that a part of a run may take to start, however patient the run is."""


def environment(gpu: bool) -> dict[str, str]:
    """What every process of verl needs to find set, this one included, before it imports verl."""
    common = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # The working directory, from which a user's scheme is imported.
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
        # Workers of a Ray that was started elsewhere inherit nothing from here, and import torch before us.
        **{name: os.environ[name] for name in nrt_cli.OPENMP_WAIT if name in os.environ},
    }
    if gpu:
        return common
    return common | {
        "VERL_USE_EXTERNAL_MODULES": CPU_SHIMS,
        "VERL_PLATFORM": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads())),
        # A tiny model's processes share the machine with whatever else runs there.
        "RAY_memory_monitor_refresh_ms": "0",
    }


def plumbing(gpu: bool) -> dict[str, Any]:
    """Settings of verl that name parts of this engine."""
    ours = {
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": str(
            importlib.resources.files("nrt_cli.backends.verl") / "agent_loop.yaml"
        ),
        "actor_rollout_ref.rollout.agent.default_agent_loop": "nrt",
        "actor_rollout_ref.model.external_lib": "nrt_cli.backends.verl.ranks",
        # Rewards are the policy's own probabilities.
        "reward.num_workers": 0,
    }
    if not gpu:
        worker = "nrt_cli.backends.verl.sampler_worker.CpuSamplerWorker"
        ours["actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls"] = worker
    return ours


class Processes:
    """The ranks of one run, and what they run on, from start to `close`.

    A subclass sets `workers`, a worker group of verl's, in `start`.

    Raises:
        TimeoutError: something did not start in time.
    """

    workers: Any

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
    def sequence(self) -> int:
        """Ranks that share a row."""
        return int(self.settings.actor_rollout_ref.actor.ulysses_sequence_parallel_size)

    @property
    def ranks(self) -> int:
        """Ranks that hold different rows."""
        return int(self.workers.world_size) // self.sequence

    def save(self, folder: Path, step: int) -> None:
        """The ranks' state below a folder that all of them see."""
        self.within("the ranks to save", lambda: self.workers.save_checkpoint(str(folder), None, step, None))

    def load(self, folder: Path) -> None:
        """What `save` wrote."""
        self.within("the ranks to load", lambda: self.workers.load_checkpoint(str(folder)))

    def close(self) -> None:
        """End every process that was started."""
        import ray

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
        """Make the calls, one after another."""
        while asked := self._calls.get():
            call, future = asked
            try:
                future.set_result(call())
            except BaseException as error:
                # Ray's wrapper of an error of ours is one of ours too, whose text is a traceback.
                own = getattr(error, "cause", None)
                future.set_exception(own if isinstance(own, NrtError) else error)

    def _start_ray(self) -> None:
        import ray
        from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

        if ray.is_initialized():
            return
        started: Any = OmegaConf.to_container(self.settings.ray_kwargs.ray_init, resolve=True)
        runtime: Any = OmegaConf.to_container(OmegaConf.create(get_ppo_ray_runtime_env(self.settings)), resolve=True)
        runtime["env_vars"] = {**runtime.get("env_vars", {}), **environment(self.gpu)}
        ray.init(**{**started, "runtime_env": runtime})
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

    def __init__(self, settings: DictConfig, loss: Callable[..., Any], gpu: bool, seconds: float) -> None:
        self.loss = loss
        self.sleeps = bool(settings.actor_rollout_ref.rollout.free_cache_engine)
        self.asleep = False
        """Whether vLLM's servers have given their memory back, and their weights with it."""
        super().__init__(settings, gpu, seconds)

    def start(self) -> None:
        self.trainer = self.starting("the ranks and vLLM's servers to start", lambda: _trainer(self.settings))
        self.workers = self.trainer.actor_rollout_wg
        self.within("the ranks to take the loss", lambda: self.workers.set_loss_fn(self.loss))
        self.traces = self.starting("the agent-loop workers to start", self._start_traces)

    def _start_traces(self) -> Any:
        from nrt_cli.backends.verl.agent_loop import TraceManager

        return TraceManager.create(config=self.settings, llm_client=self.trainer.get_llm_client())

    def sample(self, requests: Sequence[dict[str, Any]], temperature: float) -> list[Rollout]:
        """A trace for each request, in their order, under the weights of the last `publish`."""
        rollouts = self.within("traces", lambda: self.traces.sample(requests, temperature, self.seconds))
        if self.sleeps:
            # Their weights and caches make room for the update; `publish` brings both back.
            self.within("vLLM's servers to free their memory", self.trainer.checkpoint_manager.sleep_replicas)
            self.asleep = True
        return rollouts

    def score(self, batch: TensorDict) -> TensorDict:
        """`log_probs` and `entropy` of the rows, without gradient. A whole number of rows for each rank."""
        return self.within("a pass without gradient", lambda: self.workers.compute_log_prob(batch))

    def score_reference(self, batch: TensorDict) -> TensorDict:
        """`log_probs` of the rows under the starting model."""
        reference = self.trainer.ref_policy_wg
        return self.within("a pass of the starting model", lambda: reference.compute_ref_log_prob(batch))

    def update(self, batch: TensorDict) -> dict[str, Any]:
        """One optimiser step on the rows; what the ranks say of it."""
        from verl.utils import tensordict_utils as tu

        return dict(tu.get(self.within("an update", lambda: self.workers.update_actor(batch)), "metrics"))

    def publish(self, step: int) -> None:
        """The ranks' weights to vLLM's servers."""
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
