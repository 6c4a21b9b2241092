"""`nrt view`: runs in a browser, also while they train; as a folder, or one screen as JSON."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import no_effect
from nrt_cli.errors import StoreError

EXAMPLE = "Example: nrt view runs/\n\nOr: nrt view runs/ --json '/list?run=am&gain=..0&sort=gain'"


def view(
    runs: Annotated[
        list[Path] | None,
        Argument(
            metavar="[RUNS]...", autocompletion=completion.runs, help="Runs, or folders of runs.", show_default="runs"
        ),
    ] = None,
    query: Annotated[
        str | None, Option("--json", metavar="QUERY", help="Print what the screen at this address shows, as JSON.")
    ] = None,
    export: Annotated[
        Path | None, Option(metavar="DIR", help="Write the viewer as a folder that opens from disk, without a server.")
    ] = None,
    port: Annotated[int | None, Option(min=1, max=65535, help="Port on loopback; one in use is passed over.")] = None,
    no_open: Annotated[bool, Option("--no-open", help="Print the address and open no browser.")] = False,
) -> None:
    """Look at runs in the browser while they train: traces, groups, curves, two runs, evaluations.

    It answers on loopback alone, reads, and writes nothing to a run. Every screen's address, from its # on, is a QUERY.
    """
    from nrt_cli.models.token_text import token_text
    from nrt_cli.viewer.library import Library

    roots = runs or [Path("runs")]
    if missing := [root for root in runs or () if not root.is_dir()]:
        raise StoreError(f"{missing[0]}: no such folder; name runs, or a folder that has or will have some.")
    library = Library(roots, token_text)
    if query is not None or export:
        no_effect("without a server", port=port, no_open=no_open)
        library.look()
        library.refresh()
        library.read()
    if query is not None:
        no_effect("beside --json", export=export)
        from nrt_cli.viewer.screens import answer

        console.result(answer(library, query), True)
        return
    if export:
        from nrt_cli.store.files import write_report
        from nrt_cli.viewer.static import exported

        files = exported(library)
        size = sum(map(len, files.values())) / 1e6
        console.say(f"view: {write_report(export, files)[0]}, {len(files)} files, {size:.1f} MB")
        return
    from nrt_cli.viewer.server import serve

    def ready(address: str) -> None:
        console.say(f"view: {address} (Ctrl-C ends it)")
        if not no_open and has_screen():
            import webbrowser

            webbrowser.open(address)

    with contextlib.suppress(KeyboardInterrupt):  # how it ends
        serve(library, port or PORT, ready)


def has_screen() -> bool:
    """Whether a person sits before a desktop: not in a pipe, over a plain SSH connection, or in CI."""
    windows = sys.platform in ("win32", "darwin") and not os.environ.get("SSH_CONNECTION")
    desktop = windows or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return console.stdout.is_terminal and bool(desktop)


@contextlib.contextmanager
def beside(run: Path) -> Iterator[None]:
    """A viewer of a run that trains, in a process of its own until the block ends; it takes what the trainer leaves."""
    run.mkdir(parents=True, exist_ok=True)
    # What it says is for people: a trainer's own output may be read by a program.
    viewer = subprocess.Popen([sys.executable, "-m", "nrt_cli", "view", str(run)], stdout=sys.stderr.fileno())
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, viewer.pid, 10)
    try:
        yield
    finally:
        viewer.terminate()
        viewer.wait()


PORT = 6786
"""The port that is tried first."""
