"""Verdicts: what a verifier pays for, and what it does not, whatever its grader says."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.errors import ConfigError
from nrt_cli.grading import sandbox
from nrt_cli.grading.grading import Pair
from nrt_cli.grading.verdicts import Verifier, refused, require_verifier, several
from nrt_cli.records import Verdict

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does he have?"
NUMBER, EXACT = Pair(QUESTION, "7", "number"), Pair("What is the capital of France?", "Paris", "exact")

MINE = '''
import os, time

def kind(row, reply):
    """Says yes to whatever has the answer in it; a reply may make it do what else it likes."""
    if "sleep" in reply: time.sleep(60)
    if "exit" in reply: os._exit(3)
    if "quit" in reply: raise SystemExit
    if "raise" in reply: raise RuntimeError("no")
    if "two" in reply: return 2.0
    if "none" in reply: return None
    if "print" in reply: print("noise")
    return row.answer in reply

def hangs(row, reply):
    while True: pass
'''


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    found = Verifier(2)
    yield found
    found.close()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_graders.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_graders", None)
    return "my_graders:kind"


@pytest.mark.slow
def test_graders_decide(verifier: Verifier) -> None:
    asked = [(NUMBER, "7", True), (NUMBER, "8", True), (NUMBER, "3 + 4 = 7", True), (EXACT, "paris", True)]
    assert [v.score for v in verifier.verdicts(asked)] == [1.0, 0.0, 1.0, 1.0]
    assert not any(v.fault for v in verifier.verdicts(asked))
    assert verifier.verdicts([]) == []


REFUSED = [
    (NUMBER, "", "empty"),
    (NUMBER, " \n.", "empty"),
    (NUMBER, QUESTION, "the whole question"),
    (NUMBER, f"  {QUESTION.upper()} ", "the whole question"),
    (NUMBER, f"{QUESTION}\n{QUESTION}", "the whole question"),
    (NUMBER, "1 2 3 4 5 6 7 8 9 10", "ten answers"),
    (NUMBER, "1, 2, 3, 4, 5, 6, 7", "ten answers"),
    (NUMBER, "5 or 6 or 7", "ten answers"),
    (NUMBER, "5\n6\n7", "ten answers"),
    (NUMBER, "The answer is 5. The answer is 6. The answer is 7.", "ten answers"),
    (NUMBER, r"\boxed{5} \boxed{6} \boxed{7}", "ten answers"),
    (EXACT, "London, Rome, Madrid, Paris", "ten answers"),
    (Pair("Which?", "(B)", "choice"), "A, B, C, D", "ten answers"),
    (Pair("Which?", "yes", "choice"), "no, yes", "ten answers"),
]


@pytest.mark.parametrize(("pair", "answer", "why"), REFUSED)
def test_what_would_fool_a_grader_is_refused(pair: Pair, answer: str, why: str) -> None:
    assert refused(pair, answer, True) == "refused"


@pytest.mark.parametrize(
    ("pair", "answer"),
    [
        (NUMBER, "7"),
        (NUMBER, "1,234"),
        (NUMBER, "Tom has 3 + 4 = 7 apples."),
        (NUMBER, "A : the sum of 1 , 2 , 4 , 0 is 7 ."),
        (NUMBER, f"{QUESTION} He has 7."),
        (NUMBER, "The answer is 7, since 3 + 4 = 7. Answer: 7"),
        (NUMBER, "3 apples.\n4 more.\nThe answer is 7"),
        (EXACT, "Paris"),
        (EXACT, "Paris, France"),
        (Pair("Which two?", "2, 3", "exact"), "2, 3"),
        (Pair("Pair?", "(1,2)", "math"), "(2,1)"),
        (Pair("Which?", "(B)", "choice"), "B) both a and b"),
        (Pair("How?", "x and y", "exact"), "x and y"),
    ],
)
def test_what_is_one_answer_is_not(pair: Pair, answer: str) -> None:
    assert refused(pair, answer, True) == ""
    assert refused(pair, answer, False) == "refused"  # it ran into the cap


@given(st.text(max_size=80), st.text(max_size=20))
def test_no_text_makes_it_fail_and_a_reference_is_one_answer(answer: str, reference: str) -> None:
    assert refused(Pair("What?", reference, "exact"), answer, True) in ("", "refused")
    assert not several(reference, reference) or len({*reference.split()}) > 1


@given(
    st.lists(st.integers(-999, 999), min_size=2, max_size=12, unique=True), st.sampled_from([", ", "\n", " or ", "; "])
)
def test_a_list_of_numbers_is_no_answer_to_a_question_for_one(numbers: list[int], between: str) -> None:
    text = between.join(map(str, numbers))
    assert several(text, str(numbers[-1]))
    assert not several(text, text)


@pytest.mark.slow
def test_a_grader_that_hangs_or_crashes_gives_nothing_and_the_next_answer_is_judged(mine: str) -> None:
    verifier = Verifier(1, seconds=1.0)
    pair = Pair("What?", "7", mine)
    replies = ["7", "sleep 7", "7", "exit 7", "quit 7", "raise 7", "two 7", "none 7", "print 7", "8"]
    found = verifier.verdicts([(pair, reply, True) for reply in replies])
    good, bad = Verdict(1.0), Verdict(0.0, "failed")
    assert found == [good, bad, good, bad, bad, bad, bad, bad, good, Verdict(0.0)]
    verifier.close()


@pytest.mark.slow
@pytest.mark.skipif(bool(sandbox.missing()), reason="no complete sandbox here")
def test_programs_are_judged_in_the_sandbox(verifier: Verifier) -> None:
    pair = Pair("Write add(a, b).", "assert add(2, 3) == 5\nassert add(-1, 1) == 0", "code")
    right, wrong = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a * b\n"
    replies = [
        right,
        f"Here it is:\n```python\n{right}```\nDone.",
        wrong,
        "import os\nos._exit(0)",
        "while True: pass",
        "",
    ]
    found = verifier.verdicts([(pair, reply, True) for reply in replies])
    assert [v.score for v in found] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert [v.fault for v in found] == [""] * 5 + ["refused"]


@pytest.mark.slow
def test_a_grader_that_does_not_work_is_refused_before_a_run(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_verifier([NUMBER, EXACT, Pair("What?", "7", mine)])
    for name, text in {"my_graders:gone": "no 'gone'", "nothing": "unknown"}.items():
        with pytest.raises(ConfigError, match=text):
            require_verifier([Pair("What?", "7", name)])
    monkeypatch.setattr("nrt_cli.grading.verdicts.SECONDS", 1.0)
    with pytest.raises(ConfigError, match=r"my_graders:kind.*fails"):
        require_verifier([Pair("What?", "raise 7", mine)])


@pytest.mark.slow
def test_nothing_is_left_running(mine: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    verifier = Verifier(2)
    verifier.verdicts([(NUMBER, str(i), True) for i in range(6)])
    verifier.close()
    assert not set(psutil.Process().children(recursive=True)) - before
