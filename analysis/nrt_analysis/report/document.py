"""A report as one PDF, without LaTeX."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.font_manager import FontProperties

from nrt_analysis.figures import draws
from nrt_analysis.report.contents import Cell, Column, Contents, Figure, Table
from nrt_analysis.report.plain import NO_VALUE, made, marks, notes, sections, shown, spans, visible
from nrt_cli.errors import ConfigError

FONT, SIZE, SMALL = "DejaVuSans", 7.5, 6.5
WIDTHS: dict[str, float] = {"text": 22, "number": 11, "long": 75}
"""Shares of the page's width that columns get."""

MOST = {"text": (300, 8), "number": (300, 8), "long": (4000, 32)}
"""Characters and lines that a cell may have: a row has to fit on a page."""


def render(contents: Contents) -> bytes:
    """`report.pdf`, landscape A4."""
    pdf = _document(contents)
    pdf.add_page()
    _write(pdf, contents.title, size=14, style="B")
    for note in contents.notes:
        _write(pdf, f"- {note}", size=SIZE)
    for table in contents.tables:
        _table(pdf, table)
    for figure in contents.figures:
        _figure(pdf, figure)
    _write(pdf, made(contents), size=SMALL)
    return bytes(pdf.output())


def _document(contents: Contents) -> Any:
    try:
        from fpdf import FPDF
    except ImportError:
        raise ConfigError("the pdf format needs the fpdf2 package: pip install 'nrt-cli[analysis]'.") from None
    pdf = FPDF(orientation="landscape", format="A4")
    # The date is the store's, so that the same store gives the same bytes.
    pdf.set_creation_date(_time(contents.made.newest))
    pdf.set_title(_text(contents.title))
    pdf.set_auto_page_break(True, margin=12)
    for style, suffix in (("", ""), ("B", "-Bold"), ("I", "-Oblique")):
        pdf.add_font(FONT, style, _font_file(suffix))
    return pdf


def _time(stamp: str) -> datetime:
    try:
        return datetime.fromisoformat(stamp)
    except ValueError:
        return datetime(2000, 1, 1, tzinfo=UTC)


def _font_file(suffix: str = "") -> Path:
    """Matplotlib brings the font."""
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{FONT}{suffix}.ttf"


def _write(pdf: Any, text: str, size: float, style: str = "") -> None:
    pdf.set_font(FONT, style, size)
    pdf.multi_cell(0, text=_text(text), new_x="LMARGIN", new_y="NEXT", align="L")


def _table(pdf: Any, table: Table) -> None:
    pdf.ln(4)
    if pdf.will_page_break(40):
        pdf.add_page()
    _write(pdf, table.title, size=10, style="B")
    _write(pdf, table.caption if table.rows else f"{table.caption} Empty: {table.reason}.", size=SIZE)
    if table.rows:
        pdf.ln(1)
        _grid(pdf, table)
        for note in notes(table):
            _write(pdf, note, size=SMALL, style="I")


def _grid(pdf: Any, table: Table) -> None:
    from fpdf.enums import TableBordersLayout, TextEmphasis
    from fpdf.fonts import FontFace

    faces = {0: None, 1: FontFace(emphasis="BOLD"), 2: FontFace(emphasis=TextEmphasis.U)}
    letters, groups = marks(table), spans(table.columns)
    two = any(group for group, _ in groups)
    pdf.set_font(FONT, "", SIZE)
    with pdf.table(
        col_widths=tuple(WIDTHS[column.kind] for column in table.columns),
        text_align=tuple("RIGHT" if column.kind == "number" else "LEFT" for column in table.columns),
        headings_style=FontFace(emphasis="BOLD"),
        num_heading_rows=2 if two else 1,
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        line_height=1.35 * pdf.font_size,
        padding=0.5,
    ) as grid:
        if two:
            row = grid.row()
            for group, width in groups:
                row.cell(_text(group), colspan=width, align="CENTER")
        grid.row([_text(column.title) for column in table.columns])
        for section, of in sections(table.rows):
            if section:
                grid.row().cell(
                    _fitting(section, "long"), colspan=len(table.columns), style=FontFace(emphasis="ITALICS")
                )
            for line in of:
                row = grid.row()
                for cell, column in zip(line.cells, table.columns, strict=True):
                    row.cell(_cell(cell, column, letters), style=faces[cell.place])


def _cell(cell: Cell, column: Column, letters: dict[str, str]) -> str:
    if not cell.text:
        return f"{NO_VALUE} ({letters[cell.reason]})" if cell.reason else ""
    return _fitting(shown(cell, column), column.kind)


def _fitting(text: str, kind: str) -> str:
    """Text that fits into its cell; what is cut off is said to be."""
    characters, lines = MOST[kind]
    kept = "\n".join(text[:characters].split("\n")[:lines])
    return _text(kept if kept == text else f"{kept} ...")


def _figure(pdf: Any, figure: Figure) -> None:
    if not figure.files:
        pdf.ln(4)
        _write(pdf, figure.title, size=10, style="B")
        _write(pdf, f"{figure.caption} Empty: {figure.reason}.", size=SIZE)
        return
    pdf.add_page()
    _write(pdf, figure.title, size=10, style="B")
    _write(pdf, figure.caption, size=SIZE)
    pdf.ln(2)
    room = pdf.h - pdf.get_y() - 45
    pdf.image(io.BytesIO(figure.files["png"]), w=pdf.epw, h=room, keep_aspect_ratio=True)
    for note in figure.notes:
        _write(pdf, note, size=SMALL, style="I")


def _text(text: str) -> str:
    """Text that the font can draw; a character that it has not is shown by its number."""
    font = FontProperties(fname=_font_file())
    return "".join(c if c == "\n" or draws(font, c) else f"<U+{ord(c):04X}>" for c in visible(text))
