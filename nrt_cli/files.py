"""Files and folders that appear whole, and say so: written under another name, forced to the disk, then renamed;
records that carry their own checksum; and digests."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from nrt_cli.errors import Damage

CHECKSUM = "checksum"
"""Last key of a record of ours: a digest of its file's name and of all other keys."""
LINE_SEAL = b', "crc32": "'
"""What stands before the checksum of a line among others: of where in its file it begins, and of its other keys."""
SEALED = "# Written by nrt, with a checksum in the last line: a part of this file is never taken for the whole.\n"
SEAL = f"# {CHECKSUM} "


def damage(message: str) -> None:
    """Say that something was passed over; a message is shown once."""
    warnings.warn(message, Damage, stacklevel=2)


# --- records that carry their checksum -------------------------------------------------------------------------------


def record_text(name: str, values: Mapping[str, Any]) -> str:
    """Values as the text of a JSON file of that name."""
    # As it will be read: what is no JSON is text from here on.
    plain = json.loads(json.dumps(values, default=str))
    plain.pop(CHECKSUM, None)
    plain[CHECKSUM] = _checksum(name, json.dumps(plain, sort_keys=True))
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"


def read_record(file: Path, *keys: str) -> dict[str, Any]:
    """A JSON object, without its checksum. Older files, and other people's, have none.

    Args:
        keys: what every record of its kind has, older ones too: another's file in its place lacks them.

    Raises OSError where it cannot be read, and ValueError, saying what is wrong, where it is not what was written.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("is damaged (it is not JSON)") from None
    if not isinstance(values, dict):
        raise ValueError("is damaged (it is not a JSON object)")
    if values.pop(CHECKSUM, None) not in (None, _checksum(file.name, json.dumps(values, sort_keys=True))):
        raise ValueError("is damaged (its checksum differs)")
    if missing := [key for key in keys if key not in values]:
        raise ValueError(f"is another file than it should be (it has no {missing[0]!r})")
    return values


def _checksum(name: str, content: str) -> str:
    """The name is part of it, so that no record is taken for another."""
    return hashlib.sha256(f"{name}\n{content}".encode()).hexdigest()


def sealed(text: str) -> str:
    """A text of ours in which # begins a comment, with its checksum, which `unsealed` verifies; it may be renamed."""
    whole = SEALED + text.removesuffix("\n") + "\n"
    return f"{whole}{SEAL}{_checksum('', whole)}\n"


def unsealed(text: str) -> str:
    """The same text, line for line. Raises ValueError where it is not what was written; others have no checksum."""
    whole, _, last = text.removesuffix("\n").rpartition("\n")
    ours = text.startswith(SEALED) or last.startswith(SEAL)
    if ours and last != SEAL + _checksum("", f"{whole}\n"):
        raise ValueError(
            "is damaged (its checksum differs or is cut off; if you changed it, delete its first and last line)"
        )
    return text


def line_of(record: str, at: int) -> bytes:
    """A JSON object as a line that begins at a position of its file."""
    content = record.encode()
    return content[:-1] + LINE_SEAL + f'{zlib.crc32(content, at & 0xFFFFFFFF):08x}"}}\n'.encode()


def record_of(line: bytes, at: int) -> dict[str, Any] | None:
    """What `line_of` was given. None for a line that a crash cut short.

    Raises ValueError where it is not what was written; older lines have no checksum.
    """
    content, digits = line[: -len(LINE_SEAL) - 11] + b"}", line[-11:-3]
    if line[:-11].endswith(LINE_SEAL):
        if digits != f"{zlib.crc32(content, at & 0xFFFFFFFF):08x}".encode():
            raise ValueError("its checksum differs")
    else:
        content = line
    try:
        record = from_json(content)  # four times as fast as json's own, over millions of lines
    except ValueError:
        if line.endswith(b"}\n"):
            raise ValueError("it is not JSON") from None
        return None
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    return record


# --- what appears whole ----------------------------------------------------------------------------------------------


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
    sweep_drafts(target.parent, glob.escape(target.name))
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


def sweep_drafts(folder: Path, name: str = "*") -> None:
    """Delete the drafts in a folder whose processes were killed."""
    for left in folder.glob(f".{name}.*.tmp"):
        maker = left.name.removesuffix(".tmp").removesuffix(".old").rpartition(".")[2]
        if maker.isdigit():
            try:
                os.kill(int(maker), 0)
            except ProcessLookupError:
                shutil.rmtree(left, ignore_errors=True)
            except (OSError, OverflowError):  # another user's, or no process's
                continue


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
    return digest_of_digests((path.name, sha256(path)) for path in files)


def digest_of_digests(files: Iterable[tuple[str, str]]) -> str:
    """The same of names and of the digests of contents that are known."""
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in files).encode()).hexdigest()
