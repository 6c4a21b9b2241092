"""What is known of the verl backend. Imports nothing of verl."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt_cli import console
from nrt_cli.errors import NrtError, TrainingError

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig

SUMMARY = "Ray, FSDP2 and vLLM, one GPU to many nodes"
DISTRIBUTED = True
PACKAGES = ("verl",)
VERSIONS = ("verl", "ray")
OTHER_SAMPLING = (
    "Some versions of vLLM lose weights in sleep (verl #7904): keep its servers awake, in less memory "
    "(verl.actor_rollout_ref.rollout.free_cache_engine=false, and gpu_memory_utilization=0.3 beside it), or train on "
    "one GPU with another --engine and rollout.engine=native."
)


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
    from nrt_cli.backends.verl.settings import environment

    log = run_dir / "logs" / "verl.log"
    with console.noise_to(log), environment_variables(environment(_on_gpu(config))):
        console.note(f"starting Ray, the ranks and the sampler, which takes a minute or two; their output: {log}")
        try:
            with contextlib.closing(open_backend(config, run_dir, steps)) as backend:
                yield backend
        except (KeyboardInterrupt, NrtError):
            raise
        except Exception as error:
            raise failure(error, log) from None


@contextlib.contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Some variables for a while: what comes after a run, such as an upload, finds them as they were."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


def _on_gpu(config: "RunConfig") -> bool:
    from nrt_cli.models.loading import pick_device

    return pick_device(config.model.device).type == "cuda"


def open_backend(config: "RunConfig", run_dir: Path, steps: int) -> Any:
    """The backend with its processes started; what verl reads when it is imported is set."""
    from nrt_cli.backends.verl.settings import compose

    composed = compose(config, run_dir, steps)
    from nrt_cli.backends.verl.backend import VerlBackend
    from nrt_cli.backends.verl.cluster import Cluster, TrainingRanks

    kind = Cluster if config.samples else TrainingRanks
    return VerlBackend(config, kind(composed, _on_gpu(config), config.engine.patience))


LAST_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Exit|Interrupt)): (.+)$", re.MULTILINE)
"""How Python ends a traceback, which Ray carries along as text where the exception itself did not travel."""

REMEDIES = {
    r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|No available memory for the cache blocks": "a GPU's memory ran "
    "out; lower train.micro_batch_tokens or verl.actor_rollout_ref.rollout.gpu_memory_utilization, or set "
    "parallel.offload=true or model.gradient_checkpointing=true",
    r"Total available GPUs|infeasible|placement group.*(?:timed out|cannot be)": "Ray has fewer GPUs than "
    "parallel.nodes x parallel.gpus_per_node; `ray status` lists them",
    r"Could not find any running Ray instance|Failed to connect to (?:GCS|Ray cluster)": "there is no Ray cluster to "
    "join; start one with `ray start --head` on this node and `ray start --address=THIS_NODE:6379` on the others",
    r"No space left on device": "the disk is full; free some",
    r"connection error code|died unexpectedly|SYSTEM_ERROR|was killed|OOM|EngineDeadError|Engine core.*fail": "a "
    "process died, most often for want of memory",
}
"""What is commonly behind what Ray and verl say, and what to do about it."""


def failure(error: BaseException, log: Path | None = None) -> NrtError:
    """A failure of Ray, verl or a worker as one sentence that ends with where the workers' output is.

    What is ours and for the user to fix stays as it is. Knows neither Ray nor verl: it reads what their exceptions say.
    """
    # An exception and what it was made from; Ray keeps the worker's own under `cause`.
    chain: list[BaseException] = []
    following: BaseException | None = error
    while isinstance(following, BaseException) and following not in chain:
        if isinstance(following, NrtError):
            return following
        chain.append(following)
        following = getattr(following, "cause", None) or following.__cause__
    # What started it. Where only text came back, the last exception that it names is what ended the worker.
    last = chain[-1]
    if named := LAST_LINE.findall(str(last)):
        said = ": ".join(named[-1])
    else:
        lines = [line.strip() for line in str(last).splitlines() if line.strip()]
        said = f"{type(last).__name__}: {lines[0]}" if lines else type(last).__name__
    said = said[:300].rstrip(" .")
    remedy = next((text for pattern, text in REMEDIES.items() if re.search(pattern, said + str(error))), None)
    text = f"{remedy} ({said})" if remedy else f"a worker of verl failed: {said}"
    return TrainingError(f"{text}. Its output is in {log}." if log else f"{text}.")
