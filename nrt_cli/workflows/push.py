"""`nrt push`: a trained model as others load it, with a card that says how it came to be."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt_cli import __version__, console
from nrt_cli.config import RunConfig, dump_yaml
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.evaluation.comparison import results_of
from nrt_cli.models.metadata import Metadata, read_metadata
from nrt_cli.models.prepare import model_folder
from nrt_cli.models.publish import card_metadata, convert, find_converter, upload, without_paths, write_for_others
from nrt_cli.store import Run
from nrt_cli.store.evals import find_evaluations
from nrt_cli.training.locate import Located, locate_model
from nrt_cli.workflows.model_card import CONFIG, Facts, render_card

OTHER_SECTIONS = ("eval", "judge", "track")
"""Sections that training does not read, and that may name what is only here."""


@dataclass(frozen=True)
class Parcel:
    """What is to be pushed where: to a folder, or to a repository of the hub."""

    model: str
    out: Path | None = None
    repo: str | None = None
    private: bool = False
    overwrite: bool = False
    license: str | None = None
    base_model: str | None = None
    gguf: bool = False
    converter: Path | None = None


def push(parcel: Parcel) -> dict[str, Any]:
    """Write or upload model, tokenizer, card and config; returns where to, and the names of the files.

    Raises:
        ConfigError: not exactly one destination.
        ModelError: there is no such model, or its chat template cannot be made to think.
        EndpointError: the hub refuses or cannot be reached.
    """
    if (parcel.out is None) == (parcel.repo is None):
        raise ConfigError("say where to: --out FOLDER or --repo OWNER/NAME, one of the two.")
    if parcel.converter and not parcel.gguf:
        raise ConfigError("--converter has no effect without --gguf.")
    converter = find_converter(parcel.converter) if parcel.gguf else None
    located = locate_model(parcel.model)
    about = read_metadata(located.folder)
    if parcel.out is not None:
        _vacant(parcel.out, parcel.overwrite)
    with _target(parcel.out) as folder:
        about = write_for_others(located.folder, folder, about)
        config = _write_config(located, folder)
        facts = _facts(parcel, located, about, config)
        if converter:
            console.note("converting to GGUF ...")
            convert(converter, folder, folder / f"{facts.name}.gguf")
        metadata = card_metadata(facts.name, facts.scores, parcel.license, parcel.base_model, facts.tags)
        (folder / "README.md").write_text(render_card(metadata, facts), encoding="utf-8")
        files = sorted(path.name for path in folder.iterdir())
        address = str(parcel.out)
        if parcel.repo is not None:
            console.note(f"uploading {', '.join(files)} ...")
            address = upload(folder, parcel.repo, parcel.private, f"Push {facts.name} with nrt {__version__}")
    return {"model": parcel.model, "to": address, "files": files, "thinks": about.thinks}


def _vacant(out: Path, overwrite: bool) -> None:
    """Refuse to replace what is there, unless told to and it is a model."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise StoreError(f"{out}: exists; choose another --out, or add --overwrite.")
    if not (out / "config.json").is_file():
        raise StoreError(f"{out}: holds something that is not a model; remove it yourself or choose another --out.")


@contextlib.contextmanager
def _target(out: Path | None) -> Iterator[Path]:
    """A folder to fill: one that becomes `out`, or one that is gone afterwards."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="nrt-push-") as name:
            yield Path(name)
        return
    with model_folder(out) as folder:
        yield folder


def _write_config(located: Located, folder: Path) -> RunConfig | None:
    """The run's config beside the model, without places of this machine; None for a model that is no run's."""
    if located.run is None:
        return None
    config = Run.open(located.run).config()
    values = {k: v for k, v in config.model_dump(mode="json").items() if k not in OTHER_SECTIONS}
    (folder / CONFIG).write_text(dump_yaml(without_paths(values)), encoding="utf-8")
    return config


def _facts(parcel: Parcel, located: Located, about: Metadata, config: RunConfig | None) -> Facts:
    run = None if located.run is None else Run.open(located.run)
    scores = [s for e in find_evaluations(results_of(parcel.model)) if (s := e.scores()) and s["score"] == s["score"]]
    return Facts(
        name=(parcel.repo or str(parcel.out)).rstrip("/").rpartition("/")[2] or located.name,
        address=parcel.repo or (parcel.out.name if parcel.out else ""),
        about=about,
        located=located,
        run=run,
        config=config,
        scores=tuple({score["benchmark"]: score for score in scores}.values()),
        license=parcel.license,
        gguf=parcel.gguf,
    )
