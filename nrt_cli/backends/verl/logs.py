"""What went wrong in a worker, in one sentence. Imports neither Ray nor verl: it reads what their exceptions say."""

import re
from pathlib import Path

from nrt_cli.errors import NrtError, TrainingError

LAST_LINE = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Exit|Interrupt)): (.+)$", re.MULTILINE)
"""How Python ends a traceback, which Ray carries along as text where the exception itself did not travel."""

REMEDIES = (
    (
        r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|No available memory for the cache blocks",
        "a GPU's memory ran out; lower train.micro_batch_tokens or "
        "verl.actor_rollout_ref.rollout.gpu_memory_utilization, or set parallel.offload=true or "
        "model.gradient_checkpointing=true",
    ),
    (
        r"Total available GPUs|infeasible|placement group.*(?:timed out|cannot be)",
        "Ray has fewer GPUs than parallel.nodes x parallel.gpus_per_node; `ray status` lists them",
    ),
    (
        r"Could not find any running Ray instance|Failed to connect to (?:GCS|Ray cluster)",
        "there is no Ray cluster to join; start one with `ray start --head` on this node and `ray start "
        "--address=THIS_NODE:6379` on the others",
    ),
    (r"No space left on device", "the disk is full; free some"),
    (
        r"connection error code|died unexpectedly|SYSTEM_ERROR|was killed|OOM|EngineDeadError|Engine core.*fail",
        "a process died, most often for want of memory",
    ),
)
"""What is commonly behind what Ray and verl say, and what to do about it."""


def failure(error: BaseException, log: Path | None = None) -> NrtError:
    """A failure of Ray, verl or a worker as one sentence that ends with where the workers' output is.

    What is ours and for the user to fix stays as it is.
    """
    for cause in _chain(error):
        if isinstance(cause, NrtError):
            return cause
    said = _innermost(error)
    remedy = next((text for pattern, text in REMEDIES if re.search(pattern, said + str(error))), None)
    text = f"{remedy} ({said})" if remedy else f"a worker of verl failed: {said}"
    return TrainingError(f"{text}. Its output is in {log}." if log else f"{text}.")


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and what it was made from; Ray keeps the worker's own under `cause`."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while isinstance(following, BaseException) and following not in chain:
        chain.append(following)
        following = getattr(following, "cause", None) or following.__cause__
    return chain


def _innermost(error: BaseException, limit: int = 300) -> str:
    """Type and first line of what started it."""
    last = _chain(error)[-1]
    # Where only text came back, the last exception that it names is what ended the worker.
    if named := LAST_LINE.findall(str(last)):
        said = ": ".join(named[-1])
    else:
        lines = [line.strip() for line in str(last).splitlines() if line.strip()]
        said = f"{type(last).__name__}: {lines[0]}" if lines else type(last).__name__
    return said[:limit].rstrip(" .")
