"""The same questions across runs."""

import pytest
from nrt_analysis.case_report import SHOWN, generated_cases, stored_cases, stored_questions
from nrt_analysis.frames import HELD_OUT, STEP, labels_of

from nrt_cli.errors import StoreError
from nrt_cli.store import Reference


def refer(*runs):
    return [Reference.parse(str(run)) for run in runs]


@pytest.fixture
def two_runs(make_run, row):
    """`am` at steps 0 and 30, `gm` at 20 only, on examples 0 to 2 in another order."""
    am = {
        "held-out-000000": [row(0, e, 0, f"am starts {e}") for e in (0, 1, 2)],
        "held-out-000030": [row(30, e, 0, f"am ends {e}<|im_end|>") for e in (0, 1, 2)],
        "step-000030": [row(30, 7, k, f"am trains {k}", gain=0.5 + k) for k in (0, 1)],
    }
    gm = {"held-out-000020": [row(20, e, 0, f"gm {e}") for e in (2, 1)], "step-000020": [row(20, 8, 0, "gm trains")]}
    return make_run("a", "am", traces=am), make_run("b", "gm", traces=gm)


def test_the_latest_traces_on_common_questions(two_runs):
    am, gm = two_runs
    table = stored_cases(refer(am.path, gm.path), HELD_OUT, 5).frames["cases"]
    assert table[["example", "run", "step", "trace"]].values.tolist() == [
        [1, "am", 30, "am ends 1"],
        [1, "gm", 20, "gm 1"],
        [2, "am", 30, "am ends 2"],
        [2, "gm", 20, "gm 2"],
    ]
    assert table["question"].tolist() == ["Question 1?", "Question 1?", "Question 2?", "Question 2?"]
    assert table["reference"].tolist()[0] == "answer 1"
    assert table["gain"].isna().all()


def test_one_run_at_two_steps_and_the_number_of_questions(two_runs):
    am, _ = two_runs
    table = stored_cases(refer(f"{am.path}@0", f"{am.path}@30"), HELD_OUT, 1).frames["cases"]
    assert table[["example", "run", "trace"]].values.tolist() == [[0, "am@0", "am starts 0"], [0, "am@30", "am ends 0"]]


def test_training_traces_have_their_gain(two_runs):
    am, _ = two_runs
    report = stored_cases(refer(am.path), STEP, 1)
    assert report.frames["cases"][["trace", "gain"]].values.tolist() == [["am trains 0", 0.5]]
    assert report.frames["side-by-side"]["what"].tolist() == ["question", "reference", "am (gain +0.50 nats)"]


def test_side_by_side_is_a_row_per_text(two_runs, make_run, row):
    long = make_run("c", "p", traces={"held-out-000001": [row(1, 1, 0, "x" * (SHOWN + 50)), row(1, 2, 0, "")]})
    report = stored_cases(refer(two_runs[1].path, long.path), HELD_OUT, 2)
    rows = report.frames["side-by-side"].values.tolist()
    assert rows[:4] == [
        [1, "question", "Question 1?"],
        [1, "reference", "answer 1"],
        [1, "gm", "gm 1"],
        [1, "p", "x" * SHOWN + f" ... ({SHOWN + 50} characters)"],
    ]
    assert rows[7] == [2, "p", "(empty)"]


def test_what_cannot_be_compared_is_refused(two_runs, make_run, row):
    am, gm = two_runs
    with pytest.raises(StoreError, match="no example has stored traces of all"):
        stored_cases(refer(am.path, gm.path), STEP, 1)
    other = make_run("o", "p", traces={"held-out-000001": [row(1, 1, 0, "t")]}, data="other")
    with pytest.raises(StoreError, match="validation data differ"):
        stored_cases(refer(am.path, other.path), HELD_OUT, 1)
    with pytest.raises(StoreError, match="named twice"):
        stored_cases(refer(am.path, am.path), HELD_OUT, 1)
    with pytest.raises(StoreError, match="'sft' samples no traces"):
        stored_cases(refer(make_run("s", "sft").path), HELD_OUT, 1)


def test_labels_tell_runs_apart(make_run):
    one, two, three = make_run("one", "am"), make_run("two", "am"), make_run("three", "gm")
    assert labels_of(refer(one.path, three.path)) == ["am", "gm"]
    assert labels_of(refer(one.path, two.path)) == ["one", "two"]
    assert labels_of(refer(f"{one.path}@1-3", f"{one.path}@9", three.path)) == ["am@1-3", "am@9", "gm"]


def test_questions_to_ask_come_from_the_first_run_with_traces(two_runs, make_run):
    sft = make_run("s", "sft")
    assert stored_questions(refer(sft.path, two_runs[1].path), 2, HELD_OUT) == ["Question 1?", "Question 2?"]
    with pytest.raises(StoreError, match="--question"):
        stored_questions(refer(sft.path), 1, HELD_OUT)


def test_generated_cases_show_trace_and_answer():
    rows = [
        {"question": "q", "run": "sft", "trace": None, "answer": "4", "cut": ""},
        {"question": "q", "run": "am", "trace": "", "answer": "5", "cut": "answer"},
    ]
    report = generated_cases(rows, "greedy")
    assert report.notes == ("greedy",)
    assert report.frames["side-by-side"].values.tolist() == [
        [1, "question", "q"],
        [1, "sft: trace", "(does not think)"],
        [1, "sft: answer", "4"],
        [1, "am: trace", "(empty)"],
        [1, "am: answer, cut at the cap", "5"],
    ]
    assert report.record()["tables"]["cases"][0]["trace"] is None
