"""What `nrt analyze` and `nrt report` leave behind: a few files beside each other, each appearing whole."""

from collections.abc import Mapping
from pathlib import Path

from nrt_cli.files import sync
from nrt_cli.store.files import writes_to


def write_report(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files, by name or path below it, into a folder that may hold others; one that is there is replaced at once.

    Raises StoreError where the disk does not take them.
    """
    with writes_to(folder):
        for name, content in files.items():
            temporary = folder / f"{name}.tmp"
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                sync(temporary)
                temporary.replace(folder / name)
            finally:
                temporary.unlink(missing_ok=True)
    return [folder / name for name in files]
