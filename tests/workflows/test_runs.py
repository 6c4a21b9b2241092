"""`nrt runs`: the real command over real tiny runs."""

import csv
import json
import shutil

import pytest

from nrt_cli.store import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(nrt, shared_run):
    """`runs/am` and `runs/gm` in the test's own folder."""
    for method in ("am", "gm"):
        shutil.copytree(shared_run(f"method={method}", "train.steps=2").path, nrt.folder / "runs" / method)
    return nrt.folder / "runs"


def listed(nrt, *arguments) -> list[str]:
    ended = nrt("runs", *arguments, "--json")
    assert ended.code == 0, ended.err
    return [record["run"] for record in json.loads(ended.out)]


def test_the_bare_command_lists_and_filters_narrow_it(nrt, runs):
    both = ["runs/am", "runs/gm"]
    assert listed(nrt) == listed(nrt, "runs") == listed(nrt, "list") == listed(nrt, "list", "runs") == both
    assert listed(nrt, "--method", "RLPR (paper's version)") == ["runs/am"]
    assert listed(nrt, "--method", "am", "--method", "gm") == both
    assert listed(nrt, "--status", "finished", "--where", "seed=0") == both
    assert listed(nrt, "--where", "rollout.group_size=4", "--where", "method=NRT-GM") == ["runs/gm"]
    assert listed(nrt, "--where", "seed=1") == listed(nrt, "--status", "failed") == []
    assert "no run matches" in nrt("runs", "--tag", "none").err


def test_a_setting_that_does_not_exist_is_no_filter(nrt, runs):
    for filtered, said in (
        ("rollout.groups=4", "--where: unknown key 'rollout.groups' (did you mean 'rollout.group_size'?)"),
        ("seed=00", "--where: seed='00': a whole number is needed, so write 0"),
        ("seed=false", "--where: seed=false: a whole number is needed"),
    ):
        ended = nrt("runs", "--where", filtered)
        assert ended.code == 2
        assert said in ended.err.replace("\n", " ")


def test_tags_select(nrt, runs):
    assert nrt("runs", "tag", "runs/am", "paper", "b [red]").out.split("\n")[0] == "b [red], paper"
    assert listed(nrt, "--tag", "paper") == ["runs/am"]
    assert listed(nrt, "--tag", "paper", "--tag", "other") == []
    assert json.loads(nrt("runs", "tag", "runs/am", "--remove", "paper", "--json").out)["tags"] == ["b [red]"]
    assert "a word without commas" in nrt("runs", "tag", "runs/am", "a,b").err


def test_show_says_what_a_run_is(nrt, runs):
    record = json.loads(nrt("runs", "show", "runs/gm", "--json").out)
    run = Run.open(runs / "gm")
    assert (record["method"], record["status"], record["step"]) == ("gm", "finished", 2)
    # Only what the config changes: the tiny one lowers K.
    assert record["settings"]["rollout.group_size"] == 4
    assert "objective.baseline" not in record["settings"]
    assert record["metrics"]["reward"] == pytest.approx(sum(r["reward"] for r in run.metrics()) / 2)
    assert record["held_out_scores"][-1]["gain"] == run.metrics("held_out")[-1]["gain"]
    assert record["checkpoints"] == run.checkpoint_steps()
    assert record["sizes"]["metrics.jsonl"] == (runs / "gm" / "metrics.jsonl").stat().st_size
    assert [event["kind"] for event in record["events"]][-1] == "finished"
    shown = nrt("runs", "show", "runs/gm").out
    assert "settings unlike the preset" in shown
    assert "held-out scores after step 2" in shown


def test_diff_shows_what_differs_and_by_how_much(nrt, runs):
    record = json.loads(nrt("runs", "diff", "runs/am", "runs/gm", "--json").out)
    assert record["settings"] == [{"key": "method", "values": ["am", "gm"]}]
    scores = {row["key"]: row["values"] for row in record["metrics"]}
    am, gm = (Run.open(runs / name).metrics("held_out")[-1]["answer_logprob"] for name in ("am", "gm"))
    assert scores["held-out answer_logprob"] == [am, gm]
    assert scores["steps done"] == [2, 2]
    # Same model, data, versions and machine.
    assert record["origins"] == []
    assert "name two runs" in nrt("runs", "diff", "runs/am").err
    assert "difference" in nrt("runs", "diff", "runs/am", "runs/gm").out


def test_rm_asks_and_without_anyone_to_ask_does_nothing(nrt, runs):
    ended = nrt("runs", "rm", "runs/am")
    assert ended.code == 2
    assert "add --yes" in ended.err
    assert listed(nrt) == ["runs/am", "runs/gm"]
    assert nrt("runs", "rm", "runs/am", "runs/nope", "--yes").code == 1
    assert listed(nrt) == ["runs/am", "runs/gm"]
    done = json.loads(nrt("runs", "rm", "runs/am", "--yes", "--json").out)
    assert done["removed"] == ["runs/am"]
    assert [path.name for path in runs.iterdir()] == ["gm"]


def test_a_run_in_training_is_not_removed(nrt, tiny_yaml, until):
    process = nrt.start("train", tiny_yaml, "--run", "run", "--steps", 2000)
    until(lambda: (nrt.folder / "run" / "metrics.jsonl").exists())
    ended = nrt("runs", "rm", "run", "--yes")
    assert ended.code == 1
    assert "a process is writing to this run" in ended.err
    process.kill(9)
    process.wait()
    assert nrt("runs", "rm", "run", "--yes").code == 0
    assert not (nrt.folder / "run").exists()


def test_gc_says_what_it_would_free_and_frees_it(nrt, runs):
    # Loading a checkpoint as a model writes it into the run.
    assert nrt("generate", "runs/am@1", "1 + 1?", "--max-trace-tokens", "2", "--max-answer-tokens", "2").code == 0
    dry = json.loads(nrt("runs", "gc", "--dry-run", "--json").out)
    assert [item["path"] for item in dry["items"]] == ["runs/am/models/step-000001"]
    assert nrt("runs", "gc").code == 2
    assert (runs / "am" / "models" / "step-000001").is_dir()
    assert nrt("runs", "gc", "--yes").code == 0
    assert not (runs / "am" / "models" / "step-000001").exists()
    assert Run.open(runs / "am").checkpoint_steps()
    nrt("runs", "gc", "runs", "--checkpoints", "--yes")
    assert Run.open(runs / "am").checkpoint_steps() == []
    assert nrt("generate", "runs/am", "1 + 1?", "--max-trace-tokens", "2", "--max-answer-tokens", "2").code == 0


def test_export_as_a_table(nrt, runs):
    assert nrt("runs", "export", "runs", "--out", "out/metrics.csv").code == 0
    with (nrt.folder / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {"runs/am", "runs/gm"}
    trained = [row for row in rows if row["run"] == "runs/gm" and row["kind"] == "train"]
    run = Run.open(runs / "gm")
    assert [float(row["reward"]) for row in trained] == [record["reward"] for record in run.metrics()]
    assert [row["examples"] for row in trained] == ["NaN", "NaN"]
    for arguments in (("--out", "x.txt"), ("--out", "x.csv", "--model")):
        assert nrt("runs", "export", "runs", *arguments).code == 2


def test_an_exported_model_still_answers(nrt, runs):
    assert nrt("runs", "export", "runs/am", "--model", "--out", "am.tar.gz").code == 0
    shutil.unpack_archive(nrt.folder / "am.tar.gz", nrt.folder / "there", filter="data")
    asked = ("1 + 1?", "--max-trace-tokens", "3", "--max-answer-tokens", "3", "--json")
    assert nrt("generate", "there/am", *asked).out == nrt("generate", "runs/am", *asked).out


def test_a_finished_run_that_was_moved_names_its_new_place(nrt, runs):
    (runs / "am").rename(nrt.folder / "moved")
    done = nrt("train", "--run", "moved", "--resume", "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out.splitlines()[-1])
    assert (summary["run"], summary["export"]) == ("moved", "moved/export")
