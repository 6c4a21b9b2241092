"""What a training config may name instead of files: a built-in model and generated pairs, made once, in the cache."""

import hashlib
from pathlib import Path
from typing import Any

import platformdirs

from nrt_cli.config import RunConfig
from nrt_cli.data.choose import Settings
from nrt_cli.data.prepare import prepare
from nrt_cli.workflows.models import locate_model

HELD_OUT = 8
"""Generated pairs that are kept for validation."""


def with_files(config: RunConfig) -> RunConfig:
    """The config with the folders and files that its names stand for."""
    changes: dict[str, Any] = {}
    if config.model.path.startswith("builtin:"):
        folder = locate_model(config.model.path).folder
        changes["model"] = config.model.model_copy(update={"path": str(folder)})
    if config.data.train.startswith("generated:"):
        pairs = _pairs(config.data.train)
        if config.data.validation:  # the user's own
            del pairs["validation"]
        changes["data"] = config.data.model_copy(update=pairs)
    return config.model_copy(update=changes)


def _pairs(source: str) -> dict[str, str]:
    name = hashlib.sha256(source.encode()).hexdigest()[:12]
    folder: Path = platformdirs.user_cache_path("nrt", appauthor=False) / "data" / f"generated-{name}"
    prepare([source], folder, Settings(validation=HELD_OUT))
    return {split: str(folder / f"{split}.parquet") for split in ("train", "validation")}
