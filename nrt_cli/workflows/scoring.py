"""Models opened for scoring, as the run that made them would: its think tokens, objective and rollout settings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nrt_cli import config as configs
from nrt_cli import console
from nrt_cli.backends.local.scoring import Scorer
from nrt_cli.backends.machine import use_threads
from nrt_cli.config import DataSection, ModelSection, RolloutSection, RunConfig
from nrt_cli.data.examples import load_examples
from nrt_cli.errors import ConfigError, DataError
from nrt_cli.models.metadata import read_metadata
from nrt_cli.records import Example
from nrt_cli.store import Run
from nrt_cli.training.locate import Located, locate_model

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done and how much there is."""

SCORING_STREAM = 2
"""First part of the random streams' key, after the seed: training and held-out scoring have 0 and 1."""

DEFAULT_TRACE_CAP = 256
"""Cap on traces of models that no run trained; a run has its own."""


@dataclass(frozen=True)
class Subject:
    """A model to look into, not loaded yet. `config` is its run's, or the paper's defaults where there is no run."""

    located: Located
    config: RunConfig
    think_start: str | None
    think_end: str
    thinks: bool

    def open(self) -> Scorer:
        """Load it, on as many threads as its run had."""
        use_threads(self.config)
        bare = self.config.objective.null_trace == "bare"
        scorer = Scorer(self.section, self.think_start, self.think_end, bare)
        if reason := scorer.policy.no_packing:
            console.note(f"{self.located.ref}: nothing is packed, since {reason}")
        return scorer

    @cached_property
    def section(self) -> ModelSection:
        """Its folder, and the dtype that it is computed in."""
        return self.located.section()

    def rollout(self, max_trace_tokens: int | None = None, temperature: float | None = None) -> RolloutSection:
        """How its traces are sampled: as in its run, unless told otherwise."""
        given = {"max_trace_tokens": max_trace_tokens, "temperature": temperature}
        return self.config.rollout.model_copy(update={key: value for key, value in given.items() if value is not None})


def subject(ref: str | Path) -> Subject:
    """The model that DIR, RUN, RUN@STEP or builtin:NAME means. Raises ModelError or StoreError where there is none."""
    located = locate_model(ref)
    about = read_metadata(located.folder)
    if located.run is None:
        defaults = configs.resolve({"rollout": {"max_trace_tokens": DEFAULT_TRACE_CAP}})
        return Subject(located, defaults, about.think_start, about.think_end, about.thinks)
    config = Run.open(located.run).config()
    # What the run used, which may be less than what its starting model was prepared with.
    tokens = config.tokens
    return Subject(located, config, tokens.think_start, tokens.think_end, config.thinks)


def data_file(of: Subject, given: Path | None) -> Path:
    """The pairs to score: a file, or the held-out ones of the subject's run."""
    if given is None and of.located.run is None:
        raise ConfigError(f"{of.located.ref}: is no run, so its held-out data is unknown; name some with --data FILE.")
    if given is None and of.config.data.validation is None:
        raise ConfigError(f"{of.located.run}: was trained without held-out data; name some with --data FILE.")
    path = given or Path(str(of.config.data.validation))
    if not path.is_file():
        raise DataError(f"{path}: no such file; name one made by `nrt data prepare` with --data.")
    return path


def pick_examples(path: Path, count: int, seed: int, limits: DataSection, tokenizer: object) -> list[Example]:
    """`count` examples of a file at random, in the file's order; all of them where there are fewer.

    A larger count adds to the examples of a smaller one.
    """
    examples = load_examples(path, tokenizer, limits.max_prompt_tokens, limits.max_answer_tokens, limits.strict)
    for text in examples.left_out(f"of {path}"):
        console.note(text)
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[int(i)] for i in sorted(order[:count])]


def in_parts(total: int, size: int) -> Iterator[tuple[int, slice]]:
    """(number, slice) of consecutive parts of at most `size`."""
    for number, start in enumerate(range(0, total, size)):
        yield number, slice(start, min(start + size, total))


def default_folder(ref: str | Path, analysis: str) -> Path:
    """Where an analysis of a model goes: into its run, else below the working directory."""
    return (locate_model(ref).run or Path()) / "analysis" / analysis
