"""What a name stands for: a model folder, a run, one of its steps, a built-in model, generated pairs; each as files."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from nrt_cli import console
from nrt_cli.commandline import resume
from nrt_cli.config import ModelSection, RunConfig
from nrt_cli.data import digits
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.data.sources import open_sources
from nrt_cli.errors import ModelError, StoreError
from nrt_cli.models.loading import require_model, resolved
from nrt_cli.models.metadata import read_metadata, record_suffix, require_texts
from nrt_cli.models.prepare import prepare_model
from nrt_cli.models.sources import find_source
from nrt_cli.store import Reference, Run
from nrt_cli.training.pretraining import pretrain

TINY = "builtin:tiny"
"""A model of random weights and a vocabulary of words, made on the spot."""

HELD_OUT = 0.125
"""Share of generated pairs that is kept for validation."""


@dataclass(frozen=True)
class Located:
    """A model's folder and where it came from; `run` and `step` are None for a model that is no run's."""

    ref: str
    folder: Path
    run: Path | None = None
    step: int | None = None

    @property
    def name(self) -> str:
        if self.ref.startswith("builtin:"):
            return self.ref.removeprefix("builtin:")
        if self.run is None:
            return self.folder.resolve().name
        return self.run.resolve().name + ("" if self.exported else f"@{self.step}")

    def section(self, asked: ModelSection | None = None) -> ModelSection:
        """What it is computed with: the dtype that is asked for, else its run's, else what `auto` is here."""
        asked = asked or ModelSection()
        dtype = Run(self.run).config().model.dtype if self.run and asked.dtype == "auto" else asked.dtype
        return resolved(asked.model_copy(update={"path": str(self.folder), "dtype": dtype}))

    @property
    def suffix(self) -> str | None:
        """The last line that all questions of its training had."""
        return read_metadata(self.folder).suffix if self.run is None else Run(self.run).suffix()

    def __post_init__(self) -> None:
        require_texts(self.folder)

    @property
    def exported(self) -> bool:
        """Whether this is what a run left as its result, not one of its checkpoints."""
        return self.run is not None and self.folder == self.run / "export"


def locate_model(ref: str | Path) -> Located:
    """The model that DIR, RUN, RUN@STEP, RUN@best or builtin:NAME means, ready to load.

    A run is its exported model. RUN@STEP is that step's checkpoint, written once as a model folder into the run, and
    RUN@0 the model that the run began from; RUN@best is the step that `Run.best` says. A built-in model is prepared
    once, in the user's cache. Raises ModelError for no model, StoreError for a step that is not there or damaged.
    """
    text = str(ref)
    if text.startswith("builtin:"):
        cache = platformdirs.user_cache_path("nrt", appauthor=False) / "models"
        if text == TINY:
            cache /= "tiny-1"  # the number is of how it is made
            if not cache.is_dir():
                with tempfile.TemporaryDirectory() as source:
                    pretrain(digits.vocabulary(), lambda step: (), 0, Path(source), 0)
                    start, end, *_ = digits.SEPARATORS
                    prepare_model(source, cache, init_start=start, init_end=end, dtype="float32")
            return Located(text, cache)
        cache /= f"{text.removeprefix('builtin:')}-{find_source(text).fingerprint[:12]}"
        if not cache.is_dir():
            console.note(f"preparing {text} once, in {cache} ...")
        return Located(text, prepare_model(text, cache).folder)
    named = Reference.parse(os.path.expanduser(text))
    if named.spans is None and not (named.path / "manifest.json").is_file():
        return Located(text, require_model(named.path))
    step = None
    if named.spans is not None:
        (step, last), *more = named.spans
        if more or step != last:
            raise StoreError(f"{text}: one model is asked for here; name one step, such as {named.path}@{step}.")
    run = Run.open(named.path)
    if step == 0:
        return Located(text, require_model(run.config().model.path), run.path, 0)
    steps = run.checkpoint_steps()
    there = ", ".join(f"{run.path}@{each}" for each in steps)
    if step is not None and run.model_path(step).is_dir():
        return Located(text, run.model_path(step), run.path, step)
    if step is None or (step == run.exported_step() and step not in steps):
        if not run.export_path.is_dir():
            instead = f", or name one of its checkpoints: {there}" if steps else ""
            raise ModelError(
                f"{run.path}: the run has no exported model yet; finish it with `{resume(run.path)}`{instead}."
            )
        return Located(text, run.export_path, run.path, run.exported_step())
    from nrt_cli.models.export import export_checkpoint, ranks_weights

    if step not in steps:
        raise StoreError(
            f"{run.path}: has no checkpoint of step {step}; there is {run.path}@0{', ' if steps else ''}{there} (a run "
            "keeps its last `train.keep_checkpoints` and the best)."
        )
    # A finished run does not need the model it began from.
    config = run.config()
    base = run.export_path if run.export_path.is_dir() else require_model(config.model.path)
    checkpoint = run.load_checkpoint(step)
    tensors = checkpoint.tensors or ranks_weights(checkpoint.folder)

    def export(folder: Path) -> None:
        export_checkpoint(tensors, config, base, folder)
        record_suffix(folder, run.suffix())

    return Located(text, run.write_model(step, export), run.path, step)


def locate_inputs(config: RunConfig) -> RunConfig:
    """The config with the folders and files that its names stand for: a model, generated pairs."""
    changes: dict[str, Any] = {}
    model = config.model.path
    named = None if model.startswith("builtin:") else Reference.parse(model)
    # Most models are named by their folder; one that is missing is refused where it is read.
    if named is None or named.spans is not None or (named.path / "manifest.json").is_file():
        changes["model"] = config.model.model_copy(update={"path": str(locate_model(model).folder)})
    pairs = _pairs(config.data.train) if config.data.train.startswith("generated:") else {}
    if held_out := config.data.validation:  # named apart
        pairs["validation"] = _pairs(held_out, 0)["train"] if held_out.startswith("generated:") else held_out
    return config.model_copy(update=changes | {"data": config.data.model_copy(update=pairs)})


def _pairs(source: str, held_out: float = HELD_OUT) -> dict[str, str]:
    """Made once, in the cache; anew where this version makes other rows of the same name."""
    source, suffix = without_suffix(source)
    (found,) = open_sources([source])
    decides = " ".join([found.fingerprint(), str(held_out), *([suffix] if suffix else [])])
    name = hashlib.sha256(decides.encode()).hexdigest()[:12]
    folder: Path = platformdirs.user_cache_path("nrt", appauthor=False) / "data" / f"generated-{name}"
    prepare([source], folder, Settings(validation=held_out, suffix=suffix))
    return {split: str(folder / f"{split}.parquet") for split in ("train", "validation")}


def without_suffix(source: str) -> tuple[str, str | None]:
    """A source of generated pairs as `nrt data prepare` takes it, and the last line that ends every question."""
    source, _, suffix = source.partition("&suffix=")
    return source, suffix or None
