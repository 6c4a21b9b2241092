"""The graders of the program: what is right, what is not, and which grader suits a set of answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.errors import ConfigError
from nrt_cli.grading.grading import GRADERS, Grade, Pair, find, grade, guess

CASES = [
    ("number", "18", "The answer is 18.", True),
    ("number", "#### 18", "18", True),
    ("number", "9 * 2 = <<9*2=18>>18 dollars.\n#### 18", "So she makes $18.00", True),
    ("number", "1,234", "1234", True),
    ("number", "1234", "1\u202f234", True),
    ("number", "1234", "1{,}234 apples", True),
    ("number", "1234", "1'234", True),
    ("number", "-5", "\u22125", True),
    ("number", "-5", "5", False),
    ("number", "18", "-$18", False),
    ("number", "1/2", "0.5", True),
    ("number", "1/2", "\\frac{1}{2}", True),
    ("number", "1 1/2", "1.5", True),
    ("number", "1\u00bd", "1.5", True),
    ("number", "50%", "50", True),
    ("number", "50", "50\\%", True),
    ("number", "42", "The answer is 42. I checked it 3 times.", True),
    ("number", "42", "The answer is 6 * 7 = 42", True),
    ("number", "42", "6 and 7 make 42", True),
    ("number", "6", "6 and 7 make 42", False),
    ("number", "5 m\u00b2", "5", True),
    ("number", "5", "5 m^2", True),
    ("number", "5", "5 km/h", True),
    ("number", "3e8", "3 \\times 10^8", True),
    ("number", "18", "$\\boxed{18}$, not 20", True),
    ("number", "18", "**Answer:** \n\n**18**", True),
    ("number", "He has 5, eats 2, and 3 are left.", "3", True),
    ("number", "42", "", False),
    ("number", "42", "I do not know", False),
    ("number", "no number", "no number", False),
    ("number", "12.5", "12,5", True),
    ("number", "12,5", "12.50", True),
    ("number", "0.125", "0,125", True),
    ("number", "3", "1,2,3", True),
    ("number", "1234567", "1.234.567", True),
    ("number", "1234.5", "1.234,50 \u20ac", True),
    ("number", "1234567", "1 234 567 people", True),
    ("number", "1234567.5", "12,34,567.5", True),
    ("number", "1000", "1_000", True),
    ("number", "1.234", "1,234", False),
    ("number", "50%", "0.5", True),
    ("number", "50%", "50 percent", True),
    ("number", "50%", "0.5 %", False),
    ("number", "12,000,000", "12 million", True),
    ("number", "12 million", "12", True),
    ("number", "12 million", "12 thousand", False),
    ("number", "-5", "minus 5", True),
    ("number", "-5", "negative 5", True),
    ("number", "5", "10 minus 5 is 5", True),
    ("number", "-20", "-\u20b920", True),
    ("number", "3/4", "3 / 4", True),
    ("number", "0.5", "\\frac12", True),
    ("number", "2.5", "2 \\dfrac{1}{2}", True),
    ("number", "1000", "10^3", True),
    ("number", "0.001", "10^{-3}", True),
    ("number", "300000000", "3\u00d710\u2078 m/s", True),
    ("number", "90", "90^{\\circ}", True),
    ("number", "3.5", "\u0663\u066b\u0665", True),
    ("number", "42", "The answer is not 43 but 42", True),
    ("number", "42", "42\n\nExplanation: 6 * 7", True),
    ("number", "42", "**42 km** (26 miles)", True),
    ("number", "42", "<answer>42</answer> of 50", True),
    ("choice", "B", "\uff22", True),
    ("choice", "B", "'B'", True),
    ("choice", "B", "I choose b", True),
    ("choice", "B", "I'd say B, not A.", True),
    ("choice", "A", "I think A is right", True),
    ("choice", "A", "The answer is A or B", False),
    ("choice", "I", "I think it is I.", True),
    ("choice", "B. Paris", "b", True),
    ("choice", "**yes**", "Yes", True),
    ("choice", "no", "\uff2e\uff4f", True),
    ("exact", "Paris", "\\text{Paris}", True),
    ("exact", "Paris", "$Paris$", True),
    ("exact", "Paris", "\u00abParis\u00bb\u200b", True),
    ("exact", "Paris", "- Paris", True),
    ("exact", "(a, b)", "(a,b)", True),
    ("exact", ".5", "5", False),
    ("exact", "-5", "5", False),
    ("exact", "1,200", "1200.0", True),
    ("exact", "01234", "1234", False),
    ("exact", "C++", "C", False),
    ("choice", "B", "The answer is (B).", True),
    ("choice", "B", "b", True),
    ("choice", "(c)", "The correct answer is c.", True),
    ("choice", "H", "Answer: H) a fish", True),
    ("choice", "b", "b) a fish", True),
    ("choice", "B", "A dog is B", True),
    ("choice", "C", "I think C", True),
    ("choice", "A", "**A**", True),
    ("choice", "B", "\\boxed{\\text{B}}", True),
    ("choice", "A", "The answer is a dog", False),
    ("choice", "A", "", False),
    ("choice", "yes", "Yes, because no one else came", True),
    ("choice", "No", "There is no reason not to say yes", False),
    ("choice", "True", "The answer is true.", True),
    ("exact", "Paris", "paris.", True),
    ("exact", "Paris", "The answer is Paris.", True),
    ("exact", "Paris", "**Paris**\nIt lies on the Seine.", True),
    ("exact", "New York", "\uff2eew  york", True),
    ("exact", "Paris", "Not Paris", False),
    ("exact", "Paris", "", False),
    ("exact", "?", "!", False),
    ("exact", "x\u00b2", "x^2", True),
    ("exact", "x\u00b2", "x\u00b3", False),
    ("exact", "3/4", "3\u20444", True),
    ("exact", "-5", "\u22125", True),
    ("exact", "Paris", "\\boxed{Paris} lies in France", True),
    ("number", "18", "18 km\u00b2", True),
    ("number", "5", "5 m s\u207b\u00b9", True),
    ("number", "18", "The answer is:\r\n\r\n18", True),
    ("number", "3", "- 5 apples\n- 3 pears", True),
    ("number", "-3", "x = \u2212 3", True),
    ("number", "6.02e23", "6.02 \u00d7 10\u00b2\u00b3", True),
    ("choice", "B", "Answer:\n\n**B**", True),
]


@pytest.mark.parametrize(("grader", "answer", "reply", "right"), CASES)
def test_replies(grader: str, answer: str, reply: str, right: bool) -> None:
    assert grade(Pair("", answer, grader), reply).score == right


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("$x^2+1$", "So it is $1+x^2$.", True),
        ("\\frac12", "0.5", True),
        ("x+1", "The answer is 1+x", True),
        ("x+1", "5+1", False),
        ("We add.\n\\boxed{42}", "So we get 42", True),
        ("42", "", False),
        ("1", "The answer is x+1", False),
        ("1", "5+1", False),
        ("x^2", "**x^2**", True),
        ("\\sqrt{2}", "\\[ \\sqrt{2} \\]", True),
        ("\\sqrt{2}", "\u221a2", True),
        ("12,5", "12.5", True),
        ("5", "It is 5 cm", True),
    ],
)
def test_mathematics(answer: str, reply: str, right: bool) -> None:
    pytest.importorskip("math_verify")
    assert grade(Pair("", answer, "math"), reply).score == right


@pytest.mark.parametrize(
    ("answers", "grader"),
    [
        (["18", "1,234", "-3.5%"], "number"),
        (["5 m/s", "$1,000", "18 apples"], "number"),
        (["She sells 9.\n#### 18", "#### -3"], "number"),
        (["12,5", "1.234.567", "minus 3", "`18`"], "number"),
        (["A", "b)"], "choice"),
        (["A. Paris", "(b) London", "**C**"], "choice"),
        (["yes", "No"], "choice"),
        (["$x+1$", "3"], "math"),
        (["Paris", "London", "12"], "exact"),
        (["2024-05-01", "555-1234"], "exact"),
        (["It is because the sea is salty. 5 reasons follow.", "3"], "none"),
        ([""], "none"),
        ([], "none"),
    ],
)
def test_a_grader_is_guessed_from_the_answers(answers: list[str], grader: str) -> None:
    assert guess(answers) == grader


ANSWERS = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from([case[1] for case in CASES]),
    st.from_regex(r"\A[$(]?-?[0-9]{1,4}[,./]?[0-9]{0,3}[%)]? ?[a-z]{0,3}\Z"),
    st.from_regex(r"\A\\[a-z]{1,4}\{[0-9a-z]{1,3}\}\Z"),
)


@given(st.lists(ANSWERS, max_size=4))
def test_a_reference_is_right_by_the_grader_that_is_guessed_for_it(answers: list[str]) -> None:
    name = guess(answers)
    if name != "none":
        assert [grade(Pair("", answer, name), answer).score for answer in answers] == [1.0] * len(answers)


@given(st.sampled_from([name for name in GRADERS if name != "math"]), st.text(), st.text())
def test_no_text_raises_and_an_empty_reply_is_never_right(name: str, answer: str, reply: str) -> None:
    assert math.isnan(grade(Pair("", answer, name), reply).score) == (name == "none")
    assert grade(Pair("", answer, name), " ").score != 1


def test_none_grades_nothing() -> None:
    assert grade(Pair("", "a", "none"), "a") == Grade()


def test_a_grader_of_ones_own(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_grader.py").write_text(
        "def half(row, reply):\n    return row.answer in reply and 0.5\n\ndef bad(row, reply):\n    return 2\n"
        "number = 3\ndef none(row, reply):\n    return None\n"
        "from nrt_cli.grading.grading import Grade\ndef bare(row, reply):\n    return Grade((), {'f1': 0.25})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert grade(Pair("", "a", "own_grader:half"), "cat").score == 0.5
    assert grade(Pair("", "a", "own_grader:half"), "dog").score == 0
    assert grade(Pair("", "a", "own_grader:bare"), "cat") == Grade(("cat",), {"f1": 0.25})
    for name, message in [
        ("own_grader:number", "is no function"),
        ("own_grader:none", "fails on a reply"),
        ("own_grader:bad", "score in \\[0, 1\\]"),
        ("own_grader:missing", "cannot be imported"),
        ("numbers", "choose one of number, math"),
    ]:
        with pytest.raises(ConfigError, match=message):
            grade(Pair("", "a", name), "a")
    assert find("number")(Pair("", "4", "number"), "4").score == 1
