"""`nrt eval`: every answer is kept as it comes, asked once, and never shared between settings."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest

from nrt_cli import config as configs
from nrt_cli.backends.reasoning import Reasoner
from nrt_cli.errors import ConfigError, DataError, Interrupted, ModelError
from nrt_cli.evaluation.benchmark import Benchmark
from nrt_cli.evaluation.comparison import compare
from nrt_cli.evaluation.evaluate import evaluate
from nrt_cli.evaluation.session import Job
from nrt_cli.files import read_record
from nrt_cli.progress import EvalProgress
from nrt_cli.store.evals import DOCUMENTS, Evaluation, find_evaluations

CAPS = ("eval.max_trace_tokens=4", "eval.max_answer_tokens=6", "model.dtype=float32", "model.device=cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Local rows of GSM8K: sums of our own, in its schema."""
    folder = tmp_path_factory.mktemp("eval-data")
    (folder / "gsm8k").mkdir()
    chance = random.Random(0)
    rows = []
    for _ in range(12):
        a, b = chance.randrange(9), chance.randrange(9)
        rows.append({"question": f"What is {a} plus {b}?", "answer": f"{a} plus {b}.\n#### {a + b}"})
    (folder / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def settings(data):
    def make(*overrides):
        return configs.load(None, [f"eval.data_dir={data}", *CAPS, *overrides])

    return make


@pytest.fixture
def job(tiny_model_dir, tmp_path):
    def make(*names, **changes):
        return Job(str(tiny_model_dir), names or ("gsm8k",), **{"limit": 5, "out": tmp_path / "out", **changes})

    return make


class Watch(EvalProgress):
    """Counts what is asked; stops the work after some documents."""

    def __init__(self, stop_after=None):
        self.asked, self.said, self.stop_after = 0, [], stop_after

    def advance(self):
        super().advance()
        self.asked += 1
        if self.asked == self.stop_after:
            raise KeyboardInterrupt

    def note(self, message):
        self.said.append(message)

    warn = note


@pytest.fixture
def right(monkeypatch):
    """A model that answers some questions right: replies by question, the rest is real."""

    def answers(share, form="So the answer is {}."):
        run = Reasoner.run

        def improved(self, requests):
            for request, reply in run(self, requests):
                question = self.tokenizer.decode(request.prompt_ids)
                a, b = (int(word.strip("?")) for word in question.split() if word.strip("?").isdigit())
                number = a + b if (a * 9 + b) % 10 < 10 * share else -1
                yield request, type(reply)(**{**reply.__dict__, "answer": form.format(number)})

        monkeypatch.setattr(Reasoner, "run", improved)

    return answers


def documents(row):
    found = Evaluation(Path(row["folder"])).documents().values()
    return {document.id: document for document in found}


def test_answers_are_stored_and_scored(job, settings):
    watch = Watch()
    outcome = evaluate(job(), settings(), watch)
    (row,) = outcome["benchmarks"]
    assert (row["failed"], row["n"], row["cached"], watch.asked) == (None, 5, 0, 5)
    answered = documents(row)
    assert len(answered) == 5
    scores = [document.scores["exact_match"] for document in answered.values()]
    assert row["score"] == sum(scores) / 5
    replies = [document.replies[0] for document in answered.values()]
    assert row["trace_tokens"] == sum(reply.trace_tokens for reply in replies) / 5
    assert row["forced_share"] == sum(reply.stop != "end" for reply in replies) / 5
    assert row["truncated_share"] == sum(reply.cut for reply in replies) / 5
    assert max(reply.trace_tokens for reply in replies) <= 4
    document = next(iter(answered.values()))
    assert "What is" in document.messages[-1]["content"]
    # One of nine is no overall score.
    assert math.isnan(outcome["overall"]["score"])
    assert outcome["overall"]["missing"] == [
        "mmlu", "bbh", "drop", "popqa", "truthfulqa", "math", "humaneval", "ifeval"
    ]  # fmt: skip


def test_the_second_time_nothing_is_asked(job, settings, monkeypatch):
    first = evaluate(job(), settings(), Watch())
    monkeypatch.setattr(Reasoner, "run", lambda *_: pytest.fail("the model was asked again"))
    watch = Watch()
    second = evaluate(job(), settings(), watch)
    assert watch.asked == 0
    assert second["benchmarks"][0]["cached"] == 5
    for key in ("score", "error", "trace_tokens", "metrics"):
        assert second["benchmarks"][0][key] == first["benchmarks"][0][key]


def test_both_gradings_are_stored_and_one_is_shown(job, settings, right):
    right(1, "{}.0")  # a right number, which OLMES compares as text
    outcome = evaluate(job(), settings(), Watch())
    results, (strict,) = outcome["results"], outcome["benchmarks"]
    assert (strict["grading"], strict["score"], strict["olmes_score"], strict["cached"]) == ("strict", 1, 0, 0)
    assert compare(results, results)["benchmarks"][0]["a"] == 1
    shown = evaluate(job(), settings("eval.grading=olmes"), Watch())["benchmarks"][0]
    assert (shown["grading"], shown["score"], shown["strict_score"], shown["cached"]) == ("olmes", 0, 1, 5)
    assert shown["metrics"] == {"exact_match": 1}
    assert compare(results, results)["benchmarks"][0]["a"] == 0


def test_the_same_documents_for_every_model_and_another_seed_takes_others(job, settings):
    asked = [({}, ()), ({"think": "off"}, ()), ({}, ("eval.seed=1",))]
    ids = [set(documents(evaluate(job(**c), settings(*s), Watch())["benchmarks"][0])) for c, s in asked]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("change", "override"),
    [
        ({"think": "off"}, ()),
        ({"think": "forced"}, ()),
        ({}, ("eval.max_trace_tokens=3",)),
        ({}, ("eval.max_answer_tokens=3",)),
        ({}, ("eval.seed=1",)),
        ({}, ("model.dtype=bfloat16",)),
        ({"limit": 4}, ()),
    ],
)
def test_a_changed_setting_never_meets_an_old_answer(change, override, job, settings):
    evaluate(job(), settings(), Watch())
    watch = Watch()
    row = evaluate(job(**change), settings(*override), watch)["benchmarks"][0]
    assert (row["cached"], watch.asked) == (0, row["n"])


def test_another_model_and_changed_data_are_asked_anew(job, settings, tiny_model_dir, tmp_path, data):
    evaluate(job(), settings(), Watch())
    other = shutil.copytree(tiny_model_dir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    about = read_record(other / "nrt.json")
    (other / "nrt.json").write_text(json.dumps(about | {"files": {}, "fingerprint": None}))
    watch = Watch()
    evaluate(Job(str(other), ("gsm8k",), limit=5, out=tmp_path / "out"), settings(), watch)
    assert watch.asked == 5
    changed = shutil.copytree(data, tmp_path / "data")
    file = changed / "gsm8k" / "test.jsonl"
    file.write_text(file.read_text().replace("What is", "How much is"))
    watch = Watch()
    row = evaluate(job(), settings(f"eval.data_dir={changed}"), watch)["benchmarks"][0]
    assert (watch.asked, row["n"], row["cached"]) == (5, 5, 0)


def test_what_does_not_change_answers_does_not_ask_again(job, settings):
    first = evaluate(job(limit=None), settings(), Watch())["benchmarks"][0]
    watch = Watch()
    evaluate(job(limit=None), settings("eval.batch_rows=3"), watch)
    assert (first["n"], watch.asked) == (12, 0)


def test_an_interrupted_evaluation_goes_on(job, settings, tmp_path):
    whole = evaluate(job(out=tmp_path / "whole"), settings(), Watch())["benchmarks"][0]
    with pytest.raises(Interrupted, match="the same command goes on"):
        evaluate(job(), settings(), Watch(stop_after=2))
    assert find_evaluations(tmp_path / "out") == []
    (file,) = (tmp_path / "out").glob(f"*/{DOCUMENTS}")
    assert len(file.read_text().splitlines()) == 2
    watch = Watch()
    rest = evaluate(job(), settings(), watch)["benchmarks"][0]
    assert (watch.asked, rest["cached"]) == (3, 2)
    assert documents(rest) == documents(whole)


def test_one_that_cannot_run_or_fails_midway_does_not_lose_the_others(job, settings, data, tmp_path, monkeypatch):
    more = shutil.copytree(data, tmp_path / "data")
    (more / "popqa").mkdir()
    row = {"id": 1, "question": "Who?", "possible_answers": '["me"]', "subj": "x", "prop": "y", "obj": "z"}
    (more / "popqa" / "test.jsonl").write_text(json.dumps(row) + "\n")
    grade = Benchmark.grade

    def failing(self, document, replies):
        if self.name == "popqa":
            raise ZeroDivisionError("graders are programs")
        return grade(self, document, replies)

    monkeypatch.setattr(Benchmark, "grade", failing)
    watch = Watch()
    drop, popqa, gsm8k = evaluate(job("gsm8k,popqa", "drop"), settings(f"eval.data_dir={more}"), watch)["benchmarks"]
    assert (gsm8k["failed"], gsm8k["n"]) == (None, 5)
    assert "drop" in drop["failed"]
    assert math.isnan(drop["score"])
    assert watch.said[0].startswith("drop cannot run: ")
    assert popqa["failed"] == "ZeroDivisionError: graders are programs"


def test_problems_are_told_before_a_model_is_loaded(job, settings, tmp_path, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(Reasoner, "run", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=r"'gsm9k' is unknown .did you mean 'gsm8k'"):
        evaluate(job("gsm9k"), settings(), Watch())
    with pytest.raises(DataError, match="drop"):
        evaluate(job("drop"), settings(), Watch())
    plain = shutil.copytree(tiny_model_dir, tmp_path / "plain")
    (plain / "nrt.json").unlink()
    with pytest.raises(ModelError, match="nrt model prepare"):
        evaluate(Job(str(plain), ("gsm8k",)), settings(), Watch())


def test_a_runs_results_are_in_the_run(shared_run, tmp_path, settings):
    shutil.copytree(shared_run("method=sft", "train.steps=2").path, tmp_path / "run")
    export = evaluate(Job(f"{tmp_path}/run", ("gsm8k",), limit=2), settings(), Watch())
    assert Path(export["results"]) == tmp_path / "run" / "evals" / "export"
    # SFT models answer directly.
    assert math.isnan(export["benchmarks"][0]["trace_tokens"])
    step = evaluate(Job(f"{tmp_path}/run@1", ("gsm8k",), limit=2), settings(), Watch())
    assert Path(step["results"]) == tmp_path / "run" / "evals" / "step-000001"
    forced = evaluate(Job(f"{tmp_path}/run", ("gsm8k",), limit=2, think="forced"), settings(), Watch())
    assert forced["benchmarks"][0]["trace_tokens"] >= 1


# --- comparison


def test_two_models_on_the_same_documents(job, settings, tmp_path, right):
    outs = [tmp_path / name for name in ("a", "b")]
    for out, share in zip(outs, (0.3, 0.8), strict=True):
        right(share)
        evaluate(job(limit=None, out=out), settings(), Watch())
    found = compare(*map(str, outs))
    (row,) = found["benchmarks"]
    assert row["n"] == 12
    assert row["difference"] == pytest.approx(row["b"] - row["a"])
    assert row["difference"] > 0
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["differing"] == []
    assert found["mean"]["difference"] == pytest.approx(row["difference"])
    assert "bbh" in found["mean"]["missing"]
    other_way = compare(*map(str, outs[::-1]))["benchmarks"][0]
    assert (other_way["difference"], other_way["low"]) == pytest.approx((-row["difference"], -row["high"]), abs=0.1)


def test_documents_that_only_one_has_are_counted_and_settings_named(job, settings, tmp_path):
    evaluate(job(limit=4, out=tmp_path / "a"), settings(), Watch())
    evaluate(job(limit=9, out=tmp_path / "b"), settings("eval.max_trace_tokens=3"), Watch())
    row = compare(f"{tmp_path}/a", f"{tmp_path}/b")["benchmarks"][0]
    assert (row["n"], row["unpaired"]) == (4, 5)
    assert row["differing"] == ["limit", "max_trace_tokens"]


def test_of_several_evaluations_the_most_alike_are_compared(job, settings, tmp_path):
    evaluate(job(out=tmp_path / "a"), settings(), Watch())
    for override in ("eval.max_trace_tokens=4", "eval.max_trace_tokens=2"):
        evaluate(job(out=tmp_path / "b"), settings(override), Watch())
    assert compare(f"{tmp_path}/a", f"{tmp_path}/b")["benchmarks"][0]["differing"] == []


@pytest.mark.full
def test_the_commands(nrt, tiny_model_dir, data):
    shutil.copytree(tiny_model_dir, nrt.folder / "tiny [red]model")
    asked = ["eval", "--model", "tiny [red]model", "--benchmarks", "gsm8k", "--limit", 4]
    asked += [part for value in (f"eval.data_dir={data}", *CAPS) for part in ("--set", value)]
    ended = nrt(*asked)
    assert ended.code == 0, ended.err
    assert "GSM8K" in ended.out
    assert "tiny [red]model, lm-eval, 4 documents of each" in ended.out
    assert "0 of 4 documents were there already" in " ".join(ended.out.split())
    again = nrt(*asked, "--json")
    record = json.loads(again.out)
    assert record["benchmarks"][0]["cached"] == 4
    assert record["overall"]["score"] is None
    compared = nrt("eval", "compare", "tiny [red]model", "evals/tiny [red]model", "--json")
    assert json.loads(compared.out)["benchmarks"][0]["difference"] == 0.0
    assert "+0.0" in nrt("eval", "compare", "tiny [red]model", "evals/tiny [red]model").out
    failed = nrt(*(word if word != "gsm8k" else "gsm8k,drop" for word in asked))
    assert failed.code == 1
    assert "DROP has no score" in failed.out
    assert "GSM8K" in failed.out
    nothing = nrt("eval", "compare", "tiny [red]model", "nowhere")
    assert nothing.code == 1
    assert "make them with `nrt eval --model nowhere`" in nothing.err
    assert "--model DIR, RUN" in nrt("eval").err
