"""Start-up: what `nrt` must not import before it knows that it has work to do. Timed by tests/bench/startup.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each costs from a tenth of a second to several seconds to import.
HEAVY = {"torch", "transformers", "tokenizers", "pandas", "matplotlib", "pyarrow", "datasets", "accelerate", "numpy"}
# The config needs it, `--help` does not: it is half of what `nrt --help` would cost.
CONFIG_ONLY = {"pydantic"}

# What the console script does.
NRT = """
from nrt_cli.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
REPORT = """
import json, sys
print("\\nLOADED " + json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def loaded_by(script: str, *arguments: str, cwd: Path) -> set[str]:
    """Heavy modules in sys.modules after a script."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # found even where it is not installed
    done = subprocess.run(
        [sys.executable, "-c", script + REPORT, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.rpartition("LOADED ")[2])) & (HEAVY | CONFIG_ONLY)


@pytest.mark.slow
def test_asking_for_help_loads_nothing_heavy(tmp_path: Path) -> None:
    assert loaded_by(NRT, "--help", cwd=tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "config",
        "data",
        "model",
        "train",
        "generate",
        "judge",
        "runs",
        "quickstart",
        "eval",
        "analyze",
        "score",
        "doctor",
        "push",
        "report",
        "reproduce",
    ],
)
def test_asking_a_command_for_help_loads_no_numerics(command: str, tmp_path: Path) -> None:
    # Typer itself imports pydantic once a group above the command has an option to read.
    assert loaded_by(NRT, command, "--help", cwd=tmp_path) <= CONFIG_ONLY


@pytest.mark.slow
def test_showing_a_config_loads_no_numerics(tmp_path: Path) -> None:
    assert loaded_by(NRT, "config", "show", cwd=tmp_path) <= CONFIG_ONLY


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["nrt_cli", "nrt_cli.api", "nrt_cli.config", "nrt_cli.records", "nrt_cli.errors", "nrt_cli.console"]
)
def test_the_lowest_rooms_are_light(module: str, tmp_path: Path) -> None:
    assert loaded_by(f"import {module}", cwd=tmp_path) <= CONFIG_ONLY
