"""`nrt help`: pages from the installed package."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console as RichConsole
from typer.testing import CliRunner

from nrt_cli import console
from nrt_cli.cli import app
from nrt_cli.errors import ConfigError

HELP = Path(__file__).parent.parent / "nrt_cli" / "help"
PAGES = sorted(HELP.glob("*.md"))


def say(*words: str) -> str:
    return CliRunner().invoke(app, ["help", *words], catch_exceptions=False).stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_stands_as_it_is_where_no_terminal_is(page):
    assert say(page.stem) == page.read_text(encoding="utf-8")
    assert json.loads(say(page.stem.upper(), "--json"))["text"] == page.read_text(encoding="utf-8")


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
    assert max(len(line) for line in lines if command not in line) <= min(width, console.PAGE_WIDTH)
