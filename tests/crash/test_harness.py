"""A part of the harness in the full suite; `python tests/crash/harness.py --kills 500 ...` is the whole."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.full
def test_nothing_is_lost_wrong_in_silence_a_traceback_or_a_hang() -> None:
    harness = [sys.executable, str(Path(__file__).with_name("harness.py"))]
    asked = ["--kills", "6", "--corruptions", "12", "--commands", "20"]
    ended = subprocess.run([*harness, *asked], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # Of the 12 damaged files two have another reader.
    for what, tried in (("kills and full disks", "6"), ("corruptions", "14"), ("command lines", "20")):
        (row,) = (line.split(" | ") for line in ended.stdout.splitlines() if line.startswith(f"| {what} |"))
        assert row[1] == tried
