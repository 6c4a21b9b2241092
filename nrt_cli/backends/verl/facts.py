"""What is known of the verl backend. Imports nothing of verl."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt_cli import console
from nrt_cli.errors import NrtError

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig

SUMMARY = "Ray, FSDP2 and vLLM, one GPU to many nodes"
DISTRIBUTED = True
PACKAGES = ("verl",)
VERSIONS = ("verl", "ray")


def contradictions(config: "RunConfig") -> Iterator[str]:
    parallel, of = config.parallel, f"engine.name={config.engine.name}"
    if config.data.traces:
        yield f"data.traces is not on {of}, whose ranks have no sampler for this method; use another --engine"
    if config.rollout.engine == "native" and config.samples:
        yield f"rollout.engine=native has no effect on {of}, whose traces come from vLLM; remove it"
    if config.engine.packing == "off":
        yield f"engine.packing has no effect on {of}; remove it"
    for key in ("tensor", "sequence"):
        if parallel.ranks % getattr(parallel, key):
            yield (
                f"parallel.{key}={getattr(parallel, key)} does not divide the {parallel.ranks} GPUs of "
                f"{parallel.nodes} x {parallel.gpus_per_node}"
            )
    if config.rollout.temperature != 1 and parallel.sequence > 1 and config.samples:
        yield "rollout.temperature other than 1 cannot be scored where ranks share a row; set parallel.sequence=1"
    prompts, shares = config.train.minibatch_size or config.train.batch_size, parallel.ranks // parallel.sequence
    if prompts % shares:
        yield (
            f"a minibatch of {prompts} prompts cannot be shared equally by {shares} ranks; change train.minibatch_size "
            "(null: all of train.batch_size) or the number of GPUs"
        )


def sampler(config: "RunConfig") -> str | None:
    """vLLM servers of its own."""
    return "vllm" if config.samples else None


@contextlib.contextmanager
def opening(config: "RunConfig", run_dir: Path, steps: int) -> Iterator[Any]:
    """Ray and verl from start to end; what their processes print goes to the run's log."""
    from nrt_cli.backends.verl.logs import failure

    log = run_dir / "logs" / "verl.log"
    with console.noise_to(log):
        console.note(f"starting Ray, the ranks and the sampler, which takes a minute or two; their output: {log}")
        try:
            backend = open_backend(config, run_dir, steps)
            try:
                yield backend
            finally:
                backend.close()
        except (KeyboardInterrupt, NrtError):
            raise
        except Exception as error:
            raise failure(error, log) from None


def open_backend(config: "RunConfig", run_dir: Path, steps: int) -> Any:
    """The backend with its processes started, once what verl reads when it is imported is set."""
    from nrt_cli.backends.verl import settings
    from nrt_cli.models.loading import pick_device

    gpu = pick_device(config.model.device).type == "cuda"
    os.environ.update(settings.environment(gpu))
    composed = settings.compose(config, run_dir, steps, settings.plumbing(gpu) if config.samples else {})
    from nrt_cli.backends.verl.backend import VerlBackend
    from nrt_cli.backends.verl.cluster import Cluster, TrainingRanks

    kind = Cluster if config.samples else TrainingRanks
    return VerlBackend(config, kind(composed, gpu, config.engine.patience))
