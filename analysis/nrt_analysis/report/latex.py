"""A report as LaTeX: one file for each table, to be taken into a paper, and a document that holds all of them.

The tables need amsmath, array, booktabs, graphicx and longtable; the document states that. It compiles with pdflatex.
"""

import re
from functools import cache
from typing import Any

from nrt_analysis.report.contents import Cell, Column, Contents, Figure, Row, Table
from nrt_analysis.report.plain import NO_VALUE, made, marks, notes, sections, shown, spans, visible
from nrt_cli.errors import ConfigError

WIDE = 6
"""Columns from which a table is scaled to the page's width."""

LONG = 40
"""Rows from which a table may break across pages."""

PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{amsmath,amssymb,array,booktabs,graphicx,longtable,textcomp}
\setlength{\parindent}{0pt}
\begin{document}
"""


def render(contents: Contents) -> dict[str, bytes]:
    """`paper.tex` and `tables/KEY.tex` by name; figures are taken from `figures/`."""
    files = {f"tables/{table.key}.tex": _table(table).encode() for table in contents.tables}
    parts = [rf"\section*{{{_text(contents.title)}}}", _list(contents.notes)]
    parts += [rf"\input{{tables/{table.key}}}" for table in contents.tables]
    parts += [_figure(figure) for figure in contents.figures]
    parts += [rf"\par\bigskip {_text(made(contents))}", r"\end{document}"]
    return {"paper.tex": (PREAMBLE + "\n\n".join(filter(None, parts)) + "\n").encode()} | files


def _table(table: Table) -> str:
    head = rf"\textbf{{{_text(table.title)}.}} {_text(table.caption)}"
    if not table.rows:
        return f"\\par\\medskip {{\\small {head} \\emph{{Empty: {_text(table.reason)}.}}\\par}}\n"
    breaks = len(table.rows) >= LONG or any(column.kind == "long" for column in table.columns)
    return _breaking(table, head) if breaks else _whole(table, head)


def _whole(table: Table, head: str) -> str:
    """A table that stays on one page, with its caption and notes."""
    body = "\n".join([r"\toprule", *_heading(table), r"\midrule", *_rows(table), r"\bottomrule"])
    inner = f"\\begin{{tabular}}{{{_layout(table)}}}\n{body}\n\\end{{tabular}}"
    if len(table.columns) >= WIDE:
        inner = f"\\resizebox{{\\textwidth}}{{!}}{{%\n{inner}}}"
    return (
        f"\\par\\medskip\\begin{{minipage}}{{\\textwidth}}\n{{\\small {head}\\par}}\\smallskip\n"
        f"\\begin{{center}}\n{inner}\n\\end{{center}}\n{_list(notes(table))}\\end{{minipage}}\\par\n"
    )


def _breaking(table: Table, head: str) -> str:
    """A table that may break between rows; its heading is repeated on every page."""
    caption = (
        rf"\multicolumn{{{len(table.columns)}}}{{@{{}}p{{\dimexpr\textwidth-\tabcolsep}}@{{}}}}{{\small {head}}} \\"
    )
    heading = [r"\toprule", *_heading(table), r"\midrule"]
    body = "\n".join([caption, *heading, r"\endfirsthead", *heading, r"\endhead", *_rows(table), r"\bottomrule"])
    inner = f"\\begin{{longtable}}{{{_layout(table)}}}\n{body}\n\\end{{longtable}}"
    return f"{{\\footnotesize\n{inner}\n}}\n{_list(notes(table))}"


def _layout(table: Table) -> str:
    """Columns of text that wraps share the room that the others leave."""
    others = sum(column.kind != "long" for column in table.columns)
    long = rf">{{\raggedright\arraybackslash}}p{{{max(0.2, 0.95 - 0.2 * others):.2f}\textwidth}}"
    return "".join({"text": "l", "number": "r", "long": long}[column.kind] for column in table.columns)


def _heading(table: Table) -> list[str]:
    """The columns' titles; above them, the headings that neighbours share."""
    lines, start = [], 1
    groups = spans(table.columns)
    if any(group for group, _ in groups):
        cells = [
            rf"\multicolumn{{{width}}}{{c}}{{{_text(group)}}}" if group else "&" * (width - 1)
            for group, width in groups
        ]
        lines.append(" & ".join(cells) + r" \\")
        rules = []
        for group, width in groups:
            rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if group else []
            start += width
        lines.append(" ".join(rules))
    lines.append(" & ".join(f"${c.math}$" if c.math else _text(c.title) for c in table.columns) + r" \\")
    return lines


def _rows(table: Table) -> list[str]:
    letters, lines = marks(table), []
    for number, (section, of) in enumerate(sections(table.rows)):
        lines += [r"\midrule"] if section and number else []
        if section:
            lines += [
                rf"\multicolumn{{{len(table.columns)}}}{{{_section_width(table)}}}{{\textit{{{_text(section)}}}}} \\"
            ]
        lines += [_row(row, table, letters) for row in of]
    return lines


def _section_width(table: Table) -> str:
    """Long headings, such as questions, wrap."""
    return r"p{0.9\textwidth}" if any(column.kind == "long" for column in table.columns) else "l"


def _row(row: Row, table: Table, letters: dict[str, str]) -> str:
    cells = [_cell(cell, column, letters) for cell, column in zip(row.cells, table.columns, strict=True)]
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell, column: Column, letters: dict[str, str]) -> str:
    if not cell.text:
        return f"{NO_VALUE}\\textsuperscript{{{letters[cell.reason]}}}" if cell.reason else ""
    text = f"$\\displaystyle {cell.math}$" if cell.math else _text(shown(cell, column), column.kind == "long")
    return rf"\textbf{{{text}}}" if cell.place == 1 else rf"\underline{{{text}}}" if cell.place == 2 else text


def _figure(figure: Figure) -> str:
    head = rf"\textbf{{{_text(figure.title)}.}} {_text(figure.caption)}"
    if not figure.files:
        return rf"\par\medskip {head} \emph{{Empty: {_text(figure.reason)}.}}\par"
    picture = rf"\includegraphics[width=\textwidth,height=0.6\textheight,keepaspectratio]{{figures/{figure.key}.pdf}}"
    return (
        f"\\par\\medskip\\begin{{center}}\n{picture}\n\\end{{center}}\n{{\\small {head}\\par}}\n{_list(figure.notes)}"
    )


def _list(lines: tuple[str, ...] | list[str]) -> str:
    """Notes in small print."""
    return "".join(rf"{{\scriptsize {_text(line)}\par}}" + "\n" for line in lines)


@cache
def _text(text: str, wraps: bool = False) -> str:
    """Text that LaTeX sets as it is; a line's end is a line's end where there is room for one.

    A character that no font of the document has is shown by its number.
    """
    encode = _encoder().unicode_to_latex
    # A bracket or star that begins a row would be read as the argument of the `\\` before it.
    lines = [f"{{}}{line}" if line[:1] in ("[", "*") else line for line in map(encode, visible(text).split("\n"))]
    return (r"\newline " if wraps else " ").join(lines)


@cache
def _encoder() -> Any:
    try:
        from pylatexenc.latexencode import RULE_DICT, RULE_REGEX, UnicodeToLatexConversionRule, UnicodeToLatexEncoder
    except ImportError:
        raise ConfigError("the latex format needs the pylatexenc package: pip install 'nrt-cli[analysis]'.") from None
    # What LaTeX would join or turn into other marks.
    apart = [(re.compile(r"-(?=-)"), "-{}"), (re.compile(r",(?=,)"), ",{}")]
    quotes = {ord("`"): r"\textasciigrave", ord("'"): r"\textquotesingle"}
    rules = [UnicodeToLatexConversionRule(RULE_REGEX, apart), UnicodeToLatexConversionRule(RULE_DICT, quotes)]
    return UnicodeToLatexEncoder(
        conversion_rules=[*rules, "defaults"],
        unknown_char_policy="unihex",
        unknown_char_warning=False,
        replacement_latex_protection="braces-all",
    )
