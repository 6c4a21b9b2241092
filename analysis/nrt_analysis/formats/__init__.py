"""One module for each format that a document is written in."""

import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from nrt_analysis.document import Document
from nrt_cli.files import record_text
from nrt_cli.store.files import write_report

FORMATS = {"html": "page", "md": "markdown", "latex": "latex", "csv": "spreadsheets", "pdf": "pdf"}
"""Format of `nrt report` -> the module here that renders it, imported only where it is wanted, as are its packages."""

Pieces = Callable[[Path], Callable[[Sequence[int]], list[str]] | None]
"""A model's folder -> what cuts its token ids into texts; None where that is not known."""


def write(document: Document, out: Path, formats: Sequence[str], pieces: Pieces | None = None) -> list[Path]:
    """Write into a folder, which may hold an earlier report; what is to be opened comes first.

    The files are `index.html`, `report.md`, `paper.tex` with `tables/*.tex`, `tables/*.csv`, `report.pdf`, and
    `figures/`, which all of them have; a section's, of which there are no page and no PDF, lie beside each other.

    Args:
        pieces: cuts stored token ids into texts, so that the page can shade single tokens; without it, a trace is one.

    The same document gives the same bytes. Raises StoreError where the disk does not take them and ConfigError where a
    format needs a package that is not installed.
    """
    return write_report(out, render(document, formats, pieces))


def render(document: Document, formats: Sequence[str], pieces: Pieces | None = None) -> dict[str, bytes]:
    """The files that `write` writes, by name or path."""
    files: dict[str, bytes] = {}
    for name in sorted(formats, key=lambda name: name != "html"):
        module = import_module(f"nrt_analysis.formats.{FORMATS[name]}")
        files |= module.render(document, pieces) if name == "html" else module.render(document)
    for figure in document.figures:
        place = document.place("figures", figure.key)
        files |= {f"{place}.{suffix}": content for suffix, content in figure.files.items()}
    if document.section and "csv" in formats:  # all that it found, and of the other files what is in them
        name, sums = f"{document.section}.json", {name: hashlib.sha256(files[name]).hexdigest() for name in files}
        files[name] = record_text(name, document.record() | {"files": sums}).encode()
    return files
