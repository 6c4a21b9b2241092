"""A speedrun: training until the held-out questions are answered right, as an entry; and an entry, run again."""

import hashlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

import nrt_cli
from nrt_cli import config as configs
from nrt_cli.checks.findings import Finding
from nrt_cli.commandline import settings
from nrt_cli.config import RunConfig
from nrt_cli.config.speedrun import FIXED, TRACKS, Entry, Machine, Score, entry_yaml, minutes_of, reached, read_entry
from nrt_cli.errors import ConfigError, DataError, Interrupted, ModelError
from nrt_cli.models.metadata import read_metadata
from nrt_cli.models.sources import model_fingerprint
from nrt_cli.store import Run
from nrt_cli.store.reports import write_report
from nrt_cli.training.locate import locate_model
from nrt_cli.workflows.train import MakeDisplay, train

PROGRAM = Path(nrt_cli.__file__).parent

ROUNDED_FIRST = 0.02
"""How much of the questions rounding may decide for a model that is still the same."""
ROUNDED_STEPS = 2.0
"""By how many times rounding may stretch or shorten the way: traces that part once are other traces from then on."""


@dataclass(frozen=True)
class Attempt:
    """One speedrun: what is asked for, of which program, its run, and the file of its entry."""

    track: str
    config: RunConfig
    changed: Mapping[str, Any]
    """Settings that differ from the recipe's."""
    commit: str | None
    clean: bool
    run: Path
    entry: Path


@dataclass(frozen=True)
class Verified:
    """An entry, what its command came to here, and what was found when the two were compared."""

    entry: Entry
    here: Entry
    run: Path
    """The run here; what is there is not run again."""
    findings: tuple[Finding, ...]


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
    if track.model is not None and model:
        raise ConfigError(f"{name} begins from its own model, {recipe['model']['path']}; leave --model out.")
    if track.model is None and not model:
        raise ConfigError(f"{name} needs --model, the folder that `nrt model prepare` made of its starting model.")
    scored = {"train": {"validate_every": track.every, "validation_size": track.questions}}
    own: list[Mapping[str, Any]] = [recipe, scored, {"model": {"path": model}} if model else {}]
    asked = [*own, *map(configs.parse_override, overrides), {} if seed is None else {"seed": seed}]
    told = [text.partition("=")[0].strip() for text in overrides]
    config = configs.resolve(*asked, origin=track.recipe, told=told)
    differences = configs.diff(configs.resolve(*own, origin=track.recipe), config)
    changed = {key: now for key, _, now in differences if key != "seed"}
    for key in changed:
        if any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED):
            raise ConfigError(f"{key}: the model, the data and the scores of a speedrun are the same for all.")
    if ":" in config.method or not config.thinks:
        raise ConfigError(
            f"method={config.method}: a speedrun is of a built-in scheme, whose model thinks; one of your own goes "
            "into the program first (CONTRIBUTING.md), where others can run it too."
        )
    place = f"{name}-s{config.seed}-{_digest(config)}"
    return Attempt(name, config, changed, *_commit(), folder / place, folder / f"{place}.yaml")


def _digest(config: RunConfig) -> str:
    found = hashlib.sha256(configs.to_yaml(config).encode())
    for file in sorted(PROGRAM.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()[:8]


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


def speedrun(attempt: Attempt, make_display: MakeDisplay) -> Entry:
    """Train until it is done or the last step is, and write the entry. What is there is kept; a stopped run goes on.

    Raises ModelError where the starting model is another, DataError where held-out questions are trained on or cannot
    be graded, and Interrupted, after which the same call goes on.
    """
    if attempt.entry.is_file():
        return read_entry(str(attempt.entry))
    track, model = TRACKS[attempt.track], _starting_model(attempt)
    there = (attempt.run / "manifest.json").is_file()
    if not there or Run.open(attempt.run).manifest()["status"] != "finished":

        def enough(records: Sequence[Mapping[str, Any]]) -> bool:
            return reached([_score(record, ()) for record in records], track.threshold) is not None

        try:
            train(attempt.run, None if there else attempt.config, there, make_display, enough=enough)
        except Interrupted as error:
            raise Interrupted("stopped, everything saved; the same command goes on.", error.exit_code - 128) from None
    entry = _entry(attempt, Run.open(attempt.run), model)
    write_report(attempt.entry.parent, {attempt.entry.name: entry_yaml(entry).encode()})
    return entry


def _starting_model(attempt: Attempt) -> str:
    """The fingerprint of what the starting model was prepared from; nothing else may have been done to it."""
    path, wanted = attempt.config.model.path, TRACKS[attempt.track].model
    folder = locate_model(path).folder
    about = read_metadata(folder)
    if about.source is None or about.prepared != model_fingerprint(folder):
        raise ModelError(f"{path}: is not as `nrt model prepare` leaves a model; prepare its source again.")
    if wanted not in (None, about.source):
        raise ModelError(
            f"{path}: was prepared from another model than that of {attempt.track} (fingerprint {about.source[:12]}, "
            f"not {str(wanted)[:12]}); take the program as it was committed."
        )
    return about.source


def _score(record: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Score:
    """A held-out record as a score, with the seconds of the steps up to it."""
    seconds = sum(step["seconds"] for step in steps if step["step"] <= record["step"])
    return Score(step=record["step"], accuracy=record["accuracy_thinking"], seconds=round(seconds, 3))


def _entry(attempt: Attempt, run: Run, model: str) -> Entry:
    track, found, config, taken = TRACKS[attempt.track], run.manifest(), run.config(), run.metrics()
    # A run that was killed may have records of steps that it did not take again.
    records = [record for record in run.metrics("held_out") if record["step"] <= found["summary"]["steps"]]
    if shared := found["data"]["shared_with_validation"]:
        raise DataError(f"{run.path}: {shared} held-out questions are in the training data, so this is no speedrun.")
    if any(record.get("graded") != track.questions for record in records):
        raise DataError(f"{run.path}: not all of the {track.questions} held-out questions could be graded.")
    scores = tuple(_score(record, taken) for record in records)
    end = reached(scores, track.threshold)
    device = found["device"]
    return Entry(
        track=attempt.track,
        date=time.strftime("%Y-%m-%d"),
        commit=attempt.commit,
        clean=attempt.clean,
        seed=config.seed,
        settings=dict(attempt.changed),
        model=model,
        machine=Machine(
            device=device["name"],
            cpu=device["cpu"],
            capability=torch.backends.cpu.get_cpu_capability(),
            cores=psutil.cpu_count(logical=False) or 1,
            memory_gib=round(psutil.virtual_memory().total / 2**30),
            threads=device["threads"],
            dtype=config.model.dtype,
            torch=found["versions"]["torch"],
            python=found["versions"]["python"],
            load=round(psutil.getloadavg()[0], 1),
        ),
        minutes=None if end is None else minutes_of(end),
        steps=None if end is None else end.step,
        scores=scores,
    )


def verify(name: str, folder: Path, make_display: MakeDisplay, model: str | None = None) -> Verified:
    """Run an entry's settings here, with its seed, threads, device and dtype, and compare."""
    entry = read_entry(name)
    machine = entry.machine
    as_there = {
        "train.threads": machine.threads,
        "model.dtype": machine.dtype,
        "model.device": "cpu" if machine.device == "cpu" else "cuda",
    }
    overrides = settings({**entry.settings, **as_there})[1::2]
    attempt = plan(entry.track, folder / "verified" / Path(name).stem, overrides, entry.seed, model)
    here = speedrun(attempt, make_display)
    return Verified(entry, here, attempt.run, tuple(_compared(entry, here)))


def _compared(entry: Entry, here: Entry) -> Iterator[Finding]:
    """Each finding says what is the same and what explains what is not."""
    if entry.commit == here.commit and entry.clean and here.clean:
        yield Finding("program", "ok", f"commit {str(here.commit)[:9]} on both sides")
    else:
        yield Finding(
            "program",
            "warning",
            f"{_program(entry)} there, {_program(here)} here",
            "compare like with like: check the entry's commit out.",
        )
    if entry.model == here.model:
        yield Finding("starting model", "ok", "the same")
    else:
        yield Finding("starting model", "problem", "another one", "prepare it from the source that the entry names.")
    exact = entry.machine.rounds_like(here.machine)
    if exact:
        yield Finding("rounding", "ok", "processor, threads, dtype and torch are the same, so all must be equal")
    else:
        yield Finding("rounding", "ok", f"another set-up than here ({entry.machine.name}, {entry.machine.setup})")
    yield _scores(entry, here, exact)
    yield _steps(entry, here, exact)


def _program(entry: Entry) -> str:
    return f"commit {entry.commit[:9]}{'' if entry.clean else ' and changes'}" if entry.commit else "no commit"


def _scores(entry: Entry, here: Entry, exact: bool) -> Finding:
    there, again = ([(score.step, score.accuracy) for score in side.scores] for side in (entry, here))
    if there == again:
        return Finding("scores", "ok", f"all {len(again)} are equal")
    pairs = zip(there, again, strict=False)
    parted = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(there), len(again)))
    first = f"equal up to step {again[parted - 1][0]}, and not after it" if parted else "not equal from the first on"
    if exact:
        return Finding("scores", "problem", first, "the entry is not what its command does in this program.")
    if abs(there[0][1] - again[0][1]) > ROUNDED_FIRST or there[0][0] != again[0][0]:
        found = f"before training {there[0][1]:.1%} there, {again[0][1]:.1%} here, more than rounding explains"
        return Finding("scores", "problem", found, "the models or questions are not the same.")
    return Finding("scores", "ok", f"{first}, which rounding explains: traces that part once are others from then on")


def _steps(entry: Entry, here: Entry, exact: bool) -> Finding:
    told = " there, ".join("never" if side.steps is None else str(side.steps) for side in (entry, here)) + " here"
    if entry.steps == here.steps:
        return Finding("steps needed", "ok", told)
    if exact or entry.steps is None or here.steps is None:
        return Finding("steps needed", "problem", told, "the entry is not what its command does here.")
    most = max(entry.steps, here.steps) / max(1, min(entry.steps, here.steps))
    if most > ROUNDED_STEPS:
        more = f"{told}: more than the {ROUNDED_STEPS:g} times that rounding explains"
        return Finding("steps needed", "problem", more, "run more seeds on both machines before you believe either.")
    return Finding("steps needed", "ok", f"{told}, within the {ROUNDED_STEPS:g} times that rounding explains")
