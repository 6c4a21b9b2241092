"""Speedruns: what is run, and the entries of the table, one YAML each; `configs/speedrun` has those that were sent in.

A speedrun is training until the held-out questions are answered right, and an entry says how long that took, where, and
with what. Imports nothing heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from nrt_cli import config as configs
from nrt_cli.config.base import Section, Seed
from nrt_cli.errors import ConfigError


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

FIXED = ("model.path", "data", "train.validate_every", "train.validation_size")
"""Keys and sections that a speedrun decides."""


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

    def rounds_like(self, other: "Machine") -> bool:
        """Whether the same program must come to the same numbers on both, bit for bit."""
        keys = ("device", "cpu", "capability", "threads", "dtype", "torch")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


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
        end = reached(self.scores, TRACKS[self.track].threshold)
        minutes, steps = (None, None) if end is None else (minutes_of(end), end.step)
        if (self.minutes, self.steps) != (minutes, steps):
            raise ValueError(f"minutes and steps are not what the scores say: {minutes} and {steps}")
        return self

    @property
    def best(self) -> float:
        return max(score.accuracy for score in self.scores)


def reached(scores: Sequence[Score], threshold: float) -> Score | None:
    """The second of the first two scores in a row that reach the threshold."""
    return next((now for before, now in pairwise(scores) if min(before.accuracy, now.accuracy) >= threshold), None)


def minutes_of(score: Score) -> float:
    """As entries have it."""
    return round(score.seconds / 60, 3)


def read_entry(name: str) -> Entry:
    """An entry by file, or a shipped one by its name. Raises ConfigError naming the first key that is wrong."""
    path, shipped = Path(name), entry_files()
    if not path.is_file():
        path = next((file for file in shipped if file.stem == name), path)
    if not path.is_file():
        known = ", ".join(file.stem for file in shipped)
        raise ConfigError(f"{name}: no such entry; give a file{f' or one of {known}' if known else ''}.")
    return configs.validated(Entry, configs.read_yaml(path), lambda _: name)


def entry_files() -> list[Path]:
    """The shipped entries."""
    return sorted((configs.configs_dir() / "speedrun").glob("*.yaml"))


def entry_yaml(entry: Entry) -> str:
    return configs.dump_yaml(entry.model_dump(mode="json"))
