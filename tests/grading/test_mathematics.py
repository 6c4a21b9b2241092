"""math-verify in its own process: what it says equal, and that no answer holds us up."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("math_verify")

from nrt_cli.grading.mathematics import Verifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    found = Verifier(seconds=3)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("x^2+1", "1+x^2", True),
        ("(1,2)", "(2,1)", False),
        ("9\\pi", "28.27", False),
        ("[2,5)", "[2, 5)", True),
        ("3", "", False),
        ("3", "\\end{}{{]]", False),
    ],
)
def test_equal(verifier: Verifier, gold: str, answer: str, equal: bool) -> None:
    assert verifier.equal(gold, answer) is equal


@pytest.mark.parametrize("bomb", ["9^{9^{9^{9}}}", "10^{10^{10}}"])
def test_an_answer_that_would_take_forever_is_wrong_and_the_next_one_is_compared(verifier: Verifier, bomb: str) -> None:
    assert verifier.equal("18", bomb) is False
    assert verifier.equal("18", "18.0") is True


def test_nothing_is_left_running() -> None:
    before = set(psutil.Process().children())
    verifier = Verifier()
    assert verifier.equal("1", "1")
    assert set(psutil.Process().children()) - before
    verifier.close()
    assert not set(psutil.Process().children()) - before


def test_a_script_without_a_guard_is_run_once(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(
        "from nrt_cli.grading.grading import Pair, grade\n"
        "print('once')\n"
        "print(grade(Pair('', 'x+1', 'math'), 'The answer is 1+x').score)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "once\n1.0\n"
