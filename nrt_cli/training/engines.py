"""The engines of training behind one door."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from nrt_cli import console
from nrt_cli.backends.local.engine import Update
from nrt_cli.backends.local.reasoning import Reasoner
from nrt_cli.backends.local.run import LocalRun
from nrt_cli.config import RunConfig
from nrt_cli.errors import NrtError
from nrt_cli.records import Example, HeldOut, RolloutGroup
from nrt_cli.store import Content
from nrt_cli.training.start import Inputs


class Engine(Protocol):
    """What a training run asks of an engine, wherever it computes."""

    tokenizer: Any

    def tell(self, say: Callable[[str], None]) -> None: ...
    def train_step(self, examples: Sequence[Example], step: int) -> tuple[Update, list[RolloutGroup]]: ...
    def held_out(self, examples: Sequence[Example]) -> HeldOut: ...
    def reasoner(self) -> Reasoner | None: ...
    def state(self) -> dict[str, Any]: ...
    def content(self) -> Content: ...
    def broken_weight(self) -> str | None: ...
    def restore(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None: ...
    def export(self, folder: Path, checkpoint: Path) -> None: ...


def opening(config: RunConfig, inputs: Inputs, run_path: Path) -> contextlib.AbstractContextManager[Engine]:
    """The engine of a run, for the length of a `with`.

    The local one is made at once, so that what it refuses is refused before there is a run; verl's processes write
    their logs into the run, so they start when the context is entered.
    """
    updates = inputs.steps * (config.train.batch_size // (config.train.minibatch_size or config.train.batch_size))
    if config.engine.name == "local":
        return contextlib.nullcontext(LocalRun(config, updates))
    return _verl(config, run_path, inputs.steps, updates)


@contextlib.contextmanager
def _verl(config: RunConfig, run_path: Path, steps: int, updates: int) -> Iterator[Engine]:
    """Ray and verl from start to end; what their processes print goes to the run's log."""
    from nrt_cli.backends.verl.launch import open_engine
    from nrt_cli.backends.verl.logs import failure

    log = run_path / "logs" / "verl.log"
    with console.noise_to(log):
        console.note(f"starting Ray, the ranks and the sampler, which takes a minute or two; their output: {log}")
        try:
            engine = open_engine(config, run_path, steps, updates)
            try:
                yield engine
            finally:
                engine.close()
        except (KeyboardInterrupt, NrtError):
            raise
        except Exception as error:
            raise failure(error, log) from None
