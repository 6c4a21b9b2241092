"""`nrt analyze` as typed: files, tables, JSON and refusals."""

import json

import pytest

from nrt_cli.errors import NrtError

HEALTH = {"distinct_ngrams": 0.9, "truncated_share": 0.1}


@pytest.fixture
def runs(make_run, row):
    traces = {"held-out-000001": [row(1, e, 0, f"let us count to {e} [red]x[/red]\x1b[2J") for e in (0, 1)]}
    steps = [HEALTH, {**HEALTH, "entropy": 1.0}]
    return [make_run(name, method, steps, traces) for name, method in (("a", "am"), ("b", "gm"))]


def test_dynamics_writes_into_the_first_run(runs, typed):
    shown = typed("analyze", "dynamics", *(run.path for run in runs), "--window", 1)
    folder = runs[0].path / "analysis" / "dynamics"
    names = {path.name for path in folder.iterdir()}
    assert {"dynamics.csv", "dynamics.json", "dynamics.md", "dynamics.png", "dynamics.pdf"} <= names
    assert "mean of the last 1 steps" in shown
    tables = json.loads((folder / "dynamics.json").read_text())["tables"]
    assert [row["entropy"] for row in tables["dynamics"]] == [2.0, 1.0, 2.0, 1.0]


def test_out_and_json(runs, typed, tmp_path):
    out = tmp_path / "report"
    record = json.loads(typed("analyze", "vocab", runs[0].path, "--held-out", "--out", out, "--json"))
    assert record["analysis"] == "vocab"
    words = {row["word"]: row["in_traces"] for row in record["tables"]["vocab"]}
    assert (words["let"], words["[number]"]) == (2, 4)  # 0, 1, and twice the 2 of the escape sequence
    assert set(record["files"]) == {str(path) for path in out.iterdir()}
    assert not (runs[0].path / "analysis").exists()


def test_stop_words_of_ones_own(runs, typed, tmp_path):
    file = tmp_path / "stop.txt"
    file.write_text("LET\ncount\n")
    record = json.loads(
        typed("analyze", "vocab", runs[0].path, "--held-out", "--stop-words", file, "--out", tmp_path / "o", "--json")
    )
    stopped = {row["word"] for row in record["tables"]["vocab"] if row["stop_word"]}
    assert stopped == {"let", "count"}
    assert not stopped & {row["word"] for row in record["tables"]["changes"]}
    with pytest.raises(NrtError, match="no stop words"):
        typed("analyze", "vocab", runs[0].path, "--stop-words", tmp_path / "none.txt")


def test_cases_show_untrusted_text_as_it_is(runs, typed):
    shown = typed("analyze", "cases", *(run.path for run in runs), "--n", 1)
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown


@pytest.mark.slow
def test_cases_generated_by_models(tiny_model_dir, make_run, row, typed, tmp_path):
    """A run's exported model answers a question now; here the tiny model stands in its place."""
    run = make_run("g", "am")
    (run.path / "export").symlink_to(tiny_model_dir)
    arguments = ("--question", "What is 3 plus 4?", "--max-tokens", 5, "--out", tmp_path / "o", "--json")
    (case,) = json.loads(typed("analyze", "cases", run.path, *arguments))["tables"]["cases"]
    assert (case["question"], case["run"]) == ("What is 3 plus 4?", "am")
    assert case["trace"] or case["answer"]
    again = json.loads(typed("analyze", "cases", run.path, *arguments))["tables"]["cases"]
    assert again == [case]  # greedy


def test_nothing_that_has_no_effect_is_taken(runs, typed):
    with pytest.raises(NrtError, match="no effect"):
        typed("analyze", "cases", runs[0].path, "--max-tokens", 9)
    with pytest.raises(NrtError, match="no effect"):
        typed("analyze", "cases", runs[0].path, "--question", "q", "--n", 9)
