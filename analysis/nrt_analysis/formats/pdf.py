"""A document as one PDF, without LaTeX."""

import io
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
from matplotlib.font_manager import FontProperties

from nrt_analysis.document import NO_VALUE, Document, Table
from nrt_analysis.figures import draws
from nrt_cli.errors import ConfigError
from nrt_cli.untrusted import visible

FONT, SIZE, SMALL = "DejaVuSans", 7.5, 6.5
MOST = {"text": (300, 8), "number": (300, 8), "long": (4000, 32)}
"""Characters and lines that a cell may have: a row has to fit on a page."""


def render(document: Document) -> dict[str, bytes]:
    """`report.pdf`, landscape A4."""
    try:
        from fpdf import FPDF
        from fpdf.enums import TableBordersLayout, TextEmphasis
        from fpdf.fonts import FontFace
    except ImportError:
        raise ConfigError("the pdf format needs the fpdf2 package: pip install 'nrt-cli[analysis]'.") from None
    faces = {0: None, 1: FontFace(emphasis="BOLD"), 2: FontFace(emphasis=TextEmphasis.U)}
    pdf = FPDF(orientation="landscape", format="A4")
    # The date is the store's, so that the same store gives the same bytes.
    try:
        made = datetime.fromisoformat(document.made.newest if document.made else "")
    except ValueError:
        made = datetime(2000, 1, 1, tzinfo=UTC)
    pdf.set_creation_date(made)
    pdf.set_title(_text(document.title))
    pdf.set_auto_page_break(True, margin=12)
    for style, suffix in (("", ""), ("B", "-Bold"), ("I", "-Oblique")):
        pdf.add_font(FONT, style, _font_file(suffix))

    def write(text: str, size: float = SIZE, style: str = "") -> None:
        pdf.set_font(FONT, style, size)
        pdf.multi_cell(0, text=_text(text), new_x="LMARGIN", new_y="NEXT", align="L")

    pdf.add_page()
    write(document.title, size=14, style="B")
    for note in document.notes:
        write(f"- {note}")
    for part in document.parts:
        picture = None if isinstance(part, Table) else part.files.get("png")
        empty = "" if part.whole else f" Empty: {part.reason}."
        if picture:
            pdf.add_page()
        else:
            pdf.ln(4)
        if isinstance(part, Table) and pdf.will_page_break(40):
            pdf.add_page()
        write(part.title, size=10, style="B")
        write(f"{part.caption}{empty}")
        if isinstance(part, Table) and part.whole:
            pdf.ln(1)
            groups = part.spans()
            two = any(group for group, _ in groups)
            pdf.set_font(FONT, "", SIZE)
            with pdf.table(
                col_widths=tuple({"text": 22.0, "number": 11.0, "long": 75.0}[column.kind] for column in part.columns),
                text_align=tuple("RIGHT" if column.kind == "number" else "LEFT" for column in part.columns),
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
                grid.row([_text(column.title) for column in part.columns])
                for section, of in part.sections():
                    if section:
                        italics = FontFace(emphasis="ITALICS")
                        grid.row().cell(_fitting(section, "long"), colspan=len(part.columns), style=italics)
                    for line in of:
                        row = grid.row()
                        for cell, column in zip(line.cells, part.columns, strict=True):
                            why = f"{NO_VALUE} ({part.marks[cell.reason]})" if cell.reason else ""
                            text = _fitting(column.shown(cell), column.kind) if cell.text else why
                            row.cell(text, style=faces[cell.place])
        elif picture:
            pdf.ln(2)
            pdf.image(io.BytesIO(picture), w=pdf.epw, h=pdf.h - pdf.get_y() - 45, keep_aspect_ratio=True)
        for note in part.below() if part.whole else ():
            write(note, size=SMALL, style="I")
    write(str(document.made or ""), size=SMALL)
    name = f"{document.section}-report.pdf" if document.section else "report.pdf"
    return {name: bytes(pdf.output())}


def _font_file(suffix: str = "") -> Path:
    """Matplotlib brings the font."""
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{FONT}{suffix}.ttf"


def _fitting(text: str, kind: str) -> str:
    """Text that fits into its cell; what is cut off is said to be."""
    characters, lines = MOST[kind]
    kept = "\n".join(text[:characters].split("\n")[:lines])
    return _text(kept if kept == text else f"{kept} ...")


def _text(text: str) -> str:
    """Text that the font can draw; a character that it has not is shown by its number."""
    font = FontProperties(fname=_font_file())
    return "".join(c if c == "\n" or draws(font, c) else f"<U+{ord(c):04X}>" for c in visible(text))
