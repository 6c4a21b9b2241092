"""`nrt view`: runs in a browser, also while they train; as a folder, or one screen as JSON."""

import webbrowser
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
    if query is not None:
        no_effect("on JSON", port=port, no_open=no_open)
        from nrt_cli.viewer.screens import answer

        library.look()
        library.refresh()
        library.read()
        console.result(answer(library, query), True)
        return
    from nrt_cli.viewer.server import serve

    def ready(address: str) -> None:
        console.say(f"view: {address} (Ctrl-C ends it)")
        if not no_open:
            webbrowser.open(address)

    serve(library, port or PORT, ready)


PORT = 6786
"""The port that is tried first."""
