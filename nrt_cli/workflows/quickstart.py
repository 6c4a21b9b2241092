"""Three arms of one experiment before the user's eyes: SFT, NRT without its policy gradient, and NRT."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt_cli import config as configs
from nrt_cli.config import RunConfig
from nrt_cli.core.held_out import ACCURACY_MEASURES, COLUMNS, Measure, over_rows
from nrt_cli.core.statistics import Difference
from nrt_cli.progress import Race
from nrt_cli.store import Run
from nrt_cli.workflows.train import train

NRT = "nrt"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    # As many answers a step as the others have traces.
    "sft": ("SFT", {"method": "sft", "train": {"batch_size": 64}}),
    "control": ("control", {"objective": {"weights": {"trace": 0}}}),
    NRT: ("NRT", {}),
}
"""By the name of its run: how an arm is called, and what sets it apart from `configs/train/quickstart.yaml`."""

CHANCE = 0.1
"""How often one of ten digits is right by a guess."""

SHOWN = (0, 1, 2, -1)
"""Of the steps that were scored, those whose trace is shown: most is learned early."""


@dataclass(frozen=True)
class Row:
    """One model's held-out accuracies, as `core.held_out` measures them; those that it has not are None."""

    arm: str
    title: str
    accuracies: tuple[Difference | None, ...]
    """In the order of `KINDS`."""
    more: tuple[Difference | None, ...]
    """What thinking has over the others within the pairs, in the order of `MORE`."""


KINDS = tuple(measure for measure in ACCURACY_MEASURES if not measure.difference)
MORE = tuple(measure for measure in ACCURACY_MEASURES if measure.difference)


@dataclass(frozen=True)
class Said:
    """What the model thought of the shown question after a step, and whether the answer that followed was right."""

    step: int
    trace: str
    reply: str
    right: bool


@dataclass(frozen=True)
class Outcome:
    """What three runs came to."""

    rows: tuple[Row, ...]
    questions: int
    """Held-out questions behind every accuracy."""
    question: str
    reference: str
    traces: tuple[Said, ...]
    runs: tuple[Path, ...]
    seconds: float
    """Of training alone, all arms together."""


def quickstart(
    folder: Path, make_race: Callable[[Mapping[str, str], float], Race], overrides: Sequence[str]
) -> Outcome:
    """Train the arms in `folder`, one after another. What is there already is kept, an unfinished run goes on."""
    # All are checked before the first is trained.
    planned = {name: _config(folder / name, changes, overrides) for name, (_, changes) in ARMS.items()}
    with make_race({name: title for name, (title, _) in ARMS.items()}, CHANCE) as race:
        for name, (config, started) in planned.items():
            train(folder / name, config, started, race.displays(name))
    runs = {name: Run.open(folder / name) for name in ARMS}
    nrt = runs[NRT]
    first, last = nrt.metrics("held_out")[0]["step"], nrt.metrics("held_out")[-1]["step"]
    rows = [_row("untrained", "untrained", nrt, first)]
    rows += [_row(name, ARMS[name][0], run, run.metrics("held_out")[-1]["step"]) for name, run in runs.items()]
    question = nrt.held_out_rows(last, ("prompt", "answer"))[0]
    return Outcome(
        rows=tuple(rows),
        questions=max(found.n for row in rows for found in row.accuracies if found),
        question=question["prompt"],
        reference=question["answer"],
        traces=tuple(_said(nrt)),
        runs=tuple(run.path for run in runs.values()),
        seconds=sum(record["seconds"] for run in runs.values() for record in run.metrics()),
    )


def _config(path: Path, changes: Mapping[str, Any], overrides: Sequence[str]) -> tuple[RunConfig, bool]:
    """An arm's config, and whether its run is there. What sets the arm apart holds before what a user sets."""
    started = (path / "manifest.json").is_file()
    layers = [*map(configs.parse_override, overrides), changes]
    if started:
        return Run.open(path).config(*layers), True
    return configs.resolve(configs.read_yaml(configs.find_config("quickstart")), *layers, origin="quickstart"), False


def _row(arm: str, title: str, run: Run, step: int) -> Row:
    rows = run.held_out_rows(step, COLUMNS)

    def found(measures: Sequence[Measure]) -> tuple[Difference | None, ...]:
        each = (over_rows(measure, rows) for measure in measures)
        return tuple(one if one.n else None for one in each)

    return Row(arm, title, found(KINDS), found(MORE))


def _said(run: Run) -> Iterator[Said]:
    """The first held-out question's traces, not chosen, at `SHOWN` of the steps that were scored."""
    steps = [record["step"] for record in run.metrics("held_out")]
    for step in dict.fromkeys(steps[place] for place in SHOWN if place < len(steps)):
        columns = ("trace", "thinking_reply", "thinking_score")
        row = run.held_out_rows(step, columns)[0]
        yield Said(step, row["trace"], row["thinking_reply"], row["thinking_score"] == 1)
