"""What a training config may name instead of files: a built-in model, a run or its steps, and generated pairs."""

import hashlib
from pathlib import Path
from typing import Any

import platformdirs

from nrt_cli.config import RunConfig
from nrt_cli.data.choose import Settings
from nrt_cli.data.prepare import prepare
from nrt_cli.data.sources import open_sources
from nrt_cli.store.reference import Reference
from nrt_cli.training.located import locate_model

HELD_OUT = 0.125
"""Share of generated pairs that is kept for validation."""


def with_files(config: RunConfig) -> RunConfig:
    """The config with the folders and files that its names stand for."""
    changes: dict[str, Any] = {}
    if not _is_folder(config.model.path):
        folder = locate_model(config.model.path).folder
        changes["model"] = config.model.model_copy(update={"path": str(folder)})
    if config.data.train.startswith("generated:"):
        pairs = _pairs(config.data.train)
        if config.data.validation:  # named apart
            del pairs["validation"]
        changes["data"] = config.data.model_copy(update=pairs)
    if config.data.validation and config.data.validation.startswith("generated:"):
        whole = {"validation": _pairs(config.data.validation, 0)["train"]}
        changes["data"] = changes.get("data", config.data).model_copy(update=whole)
    return config.model_copy(update=changes)


def _is_folder(model: str) -> bool:
    """Whether a model is named by its folder, as most are; one that is missing is refused where it is read."""
    if model.startswith("builtin:"):
        return False
    named = Reference.parse(model)
    return named.spans is None and not (named.path / "manifest.json").is_file()


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
