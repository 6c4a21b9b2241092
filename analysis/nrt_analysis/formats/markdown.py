"""A document as one Markdown file that GitHub shows."""

from nrt_analysis.document import NO_VALUE, Document, Table
from nrt_cli.untrusted import visible

_MARKDOWN = str.maketrans(
    {character: "\\" + character for character in "\\`*_[]|~$!"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": "<br>"}
)


def render(document: Document) -> dict[str, bytes]:
    """`report.md`, or a section's `NAME.md`; figures are taken from where they lie."""
    parts = [f"# {_text(document.title)}", *(f"- {_text(note)}" for note in document.notes)]
    for part in document.parts:
        parts += [f"## {_text(part.title)}", _text(part.caption)]
        if not part.whole:
            parts.append(f"Empty: {_text(part.reason)}.")
        elif isinstance(part, Table):
            heads = ((column.group, column.title) for column in part.columns)
            rows = [["<br>".join(_text(text) for text in head if text) for head in heads]]
            rows.append(["---:" if column.kind == "number" else "---" for column in part.columns])
            for section, of in part.sections():
                if section:
                    rows.append([f"*{_text(section)}*", *[""] * (len(part.columns) - 1)])
                for row in of:
                    cells = []
                    for cell, column in zip(row.cells, part.columns, strict=True):
                        text = _text(column.shown(cell)) if cell.text else ""
                        text = f"**{text}**" if cell.place == 1 else f"<u>{text}</u>" if cell.place == 2 else text
                        empty = f"{NO_VALUE} ({part.marks[cell.reason]})" if cell.reason and not cell.text else ""
                        cells.append(empty or text)
                    rows.append(cells)
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
        else:
            parts.append(f"![{_text(part.title)}]({document.place('figures', part.key)}.png)")
        parts.append("\n".join(f"- {_text(note)}" for note in (part.below() if part.whole else ())))
    if document.runs:
        runs = (f"- {_text(card.label)}: `{visible(card.run.path.name)}`, {card.status}" for card in document.runs)
        parts += ["## Runs", "\n".join(runs)]
    parts.append(_text(str(document.made or "")))
    return {f"{document.section or 'report'}.md": ("\n\n".join(filter(None, parts)) + "\n").encode()}


def _text(text: str) -> str:
    """Text that cannot leave its cell, nor be read as Markdown, HTML, a formula or a picture."""
    # An address by itself would become a link.
    return visible(text).translate(_MARKDOWN).replace("://", ":&#47;&#47;")
