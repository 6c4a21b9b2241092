"""The run directory's small files: replaced at once, appended to, read after a crash, and locked."""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from nrt_cli.errors import StoreError
from nrt_cli.files import replacing
from nrt_cli.records import json_line

LOCK = ".lock"


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
    lock = FileLock(folder / LOCK)
    with writes_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # A few tries, since `is_locked` holds it for a moment too.
            lock.acquire(timeout=0.1, poll_interval=0.02)
        except Timeout:
            raise StoreError(busy) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether some process is a folder's `sole_writer` now."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def write(path: Path, text: str) -> None:
    """Replace a small file at once. Raises StoreError where the disk does not take it."""
    with writes_to(path.parent), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole records of an append-only file; a line cut short by a crash is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to an append-only file, in one write."""
    with writes_to(path.parent):
        # After a crash the last line may be cut: start a new one instead of gluing two records together.
        torn = False
        if path.exists() and path.stat().st_size > 0:
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
        line = ("\n" if torn else "") + json_line(record) + "\n"
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError where it is something else."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(path)
    return values


def pretty_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
