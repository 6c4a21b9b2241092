"""A document as LaTeX: one file for each table, to be taken into a paper, and one that holds all of them.

The tables need amsmath, array, booktabs, graphicx and longtable; the document states that. It compiles with pdflatex.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from nrt_analysis.document import NO_VALUE, Cell, Column, Document, Table
from nrt_cli.errors import ConfigError
from nrt_cli.untrusted import visible

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


def render(document: Document) -> dict[str, bytes]:
    """`paper.tex`, or a section's `NAME.tex`, and a file for each table; figures are taken from where they lie."""
    places = {table.key: document.place("tables", table.key) for table in document.tables}
    parts = [rf"\section*{{{_text(document.title)}}}", _list(document.notes)]
    parts += [rf"\input{{{places[table.key]}}}" for table in document.tables]
    for figure in document.figures:
        head = rf"\textbf{{{_text(figure.title)}.}} {_text(figure.caption)}"
        if figure.whole:
            options = r"width=\textwidth,height=0.6\textheight,keepaspectratio"
            picture = rf"\includegraphics[{options}]{{{document.place('figures', figure.key)}.pdf}}"
            centred = f"\\par\\medskip\\begin{{center}}\n{picture}\n\\end{{center}}\n"
            parts.append(f"{centred}{{\\small {head}\\par}}\n{_list(figure.notes)}")
        else:
            parts.append(rf"\par\medskip {head} \emph{{Empty: {_text(figure.reason)}.}}\par")
    parts += [rf"\par\bigskip {_text(str(document.made or ''))}", r"\end{document}"]
    whole = (PREAMBLE + "\n\n".join(filter(None, parts)) + "\n").encode()
    name = f"{document.section}-paper.tex" if document.section else "paper.tex"
    return {name: whole} | {f"{places[table.key]}.tex": _table(table).encode() for table in document.tables}


def _table(table: Table) -> str:
    """A table that stays on one page, with its caption and notes; or, where it is long, one that may break between
    rows, its heading repeated on every page."""
    head = rf"\textbf{{{_text(table.title)}.}} {_text(table.caption)}"
    if not table.whole:
        return f"\\par\\medskip {{\\small {head} \\emph{{Empty: {_text(table.reason)}.}}\\par}}\n"
    wraps = any(column.kind == "long" for column in table.columns)
    # Columns of text that wraps share the room that the others leave.
    others = sum(column.kind != "long" for column in table.columns)
    long = rf">{{\raggedright\arraybackslash}}p{{{max(0.2, 0.95 - 0.2 * others):.2f}\textwidth}}"
    layout = "".join({"text": "l", "number": "r", "long": long}[column.kind] for column in table.columns)
    titles = " & ".join(f"${c.math}$" if c.math else _text(c.title) for c in table.columns) + r" \\"
    groups, rules, start = [], [], 1  # headings that neighbours share
    for group, width in table.spans():
        groups.append(rf"\multicolumn{{{width}}}{{c}}{{{_text(group)}}}" if group else "&" * (width - 1))
        rules += [rf"\cmidrule(lr){{{start}-{start + width - 1}}}"] if group else []
        start += width
    shared = [" & ".join(groups) + r" \\", " ".join(rules)] if rules else []
    heading = [r"\toprule", *shared, titles, r"\midrule"]
    rows = []
    for number, (section, of) in enumerate(table.sections()):
        rows += [r"\midrule"] if section and number else []
        if section:
            kind = r"p{0.9\textwidth}" if wraps else "l"  # long headings, such as questions, wrap
            rows.append(rf"\multicolumn{{{len(table.columns)}}}{{{kind}}}{{\textit{{{_text(section)}}}}} \\")
        for row in of:
            cells = (_cell(cell, column, table.marks) for cell, column in zip(row.cells, table.columns, strict=True))
            rows.append(" & ".join(cells) + r" \\")
    if wraps or len(table.rows) >= LONG:
        kind = r"@{}p{\dimexpr\textwidth-\tabcolsep}@{}"
        caption = rf"\multicolumn{{{len(table.columns)}}}{{{kind}}}{{\small {head}}} \\"
        body = "\n".join([caption, *heading, r"\endfirsthead", *heading, r"\endhead", *rows, r"\bottomrule"])
        inner = f"\\begin{{longtable}}{{{layout}}}\n{body}\n\\end{{longtable}}"
        return f"{{\\footnotesize\n{inner}\n}}\n{_list(table.below())}"
    body = "\n".join([*heading, *rows, r"\bottomrule"])
    inner = f"\\begin{{tabular}}{{{layout}}}\n{body}\n\\end{{tabular}}"
    if len(table.columns) >= 6:  # scaled to the page's width
        inner = f"\\resizebox{{\\textwidth}}{{!}}{{%\n{inner}}}"
    return (
        f"\\par\\medskip\\begin{{minipage}}{{\\textwidth}}\n{{\\small {head}\\par}}\\smallskip\n"
        f"\\begin{{center}}\n{inner}\n\\end{{center}}\n{_list(table.below())}\\end{{minipage}}\\par\n"
    )


def _cell(cell: Cell, column: Column, letters: dict[str, str]) -> str:
    if not cell.text:
        return f"{NO_VALUE}\\textsuperscript{{{letters[cell.reason]}}}" if cell.reason else ""
    text = f"$\\displaystyle {cell.math}$" if cell.math else _text(column.shown(cell), column.kind == "long")
    return rf"\textbf{{{text}}}" if cell.place == 1 else rf"\underline{{{text}}}" if cell.place == 2 else text


def _list(lines: Iterable[str]) -> str:
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
