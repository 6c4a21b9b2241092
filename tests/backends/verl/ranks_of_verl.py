"""verl's training ranks as plain processes: its worker class and our engine on it, without Ray and without a sampler.

Rank 0's process drives: it runs the work that it is given with `Ranks`, which has the interface of the real cluster.
"""

import copy
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import get_context

LIMIT = 300
"""Seconds that a rank may be silent."""


def in_ranks(world: int, config: Any, work: Any, *arguments: Any) -> Any:
    """What `work(ranks, config, *arguments)` returns in rank 0's process, with `world` ranks of verl to ask."""
    context, port = get_context("spawn"), free_port()
    result, result_end = context.Pipe(False)
    pipes = [context.Pipe() for _ in range(world - 1)]
    processes = [
        context.Process(target=_drive, args=(world, port, config, [a for a, _ in pipes], work, arguments, result_end))
    ]
    processes += [
        context.Process(target=_serve, args=(i + 1, world, port, config, b)) for i, (_, b) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        assert result.poll(LIMIT), "rank 0 said nothing"
        outcome = result.recv()
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert not isinstance(outcome, str), outcome
    return outcome


def free_port() -> int:
    """A port that nobody listens on now."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _worker(rank: int, world: int, port: int, config: Any) -> Any:
    """This process's rank of the actor that verl would make of a run's config."""
    from nrt_cli.backends.verl import settings

    os.environ.update(settings.environment(gpu=False) | {"OMP_NUM_THREADS": "1"})
    os.environ.update(
        {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    torch.set_num_threads(1)
    composed = settings.compose(config, Path("unused"), 1)

    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine_workers import TrainingWorkerConfig

    from nrt_cli.backends.verl.loss import loss
    from nrt_cli.backends.verl.ranks import TrainingRank

    if not config.samples:
        model, engine, optim, checkpoint = (
            omega_conf_to_dataclass(composed[part]) for part in ("model", "engine", "optim", "checkpoint")
        )
        budget = composed.data.max_token_len_per_gpu
    else:
        model = omega_conf_to_dataclass(composed.actor_rollout_ref.model)
        actor = omega_conf_to_dataclass(composed.actor_rollout_ref.actor)
        engine, optim, checkpoint = actor.engine, actor.optim, actor.checkpoint
        budget = composed.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    engine.use_dynamic_bsz = True
    engine.infer_max_token_len_per_gpu = engine.max_token_len_per_gpu = budget
    worker = TrainingRank(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=model,
            engine_config=engine,
            optimizer_config=optim,
            checkpoint_config=checkpoint,
        )
    )
    worker.reset()
    worker.set_loss_fn(loss)
    return worker, budget, composed


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor put together; every rank takes part."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Rank:
    """One rank's worker and what a test asks of it."""

    def __init__(self, rank: int, world: int, port: int, config: Any) -> None:
        self.worker, self.budget, self.settings = _worker(rank, world, port, config)
        self.engine = self.worker.engine
        self.gradients: dict[str, Any] = {}
        self.take_step = self.engine.optimizer_step

    def score(self, batch: Any) -> Any:
        return self.worker.infer_batch(batch)

    def update(self, batch: Any) -> Any:
        return self.worker.train_mini_batch(batch)

    def hold(self, held: bool) -> None:
        """Keep the gradient instead of taking a step with it, or no more."""
        self.engine.optimizer_step = self._keep if held else self.take_step

    def _keep(self) -> torch.Tensor:
        named = self.engine.module.named_parameters()
        self.gradients = {name: whole(weight.grad).numpy().copy() for name, weight in named}
        return torch.tensor(1.0)

    def weights(self) -> dict[str, Any]:
        return {name: whole(weight).detach().numpy().copy() for name, weight in self.engine.module.state_dict().items()}

    def state(self) -> Any:
        """Weights and moments, to start anew from."""
        weights = {name: weight.detach().clone() for name, weight in self.engine.module.state_dict().items()}
        return weights, copy.deepcopy(self.engine.optimizer.state_dict())

    def set_state(self, state: Any) -> None:
        """What `state` returned."""
        self.engine.module.load_state_dict(state[0])
        self.engine.optimizer.load_state_dict(copy.deepcopy(state[1]))

    def save(self, folder: str) -> None:
        self.worker.save_checkpoint(folder, None, 1, None)

    def load(self, folder: str) -> None:
        self.worker.load_checkpoint(folder)


class Ranks:
    """All ranks, as a backend's processes: this process's own, and the others behind pipes."""

    def __init__(self, own: Rank, others: list[Any]) -> None:
        self.own, self.others, self.ranks = own, others, len(others) + 1
        self.budget, self.asleep = own.budget, False
        self.calls: list[str] = []

    def all(self, method: str, *parts: Any) -> list[Any]:
        """A method of every rank, each with its own argument (or none)."""
        for pipe, part in zip(self.others, parts[1:] or [()] * len(self.others), strict=True):
            pipe.send((method, part))
        results = [getattr(self.own, method)(*parts[0] if parts else ())]
        for pipe in self.others:
            assert pipe.poll(LIMIT), f"a rank said nothing to {method}"
            results.append(pipe.recv())
        return results

    def everywhere(self, method: str, argument: Any) -> list[Any]:
        """A method of every rank with the same argument."""
        return self.all(method, *[(argument,)] * self.ranks)

    def _shared(self, method: str, batch: Any) -> Any:
        from verl.protocol import BatchData
        from verl.utils import tensordict_utils as tu

        self.calls.append(method)
        parts = [tu.contiguous(part) for part in tu.chunk_tensordict(batch, self.ranks)]
        return BatchData(self.all(method, *[(part,) for part in parts])).concat()

    def score(self, batch: Any) -> Any:
        return self._shared("score", batch)

    def score_reference(self, batch: Any) -> Any:
        """Where no step has been taken, the policy is the starting model."""
        return self.score(batch)

    def update(self, batch: Any) -> Any:
        from verl.utils import tensordict_utils as tu

        return dict(tu.get(self._shared("update", batch), "metrics"))

    def publish(self, step: int) -> None:
        """Nobody samples from the weights."""


def _drive(world: int, port: int, config: Any, pipes: list[Any], work: Any, arguments: Any, result: Any) -> None:
    import traceback

    try:
        result.send(work(Ranks(Rank(0, world, port, config), pipes), config, *arguments))
    except BaseException:
        result.send(traceback.format_exc())


def _serve(rank: int, world: int, port: int, config: Any, pipe: Any) -> None:
    own = Rank(rank, world, port, config)
    while True:
        method, arguments = pipe.recv()
        pipe.send(getattr(own, method)(*arguments))
