"""Whole training steps under OpenMP's ways of waiting, on a quiet machine and beside a busy loop for each core.

    python tests/bench/spinning.py [--quick]

A thread that is done with its share of a matrix product spins until the others are, in the hope that they soon are.
Where another process holds a core they are not, and the spinning takes the core that they wait for. libgomp reads how
long to spin when it is loaded: each side is a process that sets it first. Steps are those of the recipe gsm8k-smollm2
and of the laptop study's (its model untrained, which changes what is sampled and not what a step costs).
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import common
from common import WORK, Figures, Job, Side, Turn, cell, ratio, shown

WAITS: dict[str, dict[str, str]] = {
    "default": {},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (50000, 10000, 1000)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
READ = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
RECIPES = ("gsm8k-smollm2", "digits")
HEADER = ("steps, busy loops, setting", "seconds", "of the default's", "fastest to slowest", "processor seconds")


def steps(wait: dict[str, str], job: Job, turn: Turn) -> None:
    """The first steps of a recipe, `job["steps"]` a turn."""
    for name in READ:
        os.environ.pop(name, None)
    os.environ |= wait
    # Only now, since this loads libgomp.
    import torch

    from nrt_cli import config as configs
    from nrt_cli.training.start import load_inputs
    from nrt_cli.training.trainer import LocalTrainer
    from nrt_cli.workflows.train import batch_for

    torch.set_num_threads(job["threads"])
    data = {
        "train": str(Path(job["data"], "train.parquet")),
        "validation": str(Path(job["data"], "validation.parquet")),
    }
    config = configs.load(
        job["recipe"],
        ("method=ws-neg-log-p", f"model.dtype={job['dtype']}"),
        model={"path": job["model"]},
        data=data,
        train={"threads": job["threads"]},
    )
    engine, inputs = LocalTrainer(config, updates=1000), load_inputs(config)
    figures: Figures = {"dtype": str(engine.backend.policy.model.dtype).removeprefix("torch.")}
    number = 0
    while True:
        turn(figures)
        started = time.perf_counter()
        for _ in range(job["steps"]):
            number += 1
            engine.train_step(batch_for(inputs.train, config, number), number)
        figures = figures | {"seconds": (time.perf_counter() - started) / job["steps"]}


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Processes that do nothing, without a pause."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def make(base: Job, recipes: list[str]) -> dict[str, Job]:
    """Models and pairs, made once, in a process of its own: this one needs no torch."""
    subprocess.run([sys.executable, __file__, "--make", *recipes], check=True)
    return {
        name: base
        | {"recipe": name, "steps": 1 if name == "gsm8k-smollm2" else 4}
        | {"model": str(WORK / f"{name}-model"), "data": str(WORK / f"{name}-data")}
        for name in recipes
    }


def make_here(name: str) -> None:
    from nrt_cli.data import digits
    from nrt_cli.data.prepare import Settings, prepare
    from nrt_cli.models.prepare import prepare_model
    from nrt_cli.training.pretraining import pretrain

    source, world = "builtin:smollm2-135m", "sums"
    rows: dict[str, Any] = {}
    if name == "digits":
        source, world, rows = str(WORK / "digits-source"), "digits", {"init_start": "#", "init_end": "*"}
        if not Path(source).is_dir():
            batch = partial(digits.documents, 0, 0, 12, digits.FIRST)
            pretrain(digits.vocabulary(), lambda step: list(batch()), 1, Path(source), 0)
    prepare([f"generated:{world}?size=2000&seed=0"], WORK / f"{name}-data", Settings(validation=64))
    prepare_model(source, WORK / f"{name}-model", **rows)


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--loops", nargs="+", type=int, help="busy loops beside the steps; default: none, one a thread")
    args = parser.parse_args()
    if args.quick:
        args.recipes, args.loops = ["digits"], [0]
    base = common.start(args)
    sides: dict[str, Side] = {name: partial(steps, wait) for name, wait in WAITS.items()}
    rows: list[list[str]] = []
    measured: list[Figures] = []
    for name, job in make(base, args.recipes).items():
        for loops in args.loops or (0, args.threads):
            with busy(loops):
                figures = common.part(f"spinning {name}", sides, job | {"loops": loops}, args)
            measured += figures.values()
            rows += [row(f"{name}, {loops}, {side}", figures[side], figures["default"]) for side in sides]
    common.report("OpenMP's spinning", args, common.table(HEADER, rows), measured)


def row(label: str, figures: Figures, default: Figures) -> list[str]:
    every = figures.get("all_seconds") or [common.NAN]
    return [
        label,
        cell(figures, "seconds"),
        shown(ratio(figures, default)),
        f"{min(every):.2f} to {max(every):.2f}",
        cell(figures, "processor"),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        for name in sys.argv[2:]:
            make_here(name)
    else:
        main()
