"""Words and their statistics, by hand arithmetic and a slow reference."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nrt_analysis.formats import render
from nrt_analysis.frames import HELD_OUT
from nrt_analysis.vocabulary_report import PRIOR, compare, ranked, vocabulary, words

from nrt_cli.errors import StoreError
from nrt_cli.store import Reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Let's solve it, step-by-step.", ["let", "solve", "it", "step", "by", "step"]),
        ("Don’t use Tom's x or A.", ["don't", "use", "tom", "or"]),
        ("It costs $1,234.50 and 3rd is 2x.", ["it", "costs", "[number]", "and", "[number]", "is", "[number]"]),
        ("<<3*4=12>>12\n#### 12", ["[number]"] * 5),
        (r"so \boxed{42} and \frac{1}{2}x_i \n", ["so", r"\boxed", "[number]", "and", r"\frac", *["[number]"] * 2]),
        ("run `pip x` or\n```python\nprint('hello')\n``` then", ["run", "[code]", "or", "[code]", "then"]),
        ("cut ```def f():\n  return", ["cut", "[code]"]),
        ("see https://a.org/b?c=d now", ["see", "[url]", "now"]),
        ("done<|im_end|> yes</s>", ["done", "yes"]),
        ("L'eau où ÉTÉ, straße", ["l'eau", "où", "été", "straße"]),
        ("Привет, мир! και γεια", ["привет", "мир", "και", "γεια"]),
        ("مرحبا بالعالم ١٢٣", ["مرحبا", "بالعالم", "[number]"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("می‌خواهم", ["می‌خواهم"]),  # the joiner within is part of the word
        ("我们走 好", ["我们", "们走", "好"]),
        ("ab漢字cd", ["ab", "漢字", "cd"]),
        ("ภาษา", ["ภา", "าษ", "ษา"]),
        ("ﬁne ＡＢ", ["fine", "ab"]),  # compatibility forms
        ("... !!! ∑", []),
    ],
)
def test_words(text, expected):
    assert list(words(text)) == expected


@given(st.text())
def test_any_text_has_words_of_one_case_without_spaces(text):
    found = list(words(text))
    assert all(word and not any(c.isspace() for c in word) for word in found)
    assert all(word.startswith("\\") or word == word.lower() for word in found)


def test_ratio_log_odds_and_z_by_hand():
    """9 of 10 trace words are `let`, 10 of 30 answer words."""
    table = compare({"let": 9, "so": 1}, {"let": 10, "so": 20}, ()).set_index("word")
    # N = 40, so pseudo-counts are 5 * 10 / 40 = 1.25 for traces and 5 * 30 / 40 = 3.75 for answers; V = 2 words.
    rate_z, rate_y = (9 + 1.25) / (10 + 2.5), (10 + 3.75) / (30 + 7.5)
    odds = math.log(rate_z / (1 - rate_z)) - math.log(rate_y / (1 - rate_y))
    assert table.loc["let", "ratio"] == pytest.approx(rate_z / rate_y)
    assert table.loc["let", "log_odds"] == pytest.approx(odds)
    assert table.loc["let", "z"] == pytest.approx(odds / math.sqrt(1 / 10.25 + 1 / 13.75))
    assert table.loc["let", "per_1000_traces"] == 900
    assert table.loc["so", "per_1000_answers"] == pytest.approx(2000 / 3)
    assert table.loc["so", "log_odds"] == pytest.approx(-odds)  # of two words, one is the other's complement


COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), min_size=1)


@given(COUNTS, COUNTS)
def test_the_comparison_against_a_slow_reference(traces, answers):
    n, m = sum(traces.values()), sum(answers.values())
    vocabulary = sorted({*traces, *answers})
    table = compare(traces, answers, ()).set_index("word")
    for word in vocabulary:
        z = traces.get(word, 0) + PRIOR * n / (n + m)
        y = answers.get(word, 0) + PRIOR * m / (n + m)
        all_z = n + len(vocabulary) * PRIOR * n / (n + m)
        all_y = m + len(vocabulary) * PRIOR * m / (n + m)
        assert table.loc[word, "ratio"] == pytest.approx((z / all_z) / (y / all_y))
        if len(vocabulary) == 1:  # it has all of the odds
            assert math.isnan(table.loc[word, "z"])
        else:
            delta = math.log(z / (all_z - z)) - math.log(y / (all_y - y))
            assert table.loc[word, "z"] == pytest.approx(delta / math.sqrt(1 / z + 1 / y), abs=1e-9)


@given(COUNTS, st.integers(2, 7))
def test_texts_with_the_same_rates_differ_in_no_word(traces, times):
    """However much longer one is: the prior must not favour the longer or the shorter text."""
    table = compare(traces, {word: times * count for word, count in traces.items()}, ())
    assert table["ratio"].to_numpy() == pytest.approx(1.0)


def test_the_ranking_leaves_stop_words_out_and_the_table_does_not():
    table = compare({"the": 50, "let": 30, "so": 5}, {"boxed": 40, "so": 5, "sum": 20}, {"the"})
    changes = ranked(table, 2)
    # so: 5 of 85 against 5 of 65, a decrease, but a smaller one than those of the other two.
    assert changes["word"].tolist() == ["let", "boxed", "sum"]
    assert table.set_index("word").loc["the", "stop_word"]


def run_with_words(make_run, row):
    traces = {
        "step-000001": [row(1, 0, 0, "old words")],
        "step-000002": [
            row(2, 1, 0, "let us add 3 and 4", answer="seven apples<|im_end|>"),
            row(2, 1, 1, "let us think", answer="seven apples<|im_end|>"),
            row(2, 4, 0, "let me see $x$", answer="eight apples<|im_end|>"),
        ],
        "held-out-000002": [row(2, 0, 0, "held words", answer="out")],
    }
    return make_run(traces=traces)


def test_the_vocabulary_of_a_run(make_run, row):
    run = run_with_words(make_run, row)
    report = vocabulary(Reference.parse(f"{run.path}@2"))
    table = report.frames["vocab"].set_index("word")
    assert table.loc["let", ["in_traces", "in_answers"]].tolist() == [3, 0]
    assert table.loc["[number]", "in_traces"] == 2
    # Two traces have the answer of example 1: it counts once.
    assert table.loc["seven", "in_answers"] == 1
    assert table.loc["apples", "in_answers"] == 2
    assert table["in_traces"].sum() == Counter(w for t in run.traces("step-000002") for w in words(t["trace"])).total()
    notes = " ".join(report.notes)
    assert "3 traces (12 words) and 2 answers (4 words) of step 2" in notes
    assert "192 stop words" in notes
    figure = report.figures[0].drawing
    assert figure.axes[0].get_xlabel() == "rate in traces / in answers"
    assert figure.axes[0].get_yticklabels()[0].get_text() == "let"
    assert all(label.get_parse_math() is False for label in figure.axes[0].get_yticklabels())


def test_steps_and_kinds_are_chosen(make_run, row):
    run = run_with_words(make_run, row)
    assert "old" in set(vocabulary(Reference.parse(str(run.path))).frames["vocab"]["word"])  # the last ten steps
    held_out = vocabulary(Reference.parse(str(run.path)), HELD_OUT).frames["vocab"]
    assert set(held_out["word"]) == {"held", "words", "out"}
    reference = Reference.parse(str(run.path))
    assert render(vocabulary(reference), ("csv", "md")) == render(vocabulary(reference), ("csv", "md"))


def test_words_that_no_font_draws_are_in_the_table_and_named(make_run, row):
    odd = "\U00010f30\U00010f31"  # Old Sogdian
    run = make_run(traces={"step-000001": [row(1, 0, 0, f"{odd} plain words", answer="some more")]})
    report = vocabulary(Reference.parse(str(run.path)))
    assert odd in set(report.frames["vocab"]["word"])
    assert any("no font" in note and odd in note for note in report.notes)


def test_traces_without_words_are_refused(make_run, row):
    run = make_run(traces={"step-000001": [row(1, 0, 0, "")]})
    with pytest.raises(StoreError, match="no words to count"):
        vocabulary(Reference.parse(str(run.path)))
