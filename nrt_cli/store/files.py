"""The run directory's small files: replaced at once, appended to, read after a crash, and locked."""

import contextlib
import errno
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout
from safetensors import SafetensorError

from nrt_cli.errors import StoreError
from nrt_cli.files import damage, line_of, record_of, replacing
from nrt_cli.records import json_line

LOCK, OWNER = ".lock", ".owner"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.EINVAL)
"""What `flock` says on file systems that have none, as some networks' disks."""


@contextlib.contextmanager
def writes_to(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors writes by itself and keeps the number in its message: `Os { code: 28, ...`.
        code = re.search(r"(?:code: |os error )(\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(code.group(1)) if code else None
        reason = os.strerror(number) if number else str(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"{path}: the disk is full ({reason}). Make room and continue with --resume; what was saved is kept."
            ) from None
        raise StoreError(f"{path}: cannot be written ({reason}).") from None


@contextlib.contextmanager
def sole_writer(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder's lock, which goes with the process; the folder is made if need be.

    Raises StoreError saying `busy` where another one holds it.
    """
    with writes_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = _acquired(folder, timeout=0.1)  # a few tries, since `is_locked` holds it for a moment too
        except Timeout:
            where = ""
            if (folder / OWNER).is_file():
                where = f" This disk has no locks: {folder / OWNER} names it and its host; if it is gone, remove that."
            raise StoreError(busy + where) from None
    try:
        sweep(folder.glob("*.tmp"))  # what a killed writer left half-written
        yield
    finally:
        lock.release()


def _acquired(folder: Path, timeout: float) -> BaseFileLock:
    """The lock of a folder, held: the operating system's, or, where the file system has none, a file that says who
    holds it, of which that of a dead process on this host does not count. Raises Timeout where another one holds it."""
    try:
        lock: BaseFileLock = FileLock(folder / LOCK)
        lock.acquire(timeout=timeout, poll_interval=0.02)
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(folder / OWNER)
        lock.acquire(timeout=timeout, poll_interval=0.02)
    return lock


def sweep(left: Iterable[Path]) -> None:
    """Delete files and folders, so far as that is possible."""
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_locked(folder: Path) -> bool:
    """Whether some process is a folder's `sole_writer` now."""
    if not (folder / LOCK).is_file():
        return False
    try:
        _acquired(folder, timeout=0).release()
        return False
    except Timeout:
        return True
    except OSError:
        return False


def write(path: Path, text: str) -> None:
    """Replace a small file at once. Raises StoreError where the disk does not take it."""
    with writes_to(path.parent), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def reads(path: Path, remedy: str) -> Iterator[None]:
    """Turn what keeps a file of ours from being read into one sentence that ends in what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (error.strerror or "is damaged") if isinstance(error, OSError) else error
        raise StoreError(f"{path}: {reason}; {remedy}.") from None


def write_report(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files, by name or path below it, into a folder that may hold others; one that is there is replaced at once.

    Raises StoreError where the disk does not take them.
    """
    with writes_to(folder):
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
    return [folder / name for name in files]


def lines(path: Path, unlike: tuple[bytes, ...] = ()) -> Iterator[dict[str, Any]]:
    """The whole records of an append-only file; a line cut short by a crash is passed over, and so, with a warning,
    are damaged ones. Lines that begin in one of the ways of `unlike` are not read."""
    if not path.is_file():
        return
    at, bad = 0, list[str]()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.startswith(unlike):
                try:
                    record = record_of(line, at)
                except ValueError:
                    bad.append(str(number))
                else:
                    if record is not None:
                        yield record
            at += len(line)
    if bad:
        which = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        damage(f"{path}: damaged, {len(bad)} of {number} lines are passed over: {which}.")


def lines_backwards(path: Path, unlike: tuple[bytes, ...] = ()) -> Iterator[tuple[int, bytes]]:
    """The lines of an append-only file, the last one first, each with where it begins; of those `unlike`, none."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = len(content)
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            if not (line := content[start:end]).startswith(unlike):
                yield start, line
            end = start


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to an append-only file, in one write."""
    with writes_to(path.parent), path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        # After a crash the last line may be cut: start a new one instead of gluing two records together.
        file.seek(max(end - 1, 0))
        torn = b"\n" if end and file.read(1) != b"\n" else b""
        file.write(torn + line_of(json_line(record), end + len(torn)))


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
