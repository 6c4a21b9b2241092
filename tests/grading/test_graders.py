"""Graders as pure functions: formulas against enumeration, and that no text makes one raise."""

import itertools
import math
import random
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.config.suite import select
from nrt_cli.evaluation.olmes_grades import SCORES
from nrt_cli.grading import graders
from nrt_cli.grading.grading import Pair, grade, guess
from nrt_cli.grading.numerals import last_number, same_number
from nrt_cli.grading.plain import boxed
from nrt_cli.judging.prompts import read_verdict

# Text that looks like answers, so that the patterns have something to find.
PIECES = ["the answer is ", "The answer is <", "(A)", "\\boxed{", *"<>{}$-3,./\n", "```python\n"]
TEXT = st.one_of(st.text(), st.lists(st.sampled_from([*PIECES, "def f(x):", "True", "−"]), max_size=12).map("".join))


@given(TEXT)
def test_no_text_makes_a_grader_raise(text: str) -> None:
    found = last_number(text)
    same_number(found, "3")
    graders.letter(text)
    graders.spans(text)
    boxed(text)
    graders.mathematics(text)
    graders.code(text, "f", "def f(x):\n")
    for patterns in (("True|False",), (".+",), (r"\([A-R]\)", "[A-R]"), (r"[\])}>]+(?: [\])}>]+)*",)):
        graders.same_phrase(graders.phrase(text, patterns), "(A)")


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{:d}", "{:,d}", "{:d}.00", "so it is {:,d} dollars.", "${:,d}"])
)
def test_a_number_is_read_however_it_is_written(value: int, form: str) -> None:
    assert same_number(last_number(form.format(value)), str(value))


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_last_number_counts(first: int, last: int) -> None:
    assert last_number(f"{first} apples, or rather {last}") == str(last)


@given(st.text(alphabet="abc{}", max_size=12).filter(lambda text: text.count("{") == text.count("}")))
def test_boxed_keeps_balanced_braces(inside: str) -> None:
    balanced = all(inside[:at].count("{") >= inside[:at].count("}") for at in range(len(inside) + 1))
    if balanced:
        assert boxed(f"so \\boxed{{{inside}}} is it") == inside.strip()


@pytest.mark.parametrize(("samples", "k"), [(5, 1), (5, 3), (6, 6), (7, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples: int, k: int) -> None:
    for correct in range(samples + 1):
        right = [True] * correct + [False] * (samples - correct)
        draws = list(itertools.combinations(right, k))
        assert graders.pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_too_few_samples_is_not_measured() -> None:
    assert math.isnan(graders.pass_at_k(9, 9, 10))


@given(st.lists(st.floats(-400, 0), min_size=2, max_size=6), st.floats(-10_000, 0))
def test_mc2_does_not_depend_on_a_common_factor(logprobs: list[float], shift: float) -> None:
    labels = [int(index % 2 == 0) for index in range(len(logprobs))]
    score = graders.mc2(logprobs, labels)
    assert 0 <= score <= 1
    assert graders.mc2([value + shift for value in logprobs], labels) == pytest.approx(score, abs=1e-9)
    flipped = [1 - label for label in labels]
    assert score + graders.mc2(logprobs, flipped) == pytest.approx(1)


def test_mc2_of_an_unmeasured_choice_is_not_measured() -> None:
    assert math.isnan(graders.mc2([-1.0, math.nan], [1, 0]))
    assert math.isnan(graders.mc2([-math.inf, -math.inf], [1, 0]))


@pytest.mark.parametrize("seed", range(3))
def test_a_body_continues_the_prompt_and_a_function_replaces_it(seed: int) -> None:
    value = random.Random(seed).randint(0, 99)
    prompt = "import math\n\n\ndef f(x):\n    '''doc'''\n"
    for answer in (
        f"    return x + {value}",
        f"return x + {value}",
        f"def f(x):\n    return x + {value}",
        f"Sure.\n```python\ndef f(x):\n    return x + {value}\n```\nand\n```\nf(1)\n```",
        f"```py\nif x:\n    return x + {value}\nreturn {value}\n```",
    ):
        space: dict[str, object] = {}
        program = graders.code(answer, "f", prompt)
        assert program
        exec(program, space)
        assert space["f"](1) == 1 + value  # type: ignore[operator]


UNITS = yaml.safe_load(Path(__file__).with_name("repeated.yaml").read_text(encoding="utf-8"))
READERS = {
    **{
        name: lambda text, name=name, gold=gold: grade(Pair("", gold, name), text)
        for name, gold in (("number", "5"), ("choice", "B"), ("exact", "Paris"))
    },
    "yes": lambda text: grade(Pair("", "yes", "choice"), text),
    "guess": lambda text: guess([text]),
    "verdict": lambda text: _refused(text),
    "mathematics": graders.mathematics,
    "spans": graders.spans,
    "aliases": lambda text: graders.any_alias(text, ["Oslo"]),
    **{
        f"{name} as OLMES": lambda text, name=name, row=row: SCORES[name](row, "", [text])
        for name, row in (("choice", {"answer": 1}), ("number", {"answer": "5"}), ("phrase", {"target": "(B)"}))
    },
    "code": lambda text: graders.code(text, "f", "def f(x):\n"),
    **{
        pattern: lambda text, pattern=pattern: graders.phrase(text, [pattern])
        for benchmark in select(["bbh"])
        for (pattern,) in benchmark.answers.values()
        if "+" in pattern
    },
}


def _refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_verdict(text, ("a",))


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("most", [8000, pytest.param(100_000, marks=pytest.mark.full)])
def test_the_time_of_a_reader_grows_as_the_text_does(reader: str, most: int) -> None:
    """Eight times the text may take 16 times as long, and not the 64 of what is quadratic."""

    def seconds(text: str) -> float:
        start = time.process_time()
        READERS[reader](text)
        return time.process_time() - start

    for unit in UNITS:
        for before, after in (("The answer is ", "a"), ("", ""), ("```", "a"))[: 1 if most > 8000 else 3]:
            short, long = (before + unit * (length // len(unit)) + after for length in (most // 8, most))
            allowed = 0.02 + 16 * min(seconds(short) for _ in range(3))
            assert any(seconds(long) < allowed for _ in range(3)), (before, unit)
