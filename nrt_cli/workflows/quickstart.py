"""From nothing to a trained run: generated pairs, the builtin model, the shipped config, and what came of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from nrt_cli import config as configs
from nrt_cli.data.choose import Settings
from nrt_cli.data.prepare import prepare
from nrt_cli.engines.local.prepare import prepare_model
from nrt_cli.progress import Progress
from nrt_cli.store import Run
from nrt_cli.workflows.runs import held_out_measures
from nrt_cli.workflows.train import train

PAIRS = "generated:sums?size=2000&seed=0"
MODEL = "builtin:smollm2-135m"
SHOWN = 3


def quickstart(
    folder: Path,
    say: Callable[[str], None],
    make_display: Callable[[int, int], Progress],
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Prepare, train and report in `folder`. What is there already is kept, an unfinished run goes on.

    Returns the run's summary, under `held_out` its held-out measures, and under `samples`, not chosen, the first
    held-out questions, each with a trace and its reference answer.
    """
    say(f"1/3 question-answer pairs: {PAIRS}")
    prepare([PAIRS], folder / "data", Settings(validation=64, grader="number"))
    say(f"2/3 model: {MODEL}")
    prepare_model(MODEL, folder / "model")
    held_out = folder / "data" / "validation.parquet"
    places = {
        "model": {"path": str(folder / "model")},
        "data": {"train": str(folder / "data" / "train.parquet"), "validation": str(held_out)},
    }
    run_path = folder / "run"
    started = (run_path / "manifest.json").is_file()
    changes = [*map(configs.parse_override, overrides), places]
    config = Run.open(run_path).config(*changes) if started else configs.load("quickstart", overrides, **places)
    say(f"3/3 training: {config.method}, {config.train.steps} steps of {config.train.batch_size} questions")
    summary = train(run_path, config, started, make_display)
    run = Run.open(run_path)
    return summary | {
        "held_out": held_out_measures(run),
        "samples": _samples(run, f"held-out-{summary['steps']:06d}", held_out),
    }


def _samples(run: Run, name: str, held_out: Path) -> list[dict[str, str]]:
    """The first stored held-out traces with their pairs; none for SFT, which has no traces."""
    if name not in run.trace_names():
        return []
    pairs = pq.read_table(held_out, columns=["prompt", "reward_model"]).slice(0, SHOWN).to_pylist()
    return [
        {
            "question": pair["prompt"][-1]["content"],
            "trace": row["trace"],
            "reference": pair["reward_model"]["ground_truth"],
            "stop": row["stop"],
        }
        for pair, row in zip(pairs, run.traces(name), strict=False)
    ]
