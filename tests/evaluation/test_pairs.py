"""`nrt eval --data`: accuracies on a user's own pairs, stored once and compared in pairs."""

import json
import sys
import types
from pathlib import Path

import pytest

from nrt_cli import config as configs
from nrt_cli.backends.reasoning import Reasoner
from nrt_cli.cli import main
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.errors import ConfigError
from nrt_cli.evaluation.comparison import compare
from nrt_cli.evaluation.pairs import evaluate_pairs
from nrt_cli.evaluation.session import Job
from nrt_cli.progress import EvalProgress
from nrt_cli.records import ACCURACIES
from nrt_cli.store.evals import Evaluation

CAPS = ("eval.max_trace_tokens=4", "eval.max_answer_tokens=4", "model.dtype=float32", "model.device=cpu")


def measured(folder, model, file, **job):
    grader = job.pop("grader", None)
    with EvalProgress() as display:
        return evaluate_pairs(Job(str(model), out=folder, **job), configs.load(None, [*CAPS]), display, file, grader)


@pytest.fixture
def file(tiny_data_dir):
    return tiny_data_dir / "validation.parquet"


def test_all_accuracies_and_what_thinking_has_over_the_others(tmp_path, tiny_model_dir, file, monkeypatch):
    found = measured(tmp_path, tiny_model_dir, file)
    keys = [*(f"accuracy_{kind}" for kind in ACCURACIES), *(f"thinking_minus_{kind}" for kind in list(ACCURACIES)[1:])]
    assert [one["key"] for one in found["measures"]] == keys
    assert {one["n"] for one in found["measures"]} == {8}
    assert found["graders"] == ["number"]
    # Asked once: what is stored is not asked again.
    monkeypatch.setattr(Reasoner, "run", lambda *_: pytest.fail("asked again"))
    assert measured(tmp_path, tiny_model_dir, file) == found


def test_a_model_that_answers_directly_has_that_accuracy_alone(tmp_path, tiny_model_dir, file):
    found = measured(tmp_path, tiny_model_dir, file, think="off")
    assert [one["key"] for one in found["measures"]] == ["accuracy_direct"]


def test_a_limit_takes_the_same_pairs_for_every_model(tmp_path, tiny_model_dir, file):
    found = measured(tmp_path, tiny_model_dir, file, limit=3)
    assert {one["n"] for one in found["measures"]} == {3}


def test_two_models_are_compared_pair_by_pair(tmp_path, tiny_model_dir, file, monkeypatch):
    measured(tmp_path / "a", tiny_model_dir, file)
    # The other one is right wherever it thinks for itself.
    answers = {}
    run = Reasoner.run

    def improved(self, requests):
        for request, reply in run(self, requests):
            kind, key = request.key.split()
            yield (
                request,
                (type(reply)(answer=answers[key], trace_ids=reply.trace_ids) if kind == "thinking" else reply),
            )

    from nrt_cli.data.examples import graded_pairs

    answers |= {str(i): pair.answer for i, pair in enumerate(graded_pairs(file, range(8)))}
    monkeypatch.setattr(Reasoner, "run", improved)
    found = measured(tmp_path / "b", tiny_model_dir, file)
    assert found["measures"][0]["value"] == 1
    rows = compare(str(tmp_path / "a"), str(tmp_path / "b"))["benchmarks"]
    assert [row["title"] for row in rows] == [f"validation: {title}" for title in ACCURACIES.values()]
    assert (rows[0]["b"], rows[0]["n"]) == (1, 8)
    assert [row["difference"] for row in rows[1:3]] == [0, 0]


def test_answers_that_no_grader_suits_are_refused_and_one_may_be_named(tmp_path, tiny_model_dir):
    rows = [{"question": f"Why {i}?", "answer": f"Because of this, and of that, and of number {i}."} for i in range(4)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare([str(tmp_path / "qa.jsonl")], tmp_path / "data", Settings())
    file = tmp_path / "data" / "train.parquet"
    with pytest.raises(ConfigError, match="--grader"):
        measured(tmp_path / "out", tiny_model_dir, file)
    assert measured(tmp_path / "out", tiny_model_dir, file, grader="number")["graders"] == ["number"]


def test_a_grader_that_fails_does_so_before_the_model_is_asked(tmp_path, tiny_model_dir, file, monkeypatch):
    (tmp_path / "failing.py").write_text("def grader(row, reply):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Reasoner, "run", lambda *_: pytest.fail("asked"))
    with pytest.raises(ConfigError, match="fails on a reply"):
        measured(tmp_path / "out", tiny_model_dir, file, grader="failing:grader")
    with pytest.raises(ConfigError, match="grader `none`"):
        measured(tmp_path / "out", tiny_model_dir, file, grader="none")


def test_a_grader_that_changed_grades_the_stored_replies_anew(tmp_path, tiny_model_dir, file, monkeypatch):
    module = types.ModuleType("changing")
    monkeypatch.setitem(sys.modules, "changing", module)
    module.grader = lambda row, reply: 0.25
    before = measured(tmp_path, tiny_model_dir, file, grader="changing:grader")
    monkeypatch.setattr(Reasoner, "run", lambda *_: pytest.fail("asked again"))
    module.grader = lambda row, reply: 0.75
    after = measured(tmp_path, tiny_model_dir, file, grader="changing:grader")
    assert [found["measures"][0]["value"] for found in (before, after)] == [0.25, 0.75]
    assert {document.scores["direct"] for document in Evaluation(Path(after["results"])).documents().values()} == {0.75}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grader", "number"], "--grader is for --data"),
        (["--data", "x.parquet", "--benchmarks", "gsm8k"], "drop --benchmarks"),
        (["--data", "missing.parquet"], "no such file"),
        (["--data", "missing.parquet", "--grader", "numbers"], "choose one of number, math"),
    ],
)
def test_what_cannot_be_meant_is_said(arguments, message, tiny_model_dir, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["nrt", "eval", "--model", str(tiny_model_dir), *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code
    assert message in " ".join(capsys.readouterr().err.split())
