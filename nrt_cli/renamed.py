"""Modules (`renamed.yaml`), commands and options that there were, refused with where their contents are now."""

from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

COMMANDS = {
    "nrt analyze leakage": "nrt analyze xray RUN",
    "nrt score --sentences": "nrt analyze xray RUN --question X --answer Y --trace Z",
}
"""A command or option as it was typed -> what is to be typed now."""

TABLE = Path(__file__).with_name("renamed.yaml")


def moved(module: str) -> str:
    """Where a module's contents are now, as the end of a sentence; empty for one that never was."""
    import yaml  # not at the top: what is there has no use for it

    old, table = module.removeprefix("nrt_cli."), yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return next((f"it is in {now} now" for now, names in table.items() if old in names.split()), "")


class Moved:
    """The last finder that is asked: only what is nowhere else comes here."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.startswith("nrt_cli.") and (where := moved(name)):
            # Not ModuleNotFoundError, which `from nrt_cli.workflows import doctor` would replace by a poorer one.
            raise ImportError(f"there is no {name} any more: {where}", name=name)
        return None
