"""How near a step on a real model comes to what the machine can do: rollouts and update, each as a share of its limit.

    python tests/bench/limits.py --model models/qwen-coder --dtype bfloat16

The recipe is `real`, the questions are those of its first step, before training, in each round. An update's limit: its
products (of weights, low-rank updates, head and attention, forward and backward, each once) at the rate of a large
product. That of rollouts: at each position those of the rows that are still sampled, a product taking no less than its
arithmetic at that rate and no less than reading its weight at the rate at which memory is copied; and prompts, once.

Rollouts also say how long the products at each position take by themselves, one after another: the rest is prompts,
the weights' layout, the comparison with the trainer, attention, norms, sampling, and Python.
"""

import time
from itertools import count
from pathlib import Path
from typing import Any

import common
import torch
from common import Figures, Job, Turn, against, cell, shown
from torch import nn
from workload import products_alone, set_up

from nrt_cli import config as configs
from nrt_cli.models.lora import is_low_rank, table_of
from nrt_cli.records import RolloutGroup
from nrt_cli.training.locate import locate_inputs
from nrt_cli.training.start import load_inputs
from nrt_cli.training.trainer import LocalTrainer
from nrt_cli.workflows.train import batch_for

GOAL = 0.65
HEADER = (
    "what",
    "seconds",
    "limit s",
    "share of the limit",
    "products alone s",
    "trace tokens/s",
    "matmul GFLOP/s",
    "copy GB/s",
)


def ours(job: Job, turn: Turn) -> None:
    figures = set_up(job)
    overrides = [f"model.path={job['model']}", f"model.dtype={job['dtype']}", f"train.threads={job['threads']}"]
    config = locate_inputs(configs.load("real", overrides, seed=0))
    trainer, inputs = LocalTrainer(config, 1), load_inputs(config)
    questions = batch_for(inputs.train, config, 1)
    for _ in count():
        turn(figures)
        copied = copy_rate()
        start = time.perf_counter()
        groups = trainer.sample(questions, 1)
        rollout = time.perf_counter() - start
        work, start = trainer.backend.work, time.perf_counter()
        trainer.update(groups)
        update, work = time.perf_counter() - start, trainer.backend.work - work
        matmul = trainer.backend.ceiling
        figures |= {
            "seconds": rollout + update,
            "rollout": rollout,
            "rollout_limit": sampling_limit(trainer, groups, matmul, copied),
            "rollout_products": products_alone(trainer, groups),
            "update": update,
            "update_limit": work / matmul,
            "tokens": sum(len(one.sampler_logprobs) for group in groups for one in group.rollouts),
            "matmul": matmul,
            "copied": copied,
        }


def copy_rate() -> float:
    """Bytes read and written a second."""
    source = torch.empty(2**28, dtype=torch.uint8)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * len(source) / min(seconds)


def sampling_limit(trainer: LocalTrainer, groups: list[RolloutGroup], matmul: float, copied: float) -> float:
    """Seconds; as if no row were read that has ended."""
    model = trainer.backend.policy.model
    inside = {id(part) for layer in model.modules() if is_low_rank(layer) for part in layer.modules()}
    layers: list[Any] = [m for m in model.modules() if is_low_rank(m) or (type(m) is nn.Linear and id(m) not in inside)]
    head = table_of(model.get_output_embeddings()).weight_VD
    weights: list[torch.Tensor] = [*(layer.weight for layer in layers if layer.weight is not head), head]

    def product(rows: int, weight: torch.Tensor) -> float:
        return max(2 * rows * weight.numel() / matmul, weight.numel() * weight.itemsize / copied)

    lengths = [len(one.sampler_logprobs) for group in groups for one in group.rollouts]
    prompts = sum(len(group.example.prompt_ids) + 1 for group in groups)
    seconds = sum(product(prompts, weight) for weight in weights[:-1]) + product(len(groups), head)
    for position in range(1, max(lengths)):  # the first token comes from the prompts' own pass
        rows = sum(length > position for length in lengths)
        seconds += sum(product(rows, weight) for weight in weights)
    return seconds


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--model", required=True, help="a prepared folder of a real model")
    args = parser.parse_args()
    job = common.start(args) | {"model": str(Path(args.model).resolve())}
    (figures,) = common.part("limits", {"ours": ours}, job, args).values()
    rows = [row(figures, "rollout"), row(figures, "update")]
    common.report(
        f"A step on a real model, and its limits, {job['dtype']}", args, common.table(HEADER, rows), [figures]
    )


def row(figures: Figures, what: str) -> list[str]:
    return [
        what,
        cell(figures, what),
        cell(figures, f"{what}_limit"),
        against(figures[f"{what}_limit"] / figures[what], GOAL, figures),
        cell(figures, f"{what}_products"),
        shown(figures["tokens"] / figures[what], 0),
        shown(figures["matmul"] / 1e9, 0),
        shown(figures["copied"] / 1e9, 1),
    ]


if __name__ == "__main__":
    main()
