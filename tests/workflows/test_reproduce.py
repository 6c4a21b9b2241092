"""A whole study in small with the real command: its runs, one that fails, its report, and a death in its middle."""

import json
import re
import signal

import pytest
from safetensors.torch import load_file

from nrt_cli.config.study import load_study
from nrt_cli.data import digits
from nrt_cli.errors import ConfigError
from nrt_cli.store import Run
from nrt_cli.store.evals import find_evaluations
from nrt_cli.store.study import Study
from nrt_cli.workflows.study import make_inputs

pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="benchmarks are asked with lm-eval: pip install 'nrt-cli[eval]'")

SMALL = (
    "model.pretrain.steps=4",
    "data.sources=['generated:digits?size=300']",
    "data.validation=4",
    "run={rollout: {max_trace_tokens: 6}, train: {steps: 4, checkpoint_every: 1, validate_every: 2}}",
    "methods=[sft, am, broken]",
    "variants={sft: {train: {batch_size: 16}}, broken: {method: am, data: {max_answer_tokens: 2}}}",
    "seeds=[0]",
    "eval.limit=6",
    "analysis={tokens: 4, questions: 1, judge_max_cost: 1}",
    "analysis.ask=[{question: 'When did he die?', answer: '1852'}, {question: Which is good}]",
)
COMMAND = ("reproduce", "laptop", "--out", "study", *(part for text in SMALL for part in ("--set", text)))
TIMES = re.compile(r"seconds|per_second|mfu")


@pytest.fixture(scope="module")
def straight(nrt_in, tmp_path_factory):
    """The study without interruption: how the command ended, and the study's folder."""
    folder = tmp_path_factory.mktemp("straight")
    return nrt_in(folder)(*COMMAND), folder / "study"


def test_a_failed_run_has_its_reason_and_the_others_their_scores(straight):
    ended, folder = straight
    assert ended.code == 1
    outcomes = Study(folder).outcomes()
    ends = dict.fromkeys(("inputs", "base", "sft-s0", "am-s0"), "finished") | {"broken-s0": "failed"}
    assert {name: outcome.status for name, outcome in outcomes.items()} == ends
    reason = outcomes["broken-s0"].reason
    assert "no pair is within the limits" in reason
    assert reason in " ".join(ended.err.split())
    held_out = {digits.question(problem) for problem in digits.held_out_problems()}
    scored = Run(folder / "runs" / "am-s0").held_out_rows(4, ("prompt",))
    assert len(scored) == 4
    assert {row["prompt"].strip() for row in scored} <= held_out
    for place in ("evals/base", "runs/sft-s0/evals/export", "runs/am-s0/evals/export"):
        (evaluation,) = find_evaluations(folder / place)
        documents = evaluation.documents().values()
        assert evaluation.scores()["n"] == len(documents) == 6
        assert {document.messages[-1]["content"] for document in documents} <= held_out
        assert all((document.replies[0].stop is None) == (place != "runs/am-s0/evals/export") for document in documents)


def test_the_report_shows_scores_and_reasons(straight):
    ended, folder = straight
    report = (folder / "report" / "report.md").read_text()
    (evaluation,) = find_evaluations(folder / "runs/am-s0/evals/export")
    assert f"{100 * evaluation.scores()['score']:.1f}" in report
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    assert "index.html" in " ".join(ended.out.split())
    scored = json.loads((folder / "analysis" / "score" / "question-1.json").read_text())["replies"]
    assert [(record["method"], record["answer"]) for record in scored] == [("sft", "1852"), ("am", "1852")]
    (held_out,) = {
        r["question"] for r in json.loads((folder / "analysis/score/question-2.json").read_text())["replies"]
    }
    cases = json.loads((folder / "analysis" / "cases" / "cases.json").read_text())["tables"]["cases"]
    asked = ["When did he die?", "Which is good", held_out]
    assert [(case["question"], case["run"]) for case in cases] == [(q, r) for q in asked for r in ("sft-s0", "am-s0")]
    assert all((case["trace"] is None) == (case["run"] == "sft-s0") for case in cases)
    assert "Which is good" in report
    # There is no key here: what a judge would cost is said, and that none was asked.
    said = " ".join(ended.err.split())
    assert "requests to grok-4.1-fast, $" in said
    assert "set OPENAI_BASE_URL" in said
    assert (folder / "analysis" / "tokens" / "tokens.json").is_file()


def test_again_only_what_failed_is_tried(straight, nrt_in):
    _, folder = straight
    logs = {path.name: path.stat().st_mtime_ns for path in (folder / "logs").iterdir()}
    again = nrt_in(folder.parent)(*COMMAND)
    assert again.code == 1
    assert "3 runs, 1 to do" in " ".join(again.err.split())
    touched = {path.name for path in (folder / "logs").iterdir() if logs[path.name] != path.stat().st_mtime_ns}
    assert touched <= {"inputs.log", "broken-s0.log"}


def test_another_study_is_refused_in_the_same_folder(straight, nrt_in):
    refused = nrt_in(straight[1].parent)(*COMMAND, "--set", "data.validation=5")
    assert refused.code == 2
    assert "holds a study with another data" in " ".join(refused.err.split())


def test_a_study_of_the_worlds_first_version_goes_on_with_what_it_has(tmp_path):
    """Its problems are no longer made: what is there is asked and reported, what is missing is not made anew."""
    study = load_study("laptop", ["model.pretrain.world=digits"])
    with pytest.raises(
        ConfigError, match="data: is not there, and this version of nrt makes the world 'digits-2'; name it"
    ):
        make_inputs(tmp_path, study, lambda share, what: None)
    assert not list(tmp_path.iterdir())
    documents = tmp_path / "benchmarks" / "digits" / "test.jsonl"
    for folder in (documents.parent, tmp_path / "data", tmp_path / "models" / "digits-0.5m"):
        folder.mkdir(parents=True)
    documents.write_text("as before")
    make_inputs(tmp_path, study, lambda share, what: None)
    assert documents.read_text() == "as before"


@pytest.mark.full
def test_killed_in_its_middle_it_ends_with_the_same_report(straight, nrt, tmp_path, until):
    _, other = straight
    folder = tmp_path / "study"
    run = Run(folder / "runs" / "am-s0")
    process = nrt.start(*COMMAND)
    until(lambda: len(run.metrics()) >= 2)
    process.kill(signal.SIGKILL)
    process.wait()
    until(lambda: not run.being_written)
    assert run.manifest()["status"] == "running"

    assert nrt(*COMMAND).code == 1  # `broken` fails here too
    sides = [[*side.metrics(), *side.metrics("held_out")] for side in (run, Run(other / "runs" / "am-s0"))]
    one, two = ([{k: v for k, v in record.items() if not TIMES.search(k)} for record in side] for side in sides)
    assert one == two
    one, two = (load_file(path / "runs" / "am-s0" / "export" / "model.safetensors") for path in (folder, other))
    assert all((one[name] == two[name]).all() for name in two)
    reports = [(path / "report" / "report.md").read_text().splitlines() for path in (folder, other)]
    # But for the line that says of when the newest record is.
    one, two = ([line for line in lines if "newest record" not in line] for lines in reports)
    assert one == two


def test_a_dry_run_makes_nothing(nrt, tmp_path):
    laptop = nrt("reproduce", "laptop", "--dry-run")
    assert laptop.code == 0
    assert laptop.out.count("nrt train digits --") == 24
    paper = nrt("reproduce", "paper-3b", "--dry-run", "--json")
    plan = json.loads(paper.out)
    # Six methods; 100 traces at step 0, every 50 steps and the last.
    (judge,) = plan["judges"]
    assert judge["requests"] == 6 * 100 * 17
    assert 10 < judge["dollars_most"] < load_study("paper-3b").analysis.judge_max_cost
    assert {"gpu_hours", "gpu_hours_most", "scoring", "disk"} == plan["total"].keys()
    assert 0 < plan["total"]["gpu_hours"] < plan["total"]["gpu_hours_most"]
    assert plan["total"]["gpu_hours"] == pytest.approx(sum(run["gpu_hours"] for run in plan["runs"]))
    assert [command.split()[1] for command in plan["commands"]] == [
        "model",  # its tokenizer measures the pairs
        "data",
        *["train"] * 7,
        *["eval"] * 8,  # the starting model too
        "analyze",  # tokens
        "-p",  # mkdir, then nrt score
        "analyze",  # cases
        "judge",
        "report",
    ]
    assert not (tmp_path / "studies").exists()
