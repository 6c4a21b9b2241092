"""Every `nrt ...` line of the docs: its options exist, and a test runs it, or docs_commands.yaml says why none does."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from nrt_cli import config
from nrt_cli.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.stem for path in (ROOT / "nrt_cli" / "help").glob("*.md"))
DOCS = (
    *("README.md", "configs/README.md", "analysis/README.md", "configs/eval/README.md"),
    *(f"nrt_cli/help/{page}.md" for page in PAGES),
)
TABLE = Path(__file__).parent / "docs_commands.yaml"

FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Documented:
    """A command as a reader would type it. One with `...` in it leaves something out."""

    file: str
    words: tuple[str, ...]
    inline: bool = False

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def whole(self) -> bool:
        return "..." not in self.words and not self.inline

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows the command's name; nothing where a command is only named."""
        command: Any = typer.main.get_command(app)
        words = self.words[1:]
        while words and (found := getattr(command, "commands", {}).get(words[0].rstrip(","))):
            command, words = found, words[1:]
        return words


def blocks(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced and indented, with continued lines joined."""
    code = "".join(FENCE.findall(text)) + "\n".join(re.findall(r"^ {4}(.*)$", FENCE.sub("", text), re.MULTILINE))
    yield from re.sub(r"\\\n\s*", "", code).split("\n")


def spans(text: str) -> Iterator[str]:
    """Inline code, a line break in it being a blank."""
    for found in SPAN.findall(FENCE.sub("", text)):
        yield " ".join(found.split())


def commands(line: str) -> Iterator[tuple[str, ...]]:
    """The `nrt` commands of a line of shell; what stands three blanks behind one explains it."""
    line = re.split(r"\s{3,}(?![\s-])", line.strip())[0]
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose, with an apostrophe
        return
    part: list[str] = []
    for word in [*words, "&&"]:
        if word in ("&&", "|", ";"):
            while part and re.match(r"\w+=", part[0]):
                part = part[1:]
            if part and part[0] == "nrt":
                yield tuple(part)
            part = []
        else:
            part.append(word)


def documented(file: str) -> Iterator[Documented]:
    text = (ROOT / file).read_text(encoding="utf-8")
    for inline, lines in ((False, blocks(text)), (True, spans(text))):
        yield from (Documented(file, words, inline) for line in lines for words in commands(line))


ALL = list(dict.fromkeys(found for file in DOCS for found in documented(file)))
WITH_ARGUMENTS = [found for found in ALL if found.words != ("nrt",) and found.arguments not in ((), ("--help",))]


def walk(words: list[str], whole: bool) -> tuple[list[str], dict[str, Any]]:
    """Names of a command and the parameters it gets. Raises where a name or an option does not exist."""
    command, context, names = typer.main.get_command(app), None, []
    while True:
        settings = {} if whole else {"resilient_parsing": True}
        try:
            context = command.make_context(words[0], words[1:], parent=context, **settings)
        except Exception:
            if whole or not words[-1].startswith("--"):
                raise
            # An option that is only named, as in prose.
            context = command.make_context(words[0], [*words[1:], "its-value"], parent=context, **settings)
        names.append(words[0])
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if not hasattr(command, "commands") or not rest:
            return names, context.params
        name, command, after = command.resolve_command(context, rest)
        assert command is not None, f"no command {name!r}"
        words = [name, *after]


@pytest.mark.parametrize("found", WITH_ARGUMENTS, ids=lambda found: f"{found.file}: {found.text}"[:90])
def test_a_documented_command_exists_with_its_options(found):
    names, params = walk([word for word in found.words if word != "..."], found.whole)
    assert len(names) > 1 or found.words[1].startswith("--")  # a command, or an option of nrt itself
    for override in params.get("overrides") or ():
        (key,) = config.flatten(config.parse_override(override))
        assert key in config.sentences(config.RunConfig) or key.startswith("verl."), f"--set {key}: no such setting"


SAID = re.compile(r"`nrt ((?:[a-z][a-z-]*(?: |(?=`)))+)")
PROGRAM = [
    path for name in ("nrt_cli", "analysis") for ending in ("py", "js") for path in ROOT.glob(f"{name}/**/*.{ending}")
]


def test_commands_that_the_program_speaks_of_exist():
    said = [(path, found) for path in PROGRAM for found in SAID.findall(path.read_text(encoding="utf-8"))]
    assert len(said) > 50
    for path, words in said:
        command: Any = typer.main.get_command(app)
        for word in words.split():
            if not (subcommands := getattr(command, "commands", {})):
                break  # the rest are its arguments
            assert word in subcommands, f"{path}: `nrt {words}` is no command"
            command = subcommands[word]


@pytest.mark.parametrize(
    "line",
    [
        "nrt trian laptop",
        "nrt train laptop --modle DIR",
        "nrt runs show runs/a --jsn",
        "nrt eval --think sometimes",
        "nrt train laptop --set rollout.groups=4",
    ],
)
def test_a_wrong_line_would_be_found(line):
    (words,) = commands(line)
    with pytest.raises((Exception, AssertionError)):  # whatever the parser raises
        test_a_documented_command_exists_with_its_options(Documented("x", words))


def test_lines_are_read_as_a_shell_would():
    lines = "A=b nrt judge x --n 2 | head && nrt eval y   what it does\nnrt train a          --run b\nnrt's own"
    found = [words for line in lines.split("\n") for words in commands(line)]
    assert found == [("nrt", "judge", "x", "--n", "2"), ("nrt", "eval", "y"), ("nrt", "train", "a", "--run", "b")]
    assert list(blocks("text\n\n    nrt a \\\n        b\n\n```bash\nnrt c\n```\n")) == ["nrt c", "nrt a b"]
    assert list(spans("`nrt a\nb` and ``x``")) == ["nrt a b"]


def table() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return found


def test_every_command_is_run_by_a_test_or_marked():
    """Names alone (`nrt train`) need none: `docs_commands.yaml` has all that has arguments."""
    known = {text for part in table().values() for text in part}
    asked = {found.text for found in WITH_ARGUMENTS}
    missing = sorted(asked - known)
    assert not missing, f"add to {TABLE.name}, under `run`, `elsewhere` or `not run`:\n" + "\n".join(missing)
    assert not sorted(known - asked), "no longer documented; remove from docs_commands.yaml"


@pytest.mark.parametrize(("text", "file"), table()["elsewhere"].items())
def test_what_is_run_elsewhere_is(text, file):
    """The test file that is named calls that command."""
    names = [word for word in shlex.split(text)[1:] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
    source = (ROOT / file).read_text(encoding="utf-8")
    assert any(f'"{name}"' in source or f"{name}(" in source for name in names[:2]), f"{file} does not call {text}"


@pytest.mark.parametrize(("text", "reason"), table()["not run"].items())
def test_what_is_not_run_has_a_reason(text, reason):
    assert len(reason.split()) >= 3


def sentences(text: str) -> Iterator[str]:
    """Sentences of prose and cells of tables of seven words and more, without numbers and marks; code is none."""
    text = re.sub(r"^( {4}|#).*$", "", FENCE.sub("", text), flags=re.MULTILINE)
    for part in re.split(r"\n\s*\n|\n(?=[-|])|\||(?<=[.:;?!])\s", text):
        words = re.findall(r"[a-z]{2,}", part.lower())
        if len(words) >= 7:
            yield " ".join(words)


def test_no_sentence_stands_twice():
    told: dict[str, list[str]] = {}
    for file in (*DOCS, "CONTRIBUTING.md", "nrt_cli/store/README.md"):
        for sentence in sentences((ROOT / file).read_text(encoding="utf-8")):
            told.setdefault(sentence, []).append(file)
    twice = [f"{', '.join(files)}: {sentence}" for sentence, files in told.items() if len(files) > 1]
    assert not twice, "tell it in one place:\n" + "\n".join(twice)


def test_a_sentence_that_stands_twice_would_be_found():
    said = "It is one long\nsentence of exactly these ten words: yes."
    assert (
        list(sentences(f"    code of eight words is no sentence at all\n{said}\n\n- {said}"))
        == ["it is one long sentence of exactly these ten words"] * 2
    )


@pytest.mark.parametrize("file", [*DOCS, "CONTRIBUTING.md"])
def test_links_lead_to_files_and_headings(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in re.findall(r"]\((?!https?:)([^)]*)\)", text):
        path, _, anchor = target.partition("#")
        found = (ROOT / file).parent / path if path else ROOT / file
        assert found.exists(), f"{file} links to {target}"
        headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE) if anchor else ()
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, f"{file} links to {target}, where there is no such heading"


def test_the_readme_is_short_and_names_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert sorted(re.findall(r"\(nrt_cli/help/(\w+)\.md\)", text.partition("## Pages")[2])) == PAGES


def test_help_topics_are_pages():
    """Whatever a page says of another is a page."""
    named = {word for found in ALL if found.words[:2] == ("nrt", "help") for word in found.words[2:]}
    assert named - {"TOPIC"} <= set(PAGES)
