"""Rows of somebody else's Parquet, all the way from `nrt train` to the judge."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nrt_cli.checks.doctor import diagnose
from nrt_cli.checks.preflight import Candidate, look
from nrt_cli.data.examples import read_texts
from nrt_cli.errors import DataError
from nrt_cli.evaluation.pairs import evaluate_pairs
from nrt_cli.evaluation.session import Job
from nrt_cli.files import read_record
from nrt_cli.judging.plan import make_plan
from nrt_cli.progress import EvalProgress, Progress
from nrt_cli.store import Run
from nrt_cli.store.judgements import held_out_traces
from nrt_cli.text.prompts import DEFAULT_CHAT_TEMPLATE
from nrt_cli.workflows.scoring import pick_examples
from nrt_cli.workflows.train import train


def verl_file(path: Path, bad: int | None = None) -> Path:
    """Two sources of eight rows that number their rows alike, as verl's examples do when they are joined."""
    rows: list[dict[str, Any]] = [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": f"{source}: {i} + {i}?"}],
            "reward_model": {"style": "rule", "ground_truth": str(2 * i)},
            "extra_info": {"index": i, "split": "train"},
        }
        for source in ("ones", "twos")
        for i in range(8)
    ]
    if bad is not None:
        rows[bad]["reward_model"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_no_trace_is_lost_where_two_sources_number_their_rows_alike(
    tiny_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = verl_file(tmp_path / "train.parquet", bad=3), verl_file(tmp_path / "held.parquet", bad=9)
    data = (f"data.train={files[0]}", f"data.validation={files[1]}", "train.validation_size=16")
    train(tmp_path / "run", tiny_config("method=am", "train.steps=1", *data), False, Progress)
    told = capsys.readouterr().err
    assert "dropped before training: 1 unreadable; 15 examples left" in told
    assert f"could not be read: {files[0]}:row 4: reward_model has no ground_truth." in told
    assert "dropped of what is held out: 1 unreadable; 15 examples left" in told
    assert f"could not be read: {files[1]}:row 10: reward_model has no ground_truth." in told

    run = Run.open(tmp_path / "run")
    traces = held_out_traces(run, 1)
    assert sorted(traces) == [i for i in range(16) if i != 9]
    texts = read_texts(files[1], set(traces))
    assert all(texts[i][0] in row.prompt for i, row in traces.items())
    plan = make_plan([f"{run.path}@1"], [{"judge": {"models": ["m"], "n": 16}}])
    assert sorted(question.shown[0] for question in plan.questions) == sorted(text for text, _ in texts.values())


def test_data_strict_stops_at_the_first_row_that_cannot_be_read(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config("method=sft", f"data.train={verl_file(tmp_path / 'x.parquet', bad=3)}", "data.strict=true")
    with pytest.raises(DataError, match=r"x\.parquet:row 4: reward_model has no ground_truth"):
        train(tmp_path / "run", config, False, Progress)
    assert not (tmp_path / "run").exists()


def test_scoring_says_what_it_leaves_out(
    tiny_config: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = verl_file(tmp_path / "x.parquet", bad=3)
    found = pick_examples(path, 16, 0, tiny_config().data, tiny_tokenizer)
    assert [example.index for example in found] == [i for i in range(16) if i != 3]
    assert f"dropped of {path}: 1 unreadable; 15 examples left" in capsys.readouterr().err


def test_every_command_names_the_rows_that_the_template_refuses(
    tiny_config: Callable[..., Any], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gemma's template takes no system turn."""
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    refuses = (
        "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"
    )
    (model / "chat_template.jinja").write_text(refuses + DEFAULT_CHAT_TEMPLATE)
    about = read_record(model / "nrt.json")
    (model / "nrt.json").write_text(json.dumps(about | {"files": {}, "fingerprint": None}))
    files = verl_file(tmp_path / "train.parquet"), verl_file(tmp_path / "held.parquet")
    for file, bad in zip(files, (3, 9), strict=True):
        rows = pq.read_table(file).to_pylist()
        rows[bad]["prompt"].insert(0, {"role": "system", "content": "Be brief."})
        pq.write_table(pa.Table.from_pylist(rows), file)
    data = f"data.train={files[0]}", f"data.validation={files[1]}"
    config = tiny_config("method=am", "train.steps=1", f"model.path={model}", *data)

    why = "The model's chat template refused the messages: System role not supported."
    both = [f"{files[0]}:row 4: {why}", f"{files[1]}:row 10: {why}"]
    train(tmp_path / "run", config, False, Progress)
    trained = capsys.readouterr().err
    dry = {finding.check: finding for finding in look(Candidate(config))[0]}["data"].text
    examined = {finding.check: finding for finding in diagnose(config)}["data"].found
    for told in (trained, dry, examined):
        assert all(message in told for message in both)
    with EvalProgress() as display:
        evaluate_pairs(Job(str(model), out=tmp_path / "evals", limit=2), config, display, files[1], "number")
    assert both[1] in capsys.readouterr().err
