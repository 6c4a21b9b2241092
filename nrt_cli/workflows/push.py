"""`nrt push`: a trained model as others load it, with a card that says how it came to be."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from nrt_cli import __version__, console
from nrt_cli.config import dump_yaml
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.evaluation.comparison import results_of
from nrt_cli.models.metadata import read_metadata
from nrt_cli.models.prepare import model_folder
from nrt_cli.models.publish import card_metadata, convert, find_converter, upload, without_paths, write_for_others
from nrt_cli.store import Run
from nrt_cli.store.evals import find_evaluations
from nrt_cli.training.locate import locate_model
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


@dataclass(frozen=True)
class Pushed:
    """What was pushed where to: a folder or an address, and the names of its files."""

    model: str
    to: str
    files: list[str]
    thinks: bool


def push(parcel: Parcel) -> Pushed:
    """Write or upload model, tokenizer, card and config.

    Raises:
        ConfigError: not exactly one destination.
        ModelError: there is no such model, or its chat template cannot be made to think.
        EndpointError: the hub refuses or cannot be reached.
    """
    out, repo = parcel.out, parcel.repo
    if (out is None) == (repo is None):
        raise ConfigError("say where to: --out FOLDER or --repo OWNER/NAME, one of the two.")
    if parcel.converter and not parcel.gguf:
        raise ConfigError("--converter has no effect without --gguf.")
    converter = find_converter(parcel.converter) if parcel.gguf else None
    located = locate_model(parcel.model)
    metadata = read_metadata(located.folder)
    if out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not parcel.overwrite:
            raise StoreError(f"{out}: exists; choose another --out, or add --overwrite.")
        if not (out / "config.json").is_file():
            raise StoreError(f"{out}: holds something that is not a model; remove it yourself or choose another --out.")
    run = None if located.run is None else Run.open(located.run)
    config = run.config() if run else None
    with tempfile.TemporaryDirectory(prefix="nrt-push-") if out is None else model_folder(out) as name:
        folder = Path(name)
        metadata = write_for_others(located.folder, folder, metadata)
        if config:
            values = {k: v for k, v in config.model_dump(mode="json").items() if k not in OTHER_SECTIONS}
            (folder / CONFIG).write_text(dump_yaml(without_paths(values)), encoding="utf-8")
        evaluations = (found.scores() for found in find_evaluations(results_of(parcel.model)))
        scores = [found for found in evaluations if found and found["score"] == found["score"]]
        facts = Facts(
            name=(repo or str(out)).rstrip("/").rpartition("/")[2] or located.name,
            address=repo or (out.name if out else ""),
            about=metadata,
            located=located,
            run=run,
            config=config,
            scores=tuple({score["benchmark"]: score for score in scores}.values()),
            license=parcel.license,
            gguf=parcel.gguf,
        )
        if converter:
            console.note("converting to GGUF ...")
            convert(converter, folder, folder / f"{facts.name}.gguf")
        card = card_metadata(facts.name, facts.scores, parcel.license, parcel.base_model, facts.tags)
        (folder / "README.md").write_text(render_card(card, facts), encoding="utf-8")
        files = sorted(path.name for path in folder.iterdir())
        address = str(out)
        if repo is not None:
            console.note(f"uploading {', '.join(files)} ...")
            address = upload(folder, repo, parcel.private, f"Push {facts.name} with nrt {__version__}")
    return Pushed(parcel.model, address, files, metadata.thinks)
