"""A report's contents as files, in the formats that were asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path

from nrt_analysis.report.contents import Contents
from nrt_cli.store.files import write_report

FORMATS = ("html", "md", "latex", "csv", "pdf")

Pieces = Callable[[Path], Callable[[Sequence[int]], list[str]] | None]
"""A model's folder -> what cuts its token ids into texts; None where that is not known."""


def write(contents: Contents, out: Path, formats: Sequence[str], pieces: Pieces | None = None) -> list[Path]:
    """Write into a folder, which may hold an earlier report; what is to be opened comes first.

    The files are `index.html`, `report.md`, `paper.tex` with `tables/*.tex`, `tables/*.csv`, `report.pdf`, and
    `figures/`, which all of them have.

    The same contents give the same bytes. Raises StoreError where the disk does not take them and ConfigError where a
    format needs a package that is not installed.
    """
    files: dict[str, bytes] = {}
    for name in formats:
        files |= _files(contents, name)
    files |= {f"figures/{f.key}.{suffix}": content for f in contents.figures for suffix, content in f.files.items()}
    written = write_report(out, files)
    if "html" in formats:
        from nrt_analysis.report import page

        written.insert(0, page.write(contents, out, pieces))
    return written


def _files(contents: Contents, name: str) -> dict[str, bytes]:
    """One format's files. Its packages are imported only where it is wanted."""
    if name == "md":
        from nrt_analysis.report import markdown

        return {"report.md": markdown.render(contents)}
    if name == "latex":
        from nrt_analysis.report import latex

        return latex.render(contents)
    if name == "csv":
        from nrt_analysis.report import spreadsheets

        return spreadsheets.render(contents)
    if name == "pdf":
        from nrt_analysis.report import document

        return {"report.pdf": document.render(contents)}
    return {}
