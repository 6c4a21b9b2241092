"""Programs whose tests run elsewhere: none passes that is wrong, whatever it does, and all that are right."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nrt_cli.grading import sandbox

CASES = yaml.safe_load(Path(__file__).with_name("cheats.yaml").read_text(encoding="utf-8"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(sandbox.missing()), reason=f"this platform cannot enforce: {'; '.join(sandbox.missing())}"),
]


def passes(case: Any) -> bool:
    own = CASES | (case if isinstance(case, dict) else {"program": case})
    return sandbox.run([own["program"]], own["tests"], own["entry_point"], own["given"])[0]


def test_the_tests_can_be_passed_and_failed() -> None:
    assert passes("import math\nf = math.factorial")
    assert not passes("def f(n): return n")


@pytest.mark.parametrize("name", CASES["cheats"])
def test_a_cheat_fails(name: str) -> None:
    assert not passes(CASES["cheats"][name])


@pytest.mark.parametrize("name", CASES["right"])
def test_a_right_program_passes(name: str) -> None:
    assert passes(CASES["right"][name])
