"""What is done to whole runs: tags, sizes, removal, what can be swept away, and archives.

Runs are found by the folder they lie in, so moving or copying one takes everything along.
"""

import contextlib
import gzip
import os
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nrt_cli.errors import StoreError
from nrt_cli.files import damage, read_record, record_text, replacing
from nrt_cli.store import Run
from nrt_cli.store.files import LOCK, OWNER, sole_writer, write, writes_to

TAGS = "tags.json"
REMOVED = ".removed.tmp"
"""How the hidden folder ends that a run is renamed to before it is deleted."""

STALE_SECONDS = 3600
"""A half-written file or folder that was not touched for so long has no writer any more."""


@dataclass(frozen=True)
class Sweepable:
    """Something of a run that can go: what it is, and its size in bytes."""

    path: Path
    what: str
    size: int


def tags_of(run: Run) -> list[str]:
    """A run's tags, sorted; none where it has no file of them."""
    if not (run.path / TAGS).is_file():
        return []
    try:
        return sorted(map(str, set(read_record(run.path / TAGS, "tags")["tags"])))
    except (OSError, ValueError, TypeError) as error:
        damage(f"{run.path / TAGS}: {error}; remove it, and tag the run again.")
        return []


def set_tags(run: Run, tags: Iterable[str]) -> None:
    """Replace a run's tags. They have a file of their own, so a run in training can be tagged."""
    write(run.path / TAGS, record_text(TAGS, {"tags": sorted(set(tags))}))


def size_of(path: Path, freed: bool = False) -> int:
    """Bytes of a file, or of all below a folder, or those that are `freed` with it. Links are not followed.

    A file under several names counts once, and nothing is freed with one name of it; nor does what vanishes meanwhile.
    """
    files = [path]
    if path.is_dir() and not path.is_symlink():
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    sizes: dict[tuple[int, int], int] = {}
    for file in files:
        with contextlib.suppress(OSError):
            found = file.lstat()
            if not (freed and found.st_nlink > 1):
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def remove_run(run: Run) -> None:
    """Delete a run: it vanishes at once under its name, then its files go. `nrt runs gc` ends what a kill cut short.

    Raises StoreError for a link, and while a process writes to the run.
    """
    if run.path.is_symlink():
        raise StoreError(f"{run.path}: is a link to a run; name the run itself, or delete the link with rm.")
    path = run.path.resolve()
    with sole_writer(path, f"{run.path}: a process is writing to this run; stop it first."), writes_to(path):
        aside = path.with_name(f".{path.name}{REMOVED}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def sweepable(root: Path, runs: Sequence[Run], checkpoints: bool = False) -> Iterator[Sweepable]:
    """What below `root` can go without a loss, or, with `checkpoints`, what only going on with a finished run needs.

    The best model is never among it. Runs that a process writes to are left alone.
    """
    for folder in sorted(root.rglob(f".*{REMOVED}")):
        yield Sweepable(folder, "rest of a removed run", size_of(folder, freed=True))
    for run in runs:
        if run.being_written:
            continue
        found: list[tuple[Path, str]] = []
        stale = []
        for path in sorted(run.path.rglob("*.tmp")):
            with contextlib.suppress(OSError):
                stale += [path] if time.time() - path.lstat().st_mtime > STALE_SECONDS else []
        found += ((path, "half-written") for path in stale if not set(path.parents) & set(stale))
        finished = run.manifest()["status"] == "finished" and run.export_path.is_dir()
        steps = run.checkpoint_steps()
        if checkpoints and finished:
            best = run.best()
            # The best model can be had from nothing else, unless it is the last one.
            kept = {best.step} - {run.exported_step(), *run.model_steps()} if best else set()
            found += ((run.checkpoint_path(s), "checkpoint of a finished run") for s in steps if s not in kept)
            found += ((path, "state of a failed step") for path in sorted(run.path.glob("post-mortem/step-*")))
        else:
            # The model of a checkpoint that is gone could not be made again, nor that of one that is about to go.
            again = [run.model_path(step) for step in steps if run.model_path(step).is_dir()]
            found += ((path, "model of a checkpoint, made again when asked for") for path in again)
        yield from (Sweepable(path, what, size_of(path, freed=True)) for path, what in found)


def sweep(found: Iterable[Sweepable]) -> int:
    """Delete what `sweepable` found; the bytes that were freed."""
    freed = 0
    for item in found:
        with writes_to(item.path):
            if item.path.is_dir() and not item.path.is_symlink():
                shutil.rmtree(item.path)
            else:
                item.path.unlink(missing_ok=True)
        freed += item.size
    return freed


def write_archive(runs: Sequence[Run], out: Path, model: bool = False) -> int:
    """Runs as one .tar.gz that unpacks to runs again: all but weights, or with the trained `model`. Returns its bytes.

    The same files give the same bytes. A run may be written to meanwhile: each of its files is as it was when its turn
    came.
    """
    # What holds weights; all else of a run is small.
    left_out = {"checkpoints", "models", "post-mortem", *([] if model else ["export"])}
    shared = Path(os.path.commonpath([run.path.resolve().parent for run in runs]))
    with writes_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(out) as temporary,
            temporary.open("wb") as raw,
            # Neither the time nor the archive's own name goes into the gzip header.
            gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for run in runs:
                # Unlike glob, this goes on where a folder vanishes while it is listed.
                for path in sorted(Path(folder, file) for folder, _, files in os.walk(run.path) for file in files):
                    parts = path.relative_to(run.path).parts
                    if (
                        parts[0] in left_out
                        or path.name in (LOCK, OWNER)
                        or any(part.endswith(".tmp") for part in parts)
                    ):
                        continue
                    # Gone since the folder was listed: a run goes on while it is archived.
                    with contextlib.suppress(FileNotFoundError):
                        if path.is_file() and not path.is_symlink():
                            with path.open("rb") as file:
                                name = run.path.resolve().relative_to(shared).joinpath(*parts).as_posix()
                                info = tarfile.TarInfo(name)
                                info.size = os.fstat(file.fileno()).st_size
                                info.mtime = 0
                                archive.addfile(info, file)
    return out.stat().st_size
