"""Arms of one experiment before the user's eyes: SFT, NRT without its policy gradient, and NRT."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nrt_cli import config as configs
from nrt_cli import console, methods
from nrt_cli.backends import machine
from nrt_cli.backends.machine import use_processor
from nrt_cli.checks.estimate import PAPER_LENGTHS, in_bytes, lengths_of_text, plan_for
from nrt_cli.commandline import this_command
from nrt_cli.config import RunConfig
from nrt_cli.errors import ConfigError, Interrupted
from nrt_cli.measures.collapse import watched
from nrt_cli.measures.held_out import ACCURACY_MEASURES, COLUMNS, over_rows
from nrt_cli.models.loading import load_tokenizer, resolved
from nrt_cli.models.prepare import prepare_model
from nrt_cli.models.shapes import source_shape
from nrt_cli.models.sources import METADATA, bytes_to_fetch, read_json
from nrt_cli.progress import Race, RaceProgress
from nrt_cli.records import Plan
from nrt_cli.store import Run
from nrt_cli.text.prompts import question_of
from nrt_cli.training.locate import locate_model, without_suffix
from nrt_cli.workflows.train import train

SFT, UNTRAINED, NRT = methods.SUPERVISED.name, methods.CONTROL.name, "nrt"
"""The arms."""


@dataclass(frozen=True)
class Recipe:
    """What is trained and shown."""

    config: str
    """The shipped config that all arms begin from."""
    arms: Mapping[str, tuple[str, Mapping[str, Any]]]
    """By the name of its run: how an arm is called, and what sets it apart from the config."""
    usual: tuple[str, ...]
    """The arms that are trained unless others are asked for."""
    chance: float | None
    """How often an answer is right by a guess, where that can be said."""
    source: str | None
    """The model that is made ready where the user names none; None where the config names one that is."""


ARMS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    SFT: (methods.SUPERVISED.title, {"method": SFT}),
    UNTRAINED: (UNTRAINED, {"objective": {"weights": {"trace": 0}}}),
    NRT: ("NRT", {}),
}
DIGITS = Recipe(
    config="quickstart",
    # SFT has as many answers a step as the others have traces.
    arms={**ARMS, SFT: (methods.SUPERVISED.title, {"method": SFT, "train": {"batch_size": 64}})},
    usual=(SFT, UNTRAINED, NRT),
    chance=0.1,  # one of ten digits
    source=None,
)
REAL = Recipe(config="real", arms=ARMS, usual=(NRT,), chance=None, source="Qwen/Qwen2.5-Coder-0.5B-Instruct")


@dataclass(frozen=True)
class Arm:
    """One run, with the config that it begins or goes on with."""

    name: str
    title: str
    path: Path
    config: RunConfig
    started: bool


@dataclass(frozen=True)
class Start:
    """What a quickstart is going to do. `source` is what the model is made from first; None where it is there."""

    recipe: Recipe
    folder: Path
    arms: tuple[Arm, ...]
    source: str | None


KINDS = tuple(measure for measure in ACCURACY_MEASURES if not measure.difference)
MORE = tuple(measure for measure in ACCURACY_MEASURES if measure.difference)


def choose(
    recipe: Recipe, folder: Path, overrides: Sequence[str], model: str | None = None, names: Sequence[str] = ()
) -> Start:
    """All arms with their configs, checked before anything is made.

    `model` is a hub id, folder, GGUF file or built-in model in place of the recipe's; `names` of arms, those it usually
    has if none. Raises ConfigError for another model than that of the runs which are there.
    """
    if unknown := [name for name in names if name not in recipe.arms]:
        raise ConfigError(f"--arms {unknown[0]}: choose some of {','.join(recipe.arms)}.")
    path: str | None = None
    source: str | None = None
    if recipe.source:
        # The prepared model's folder, and what it has to be made from, if it is not there.
        made = folder / "model"
        begun = [Run.open(folder / name) for name in recipe.arms if (folder / name / "manifest.json").is_file()]
        used = begun[0].config().model.path if begun else None
        there = read_json(made / METADATA)["source"] if (made / METADATA).is_file() else None
        path = str(made)
        if model is None:
            path, source = used or path, None if used or there else recipe.source
        else:
            model = configs.absolute_path(model)
            if ready := model.startswith("builtin:") or (Path(model) / METADATA).is_file():
                path = str(locate_model(model).folder)
            other = used is not None and Path(used).resolve() != Path(path).resolve()
            if there != model if there and not ready else other:
                raise ConfigError(f"{folder}: its runs began from {there or used}; name another --folder for {model}.")
            source = model if path == str(made) and there is None else None
    arms = []
    for name in [name for name in recipe.arms if name in (names or recipe.usual)]:
        title, changes = recipe.arms[name]
        # What sets the arm apart holds before what a user sets.
        layers = [*map(configs.parse_override, overrides), changes]
        at = folder / name
        if started := (at / "manifest.json").is_file():
            config = Run.open(at).config(*layers)
        else:
            given = {"model": {"path": path}} if path else {}
            file = configs.read_yaml(configs.find_config(recipe.config))
            config = configs.resolve(file, given, *layers, origin=recipe.config)
        arms.append(Arm(name, title, at, config, started))
    return Start(recipe, folder, tuple(arms), source)


def expect(start: Start) -> dict[str, Any] | None:
    """What is still to be fetched, made and trained takes, as far as can be said before; None where all arms are begun.

    Sizes are bytes. `rate` is of this device's products, in floating-point operations a second, NaN for an unknown GPU;
    `arms` has each one's title, and its minutes of training and of held-out scores, NaN likewise.

    Raises ConfigError where the disk has no room for it, and ModelError for a model that cannot be had.
    """
    arms = [arm for arm in start.arms if not arm.started]
    if not arms:
        return None
    source, first = start.source or arms[0].config.model.path, arms[0].config
    fetch = bytes_to_fetch(source) if start.source else 0
    shape = source_shape(source)
    use_processor(first)
    plans: dict[str, Plan] = {}
    for arm in arms:
        pairs, suffix = without_suffix(arm.config.data.train)
        lengths = lengths_of_text([pairs], suffix) if pairs.startswith("generated:") else PAPER_LENGTHS
        plans[arm.title] = plan_for(arm.config, lengths=lengths, shape=shape)
    longest = max(plans.values(), key=lambda plan: plan.memory_peak)
    # What is fetched stays in the hub's cache; the model that is made of it has 4 bytes a parameter at most.
    disk = fetch + (4 * shape.parameters if start.source else 0) + sum(plan.disk for plan in plans.values())
    there = next(parent for parent in (start.folder.absolute(), *start.folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if disk > free:
        raise ConfigError(
            f"{start.folder}: {in_bytes(disk)} of disk are needed and {in_bytes(free)} are free; name another --folder."
        )
    times = tuple((title, plan.gpu_hours * 60, plan.scoring / 60) for title, plan in plans.items())
    return {
        "model": source,
        "parameters": shape.parameters,
        "fetch": fetch,
        "disk": disk,
        "free_disk": free,
        "memory": longest.memory_peak,
        "free_memory": machine.free_memory(longest.gpu.name != machine.cpu().name),
        "dtype": resolved(first.model).dtype,
        "rate": longest.gpu.flops,
        "arms": times,
    }


def quickstart(start: Start, make_race: Callable[[Mapping[str, str], float | None], Race]) -> dict[str, Any]:
    """Train the arms, one after another. What is there already is kept, an unfinished run goes on.

    Returns for each model in `rows` its held-out `accuracies`, by `KINDS`, and what thinking has over the others within
    the pairs, as `more` by `MORE` (None where it has not the measure); behind how many `questions`; of the first of
    these `question`, `reference`, and `traces` after some steps, with the `reply` that followed and whether it was
    `right`; `runs`, and `seconds` of training alone, all arms together.
    """
    if start.source:
        console.note(f"preparing {start.source} in {start.folder / 'model'} ...")
        prepare_model(start.source, start.folder / "model")
    with make_race({arm.name: arm.title for arm in start.arms}, start.recipe.chance) as race:
        for arm in start.arms:
            if arm.started:
                run = Run.open(arm.path)
                saved = max(run.checkpoint_steps(), default=0)  # later steps are taken again
                for record in watched(run.metrics(), run.metrics("held_out")):
                    if record["step"] <= saved:
                        race.add(arm.name, record)
            try:
                train(arm.path, arm.config, arm.started, partial(RaceProgress, race, arm.name))
            except Interrupted as stopped:
                again = f"what was saved is kept; `{this_command()}` goes on."
                raise Interrupted(f"{arm.title} was stopped, {again}", stopped.exit_code - 128) from None
    runs = [Run.open(arm.path) for arm in start.arms]
    # SFT comes first and NRT last: what thinks has all accuracies, and a trace to show.
    best, steps = runs[-1], [[record["step"] for record in run.metrics("held_out")] for run in runs]
    shown = [("untrained", "untrained", best, steps[-1][0])]
    shown += [(arm.name, arm.title, run, of[-1]) for arm, run, of in zip(start.arms, runs, steps, strict=True)]
    rows = []
    for name, title, run, step in shown:
        found = run.held_out_rows(step, COLUMNS)
        row: dict[str, Any] = {"arm": name, "title": title}
        for key, measures in (("accuracies", KINDS), ("more", MORE)):
            row[key] = [asdict(one) if one.n else None for one in (over_rows(measure, found) for measure in measures)]
        rows.append(row)
    question = best.held_out_rows(steps[-1][-1], ("prompt", "answer"))[0]
    tokenizer = load_tokenizer(best.config().model.path)
    traces = []
    if start.arms[-1].config.thinks:  # of the first held-out question, which is not chosen
        for step in dict.fromkeys([*steps[-1][:3], steps[-1][-1]]):  # most is learned early
            row = best.held_out_rows(step, ("trace", "thinking_reply", "thinking_score"))[0]
            said = {"step": step, "trace": row["trace"], "reply": row["thinking_reply"]}
            traces.append(said | {"right": row["thinking_score"] == 1})
    return {
        "rows": rows,
        "questions": max(found["n"] for row in rows for found in row["accuracies"] if found),
        "question": question_of(tokenizer, question["prompt"]),
        "reference": question["answer"].removesuffix(tokenizer.eos_token),
        "traces": traces,
        "runs": [run.path for run in runs],
        "seconds": sum(record["seconds"] for run in runs for record in run.metrics()),
    }
