"""Every grader on cases kept as data, through the same call that an evaluation makes."""

import math
import random
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval")

from nrt_cli.config.suite import NAMES, select
from nrt_cli.evaluation import olmes_grades
from nrt_cli.evaluation.benchmark import load_suite
from nrt_cli.grading import sandbox
from nrt_cli.records import Document, Reply

CASES = yaml.safe_load(Path(__file__).with_name("grading_cases.yaml").read_text(encoding="utf-8"))
GRADED = [
    pytest.param(group, case, id=f"{group}: {case['case']}", marks=[pytest.mark.slow] if group == "humaneval" else [])
    for group, content in CASES.items()
    for case in content["cases"]
]


@pytest.fixture(scope="module")
def suite() -> dict[str, Any]:
    return {benchmark.name: benchmark for benchmark in load_suite(NAMES)}


def graded(benchmark: Any, group: dict[str, Any], replies: list[Reply]) -> Document:
    """A document of the group's row, graded."""
    document = Document(benchmark.name, group.get("subset", ""), "case", (), None)
    benchmark._rows["case"] = group["row"]
    return benchmark.grade(document, replies)


@pytest.mark.parametrize(("group", "case"), GRADED)
def test_case(suite: dict[str, Any], group: str, case: dict[str, Any]) -> None:
    benchmark = suite[group.split()[0]]
    if benchmark.name == "humaneval" and sandbox.missing():
        pytest.skip("no complete sandbox here")
    samples = benchmark.spec.generation.samples
    found = graded(benchmark, CASES[group], [Reply(trace=case.get("trace", ""), answer=case["answer"])] * samples)
    assert found.scores[benchmark.spec.metric] == pytest.approx(case["score"], abs=0.005)
    assert found.scores.get("olmes", case["score"]) == pytest.approx(case.get("olmes", case["score"]), abs=0.005)
    if "extracted" in case:
        assert found.extracted[0] == case["extracted"]


PIECES = [
    "the answer is ",
    "Answer: ",
    "(A)",
    "B",
    "-10",
    "1,234.5",
    "true",
    "<Ann>, ",
    "\\boxed",
    "{",
    "}",
    "$",
    "=",
    "\n",
]


@given(st.text() | st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_text_makes_a_grade_of_olmes_fail(text: str) -> None:
    with mock.patch.object(olmes_grades, "_same_value", return_value=False):  # it asks a process of its own
        for group in ("mmlu", "bbh snarks", "bbh dyck_languages", "drop", "popqa", "gsm8k", "math"):
            row, subset = CASES[group]["row"], CASES[group].get("subset", "")
            (spec,) = select([group.split()[0]])
            assert 0 <= olmes_grades.SCORES[spec.grader](row, subset, [text]) <= 1


def test_every_generating_benchmark_has_the_cases_that_matter(suite: dict[str, Any]) -> None:
    for name, benchmark in suite.items():
        if name == "digits":  # graded as GSM8K
            continue
        groups = [content["cases"] for group, content in CASES.items() if group.split()[0] == name]
        cases = [case for group in groups for case in group]
        if benchmark.thinks:
            assert {"empty", "only in the trace"} <= {case["case"] for case in cases}, name
            assert {0, 1} <= {case["score"] for case in cases}, name


def test_pass_at_10_counts_the_samples_that_pass(suite: dict[str, Any]) -> None:
    """One of 20 is right: the chance that it is among 10 drawn is 10/20; a pass at 1 has 1/20."""
    if sandbox.missing():
        pytest.skip("no complete sandbox here")
    replies = [Reply(answer="return 0")] * 19 + [Reply(answer="return sum(values)")]
    found = graded(suite["humaneval"], CASES["humaneval"], replies)
    # OLMES puts the body behind the prompt as it stands.
    assert found.scores == {"pass_at_1": pytest.approx(1 / 20), "pass_at_10": pytest.approx(1 / 2), "olmes": 0}
    assert len(found.extracted) == 20


def test_mc2_is_the_true_answers_share(suite: dict[str, Any]) -> None:
    """exp(-1) and exp(-2) are true, exp(-3) is not; far lower log-probabilities give the same share."""
    group = {"row": {"question": "?", "mc2_targets": {"choices": ["a", "b", "c"], "labels": [1, 1, 0]}}}
    near = graded(suite["truthfulqa"], group, [Reply(logprob=-value) for value in (1.0, 2.0, 3.0)])
    far = graded(suite["truthfulqa"], group, [Reply(logprob=-value) for value in (9001.0, 9002.0, 9003.0)])
    share = (0.36787944 + 0.13533528) / (0.36787944 + 0.13533528 + 0.04978707)
    assert near.scores["mc2"] == pytest.approx(share)
    assert far.scores["mc2"] == pytest.approx(share)
    assert near.scores["olmes"] == pytest.approx(share)
    assert math.isnan(far.scores["olmes"])  # all probabilities are 0 there


def test_strict_and_loose_instructions_differ(suite: dict[str, Any]) -> None:
    found = graded(suite["ifeval"], CASES["ifeval"], [Reply(answer="Sure, here:\nA tree is tall.")])
    assert found.scores["prompt_level_loose_acc"] == 1
    assert found.scores["prompt_level_strict_acc"] == 0
    assert found.scores["instruction_share_strict"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "given", "unit"),
    [
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "["),
        ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a"),
        ("detectable_format:title", {}, "<<"),
        ("detectable_format:json_format", {}, "["),
    ],
)
def test_an_instruction_is_checked_in_a_time_that_grows_as_the_answer_does(
    kind: str, given: dict[str, Any], unit: str, suite: dict[str, Any]
) -> None:
    """Eight times the answer may take 16 times as long, and not the 64 of what is quadratic."""
    row = {"key": 1, "prompt": "?", "instruction_id_list": [kind], "kwargs": [given]}

    def seconds(length: int) -> float:
        start = time.process_time()
        found = graded(suite["ifeval"], {"row": row}, [Reply(answer=unit * (length // len(unit)))])
        assert found.scores["prompt_level_loose_acc"] == 0
        return time.process_time() - start

    allowed = 0.02 + 16 * min(seconds(12_500) for _ in range(3))
    assert any(seconds(100_000) < allowed for _ in range(3))


def test_what_a_checker_draws_is_the_same_each_time(suite: dict[str, Any]) -> None:
    """Half of the letters are there four times; lm-eval draws which is counted where the instruction names none."""
    found, state = set(), random.getstate()
    for seed in range(10):
        random.seed(seed)
        reply = Reply(answer=" ".join(4 * letter for letter in "abcdefghijklm"))
        found.add(graded(suite["ifeval"], CASES["ifeval letter of its own"], [reply]).scores["prompt_level_loose_acc"])
        assert random.random() == random.Random(seed).random()  # nobody else's chance is touched
    random.setstate(state)
    assert len(found) == 1
