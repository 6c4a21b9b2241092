"""`nrt help`: the documentation by what a person wants to do, from the installed package."""

import difflib
from importlib.resources import files
from typing import Annotated, Any

import typer
from typer import Argument

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import ConfigError
from nrt_cli.methods import METHODS

BUILT_IN = "| built in | | `nrt help methods` and `nrt train --help` list them |"
"""The row of a page in whose place every method has one."""

EXAMPLE = "Example: nrt help data"


def help(
    context: typer.Context,
    topic: Annotated[
        str | None, Argument(autocompletion=completion.topics, help="Which page; without it, all are listed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a page of the documentation; without a topic, list them."""
    methods = "\n".join(f"| `{name}` | {method.title} | {method.summary} |" for name, method in METHODS.items())
    pages = {
        page.name[:-3]: page.read_text(encoding="utf-8").replace(BUILT_IN, methods)
        for page in (files("nrt_cli") / "help").iterdir()
    }
    listed = [
        {"topic": name, "title": text.partition("\n")[0].removeprefix("# ")} for name, text in sorted(pages.items())
    ]
    if topic is None:
        rows = ((f"nrt help {row['topic']}", row["title"]) for row in listed)
        style: dict[str, Any] = {"box": None, "show_header": False, "pad_edge": False, "padding": (0, 2, 0, 0)}
        console.result(listed, as_json, lambda _: console.stdout.print(console.table("", "", rows=rows, **style)))
        return
    name = topic.lower()
    if name not in pages:
        close = difflib.get_close_matches(name, pages, n=1, cutoff=0.5)
        meant = f"Did you mean `nrt help {close[0]}`?" if close else f"Pages: {', '.join(sorted(pages))}."
        root: Any = context.find_root().command
        if name in root.commands:
            meant = f"`nrt {name} --help` explains the command; `nrt help` lists the pages."
        raise ConfigError(f"there is no page {topic!r}. {meant}")
    (found,) = (row for row in listed if row["topic"] == name)
    console.result(found | {"text": pages[name]}, as_json, lambda _: console.page(pages[name]))
