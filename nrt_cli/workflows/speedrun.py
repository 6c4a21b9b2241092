"""Speedruns: training until the held-out questions are answered right. What is run; an entry, which says how long that
took, where, and with what; a speedrun; an entry, run again; and the table of entries.

An entry is a YAML; `configs/speedrun` has those that were sent in. What is heavy is imported by what trains.
"""

import hashlib
import json
import math
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

import nrt_cli
from nrt_cli import config as configs
from nrt_cli.checks.findings import Finding
from nrt_cli.commandline import pasted, settings
from nrt_cli.config.validation import Section, Seed
from nrt_cli.errors import ConfigError, DataError, Interrupted, ModelError
from nrt_cli.store import Run
from nrt_cli.store.files import write_report

if TYPE_CHECKING:
    from nrt_cli.workflows.train import MakeDisplay

PROGRAM = Path(nrt_cli.__file__).parent

ROUNDED_STEPS = 2.0
"""By how many times rounding may stretch or shorten the way: traces that part once are other traces from then on."""


@dataclass(frozen=True)
class Track:
    """What is run, until when, and how it is scored."""

    recipe: str
    """A config of `configs/train`."""
    threshold: float
    """Held-out accuracy, thinking and greedy, that two scores in a row must reach."""
    every: int
    """Steps between scores."""
    questions: int
    """Held-out questions of a score: the first so many."""
    model: str | None
    """Fingerprint of what the starting model is prepared from; None where the recipe names no model."""


TRACKS = {
    "digits": Track("quickstart", 0.9, 2, 128, "c9a8a651a2cf5b9340e5ab4b155f3431eb3a911f09e039f13f5fc01d05f58b84"),
    "real": Track("real", 0.8, 2, 64, None),
}


class Score(Section):
    """Held-out accuracy after a step, and the seconds that the steps up to it took."""

    step: int = Field(ge=0, description="Training steps taken; 0 is before the first.")
    accuracy: float = Field(ge=0, le=1, description="Share of the held-out questions answered right, thinking.")
    seconds: float = Field(ge=0, description="Seconds that the steps so far took, scores aside.")


class Machine(Section):
    """Where an entry was made. Another machine, thread count, dtype or torch rounds otherwise."""

    device: str = Field(description="cpu, or what the GPU is called.")
    cpu: str = Field(description="What the processor is called.")
    capability: str = Field(description="The instructions that torch uses.")
    cores: int = Field(ge=1, description="Physical cores.")
    memory_gib: int = Field(ge=0, description="Memory in GiB.")
    threads: int = Field(ge=1, description="CPU threads that torch used.")
    dtype: str = Field(description="What the model was computed in.")
    torch: str = Field(description="Version of torch.")
    python: str = Field(description="Version of Python.")
    load: float = Field(ge=0, description="Load average of the last minute, this run's own threads among it.")

    @property
    def name(self) -> str:
        """What the table groups by."""
        device = self.cpu if self.device == "cpu" else f"{self.device}, {self.cpu}"
        return f"{device} ({self.capability}), {self.cores} cores, {self.memory_gib} GiB"

    @property
    def setup(self) -> str:
        """What may differ on one machine."""
        return f"{self.threads} thread{'s' * (self.threads != 1)}, {self.dtype}, torch {self.torch}"


class Entry(Section):
    """What a speedrun came to. `minutes` and `steps` are null where it never got there."""

    track: str = Field(description="Which speedrun: digits or real.")
    date: str = Field(description="The day it was run.")
    commit: str | None = Field(description="Of the checkout; null where there is none.")
    clean: bool = Field(description="Whether program and configs were as in that commit.")
    note: str = Field("", description="What was done, in your words.")
    seed: Seed = Field(description="Decides the order of the data and what is sampled.")
    settings: dict[str, Any] = Field(description="What differs from the track's recipe.")
    model: str = Field(description="Fingerprint of what the starting model is prepared from.")
    machine: Machine
    minutes: float | None = Field(description="Training until the second score in a row at the threshold; null: never.")
    steps: int | None = Field(description="Steps until then; null: never.")
    scores: tuple[Score, ...] = Field(min_length=1, description="Every held-out score, from before training on.")

    @field_validator("track")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in TRACKS:
            raise ValueError(f"no such speedrun; there is {', '.join(TRACKS)}")
        return name

    @model_validator(mode="after")
    def _follows_from_its_scores(self) -> "Entry":
        minutes, steps = result_of(self.scores, TRACKS[self.track].threshold)
        if (self.minutes, self.steps) != (minutes, steps):
            raise ValueError(f"minutes and steps are not what the scores say: {minutes} and {steps}")
        return self

    @property
    def best(self) -> float:
        return max(score.accuracy for score in self.scores)

    @property
    def program(self) -> str:
        return f"{(self.commit or 'none')[:9]}{'' if self.clean else ' and changes'}"


def result_of(scores: Sequence[Score], threshold: float) -> tuple[float | None, int | None]:
    """Minutes and steps up to the second of the first two scores in a row that reach the threshold; None: never."""
    ends = (now for before, now in pairwise(scores) if min(before.accuracy, now.accuracy) >= threshold)
    return next(((round(end.seconds / 60, 3), end.step) for end in ends), (None, None))


def read_entry(name: str) -> Entry:
    """An entry by file, or a shipped one by its name. Raises ConfigError naming the first key that is wrong."""
    shipped = entry_files()
    path = Path(name) if Path(name).is_file() else next((file for file in shipped if file.stem == name), None)
    if path is None:
        known = ", ".join(file.stem for file in shipped)
        raise ConfigError(f"{name}: no such entry; give a file{f' or one of {known}' if known else ''}.")
    return configs.validated(Entry, configs.read_yaml(path), lambda _: name)


def entry_files() -> list[Path]:
    return sorted((configs.configs_dir() / "speedrun").glob("*.yaml"))


@dataclass(frozen=True)
class Attempt:
    """One speedrun: what is asked for, of which program, its run, and the file of its entry."""

    track: str
    config: configs.RunConfig
    changed: Mapping[str, Any]
    """Settings that differ from the recipe's."""
    commit: str | None
    clean: bool
    run: Path
    entry: Path


def plan(
    name: str, folder: Path, overrides: Sequence[str] = (), seed: int | None = None, model: str | None = None
) -> Attempt:
    """What is run in `folder`, in a run directory of its own for every program and all settings.

    Raises ConfigError where a setting is asked for that a speedrun decides.
    """
    if name not in TRACKS:
        raise ConfigError(f"{name}: no such speedrun; there is {', '.join(TRACKS)}.")
    track = TRACKS[name]
    recipe = configs.read_yaml(configs.find_config(track.recipe))
    if track.model and model:
        raise ConfigError(f"{name} begins from its own model, {recipe['model']['path']}; leave --model out.")
    if not (track.model or model):
        raise ConfigError(f"{name} needs --model, the folder that `nrt model prepare` made of its starting model.")
    scored = {"train": {"validate_every": track.every, "validation_size": track.questions}}
    own: list[Mapping[str, Any]] = [recipe, scored, {"model": {"path": model}} if model else {}]
    asked = [*own, *map(configs.parse_override, overrides), {} if seed is None else {"seed": seed}]
    told = [text.partition("=")[0].strip() for text in overrides]
    config = configs.resolve(*asked, origin=track.recipe, told=told)
    differences = configs.diff(configs.resolve(*own, origin=track.recipe), config)
    changed = {key: now for key, _, now in differences if key != "seed"}
    fixed = ("model.path.", "data.", "train.validate_every.", "train.validation_size.")
    for key in changed:
        if f"{key}.".startswith(fixed):
            raise ConfigError(f"{key}: the model, the data and the scores of a speedrun are the same for all.")
    if ":" in config.method or not config.thinks:
        raise ConfigError(
            f"method={config.method}: a speedrun is of a built-in scheme, whose model thinks; one of your own goes "
            "into the program first (CONTRIBUTING.md), where others can run it too."
        )
    digest = hashlib.sha256(configs.to_yaml(config).encode())
    for file in sorted(PROGRAM.rglob("*.py")):
        digest.update(file.read_bytes())
    place = f"{name}-s{config.seed}-{digest.hexdigest()[:8]}"
    return Attempt(name, config, changed, *_commit(), folder / place, folder / f"{place}.yaml")


def _commit() -> tuple[str | None, bool]:
    """The checkout's commit, None where there is none, and whether what decides a run is as it was committed."""
    root = PROGRAM.parent

    def git(*words: str) -> str | None:
        try:
            asked = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return asked.stdout.strip()

    # A package that is installed inside some other checkout is not of its commits.
    if Path(git("rev-parse", "--show-toplevel") or "nowhere").resolve() != root.resolve():
        return None, False
    changes = git("status", "--porcelain", "--", "nrt_cli", "configs/presets", "configs/train")
    return git("rev-parse", "HEAD"), changes == ""


def speedrun(attempt: Attempt, make_display: "MakeDisplay") -> Entry:
    """Train until it is done or the last step is, and write the entry. What is there is kept; a stopped run goes on.

    Raises ModelError where the starting model is another, DataError where held-out questions are trained on or cannot
    be graded, and Interrupted, after which the same call goes on.
    """
    import psutil
    import torch

    from nrt_cli.models.metadata import read_metadata
    from nrt_cli.models.sources import model_fingerprint
    from nrt_cli.training.locate import locate_model
    from nrt_cli.workflows.train import train

    if attempt.entry.is_file():
        return read_entry(str(attempt.entry))
    track, path = TRACKS[attempt.track], attempt.config.model.path
    folder = locate_model(path).folder
    metadata = read_metadata(folder)
    if metadata.source is None or metadata.prepared != model_fingerprint(folder):
        raise ModelError(f"{path}: is not as `nrt model prepare` leaves a model; prepare its source again.")
    if track.model not in (None, metadata.source):
        raise ModelError(
            f"{path}: was prepared from another model than that of {attempt.track} (fingerprint "
            f"{metadata.source[:12]}, not {str(track.model)[:12]}); take the program as it was committed."
        )
    there = (attempt.run / "manifest.json").is_file()
    if not there or Run.open(attempt.run).status() != "finished":

        def enough(records: Sequence[Mapping[str, Any]]) -> bool:
            return result_of([_score(record, ()) for record in records], track.threshold)[1] is not None

        try:
            train(attempt.run, None if there else attempt.config, there, make_display, enough=enough)
        except Interrupted as error:
            raise Interrupted("stopped, everything saved; the same command goes on.", error.exit_code - 128) from None
    run = Run.open(attempt.run)
    found, config, taken = run.manifest(), run.config(), run.metrics()
    # A run that was killed may have records of steps that it did not take again.
    records = [record for record in run.metrics("held_out") if record["step"] <= found["summary"]["steps"]]
    if shared := found["data"]["shared_with_validation"]:
        raise DataError(f"{run.path}: {shared} held-out questions are in the training data, so this is no speedrun.")
    if any(record.get("graded") != track.questions for record in records):
        raise DataError(f"{run.path}: not all of the {track.questions} held-out questions could be graded.")
    scores = tuple(_score(record, taken) for record in records)
    minutes, steps = result_of(scores, track.threshold)
    entry = Entry(
        track=attempt.track,
        date=time.strftime("%Y-%m-%d"),
        commit=attempt.commit,
        clean=attempt.clean,
        seed=config.seed,
        settings=dict(attempt.changed),
        model=metadata.source,
        machine=Machine(
            device=found["device"]["name"],
            cpu=found["device"]["cpu"],
            capability=torch.backends.cpu.get_cpu_capability(),
            cores=psutil.cpu_count(logical=False) or 1,
            memory_gib=round(psutil.virtual_memory().total / 2**30),
            threads=found["device"]["threads"],
            dtype=config.model.dtype,
            torch=found["versions"]["torch"],
            python=found["versions"]["python"],
            load=round(psutil.getloadavg()[0], 1),
        ),
        minutes=minutes,
        steps=steps,
        scores=scores,
    )
    write_report(attempt.entry.parent, {attempt.entry.name: configs.to_yaml(entry).encode()})
    return entry


def _score(record: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Score:
    """A held-out record as a score, with the seconds of the steps up to it."""
    seconds = sum(step["seconds"] for step in steps if step["step"] <= record["step"])
    return Score(step=record["step"], accuracy=record["accuracy_thinking"], seconds=round(seconds, 3))


def verify(
    name: str, folder: Path, make_display: "MakeDisplay", model: str | None = None
) -> tuple[Entry, Entry, Path, list[Finding]]:
    """Run an entry's settings here, with its seed, threads, device and dtype, and compare.

    Returns the entry, what it came to here, the run, which is not run again where it is there, and what was found.
    """
    entry = read_entry(name)
    machine = entry.machine
    as_there = {"train.threads": machine.threads, "model.dtype": machine.dtype}
    as_there["model.device"] = "cpu" if machine.device == "cpu" else "cuda"
    overrides = settings({**entry.settings, **as_there})[1::2]
    attempt = plan(entry.track, folder / "verified" / Path(name).stem, overrides, entry.seed, model)
    here = speedrun(attempt, make_display)
    return entry, here, attempt.run, list(compared(entry, here))


def compared(entry: Entry, here: Entry) -> Iterator[Finding]:
    """Each finding says what is the same and what explains what is not."""
    if entry.commit == here.commit and entry.clean and here.clean:
        yield Finding("program", "ok", f"commit {str(here.commit)[:9]} on both sides")
    else:
        there, now = (f"commit {side.program}" if side.commit else "no commit" for side in (entry, here))
        advice = "compare like with like: check the entry's commit out."
        yield Finding("program", "warning", f"{there} there, {now} here", advice)
    if entry.model == here.model:
        yield Finding("starting model", "ok", "the same")
    else:
        yield Finding("starting model", "problem", "another one", "prepare it from the source that the entry names.")
    keys = ("device", "cpu", "capability", "threads", "dtype", "torch")
    # Then the same program must come to the same numbers on both, bit for bit.
    exact = all(getattr(entry.machine, key) == getattr(here.machine, key) for key in keys)
    other_setup = f"another set-up than here ({entry.machine.name}, {entry.machine.setup})"
    same_setup = "processor, threads, dtype and torch are the same, so all must be equal"
    yield Finding("rounding", "ok", same_setup if exact else other_setup)
    one, other = ([(score.step, score.accuracy) for score in side.scores] for side in (entry, here))
    pairs = enumerate(zip(one, other, strict=False))
    parted = next((i for i, (there, now) in pairs if there != now), min(len(one), len(other)))
    first = f"equal up to step {other[parted - 1][0]}, and not after it" if parted else "not equal from the first on"
    if one == other:
        yield Finding("scores", "ok", f"all {len(other)} are equal")
    elif exact:
        yield Finding("scores", "problem", first, "the entry is not what its command does in this program.")
    # Of a model that is still the same, rounding decides a few questions at most.
    elif abs(one[0][1] - other[0][1]) > 0.02 or one[0][0] != other[0][0]:
        found = f"before training {one[0][1]:.1%} there, {other[0][1]:.1%} here, more than rounding explains"
        yield Finding("scores", "problem", found, "the models or questions are not the same.")
    else:
        yield Finding(
            "scores", "ok", f"{first}, which rounding explains: traces that part once are others from then on"
        )
    told = " there, ".join("never" if side.steps is None else str(side.steps) for side in (entry, here)) + " here"
    if entry.steps == here.steps:
        yield Finding("steps needed", "ok", told)
    elif exact or entry.steps is None or here.steps is None:
        yield Finding("steps needed", "problem", told, "the entry is not what its command does here.")
    elif max(entry.steps, here.steps) > ROUNDED_STEPS * max(1, min(entry.steps, here.steps)):
        more = f"{told}: more than the {ROUNDED_STEPS:g} times that rounding explains"
        yield Finding("steps needed", "problem", more, "run more seeds on both machines before you believe either.")
    else:
        yield Finding("steps needed", "ok", f"{told}, within the {ROUNDED_STEPS:g} times that rounding explains")


def median_minutes(entries: Sequence[Entry]) -> float:
    """Over the seeds; one that never got there took for ever."""
    return median(math.inf if entry.minutes is None else entry.minutes for entry in entries)


def standings(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries of one program, settings and set-up, one for each seed; by track and machine, the quickest first."""

    def row(entry: Entry) -> tuple[str, ...]:
        told, machine = json.dumps(entry.settings, sort_keys=True), entry.machine
        return (entry.track, machine.name, machine.setup, str(entry.commit), str(entry.clean), told, entry.note)

    def place(same: list[Entry]) -> tuple[Any, ...]:
        return [*TRACKS].index(same[0].track), same[0].machine.name, median_minutes(same), -len(same)

    found = groupby(sorted(entries, key=row), row)
    return sorted((sorted(same, key=lambda entry: entry.seed) for _, same in found), key=place)


def markdown(rows: Sequence[Sequence[Entry]]) -> str:
    """A table for each track and machine, or a sentence where there is no entry."""
    lines = []
    for (name, machine), group in groupby(rows, lambda row: (row[0].track, row[0].machine.name)):
        track = TRACKS[name]
        lines += [
            f"**{name}**, {track.threshold:.0%} of {track.questions} held-out questions, on {machine}:\n",
            "| minutes | steps | seeds | what | set-up | load | commit | date |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for entries in group:
            first, middle = entries[0], median_minutes(entries)
            each = [entry.minutes for entry in entries if entry.minutes is not None]
            if math.isinf(middle):
                seeds = f" by {len(entries) - len(each)} of {len(entries)}" if len(entries) > 1 else ""
                minutes = f"not reached{seeds} (best {max(entry.best for entry in entries):.0%})"
            else:
                spread = f" ({min(each):.2f} to {max(each):.2f})" if len(entries) > 1 else ""
                minutes = f"{middle:.2f}{spread}"
            told = f"`{pasted(settings(first.settings))}`" if first.settings else ""
            loads = sorted({f"{entry.machine.load:.1f}" for entry in entries})
            cells = (
                minutes,
                ", ".join("-" if entry.steps is None else str(entry.steps) for entry in entries),
                ", ".join(str(entry.seed) for entry in entries),
                ": ".join(filter(None, (first.note, told))) or "the shipped recipe",
                first.machine.setup,
                " to ".join(dict.fromkeys((loads[0], loads[-1]))),
                first.program,
                max(entry.date for entry in entries),
            )
            lines.append("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |")
        lines.append("")
    return "\n".join(lines) or "No entry yet.\n"
