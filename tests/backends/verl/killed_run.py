"""A training run through the workflow on one real rank of verl, in a process that kills itself where it is told to.

Run as a script: `killed_run.py WHERE CONFIG RUN...`. Traces are drawn from each request's seed alone, there being no
vLLM; everything else is what `nrt train --engine verl` does. With `resume`, each RUN is resumed, the first one begun.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ranks_of_verl import Rank, free_port

from nrt_cli import config as configs
from nrt_cli.progress import Progress
from nrt_cli.records import Rollout


class World:
    """What a cluster is asked for, by one rank in this process."""

    def __init__(self, config: Any, where: str) -> None:
        self.rank = Rank(0, 1, free_port(), config)
        self.settings, self.workers, self.where = self.rank.settings, self, where
        self.ranks = self.world_size = 1
        self.updates, self.asleep, self.budget = 0, False, self.rank.budget

    def sample(self, requests: list[dict[str, Any]], temperature: float) -> list[Rollout]:
        # Held-out examples have one trace each.
        training = len({request["example"].index for request in requests}) < len(requests)
        if self.where == "between steps" and training and self.updates == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return [drawn(request["seed"], request["max_trace_tokens"]) for request in requests]

    def score(self, batch: Any) -> Any:
        return self.rank.score(batch)

    def update(self, batch: Any) -> Any:
        from verl.utils import tensordict_utils as tu

        self.updates += 1
        if self.where == "inside a step" and self.updates == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(tu.get(self.rank.update(batch), "metrics"))

    def publish(self, step: int) -> None:
        """Nobody samples from the weights."""

    def save(self, folder: Path, step: int) -> None:
        self.rank.save(str(folder))
        if self.where == "while saving" and step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def load(self, folder: Path) -> None:
        self.rank.load(str(folder))

    def close(self) -> None:
        """The process ends by itself."""


def drawn(seed: int, cap: int) -> Rollout:
    """A trace of random words."""
    random = np.random.default_rng(seed)
    ids = tuple(int(i) for i in random.integers(4, 100, random.integers(0, cap + 1)))
    stop = "cap" if len(ids) == cap else "end"
    return Rollout(ids, (-4.6,) * (len(ids) + (stop == "end")), stop)


def main(where: str, config_file: str, *runs: str) -> None:
    from nrt_cli.backends.verl import facts
    from nrt_cli.training.trainer import Trainer
    from nrt_cli.workflows.train import train

    # Its traces are nobody's: what the policy says of them is not what is said here.
    Trainer.require_own_samples = lambda *_: None  # type: ignore[method-assign]
    config = configs.resolve(yaml.safe_load(Path(config_file).read_text()))
    world = World(config, where)
    from nrt_cli.backends.verl.backend import VerlBackend

    begin = world.rank.state()
    facts.open_backend = lambda config, run_dir, steps: VerlBackend(config, world)
    for i, run in enumerate(runs):
        world.rank.set_state(begin)
        train(Path(run), config, where == "nowhere" and i > 0, Progress)


if __name__ == "__main__":
    main(*sys.argv[1:])
