"""`--backend olmes`: against a stand-in that is started, refuses and writes as OLMES does."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nrt_cli import config as configs
from nrt_cli.config.suite import select
from nrt_cli.errors import EvalError
from nrt_cli.evaluation import olmes
from nrt_cli.evaluation.evaluate import evaluate
from nrt_cli.evaluation.importing import import_results
from nrt_cli.evaluation.olmes import olmes_commands
from nrt_cli.evaluation.session import Job, Session
from nrt_cli.progress import EvalProgress
from nrt_cli.store.evals import Evaluation, find_evaluations

STAND_IN = Path(__file__).parent / "olmes_stand_in"
(GSM8K,) = select(["gsm8k"])


@pytest.fixture
def interpreter(tmp_path):
    """A Python in which OLMES's stand-in is installed."""
    path = tmp_path / "olmes-python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={STAND_IN} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def settings(interpreter):
    return configs.load(None, [f"eval.olmes.python={interpreter}"])


def job(model, out, **changes):
    return Job(str(model), ("gsm8k",), **{"backend": "olmes", "limit": 3, "out": out, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "vllm"])
@pytest.mark.parametrize(
    ("budget", "think", "score", "trace_tokens", "forced", "trace", "answer"),
    [
        # Traces of three, three and, where the context of 100 leaves the answer its 20 after a prompt of 7, 73 words;
        # the task's stop string is in them, and ends answers only. Its given beginning comes after the trace.
        ("own", "on", 1, 79 / 3, 1 / 3, "two ; five", "It is 7"),
        # To the letter: the stop string ends what is one text, so nothing is ever answered.
        ("shared", "on", 0, (1 + 1 + 20) / 3, 1, "two", ""),
        # Where it does not think, two of three are right.
        ("own", "off", 2 / 3, math.nan, math.nan, "", "It is 7"),
    ],
)
def test_olmes_learns_our_think_tokens(
    engine, budget, think, score, trace_tokens, forced, trace, answer, tiny_model_dir, tmp_path, interpreter
):
    settings = configs.load(None, [f"eval.olmes.python={interpreter}", f"eval.olmes.trace_budget={budget}"])
    outcome = evaluate(job(tiny_model_dir, tmp_path / "out", engine=engine, think=think), settings, EvalProgress())
    (row,) = outcome["benchmarks"]
    assert row["failed"] is None
    assert (row["score"], row["trace_tokens"], row["forced_share"]) == pytest.approx(
        (score, trace_tokens, forced), nan_ok=True
    )
    assert row["truncated_share"] == pytest.approx((1 / 3) * (budget == "shared"))
    first, *_ = sorted(Evaluation(Path(row["folder"])).documents().values(), key=lambda document: document.id)
    assert first.messages == ({"role": "user", "content": "What is 0 + 7?"},)
    assert (first.replies[0].trace.strip(), first.replies[0].answer.strip()) == (trace, answer)


@pytest.mark.slow
def test_a_study_is_evaluated_by_olmes(nrt, interpreter):
    small = (
        "model.pretrain.steps=4",
        "data.sources=['generated:digits?size=300']",
        "data.validation=4",
        f"run={{train: {{steps: 2}}, eval: {{olmes: {{python: {interpreter}}}}}}}",
        "methods=[sft]",
        "variants={}",
        "seeds=[0]",
        "eval={benchmarks: [gsm8k], limit: 3, backend: olmes}",
        "analysis={tokens: 0, questions: 0}",
    )
    done = nrt("reproduce", "laptop", "--out", "study", *(part for text in small for part in ("--set", text)))
    assert done.code == 0, done.err
    for place in ("evals/base", "runs/sft-s0/evals/export"):
        (evaluation,) = find_evaluations(nrt.folder / "study" / place)
        assert (evaluation.scores()["backend"], evaluation.scores()["n"]) == ("olmes", 3)
    asked = nrt("reproduce", "laptop", "--dry-run", *(part for text in small for part in ("--set", text)))
    assert "--backend olmes" in asked.out


@pytest.mark.slow
def test_what_is_there_is_not_run_again_and_a_changed_setting_is(tiny_model_dir, tmp_path, settings, monkeypatch):
    out = tmp_path / "out"
    first = evaluate(job(tiny_model_dir, out), settings, EvalProgress())
    with monkeypatch.context() as patch:
        patch.setattr(olmes, "run", lambda *_: pytest.fail("it ran again"))
        second = evaluate(job(tiny_model_dir, out), settings, EvalProgress())
    assert second["benchmarks"][0]["cached"] == 3
    assert second["benchmarks"][0]["score"] == first["benchmarks"][0]["score"]
    runs = []
    monkeypatch.setattr(olmes, "run", lambda arguments, output: runs.append(output))
    for changed, how in ((settings, {"think": "off"}), (settings, {"limit": 2}), (settings, {"engine": "vllm"})):
        evaluate(job(tiny_model_dir, out, **how), changed, EvalProgress())
    shorter = configs.load(None, [f"eval.olmes.python={settings.eval.olmes.python}", "eval.olmes.max_length=64"])
    evaluate(job(tiny_model_dir, out), shorter, EvalProgress())
    assert len(set(runs)) == 4


@pytest.mark.slow
def test_the_printed_command_is_the_one_that_runs(tiny_model_dir, tmp_path, settings, monkeypatch):
    session = Session(job(tiny_model_dir, tmp_path / "out"), settings, EvalProgress())
    (command,) = olmes_commands(session).values()
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(olmes, "run", lambda *_: pytest.fail("what was run by hand is run again"))
    assert evaluate(session.job, settings, EvalProgress())["benchmarks"][0]["score"] == 1


@pytest.mark.slow
def test_fewer_documents_than_the_suite_has_are_no_score(tiny_model_dir, tmp_path, settings):
    outcome = evaluate(job(tiny_model_dir, tmp_path / "out", limit=None), settings, EvalProgress())
    # Without a limit, the stand-in scores three documents where the suite knows of 1319.
    assert "OLMES scored 3 documents of gsm8k, not 1319" in outcome["benchmarks"][0]["failed"]


@pytest.mark.slow
def test_what_olmes_says_last_is_told(tmp_path):
    with pytest.raises(EvalError, match=r"exit code 3 \(ValueError: no such task\); its log is"):
        olmes.run(["sh", "-c", "echo working; echo 'ValueError: no such task' >&2; exit 3"], tmp_path / "out")
    assert "working" in (tmp_path / "out" / olmes.LOG).read_text()


def test_no_interpreter_is_one_sentence():
    with pytest.raises(EvalError, match=r"needs OLMES: install OLMES .* eval\.olmes\.python"):
        olmes.versions(configs.load().eval.olmes)
    with pytest.raises(EvalError, match="cannot be run"):
        olmes.versions(configs.load(None, ["eval.olmes.python=/nowhere/python"]).eval.olmes)


@pytest.mark.slow
def test_the_commit_is_that_of_olmess_own_checkout(tmp_path):
    checkout = shutil.copytree(STAND_IN, tmp_path / "olmes")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={checkout} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    section = configs.load(None, [f"eval.olmes.python={python}"]).eval.olmes
    assert olmes.versions(section)["olmes commit"] is None
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x@x.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert olmes.versions(section)["olmes commit"] == head


@pytest.mark.slow
def test_doctor_says_what_an_environment_lacks(nrt, interpreter):
    there = ("--set", f"eval.olmes.python={interpreter}", "--set", "eval.olmes.gpus=99")
    asked = nrt("doctor", "--olmes", *there, "--json")
    assert asked.code == 1
    said = [finding["found"] for finding in json.loads(asked.out)["findings"]]
    # The stand-in imports `nowhere`, and has two of OLMES's tasks.
    assert "its imports need modules that are not there: nowhere" in said
    assert any(text.startswith("it knows no bbh:cot-v1::tulu, drop:0shot-chat::olmes, popqa::tulu") for text in said)
    assert any(text.startswith("eval.olmes.gpus=99, and torch there sees") for text in said)
    refused = nrt("doctor", "--olmes", "--forecast")
    assert (refused.code, "--forecast has no effect with --olmes" in refused.err) == (2, True)


@pytest.mark.slow
def test_olmes_ends_with_what_started_it(tmp_path):
    """A killed `nrt` leaves no OLMES behind, which would go on in the dark."""
    fifo, package = tmp_path / "fifo", tmp_path / "oe_eval"
    os.mkfifo(fifo)
    package.mkdir()
    (package / "launch.py").write_text(
        "import time\ndef make_cli_command(*_): ...\n"
        f"def main():\n    print('begun', file=open({str(fifo)!r}, 'w', 1))\n    time.sleep(600)\n"
    )
    script = f"olmes.run([{sys.executable!r}, str(olmes.WRAPPER)], olmes.Path({str(tmp_path)!r}))"
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", f"from nrt_cli.evaluation import olmes; {script}"]
    with subprocess.Popen(command, env=os.environ | path) as nrt, fifo.open() as said:
        assert said.readline() == "begun\n"
        nrt.kill()
        assert said.read() == ""  # whoever could write is gone


@pytest.mark.slow
def test_an_interpreter_without_olmes_says_so():
    section = configs.load(None, [f"eval.olmes.python={sys.executable}"]).eval.olmes
    with pytest.raises(EvalError, match=r"has no OLMES .*oe_eval"):
        olmes.versions(section)


# --- the command


def test_the_whole_benchmark_is_its_alias(tiny_model_dir, tmp_path):
    asked = job(tiny_model_dir, tmp_path, limit=None, think="off")
    (command,) = olmes_commands(Session(asked, configs.load(None, ["eval.seed=3"]), EvalProgress())).values()
    arguments = shlex.split(command)
    at = arguments.index("--task")
    assert arguments[at + 1 : at + 4] == ["gsm8k::zs_cot", "--random-subsample-seed", "1237"]
    assert json.loads(arguments[arguments.index("--model-args") + 1])["max_length"] == 512


def test_a_limit_is_of_the_benchmark_not_of_each_subset():
    (mmlu,) = select(["mmlu"])
    seed, names = olmes.tasks(mmlu, 60, 0)
    chosen = [json.loads(task) for task in names]
    assert (seed, len(chosen), sum(task["limit"] for task in chosen)) == (1234, 57, 60)
    alias = "mmlu_abstract_algebra:0shot_cot::tulu3"
    assert chosen[0] == {"task_name": alias, "limit": 1, "metadata": {"alias": alias}}
    assert len(olmes.tasks(mmlu, 8, 0)[1]) == 8
    (drop,) = select(["drop"])
    assert json.loads(olmes.tasks(drop, 5000, 7)[1][0])["limit"] == 1000
    assert olmes.tasks(drop, 5000, 7)[0] == 1234  # which thousand is no matter of the seed


@pytest.mark.parametrize("name", ["lr=1e-5", "a b", "a,b"])
def test_paths_that_olmes_would_misread_are_refused(name, tiny_model_dir):
    with pytest.raises(EvalError, match="move or rename the folder"):
        olmes_commands(Session(job(tiny_model_dir, Path(name)), configs.load(), EvalProgress()))


def test_an_empty_trace_cannot_be_forbidden(tiny_model_dir, tmp_path):
    with pytest.raises(EvalError, match="--think forced"):
        olmes_commands(Session(job(tiny_model_dir, tmp_path, think="forced"), configs.load(), EvalProgress()))


# --- output directories


def layout(folder, tasks, suite="mmlu:0shot_cot::tulu3"):
    """OLMES's files for `tasks`: (alias, scores of its documents, changes of its config)."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [{"task_name": suite, "task_idx": None, "num_instances": 99, "metrics": {"primary_score": 0.123}}]
    for index, (alias, scores, changes) in enumerate(tasks):
        name = alias.partition("::")[0]
        generation = {"max_gen_toks": 2048, "temperature": 0.0, "repeats": 1}
        config = {"num_shots": 0, "primary_metric": "exact_match", "generation_kwargs": generation, **changes}
        config["metadata"] = {"alias": alias}
        records.append(
            {
                "task_name": name,
                "task_idx": index,
                "num_instances": len(scores),
                "model_config": {"model": "m"},
                "task_config": config,
                "metrics": {"primary_score": sum(scores) / max(1, len(scores))},
            }
        )
        rows = [
            {
                "doc_id": i,
                "native_id": i,
                "label": "A",
                "metrics": {"exact_match": score, "predicted": "A"},
                "model_output": [{"continuation": "(A)", "num_tokens": 5, "model_answer": "A"}],
            }
            for i, score in enumerate(scores)
        ]
        file = folder / f"task-{index:03d}-{name}-predictions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / olmes.METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / olmes.DONE).write_text("{}")
    return folder


MMLU = [("mmlu_anatomy:0shot_cot::tulu3", [1.0, 0.0], {}), ("mmlu_virology:0shot_cot::tulu3", [1.0] * 4, {})]


def test_subsets_are_put_together_and_suites_passed_over(tmp_path):
    (mmlu,) = select(["mmlu"])
    output = olmes.read_output(layout(tmp_path, MMLU), mmlu, 6)
    # macro: (1/2 + 4/4) / 2
    assert output.score == pytest.approx(0.75)
    assert [document.subset for document in output.documents] == ["anatomy"] * 2 + ["virology"] * 4
    assert output.documents[0].scores == {"exact_match": 1.0}
    assert output.documents[0].extracted == ("A",)
    assert output.differences == []


def test_of_another_benchmark_there_is_nothing(tmp_path):
    assert olmes.read_output(layout(tmp_path, MMLU), GSM8K, None) is None


def test_other_settings_than_the_suites_are_named(tmp_path):
    changed = {"num_shots": 8, "generation_kwargs": {"max_gen_toks": 512, "temperature": 0.7, "repeats": 1}}
    output = olmes.read_output(layout(tmp_path, [("gsm8k::tulu", [1.0], changed)]), GSM8K, 1)
    assert output.differences == [
        "task gsm8k::tulu, in the suite gsm8k::zs_cot",
        "num_shots 8, in the suite 0",
        "max_gen_toks 512, in the suite 131072",
        "temperature 0.7, in the suite 0.0",
    ]


def test_documents_that_are_missing_are_noticed(tmp_path):
    (mmlu,) = select(["mmlu"])
    folder = layout(tmp_path / "a", MMLU)
    with pytest.raises(EvalError, match="OLMES scored 6 documents of mmlu, not 14042"):
        olmes.read_output(folder, mmlu, 14042)
    file = folder / "task-001-mmlu_virology:0shot_cot-predictions.jsonl"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    with pytest.raises(EvalError, match="3 predictions of mmlu for 6 documents"):
        olmes.read_output(folder, mmlu, None)
    file.unlink()
    with pytest.raises(EvalError, match="0 files of predictions"):
        olmes.read_output(folder, mmlu, None)
    (folder / olmes.METRICS).write_text("{")
    with pytest.raises(EvalError, match=r"jsonl:\d+: not valid JSON"):
        olmes.read_output(folder, mmlu, None)


def test_an_output_directory_is_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout(tmp_path / "theirs", [*MMLU, ("gsm8k::tulu", [1.0, 0.0], {})])
    said = []
    outcome = import_results(Path("theirs"), None, None, said.append)
    assert outcome["results"] == "evals/theirs"
    assert {row["benchmark"]: row["score"] for row in outcome["benchmarks"]} == {"mmlu": 0.75, "gsm8k": 0.5}
    assert outcome["backend"] == "olmes"
    assert [(row["grading"], row["olmes_score"]) for row in outcome["benchmarks"]] == [("olmes", 0.75), ("olmes", 0.5)]
    assert said == [
        "gsm8k: task gsm8k::tulu, in the suite gsm8k::zs_cot",
        "gsm8k: max_gen_toks 2048, in the suite 131072",
    ]
    again = import_results(Path("theirs"), None, None, said.append)
    folder = Path(again["benchmarks"][0]["folder"])
    assert len((folder / "documents.jsonl").read_text().splitlines()) == 6
    with pytest.raises(EvalError, match="no results of OLMES"):
        import_results(tmp_path, None, None, said.append)


@pytest.mark.slow
def test_the_commands(nrt, tiny_model_dir):
    printed = nrt("eval", "--model", tiny_model_dir, "--print-olmes", "--benchmarks", "gsm8k,mmlu")
    assert printed.code == 0, printed.err
    first, second = map(shlex.split, printed.out.splitlines())
    taught = json.loads(first[first.index("--model-args") + 1])["custom_kwargs"]["nrt"]
    marks = {"start": "<|think_start|>", "end": "<|think_end|>", "stops": ["<eos>"]}
    assert taught == {**marks, "trace_tokens": 2048, "thinks": True}
    assert "mmlu:0shot_cot::tulu3" in first
    assert "gsm8k::zs_cot" in second
    layout(nrt.folder / "theirs", [("gsm8k::zs_cot", [1.0, 0.0], {})])
    shown = nrt("eval", "import", "theirs")
    assert shown.code == 0, shown.err
    assert "50.0 ± 50.0" in shown.out
    refused = nrt("eval", "--model", tiny_model_dir, "--backend", "olmes", "--limit", 1)
    assert refused.code == 1
    assert "--backend olmes needs OLMES" in refused.err


def test_what_lm_eval_does_not_tell_is_not_measured(tmp_path):
    config = {"configs": {"gsm8k": {"num_fewshot": 0}}, "results": {"gsm8k": {"exact_match,none": 1.0}}}
    row = {"doc_id": 0, "target": "4", "resps": [["4"]], "filtered_resps": ["4"], "filter": "none"}
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "results_1.json").write_text(json.dumps(config))
    (theirs / "samples_gsm8k_1.jsonl").write_text(json.dumps(row | {"metrics": ["exact_match"], "exact_match": 1.0}))
    (found,) = import_results(theirs, None, tmp_path / "out", print)["benchmarks"]
    assert (found["score"], found["n"], found["backend"]) == (1.0, 1, "lm-eval")
    for key in ("truncated_share", "answer_tokens", "trace_tokens", "forced_share"):
        assert math.isnan(found[key])
