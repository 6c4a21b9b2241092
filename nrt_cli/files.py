"""Files and folders that appear whole: written under another name, forced to the disk, then renamed; and digests."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def draft(target: Path, locked: bool = False) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block succeeds and vanishes when it fails.

    Raises OSError as the operating system does; what stood at `target` is then still there.

    Args:
        locked: the caller holds a lock, so the draft is plainly `NAME.tmp`, which the next writer finds and sweeps
            after a kill. Without one it is hidden and named by our process, so that two writers do not share it.
    """
    target = target.absolute()  # so that "." has a name too
    temporary = target.with_name(f"{target.name}.tmp" if locked else f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        # What stands at the target is moved aside first and deleted last: a kill in between leaves both.
        aside = temporary.with_suffix(".old.tmp")
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            target.replace(aside)
        try:
            temporary.replace(target)
        except OSError:
            if aside.exists():
                aside.replace(target)
            raise
        sync(target.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        # Room is what a full disk lacks: leave none of a folder that never was.
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A file beside `file`, to write to, that takes its place when the block succeeds and vanishes when it fails."""
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename never points at less than what was written."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no such thing
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing_sha256(files: Iterable[Path]) -> str:
    """Hex digest over the names and contents of some files, in the order given."""
    listing = "".join(f"{path.name} {sha256(path)}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()
