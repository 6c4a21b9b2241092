"""The `nrt` command: registers the commands and is the one error boundary.

Command modules import engines and workflows inside their functions, so that `nrt --help` stays fast.
"""

import errno
import inspect
import os
import re
import signal
import sys
from importlib import import_module
from typing import Any

import typer
from typer import rich_utils
from typer.core import TyperGroup, TyperOption

from nrt_cli import __version__, console
from nrt_cli.__main__ import stopped
from nrt_cli.errors import ConfigError, NrtError
from nrt_cli.untrusted import visible


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in PANELS.values() for name in names]


app = typer.Typer(
    name="nrt",
    cls=_Commands,
    help="Teach a language model to reason from plain question-answer pairs.",
    epilog="Example: nrt quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
PANELS = {
    "Begin": ("quickstart", "help"),
    "Prepare": ("data", "model", "config", "doctor"),
    "Train": ("train", "reproduce", "speedrun", "runs"),
    "Look": ("view", "generate", "chat", "score", "eval", "judge", "analyze", "report"),
    "Share": ("push",),
}
"""What a person is doing -> the commands for it: a module of commands has an `app`, one of a command its `EXAMPLE`."""
for _panel, _names in PANELS.items():
    for _name in _names:
        _module = import_module(f"nrt_cli.commands.{_name}")
        if _group := getattr(_module, "app", None):
            app.add_typer(_group, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, epilog=_module.EXAMPLE, rich_help_panel=_panel)(getattr(_module, _name))
        for _command in (_group or app).registered_commands:
            # The terminal breaks the lines of every paragraph: typer keeps the source's, all but the first's.
            _command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(_command.callback) or "")

# A flag takes no value, so none is shown: typer would write `<bool>`.
_shown = TyperOption.display_type_rich
_told = rich_utils.rich_format_error
TyperOption.display_type_rich = lambda option, ctx: None if option.is_flag else _shown(option, ctx)  # type: ignore


def _usage_error(error: Any) -> None:
    """A mistyped word may hold what acts on a terminal; one that was right once is answered with what it is now."""
    from nrt_cli.renamed import COMMANDS

    word = re.search(r"(--[\w-]+|'[\w-]+')", error.message)
    old = f"{error.ctx.command_path} {word.group().strip(chr(39))}" if word and error.ctx else ""
    error.message = visible(error.message)
    if now := COMMANDS.get(old):
        error.message = f"There is no `{old}` any more: `{now}` tells more of the same."
    _told(error)


rich_utils.rich_format_error = _usage_error  # type: ignore[assignment]  # its kind of error is not public


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nrt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Teach a language model to reason from plain question-answer pairs."""


def main() -> None:
    """Run the app; turn what the user can fix into one sentence and a non-zero exit."""
    console.settle()
    # Tokenizers' own threads complain when a process that used them forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        # Bytes that could not be decoded are kept as lone surrogates.
        if unreadable := [word for word in sys.argv if any("\ud800" <= letter <= "\udfff" for letter in word)]:
            raise ConfigError(
                f"{unreadable[0]!r} is not text in the terminal's encoding ({sys.getfilesystemencoding()}); set LC_ALL "
                "to what that is, or rename the file."
            )
        app(prog_name="nrt")
    except KeyboardInterrupt:
        stopped()
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGINT:  # what typer makes of a KeyboardInterrupt
            stopped()
        raise
    except NrtError as error:
        console.stderr.print(console.plain(f"nrt: {error}"), style="red", soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader went away (`nrt ... | head`): not an error. Point stdout elsewhere so that exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # Of what was typed, in whichever place it was to be a file's or a folder's name.
        told = f"nrt: {error.filename}: too long for the name of a file."
        console.stderr.print(console.plain(told), style="red", soft_wrap=True)
        sys.exit(ConfigError.exit_code)
