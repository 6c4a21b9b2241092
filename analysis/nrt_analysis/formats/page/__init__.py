"""The report as one page that opens from disk, without a network: text, styles, figures and data in a single file.

Traces and data are hostile text. The template escapes all it prints, the scripts write text nodes only, the embedded
JSON has no `<`, and the page's policy forbids everything that is not in the file, and every script but its own.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TypeVar

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from nrt_analysis.document import Document, Figure, Table
from nrt_analysis.figures import LINES, numbered
from nrt_analysis.formats import Pieces
from nrt_analysis.formats.page import texts
from nrt_analysis.formats.page.payload import cases, sample_traces, series
from nrt_analysis.report.run_cards import first_seeds
from nrt_cli.untrusted import visible
from nrt_cli.viewer.server import SHARED, STYLES, asset

Part = TypeVar("Part", Table, Figure)

SCRIPTS = ("tables.js", "cases.js", "page.js")
"""The page's own, after the viewer's `SHARED`."""

LONG = 40
"""Rows from which a table is folded away."""

PLACES = {
    "results": (
        "arena", "arena-pairs", "answer-length", "held-out-models", "held-out", "table-3-own", "table-3",
        "table-3-paper", "table-3-gain", "table-3-overall", "table-3-documents",
    ),
    "tokens": ("table-9",),
    "cases": ("table-10",),
    "method": ("table-1", "table-2", "table-5"),
    "setup": ("table-4", "table-6", "table-7", "table-8"),
}  # fmt: skip
"""Section of the page -> the tables in it, by key, with what is called like one of them; all else is in results."""

FIGURES = {"dynamics": ("figure-2", "figure-length"), "words": ("figure-3", "figure-4")}
"""The same for figures."""


def render(document: Document, pieces: Pieces | None = None) -> dict[str, bytes]:
    """`index.html`; the same document gives the same bytes.

    Args:
        pieces: cuts stored token ids into texts, so that single tokens can be shaded; without it, traces are whole.
    """
    runs = document.runs
    colours = numbered(card.title for card in runs)
    style = "\n".join([*map(asset, STYLES), _asset("page.css")])
    script = "\n".join([*map(asset, SHARED), *map(_asset, SCRIPTS)])
    for i in sorted({*colours.values(), 0}):  # the methods' lines: the figures' colours and dashes
        line, other = LINES[i % len(LINES)], LINES[(i + i // len(LINES)) % len(LINES)]
        dash = " ".join(f"{2.2 * length:g}" for length in other.dash) or "none"
        style += f".c{i} {{ --at: light-dark({line.color}, {line.dark}); --dash: {dash}; }}\n"
    traces = sample_traces(runs, pieces)
    # Shown first are those of the last method in the paper's order that trains them, so of no control.
    trained = [card.title for card in runs if card.samples and not card.control]
    traces["start"] = next((card.label for card in runs if card.title in trained[-1:]), "")
    labels = [{"label": c.label, "model": c.model, "title": c.title, "colour": colours[c.title]} for c in runs]
    environment = Environment(
        loader=PackageLoader("nrt_analysis.formats.page", "assets"),
        autoescape=True,
        # Every text that the template prints has what would hide or reorder it written out; our own markup is as it is.
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # tojson escapes <, > and &, so that no text in the data can end its element.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    environment.globals.update(aside=_aside, image=image)
    environment.filters["prose"] = prose
    # Nothing is loaded, and only this style and this script are the page's.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    text = environment.get_template("page.html").render(
        contents=document,
        colours=colours,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        tables=_by_section(document.tables, PLACES),
        figures=_by_section(document.figures, FIGURES),
        trained=texts.trained(document),
        panels=texts.panels(document),
        settings=texts.settings(first_seeds(runs)),
        columns=first_seeds(runs),
        environments=texts.environments(runs),
        data=texts.data(runs),
        commands=texts.commands(runs),
        whole_commands=texts.whole_commands(runs),
        traces=traces,
        payload={"runs": labels, "series": series(runs), "traces": traces, "cases": cases(runs)},
    )
    return {"index.html": text.encode("utf-8", errors="replace")}


def _is(key: str, name: str) -> bool:
    """Whether a key is a name or one of its kin: `table-9-b` is of `table-9`, `table-90` is not."""
    return key == name or key.startswith(f"{name}-")


def _by_section(parts: Sequence[Part], places: Mapping[str, tuple[str, ...]]) -> dict[str, list[Part]]:
    """The report's parts by section of the page, in the order of its names; their kin come last.

    What no section names is among the results: whatever a report has, its page has too.
    """
    found: dict[str, list[tuple[int, Part]]] = {section: [] for section in ("results", *places)}
    at = {name: (section, i) for section, names in places.items() for i, name in enumerate(names)}
    for part in parts:
        kin = [(section, len(places[section])) for name, (section, _) in at.items() if _is(part.key, name)]
        section, place = at.get(part.key) or (kin[0] if kin else ("results", len(parts)))
        found[section].append((place, part))
    return {section: [part for _, part in sorted(of, key=lambda pair: pair[0])] for section, of in found.items()}


def _aside(part: Table | Figure) -> str:
    """What to say of a part that is folded away: what fills an empty one, what details and long tables have."""
    if isinstance(part, Figure):
        return "" if part.whole else f"empty: {part.reason}"
    if not part.whole:
        return f"empty: {part.reason or 'nothing was recorded for it'}"
    ours = [i for i, column in enumerate(part.columns) if column.group != "Paper" and column.kind == "number"]
    empty = [math.isnan(row.cells[i].value) for row in part.rows for i in ours]
    if empty and all(empty):
        fills = "no run was asked a benchmark of it; `nrt eval --model RUN --benchmarks all` fills it"
        return f"empty: {fills if _is(part.key, 'table-3') else 'nothing was measured for it yet'}"
    folded = (*PLACES["setup"], *PLACES["cases"], "table-3-overall", "table-3-documents")
    return part.caption if len(part.rows) > LONG or any(_is(part.key, name) for name in folded) else ""


def image(figure: Figure) -> str:
    """A figure's drawing as a data URI. An image runs no scripts, whatever is in it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(figure.files['svg']).decode()}"


def prose(text: str) -> Markup:
    """A sentence with the commands in it, between backquotes, set as code; all of it escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(visible(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(visible(part)) if i % 2 else escape(visible(part))
        for i, part in enumerate(parts)
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")
