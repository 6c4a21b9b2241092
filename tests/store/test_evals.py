"""The store of evaluations: what was answered is kept line by line, and never meets another setting."""

import json
import math
from dataclasses import replace

import pytest

from nrt_cli.errors import StoreError
from nrt_cli.records import Document, Reply
from nrt_cli.store.evals import DOCUMENTS, SETTINGS, Evaluation, document_hash, find_evaluations, settings_hash

ASKED = Document("gsm8k", "", "17", ({"role": "user", "content": "2 + 2?"},), "4")
ANSWERED = replace(
    ASKED,
    replies=(Reply("so 4", "It is 4.", 3, 4, "end", False), Reply("", "\ud55c\x1b[0m", 0, 9, "cap", True)),
    extracted=("4", None),
    scores={"exact_match": 1.0, "flexible": math.nan},
)


def test_a_document_comes_back_as_it_was(tmp_path):
    evaluation = Evaluation.create(tmp_path, "gsm8k", {"model": "m"}, {})
    evaluation.append(ANSWERED)
    (found,) = evaluation.documents().values()
    assert math.isnan(found.scores["flexible"])
    assert replace(found, scores={}) == replace(ANSWERED, scores={})
    assert found.scores["exact_match"] == 1.0
    line = (evaluation.path / DOCUMENTS).read_text()
    assert "NaN" not in line
    assert json.loads(line)["scores"]["flexible"] is None


def test_an_answered_document_is_found_by_its_question():
    assert document_hash(ANSWERED) == document_hash(ASKED)


@pytest.mark.parametrize(
    "changes", [{"gold": "5"}, {"subset": "b"}, {"id": "18"}, {"messages": ({"role": "user", "content": "2 + 3?"},)}]
)
def test_changed_data_is_another_document(changes):
    assert document_hash(replace(ASKED, **changes)) != document_hash(ASKED)


def test_settings_decide_the_folder_in_any_order(tmp_path):
    one = Evaluation.create(tmp_path, "gsm8k", {"a": 1, "b": {"c": 2, "d": 3}}, {})
    same = Evaluation.create(tmp_path, "gsm8k", {"b": {"d": 3, "c": 2}, "a": 1}, {"model": "named"})
    other = Evaluation.create(tmp_path, "gsm8k", {"a": 1, "b": {"c": 2, "d": 4}}, {})
    assert one.path == same.path != other.path
    assert one.path.name.endswith(settings_hash({"a": 1, "b": {"c": 2, "d": 3}})[:12])
    one.append(ANSWERED)
    assert len(same.documents()) == 1
    assert other.documents() == {}


def test_a_line_cut_by_a_crash_costs_that_line_only(tmp_path):
    evaluation = Evaluation.create(tmp_path, "gsm8k", {}, {})
    evaluation.append(ANSWERED)
    file = evaluation.path / DOCUMENTS
    file.write_bytes(file.read_bytes() + b'{"hash": "x", "bench')
    evaluation.append(replace(ANSWERED, id="18"))
    assert {document.id for document in evaluation.documents().values()} == {"17", "18"}


def test_of_one_answered_twice_the_last_counts(tmp_path):
    evaluation = Evaluation.create(tmp_path, "gsm8k", {}, {})
    evaluation.append(ANSWERED)
    evaluation.append(replace(ANSWERED, extracted=("5", "6")))
    (found,) = evaluation.documents().values()
    assert found.extracted == ("5", "6")


def test_scores_are_there_once_it_is_finished(tmp_path):
    evaluation = Evaluation.create(tmp_path, "gsm8k", {}, {"model": {"name": "m"}})
    assert evaluation.scores() is None
    assert find_evaluations(tmp_path) == []
    evaluation.write_scores({"score": 0.5, "error": math.nan})
    scores = evaluation.scores()
    assert scores["score"] == 0.5
    assert math.isnan(scores["error"])
    (found,) = find_evaluations(tmp_path)
    assert found.about()["model"] == {"name": "m"}
    assert found.about()["benchmark"] == "gsm8k"


def test_one_writer_at_a_time(tmp_path):
    evaluation = Evaluation.create(tmp_path, "gsm8k", {}, {})
    refused = pytest.raises(StoreError, match="another process is evaluating this")
    with evaluation.writing(), refused, Evaluation(evaluation.path).writing():
        pass
    with evaluation.writing():
        pass


def test_what_is_no_evaluation_says_so(tmp_path):
    evaluation = Evaluation.create(tmp_path, "gsm8k", {}, {})
    (evaluation.path / SETTINGS).write_text("[]")
    with pytest.raises(StoreError, match=r"settings\.json: is damaged"):
        evaluation.about()
