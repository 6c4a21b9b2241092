"""A report as one Markdown file that GitHub shows."""

from nrt_analysis.report.contents import Cell, Column, Contents, Figure, Table
from nrt_analysis.report.plain import NO_VALUE, made, marks, notes, sections, shown, visible
from nrt_analysis.tables import markdown_text


def render(contents: Contents) -> bytes:
    """`report.md`; figures are beside it, in `figures/`."""
    parts = [f"# {_text(contents.title)}", *(f"- {_text(note)}" for note in contents.notes)]
    parts += [_table(table) for table in contents.tables] + [_figure(figure) for figure in contents.figures]
    parts += [
        "## Runs",
        "\n".join(f"- {_text(card.label)}: `{visible(card.run.path.name)}`, {card.status}" for card in contents.runs),
    ]
    return ("\n\n".join([*parts, _text(made(contents))]) + "\n").encode()


def _table(table: Table) -> str:
    parts = [f"## {_text(table.title)}", _text(table.caption)]
    if not table.rows:
        return "\n\n".join([*parts, f"Empty: {_text(table.reason)}."])
    letters = marks(table)
    rows = [[_heading(column) for column in table.columns]]
    rows.append(["---:" if column.kind == "number" else "---" for column in table.columns])
    for section, of in sections(table.rows):
        if section:
            rows.append([f"*{_text(section)}*", *[""] * (len(table.columns) - 1)])
        rows += [
            [_cell(cell, column, letters) for cell, column in zip(row.cells, table.columns, strict=True)] for row in of
        ]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    below = "\n".join(f"- {_text(note)}" for note in notes(table))
    return "\n\n".join([*parts, lines, *([below] if below else [])])


def _heading(column: Column) -> str:
    return "<br>".join(_text(text) for text in (column.group, column.title) if text)


def _cell(cell: Cell, column: Column, letters: dict[str, str]) -> str:
    if not cell.text:
        return f"{NO_VALUE} ({letters[cell.reason]})" if cell.reason else ""
    text = _text(shown(cell, column))
    return f"**{text}**" if cell.place == 1 else f"<u>{text}</u>" if cell.place == 2 else text


def _figure(figure: Figure) -> str:
    parts = [f"## {_text(figure.title)}", _text(figure.caption)]
    if not figure.files:
        return "\n\n".join([*parts, f"Empty: {_text(figure.reason)}."])
    picture = f"![{_text(figure.title)}](figures/{figure.key}.png)"
    below = "\n".join(f"- {_text(note)}" for note in figure.notes)
    return "\n\n".join([*parts, picture, *([below] if below else [])])


def _text(text: str) -> str:
    return markdown_text(visible(text))
