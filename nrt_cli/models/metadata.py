"""What `nrt.json` says about a prepared or exported model: its think tokens, and whether it thinks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nrt_cli.errors import ModelError
from nrt_cli.files import digest_of_digests, read_record, record_text, sha256
from nrt_cli.models.sources import model_files


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
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the files beside it, by name; of models of earlier versions, none."""


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
            about.get("files", {}),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{file}: is damaged; make the model again with `nrt model prepare`.") from None


def require_texts(folder: Path) -> None:
    """Raise ModelError where the tokenizer, template or configs of a model are not those that its `nrt.json` describes.

    That takes no time; `model_fault` reads the weights too.
    """
    if (folder / "nrt.json").is_file():
        files = read_metadata(folder).files
        texts = [folder / name for name in files if not name.endswith(".safetensors")]
        if changed := [path.name for path in texts if not path.is_file() or sha256(path) != files[path.name]]:
            raise ModelError(_changed(folder, changed))


def model_fault(folder: Path, files: Mapping[str, str] | None = None) -> str | None:
    """What keeps a prepared or exported model from being the one that its `nrt.json` describes; None where it is.

    Args:
        files: its `model_files`, where they are known.
    """
    try:
        about, now = read_metadata(folder), model_files(folder) if files is None else files
    except ModelError as error:
        return str(error)
    changed = [name for name, digest in about.files.items() if now.get(name) != digest]
    if not changed and about.prepared not in (None, digest_of_digests(now.items())):
        changed = ["a file"]
    return _changed(folder, changed) if changed else None


def _changed(folder: Path, names: Sequence[str]) -> str:
    return (
        f"{folder}: not what its nrt.json describes: {', '.join(names)} (damaged, copied in part or changed). Make the "
        "model again; if the change is yours, delete `files`, `fingerprint` and `checksum` in nrt.json."
    )


def record_suffix(folder: Path, suffix: str | None) -> None:
    """Note in an exported model's `nrt.json` the last line of its training's questions."""
    if suffix:
        file = folder / "nrt.json"
        about = read_record(file)
        about["training"]["suffix"] = suffix
        file.write_text(record_text(file.name, about), encoding="utf-8")
