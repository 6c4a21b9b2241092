"""One update of one group: ours against a naive implementation and against the reference recipe's passes.

    python tests/bench/update.py [--rounds 3] [--quick]

Equal on all sides: model, dtype, threads, malloc settings, the group (K = 8 random traces of 64 tokens, answers of 64
tokens, eos included), scheme `am` with its loss (loss and norm of the gradient are among the figures and must agree),
bound on the gradient's norm, fused AdamW. In bfloat16, ours keeps float32 master weights and the others do not.

- naive: the K rows as a padded batch, logits and their log-softmax at every position; the null trace is scored once.
- recipe: what the paper's released code computes: old log-probs of K rows, K null rows, then the update with their
  ratio; as a good implementation would, logits only where a token is scored.
- matmul: two matrices of 2048 x 2048, the rate that the machine can do.

Seconds are of forward and backward; the optimiser's step, the same work for all, is a column of its own. Memory is the
peak of a side's process above weights, optimiser state and gradients. The share of the matmul rate counts operations
that an update needs, none twice (`workload.model_flops`). Two peers never run beside each other, so that memory
suffices: each takes turns with ours.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch
from baselines import PaddedUpdate
from common import GIB, NAN, Figures, Goal, Job, Side, Turn, against, cell, clock, peak_gib, ratio, resident_gib, shown
from workload import engine, group, model_flops, model_folder, set_up

from nrt_cli.records import RolloutGroup

GOALS: dict[tuple[str, int], tuple[Goal, Goal]] = {
    ("naive", 128): ((1.8, 2.0), 0.28),
    ("naive", 512): ((3.5, 4.0), 0.15),
    ("recipe", 128): (2.0, NAN),
    ("recipe", 512): (2.9, NAN),
}
"""Times as fast, and share of the memory."""
MATMUL_GOAL = (0.85, 0.7)
HEADER = (
    "prompt, peer",
    "ours s",
    "peer s",
    "times",
    "with optimiser",
    "by processor time",
    "optimiser s",
    "ours GiB",
    "peer GiB",
    "of peer's memory",
    "of matmul rate",
    "gradient norms differ by",
)


def ours(job: Job, turn: Turn) -> None:
    figures = set_up(job)
    made = engine(job)
    # Gradients are summed in float32 whatever the model is in.
    rounds(
        job,
        turn,
        figures,
        made.backend.optimiser,
        made.backend.policy.model,
        4,
        lambda groups: made.update(groups).metrics,
    )


def padded(job: Job, turn: Turn, recipe: bool) -> None:
    figures = set_up(job)
    made = PaddedUpdate(job, recipe)
    rounds(job, turn, figures, made, made.model, made.model.dtype.itemsize, lambda groups: made.update(*groups))


def rounds(
    job: Job,
    turn: Turn,
    figures: Figures,
    optimiser: Any,
    model: torch.nn.Module,
    gradient_width: int,
    update: Callable[[list[RolloutGroup]], dict[str, float]],
) -> None:
    """Update after update. `optimiser.step` is clocked; a number of the gradient takes `gradient_width` bytes."""
    vocabulary = job.get("vocabulary", 49_000)
    update([group(8, 4, 4, 2, vocabulary)])  # allocates the moments and loads the kernels
    steps = clock(optimiser, "step")
    gradient = gradient_width * sum(weight.numel() for weight in model.parameters()) / GIB
    sizes = (job["prompt"], job["trace"], job["answer"], job["K"])
    groups = [group(*sizes, vocabulary, seed) for seed in range(job.get("groups", 1))]
    before = resident_gib()
    while True:
        turn(figures)
        steps.clear()
        start = time.perf_counter()
        metrics = update(groups)
        whole = time.perf_counter() - start
        figures = figures | {
            "seconds": whole - sum(steps),
            "optimiser": sum(steps),
            "whole": whole,
            "gib": peak_gib() - before - gradient,
            "loss": metrics["loss"],
            "grad_norm": metrics["grad_norm"],
        }


def matmul(job: Job, turn: Turn) -> None:
    """The machine's rate at large products, in operations a second."""
    figures = set_up(job)
    size = 2048
    left, right = (torch.randn(size, size, dtype=getattr(torch, figures["dtype"])) for _ in range(2))
    while True:
        turn(figures)
        start = time.perf_counter()
        for _ in range(10):
            torch.mm(left, right)
        figures = figures | {"rate": 10 * 2 * size**3 / (time.perf_counter() - start)}


PEERS: dict[str, Side] = {"naive": partial(padded, recipe=False), "recipe": partial(padded, recipe=True)}


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512])
    args = parser.parse_args()
    base = common.start(args) | {"model": str(model_folder()), "K": 8, "trace": 64, "answer": 64}
    if args.quick:
        args.prompts, base = [32], base | {"K": 4, "trace": 16, "answer": 16}
    rows: list[list[str]] = []
    measured: list[Figures] = []
    for prompt in args.prompts:
        for name, side in PEERS.items():
            job = base | {"prompt": prompt}
            sides = {"ours": ours, name: side, "matmul": matmul}
            figures = common.part(f"update-{name}", sides, job, args)
            measured += figures.values()
            rows.append(row(job, name, figures["ours"], figures[name], figures["matmul"]))
    common.report(f"Update of one group, {measured[0]['dtype']}", args, common.table(HEADER, rows), measured)


def row(job: Job, name: str, ours: Figures, peer: Figures, matmul: Figures) -> list[str]:
    times_goal, memory_goal = GOALS.get((name, job["prompt"]), (NAN, NAN))
    rate = model_flops(job) / ours.get("seconds", NAN)
    return [
        f"{job['prompt']}, {name}",
        cell(ours, "seconds"),
        cell(peer, "seconds"),
        against(ratio(peer, ours), times_goal, ours),
        shown(ratio(peer, ours, "whole")),
        shown(ratio(peer, ours, "processor")),
        f"{cell(ours, 'optimiser')}, {cell(peer, 'optimiser')}",
        cell(ours, "gib"),
        cell(peer, "gib"),
        against(ratio(ours, peer, "gib"), memory_goal, ours, below=True),
        against(rate / matmul.get("rate", NAN), MATMUL_GOAL, ours),
        f"{abs(ratio(ours, peer, 'grad_norm') - 1):.1e}",
    ]


if __name__ == "__main__":
    main()
