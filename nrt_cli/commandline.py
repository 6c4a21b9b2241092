"""Commands as a person types them. Every `nrt ...` that is printed with a name or path in it is made here."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN = re.compile(r"[A-Za-z</][\w<>|/.@+=:,-]*(?<!:)", re.ASCII)
"""Texts that may be words of YAML."""


def nrt(*words: str | Path) -> str:
    """An `nrt` command, ready to paste into a shell.

    Args:
        words: the command's words. A `Path` is a value: one that begins with - gets `./`, lest it be read as an option.
    """
    return pasted(["nrt", *(f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words)])


def resume(run: Path, *more: str) -> str:
    """The command that goes on with a run."""
    return nrt("train", "--run", run, "--resume", *more)


def pasted(words: list[str]) -> str:
    """Words quoted as this system's shell wants them."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def this_command() -> str:
    """This process's command, as one would type it."""
    return pasted(["nrt", *sys.argv[1:]])


def settings(values: Mapping[str, Any]) -> list[str]:
    """Dotted keys and their values as `--set` takes them."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={_yaml(value)}")]


def _yaml(value: Any) -> str:
    import yaml  # not at the top: `nrt --help` has no use for it

    if not isinstance(value, str | Path):
        return json.dumps(value, ensure_ascii=False)
    text = str(value)
    # Whatever might be read as something else, such as `null` or `1e3`, is quoted once more.
    if PLAIN.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**31)).rstrip("\n")
