"""The best checkpoint is kept beside the newest, found again after a crash, and swept by nothing."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from nrt_analysis.report.held_out_tables import best_of_run

from nrt_cli.errors import StoreError
from nrt_cli.records import TraceRow
from nrt_cli.store import Reference, Run
from nrt_cli.store.housekeeping import sweep, sweepable

MANIFEST = {"method": "am", "status": "running", "steps": 5, "versions": {}}
SCORES = {1: (0, 1), 2: (1, 0), 3: (0, 1), 4: (0, 1), 5: (0, 0)}
"""Of each step, of a question that chooses, and of one that does not."""


def row(step: int, example: int, score: float, prompt: str = "") -> TraceRow:
    return TraceRow(step, example, prompt=prompt or f"{example}?", thinking_score=score)


def score(run: Run, step: int) -> None:
    rows = [row(step, i, float(right)) for i, right in enumerate(SCORES[step])]
    run.write_traces(f"held-out-{step:06d}", rows)
    run.append_metrics({"kind": "held_out", "step": step, "examples": 2})


def save(run: Run, step: int) -> None:
    run.save_checkpoint(step, {"updates": step}, {"weight": torch.full((4,), float(step))}, keep=1)


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "a", "method: am\n", MANIFEST)
    with run.writing():
        for step in SCORES:
            score(run, step)
            save(run, step)
    return run


def finish(run: Run) -> None:
    run.write_model(5, lambda folder: (folder / "config.json").write_text("{}"), export=True)
    run.update_manifest(status="finished", summary={"steps": 5})


def test_it_is_kept_beside_the_newest(run):
    assert run.checkpoint_steps() == [2, 5]
    assert (run.best().step, run.best().chosen, run.best().reported) == (2, 1.0, 0.0)
    assert Reference.parse(f"{run.path}@best").spans == ((2, 2),)


def test_all_rows_of_a_question_choose_or_none_does(tmp_path):
    """Questions 0, 2 and 3 are one, however written, and choose with question 4; 1 and 5 report."""
    run = Run.create(tmp_path / "a", "method: am\n", MANIFEST)
    prompts = ["What is 3 + 5?", "And 4 + 4?", "what is  3 + 5?", "What is \uff13 + 5?", "And 5 + 5?", "And 6 + 6?"]
    scores = {1: (1, 0, 1, 1, 0, 0), 2: (0, 1, 0, 0, 1, 1)}
    with run.writing():
        for step, right in scores.items():
            rows = [row(step, i, float(each), prompts[i]) for i, each in enumerate(right)]
            run.write_traces(f"held-out-{step:06d}", rows)
            run.append_metrics({"kind": "held_out", "step": step, "examples": 6})
            save(run, step)
    # Of the first's four choosing rows three are right; its checkpoint stays for that.
    best = run.best()
    assert (best.step, best.steps) == (1, (1, 2))
    assert (best.chosen, best.chosen_rows, best.reported, best.reported_rows) == (0.75, 4, 0.0, 2)


def test_a_crash_between_scoring_saving_and_dropping_loses_nothing(run):
    # Scored but not saved: that step is no candidate, and is scored again when it is taken again.
    run.write_traces("held-out-000006", [row(6, i, 1.0) for i in range(2)])
    run.append_metrics({"kind": "held_out", "step": 6, "examples": 2})
    assert run.best().step == 2
    # Saved, but killed before older ones were dropped: the next save drops them.
    shutil.copytree(run.checkpoint_path(5), run.checkpoint_path(4))
    save(run, 6)
    assert run.best().step == 6
    assert run.checkpoint_steps() == [6]


def test_nothing_sweeps_it(run):
    finish(run)
    sweep(sweepable(run.path.parent, [run], checkpoints=True))
    assert run.checkpoint_steps() == [2]
    assert run.best().step == 2


def test_one_whose_model_is_stored_need_not_be_kept_twice(run):
    finish(run)
    run.write_model(2, lambda folder: (folder / "config.json").write_text("{}"))
    sweep(sweepable(run.path.parent, [run], checkpoints=True))
    assert run.checkpoint_steps() == []
    assert run.best().step == 2
    sweep(sweepable(run.path.parent, [run], checkpoints=True))
    assert run.model_path(2).is_dir()


def test_the_last_step_can_be_best_without_its_checkpoint(run):
    finish(run)
    shutil.rmtree(run.path / "checkpoints")
    assert run.best().step == 5


def test_a_run_without_scored_rows_says_why_it_has_none(tmp_path):
    run = Run.create(tmp_path / "old", "method: am\n", MANIFEST)
    with run.writing():
        # As older versions left it: held-out traces without scores.
        run.append_metrics({"kind": "held_out", "step": 1, "gain": 1.0})
        run.write_traces("held-out-000001", [TraceRow(1, 0, trace="a")])
        save(run, 1)
        save(run, 2)
    assert run.best() is None
    assert run.checkpoint_steps() == [2]
    with pytest.raises(StoreError, match="older version"):
        Reference.parse(f"{run.path}@best")
    with pytest.raises(StoreError, match="no such run"):
        Reference.parse(f"{tmp_path}/nowhere@best")


def test_the_report_says_which_is_best_where_there_is_a_choice(run):
    card = SimpleNamespace(run=run, label="RLPR", thinks=True)
    assert best_of_run(card) == (
        "RLPR: the best step that is stored is 2 (a@best), by accuracy, thinking: 0.0 % over 1 held-out pairs; "
        "the 1 pairs of every other question, 100.0 %, chose it."
    )
    shutil.rmtree(run.checkpoint_path(2))
    assert best_of_run(card) is None
