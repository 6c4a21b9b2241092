"""The output folder of `nrt data prepare`.

It appears by one rename, complete or not at all, and replaces nothing unasked.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nrt_cli.data.choose import Settings
from nrt_cli.data.sources import file_sha256
from nrt_cli.errors import DataError
from nrt_cli.files import draft

MANIFEST = "manifest.json"
DROPPED = "dropped.jsonl"


def existing_output(out: Path, recipe: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest at `out` where it is what the recipe makes; None where `out` may be written.

    Raises DataError where something else is there: another recipe's output without `overwrite`, or with it anything
    that this command did not write.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = read_manifest(out)
    if manifest is None:
        raise DataError(f"{out} exists and was not made by `nrt data prepare`; choose another --out.")
    if not overwrite:
        if changed := _changed(manifest, recipe):
            raise DataError(
                f"{out} was made with other {', '.join(changed)}; choose another --out, or replace it with --overwrite."
            )
        outputs = ((out / name, sha256) for name, sha256 in manifest["outputs"].items())
        if any(not path.is_file() or file_sha256(path) != sha256 for path, sha256 in outputs):
            raise DataError(f"{out} was changed since it was made; replace it with --overwrite.")
        return manifest
    known = {MANIFEST, DROPPED, *manifest["outputs"]}
    if foreign := sorted(path.name for path in out.iterdir() if path.name not in known):
        raise DataError(f"{out} holds {foreign[0]}, which --overwrite would delete; move it or choose another --out.")
    return None


def _changed(manifest: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """What of the recipe differs from the one that made the manifest, in words."""
    before, now = asdict(Settings()) | manifest["settings"], recipe["settings"]  # an older manifest has fewer
    settings = [f"{key} ({before.get(key)}, now {now[key]})" for key in now if before.get(key) != now[key]]
    return settings + [key for key in recipe if key != "settings" and manifest.get(key) != recipe[key]]


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest that `prepare` left in a folder; None where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and {"nrt_version", "settings", "inputs", "outputs"} <= set(manifest)
    return manifest if ours else None


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A draft of `out`; what the operating system refuses is one sentence, and leaves `out` as it was."""
    try:
        with draft(out) as folder:
            yield folder
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error}); nothing there was changed.") from None
