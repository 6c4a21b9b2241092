"""Commands as a person types them. Every `nrt ...` that is printed with a name or path in it is made here."""

import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def nrt(*words: str | Path) -> str:
    """An `nrt` command, ready to paste into a shell.

    Args:
        words: the command's words. A `Path` is a value: one that begins with - gets `./`, lest it be read as an option.
    """
    return pasted(["nrt", *(_value(word) if isinstance(word, Path) else word for word in words)])


def resume(run: Path, *more: str) -> str:
    """The command that goes on with a run."""
    return nrt("train", "--run", run, "--resume", *more)


def pasted(words: list[str]) -> str:
    """Words quoted as this system's shell wants them."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def settings(values: Mapping[str, Any]) -> list[str]:
    """Dotted keys and their values as `--set` takes them."""
    return [word for key, value in values.items() for word in ("--set", f"{key}={_yaml(value)}")]


def _value(path: Path) -> str:
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _yaml(value: Any) -> str:
    import yaml  # not at the top: `nrt --help` has no use for it

    if isinstance(value, str | Path):
        text = str(value)
        # A text that YAML would read as something else, such as `null` or `<a>: b`, is quoted once more.
        try:
            same = yaml.safe_load(text) == text
        except yaml.YAMLError:
            same = False
        return text if same else json.dumps(text, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)
