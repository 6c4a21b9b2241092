"""`nrt help`: pages from the installed package."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole
from typer.main import get_command
from typer.testing import CliRunner

from nrt_cli import console
from nrt_cli.cli import app
from nrt_cli.commands.help import BUILT_IN
from nrt_cli.errors import ConfigError
from nrt_cli.methods import METHODS

HELP = Path(__file__).parent.parent / "nrt_cli" / "help"
PAGES = sorted(HELP.glob("*.md"))


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[Any]:
    """Every command that has none below it, with its words."""
    inner = getattr(command, "commands", {})
    for name, one in inner.items():
        yield from leaves(one, (*words, name))
    if not inner:
        yield pytest.param(words, command, id=" ".join(words))


LEAVES = list(leaves(get_command(app)))


@pytest.mark.parametrize(("words", "command"), LEAVES)
def test_every_command_has_an_example_of_itself_and_json(words, command):
    examples = [line.split() for line in re.findall(r"\bnrt .*", command.epilog)]
    named = ("runs",) if words == ("runs", "list") else words
    assert any(tuple(example[1 : 1 + len(named)]) == named for example in examples)
    assert any("--json" in option.opts for option in command.params)


@pytest.mark.parametrize(("words", "command"), LEAVES)
def test_every_command_reads_every_option_it_shows(words, command):
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(command.callback)))).body
    read = {node.id for part in function.body for node in ast.walk(part) if isinstance(node, ast.Name)}
    assert {option.name for option in command.params} - {"help"} <= read


def say(*words: str) -> str:
    return CliRunner().invoke(app, ["help", *words], catch_exceptions=False).stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_stands_as_it_is_where_no_terminal_is(page):
    before, row, after = page.read_text(encoding="utf-8").partition(BUILT_IN)
    said = say(page.stem)
    assert said.startswith(before)
    assert said.endswith(after)
    assert json.loads(say(page.stem.upper(), "--json"))["text"] == said
    if page.stem == "methods":
        listed = said.removeprefix(before).removesuffix(after).splitlines()
        assert [line.split(" | ")[0] for line in listed] == [f"| `{name}`" for name in METHODS]
        assert row


def test_without_a_topic_all_are_listed():
    listed = json.loads(say("--json"))
    assert [row["topic"] for row in listed] == [page.stem for page in PAGES]
    assert all(f"nrt help {row['topic']}" in say() for row in listed)
    assert all(row["title"] and not row["title"].startswith("#") for row in listed)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("trian", "`nrt help training`"),
        ("eval-uation", "`nrt help evaluation`"),
        ("train", "`nrt train --help`"),
        ("xyzzy", "analysis, balance, clusters, data"),
        ("../help/data", "`nrt help data`"),
    ],
)
def test_an_unknown_topic_names_what_may_be_meant(asked, told):
    with pytest.raises(ConfigError) as refused:
        say(asked)
    assert told in str(refused.value)


@pytest.mark.parametrize("width", [40, 100, 250])
def test_in_a_terminal_code_is_not_folded_and_links_are_text(monkeypatch, width):
    shown = StringIO()
    terminal = RichConsole(file=shown, force_terminal=True, color_system=None, width=width, highlight=False)
    monkeypatch.setattr(console, "stdout", terminal)
    command = f"nrt train {'word ' * 60}end"
    prose = f"# A title\n\nSee [that file](../x.md#y), {'word ' * 60}."
    console.page(f"{prose}\n\n    {command}\n    next\n\n```sh\n{command}\n```\n")
    lines = shown.getvalue().split("\n")
    assert [line.strip() for line in lines].count(command) == 2
    assert "that file" in shown.getvalue()
    assert "x.md" not in shown.getvalue()
    assert max(len(line) for line in lines if command not in line) <= min(width, 110)
