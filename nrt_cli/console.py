"""The one place that writes to the terminal.

Commands return data; `Console.result` prints it for people or, under `--json`, as one JSON document on stdout.
Progress and notes go to stderr, so stdout stays readable by scripts. Text from models and data is untrusted: it is
shown through `plain`, which removes control characters and Rich markup meaning.
"""

import contextlib
import io
import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from nrt_cli.errors import Damage
from nrt_cli.untrusted import visible

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "BITSANDBYTES_NOWELCOME": "1",
}
"""What libraries read, so that only their errors reach the terminal."""

stdout = RichConsole(highlight=False)
stderr = RichConsole(stderr=True, highlight=False)


def settle() -> None:
    """Make the standard streams take any text, whatever their encoding, and other people's code keep to itself.

    What a user set in the environment stays as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook puts there
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # But what of the store was passed over is told, each once.
    warnings.filterwarnings("default", category=Damage)
    theirs = warnings.showwarning
    warnings.showwarning = lambda message, kind, *rest: (
        warn(str(message)) if issubclass(kind, Damage) else theirs(message, kind, *rest)
    )
    # Without any handler Python itself would print what libraries warn of.
    logging.getLogger().addHandler(logging.NullHandler())
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def plain(text: str) -> Text:
    """Untrusted text as Rich text: no markup is interpreted and terminal control sequences are made visible."""
    return Text(visible(text.expandtabs()))


def note(message: str) -> None:
    """Say something about the work to a person (stderr)."""
    stderr.print(plain(message), soft_wrap=True)


def warn(message: str) -> None:
    """Say something a person should look at (stderr)."""
    stderr.print(Text("warning: ", style="yellow").append_text(plain(message)), soft_wrap=True)


def say(text: str) -> None:
    """Print untrusted text that is what was asked for (stdout); the terminal folds its lines."""
    stdout.print(plain(text), soft_wrap=True)


def result(data: Any, as_json: bool, render: Callable[[Any], None] | None = None) -> bool:
    """Print a command's outcome: JSON on stdout for scripts, or `render(data)` for people. Whether JSON was printed.

    What was not measured, NaN, is null in JSON.
    """
    if as_json:
        from nrt_cli.records import measured  # not at the top: `nrt --help` shows no record

        stdout.file.write(json.dumps(measured(data), indent=2, default=str) + "\n")
    elif render:
        render(data)
    return as_json


def write(text: str) -> None:
    """Print text as it stands, such as YAML, to be read by people and programs alike."""
    stdout.file.write(text)


def page(text: str) -> None:
    """Print Markdown: rendered where a person reads, as it stands where a program does."""
    if not stdout.is_terminal:
        write(text)
        return
    from rich.markdown import CodeBlock, Markdown  # not at the top: what highlights code takes its time

    class Code(CodeBlock):
        """As it stands: a long line is left to the terminal to fold, so that it can be copied as one."""

        def __rich_console__(self, *_: Any) -> Iterator[Text]:
            yield Text(f"{self.text}".rstrip(), style="cyan", no_wrap=True, overflow="ignore")

    class Page(Markdown):
        elements: ClassVar = {**Markdown.elements, "fence": Code, "code_block": Code}

    # A link within the project is its text: the files are not where a reader of an installed package could follow it.
    text = re.sub(r"\[([^]]+)]\((?!https?:)[^)]*\)", r"\1", text)
    # Longer lines are hard to read.
    stdout.print(Page(text), width=min(stdout.width, 110), crop=False)


def number(value: Any, form: str = ".4g") -> str:
    """A float as people read it, `-` where there is none that is finite; anything else as it is."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return format(value, form) if isinstance(value, float) else str(value)


def table(*columns: str, rows: Iterable[Iterable[Any]] = (), **style: Any) -> Table:
    """A table of untrusted texts. A column whose title begins with > has numbers, which stand on the right."""
    made = Table(**style)
    for title in columns:
        right = title.startswith(">")
        made.add_column(plain(title.removeprefix(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else plain(str(cell)) for cell in row))
    return made


def show(table: Table, least: Sequence[str] = ()) -> None:
    """Print a table; where the terminal is too narrow, without the columns of these titles, the first of them first.

    What remains is broken into lines only where the rest alone is too wide.
    """
    endless = stdout.options.update_width(10**6)
    for title in least:
        if table.__rich_measure__(stdout, endless).maximum <= stdout.width:
            break
        table.columns = [column for column in table.columns if str(column.header) != title]
    stdout.print(table)


@contextlib.contextmanager
def noise_to(log: Path) -> Iterator[None]:
    """What other people's code prints, here and in processes started meanwhile, goes to a file, appended.

    The redirection is one of file descriptors. Only what goes through this module still reaches the terminal.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    consoles = ((stdout, sys.stdout), (stderr, sys.stderr))
    with contextlib.ExitStack() as undo, log.open("a", encoding="utf-8", buffering=1) as file:
        for number, (console, stream) in enumerate(consoles, start=1):
            stream.flush()
            kept = os.dup(number)
            try:
                own = stream.fileno() == number
            except (OSError, ValueError):
                own = False
            if own:  # else no face of the descriptor, as in a notebook or under a test
                console.file = os.fdopen(
                    kept, "w", encoding=stream.encoding, errors=stream.errors, buffering=1, closefd=False
                )
            else:
                console.file = stream
            # None: whatever sys.stdout or sys.stderr is at the time, as before.
            undo.callback(setattr, console, "file", None)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, number)
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        undo.enter_context(contextlib.redirect_stdout(file))
        undo.enter_context(contextlib.redirect_stderr(file))
        yield


def is_quiet() -> bool:
    """Whether what other people's code prints goes to a file now."""
    return stderr.file is not sys.stderr
