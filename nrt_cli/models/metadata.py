"""What `nrt.json` says about a prepared or exported model: its think tokens, and whether it thinks."""

from dataclasses import dataclass
from pathlib import Path

from nrt_cli.errors import ModelError
from nrt_cli.files import read_record, record_text
from nrt_cli.models.sources import model_fingerprint


@dataclass(frozen=True)
class Metadata:
    """`think_start` is None where a trace follows the prompt directly; `thinks` is how the model was trained.

    `suffix` is the last line that all questions of its training had.
    `stops` are the tokens that end its answers; a model that was prepared before they were recorded names none.
    `source` is the fingerprint of what it was prepared from, `prepared` its own at that time, which an exported model
    lacks.
    """

    think_start: str | None
    think_end: str
    thinks: bool
    stops: tuple[str, ...] = ()
    suffix: str | None = None
    source: str | None = None
    prepared: str | None = None
    files: str | None = None
    """Fingerprint of the files beside it, which are not those that were written where theirs is another."""


def read_metadata(folder: Path) -> Metadata:
    """Read a model folder's `nrt.json`. Raises ModelError where it is missing or damaged.

    A prepared model has been trained to neither think nor answer directly; it counts as thinking, which it is there
    to learn.
    """
    file = folder / "nrt.json"
    if not file.is_file():
        raise ModelError(f"{folder}: is neither a run nor a prepared model; make one with `nrt model prepare`.")
    try:
        about = read_record(file)
        start, end = about["tokens"]["think_start"], about["tokens"]["think_end"]
        trained = about.get("training", {})
        stops = tuple(stop["token"] for stop in about.get("stop_tokens", ()))
        return Metadata(
            start and start["token"],
            end["token"],
            trained.get("thinks", True),
            stops,
            trained.get("suffix"),
            about.get("source_fingerprint"),
            about.get("fingerprint"),
            about.get("files", about.get("fingerprint")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{file}: is damaged; make the model again with `nrt model prepare`.") from None


def model_fault(folder: Path) -> str | None:
    """What keeps a prepared or exported model from being the one that its `nrt.json` describes; None where it is."""
    try:
        about = read_metadata(folder)
        if about.files not in (None, model_fingerprint(folder)):
            return f"{folder}: its files are not those that its nrt.json describes (damaged, copied in part or changed)"
    except ModelError as error:
        return str(error).rstrip(".")
    return None


def record_suffix(folder: Path, suffix: str | None) -> None:
    """Note in an exported model's `nrt.json` the last line of its training's questions."""
    if suffix:
        file = folder / "nrt.json"
        about = read_record(file)
        about["training"]["suffix"] = suffix
        file.write_text(record_text(file.name, about), encoding="utf-8")
