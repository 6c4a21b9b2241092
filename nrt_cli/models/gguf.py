"""A model folder as a GGUF file, by llama.cpp's own converter, where that is at hand."""

import shutil
import subprocess
import sys
from pathlib import Path

from nrt_cli.errors import ConfigError, ModelError

NAMES = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
"""What the converter is called where it is installed."""


def find_converter(given: Path | None) -> list[str]:
    """The command that begins a conversion.

    Args:
        given: the converter; where it is a Python file, this Python runs it. None looks for an installed one.

    Raises:
        ConfigError: there is none.
    """
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"--converter {given}: no such file; llama.cpp's sources have {NAMES[0]}.")
        return [sys.executable, str(given)] if given.suffix == ".py" else [str(given.resolve())]
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return [found]
    raise ConfigError(
        f"--gguf needs llama.cpp's {NAMES[0]}, which is not on the PATH; name it with --converter FILE (it lies in "
        "llama.cpp's sources, github.com/ggml-org/llama.cpp, and needs the packages of its requirements)."
    )


def convert(converter: list[str], folder: Path, file: Path) -> None:
    """Write a folder's model to a GGUF file. Raises ModelError, with what the converter said last, where it fails."""
    try:
        done = subprocess.run(
            [*converter, str(folder), "--outfile", str(file)], capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise ModelError(f"{converter[0]}: cannot be run ({error.strerror}).") from None
    if done.returncode or not file.is_file() or file.stat().st_size == 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = said[-1] if said else f"it ended with {done.returncode} and said nothing"
        raise ModelError(f"{converter[-1]}: wrote no GGUF file ({reason}); nothing was pushed.")
