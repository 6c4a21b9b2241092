"""`nrt report`: the paper's tables and figures from the store."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich import box
from rich.table import Table as RichTable
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from nrt_analysis.document import Document, Table

EXAMPLE = "Example: nrt report runs/sft runs/am runs/ws-neg-log-p --format html,md --out report"

DEFAULT = "html,md,csv"


def report(
    places: Annotated[
        list[Path] | None,
        Argument(
            metavar="STUDY|RUN",
            autocompletion=completion.runs,
            help="Studies, runs, or folders of them.",
            show_default="runs",
        ),
    ] = None,
    formats: Annotated[
        str, Option("--format", help="Which of html, md, latex, csv, pdf; separated by commas.")
    ] = DEFAULT,
    out: Annotated[
        Path | None, Option(help="Folder for the files; by default report in the one study or run, else here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tables 1 to 10 and Figures 2 to 4 of the paper from the store, beside the paper's own numbers.

    Nothing is run or scored for it: what is missing is an empty cell that says why.
    """
    paths = places or [Path("runs")]
    folder = out or (paths[0] / "report" if len(paths) == 1 and places else Path("report"))
    document, written = make_report(paths, folder, formats.split(","))
    record = document.record() | {"files": [str(path) for path in written]}
    console.result(record, as_json, lambda _: show_report(document, written))


def require_packages() -> None:
    """What only the end of a long command needs is missed at its beginning."""
    if missing := [name for name in ("pandas", "matplotlib", "wordcloud", "regex") if not find_spec(name)]:
        raise ConfigError(f"the report needs {missing[0]}; run `pip install 'nrt-cli[analysis,eval]'`.")


def make_report(paths: Sequence[Path], out: Path, formats: Sequence[str]) -> tuple["Document", list[Path]]:
    """Gather and write a report; its contents and the files, the first of which is what to open.

    Raises ConfigError for a format that does not exist, StoreError where no runs are found.
    """
    from nrt_analysis.formats import FORMATS, write
    from nrt_analysis.report.paper_report import gather

    from nrt_cli.config.schema import nearest
    from nrt_cli.models.token_text import token_text

    wanted = list(dict.fromkeys(name for name in map(str.strip, formats) if name))
    known = ", ".join(FORMATS)
    for name in wanted:
        if name not in FORMATS:
            raise ConfigError(f"format {name!r} is unknown{nearest(name, [*FORMATS])}; choose from {known}.")
    if not wanted:
        raise ConfigError(f"no format is named; choose from {known}.")
    console.note(f"report: reading {', '.join(map(str, paths))} and drawing")
    document = gather(paths)
    return document, write(document, out, wanted, token_text)


def show_report(document: "Document", written: Sequence[Path]) -> None:
    """The results, what to know about them, and where the files are."""
    measured = {}
    for table in document.tables:
        # The paper's numbers alone are no result.
        ours = [i for i, column in enumerate(table.columns) if column.kind == "number" and column.group != "Paper"]
        if any(row.cells[i].text for row in table.rows for i in ours):
            measured[table.key] = table
    shown = [measured[key] for key in ("arena", "table-3", "table-3-own", "table-3-gain") if key in measured]
    shown = [_narrow(table) if table.key == "arena" else table for table in shown]
    show_document(document, shown, f"Written: {written[0]} and {len(written) - 1} other files")


def _narrow(table: "Table") -> "Table":
    """A table without the columns for which a terminal has no room."""
    from dataclasses import replace

    kept = [i for i, column in enumerate(table.columns) if column.group != "Traces" and column.title != "Each seed"]
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in table.rows)
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows)


def show_document(document: "Document", tables: Sequence["Table"], written: str) -> None:
    """Some of a document's tables, what to know about them, what is empty, and where the files are."""
    for table in tables:
        console.stdout.print(console.plain(": ".join(filter(None, (table.title, table.caption)))))
        # Rows and columns that have something of ours to say, as many as a terminal has room for; the files have all.
        ours = [i for i, column in enumerate(table.columns) if column.group != "Paper"]
        rows = [row for row in table.rows if any(row.cells[i].text for i in ours[1:])][:40]
        shown = [i for i in ours if any(row.cells[i].text for row in rows)]
        grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in (table.columns[i] for i in shown):
            number = column.kind == "number"
            grid.add_column(
                console.plain(column.title), justify="right" if number else "left", no_wrap=number, overflow="fold"
            )
        section = ""
        for row in rows:
            if row.section != section:
                section = row.section
                grid.add_row(console.plain(section), style="italic")
            texts = [console.plain(row.cells[i].text or "-") for i in shown]
            for text, i in zip(texts, shown, strict=True):
                text.stylize({0: "", 1: "bold", 2: "underline"}[row.cells[i].place])
            grid.add_row(*texts)
        console.stdout.print(grid)
    for note in document.notes:
        console.stdout.print(console.plain(f"- {note}"))
    for title, reason in dict.fromkeys((part.title, part.reason) for part in document.parts if part.reason):
        console.stdout.print(console.plain(f"- {title} is empty: {reason}"))
    console.stdout.print(console.plain(written), soft_wrap=True)
