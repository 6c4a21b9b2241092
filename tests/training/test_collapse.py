"""The sentinel during training, on a tiny model whose rate is far too high: its traces become one token repeated."""

import io

import pytest
from nrt_analysis.dynamics_report import collapses
from nrt_analysis.frames import STEP, steps_frame, traces_frame
from rich.console import Console

from nrt_cli import console
from nrt_cli.config import parse_override
from nrt_cli.errors import ConfigError
from nrt_cli.measures.collapse import WINDOW, distinct_ngrams
from nrt_cli.progress import LiveProgress, Progress
from nrt_cli.store import Run
from nrt_cli.workflows.train import Collapsed, train

STEPS = 30
COLLAPSING = ("method=am", f"train.steps={STEPS}", "optimiser.lr=0.02", "train.checkpoint_every=4")


@pytest.fixture(scope="module")
def stopped(tiny_config, tmp_path_factory):
    """(the run, the error that ended it, what was said)"""
    path = tmp_path_factory.mktemp("stopped") / "run"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "stderr", Console(file=said, width=80, highlight=False))
        config = tiny_config(*COLLAPSING, "train.on_collapse=stop", "train.keep_checkpoints=9")
        with pytest.raises(Collapsed) as raised:
            train(path, config, False, Progress)
    return Run.open(path), raised.value, said.getvalue()


def falls_of(run):
    return [event for event in run.events() if event["kind"] == "collapse"]


def test_stop_ends_the_run_at_the_step_of_the_fall(stopped):
    run, error, _ = stopped
    # Which sign falls first, and whether two fall together, is up to the machine's arithmetic.
    events = falls_of(run)
    last = run.metrics()[-1]["step"]
    assert events
    for event in events:
        assert WINDOW < event["step"] == last < STEPS
        assert event["now"] < event["limit"] < event["start"]
    assert run.manifest()["status"] == "interrupted"
    assert run.events()[-1]["kind"] == "interrupted"
    assert not run.export_path.exists()
    assert error.exit_code == 1


def test_stop_names_the_checkpoint_from_before(stopped):
    run, error, _ = stopped
    last = run.metrics()[-1]["step"]
    before = max(step for step in run.checkpoint_steps() if step <= last - WINDOW)
    assert f"{run.path}@{before} names" in str(error)
    assert "--resume --set train.on_collapse=warn" in str(error)


def test_the_warning_is_said_once_and_whole(stopped):
    run, _, said = stopped
    lines = [line for line in said.splitlines() if line.startswith("warning: collapse")]
    assert len(lines) == len(falls_of(run))
    for line in lines:
        assert f"at step {run.metrics()[-1]['step']}" in line
        assert "nothing speaks for learning" in line


def test_training_and_analysis_agree(stopped):
    run, _, _ = stopped
    frame = steps_frame(run)
    # Every group of this run is stored, so its traces give what the metrics say.
    for step in (1, int(frame["step"].iloc[-1])):
        traces = traces_frame(run, STEP, [step])
        record = frame[frame["step"] == step].iloc[0]
        assert distinct_ngrams(traces.groupby("example")["trace_ids"].apply(list)) == pytest.approx(
            record["distinct_ngrams"], nan_ok=step != 1
        )
        assert (traces["stop"] == "cap").mean() == record["truncated_share"]
    for event, fall in zip(falls_of(run), collapses(frame, run), strict=True):
        assert vars(fall) == {key: event[key] for key in vars(fall)}


def test_it_goes_on_if_told_to_and_does_not_repeat_itself_after(stopped):
    run, _, _ = stopped
    at, before = run.metrics()[-1]["step"], len(falls_of(run))
    train(
        run.path, None, True, Progress, [parse_override("train.on_collapse=warn"), parse_override(f"train.steps={at}")]
    )
    assert run.manifest()["status"] == "finished"
    assert len(falls_of(run)) == 2 * before  # the step was taken again, from the checkpoint before it
    train(run.path, None, True, Progress, [parse_override(f"train.steps={at + 1}")])
    signs = [event["sign"] for event in falls_of(run)]
    assert len(signs) == len(set(signs)) + before  # nothing more of the signs that were reported


def test_sft_has_nothing_to_watch(tiny_config):
    with pytest.raises(ConfigError, match="on_collapse has no effect"):
        tiny_config("method=sft", "train.on_collapse=stop")


def test_the_panel_keeps_warnings_and_reads_no_markup():
    display = LiveProgress(4)
    display.warn("collapse [red]at[/red] step 3")
    display.note("something else")
    target = Console(file=io.StringIO(), width=80, highlight=False)
    target.print(display._panel())
    assert "warning: collapse [red]at[/red] step 3" in target.file.getvalue()
    assert "something else" in target.file.getvalue()
