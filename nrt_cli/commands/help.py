"""`nrt help`: the documentation by what a person wants to do, from the installed package."""

import difflib
from importlib.resources import files
from typing import Annotated, Any

import typer
from rich.table import Table

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import ConfigError

EXAMPLE = "Example: nrt help data"


def help(
    context: typer.Context,
    topic: Annotated[
        str | None, typer.Argument(autocompletion=completion.topics, help="Which page; without it, all are listed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a page of the documentation; without a topic, list them."""
    pages = files("nrt_cli") / "help"
    if topic is None:
        titles = {name: (pages / f"{name}.md").read_text(encoding="utf-8") for name in completion.topics("")}
        listed = [{"topic": name, "title": _title(text)} for name, text in titles.items()]
        console.result(listed, as_json, _list)
        return
    name = topic.lower()
    if name not in completion.topics(""):
        raise ConfigError(f"there is no page {topic!r}. {_nearest(name, context)}")
    text = (pages / f"{name}.md").read_text(encoding="utf-8")
    console.result({"topic": name, "title": _title(text), "text": text}, as_json, lambda _: console.page(text))


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _list(listed: list[dict[str, Any]]) -> None:
    table = Table.grid(padding=(0, 2))
    for row in listed:
        table.add_row(f"nrt help {row['topic']}", row["title"])
    console.stdout.print(table)


def _nearest(name: str, context: typer.Context) -> str:
    """What a person may have meant who asked for a page that is not there."""
    root: Any = context.find_root().command
    if name in root.commands:
        return f"`nrt {name} --help` explains the command; `nrt help` lists the pages."
    topics = completion.topics("")
    close = difflib.get_close_matches(name, topics, n=1, cutoff=0.5)
    return f"Did you mean `nrt help {close[0]}`?" if close else f"Pages: {', '.join(topics)}."
