"""What a training config may name instead of files."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nrt_cli.config import load
from nrt_cli.data.examples import suffix_of
from nrt_cli.training import locate
from nrt_cli.training.locate import Located, locate_inputs

SOURCE = "generated:sums?size=24&seed=0"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(locate.platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "cache")


def test_generated_pairs_become_files_with_some_held_out():
    data = locate_inputs(load(None, data={"train": SOURCE})).data
    assert Path(data.train).is_file()
    assert Path(data.validation).is_file()


def test_held_out_pairs_of_the_users_own_stay(tmp_path):
    mine = str(tmp_path / "mine.parquet")
    data = locate_inputs(load(None, data={"train": SOURCE, "validation": mine})).data
    assert data.validation == mine


def test_held_out_pairs_may_be_generated_apart_all_of_them():
    data = locate_inputs(load(None, data={"train": SOURCE, "validation": "generated:sums?size=8&seed=1"})).data
    assert pq.read_metadata(data.validation).num_rows == 8
    alone = locate_inputs(load(None, data={"train": "train.parquet", "validation": "generated:sums?size=8&seed=1"}))
    assert (alone.data.train, alone.data.validation) == ("train.parquet", data.validation)


def test_generated_questions_may_end_in_a_line_which_is_recorded():
    line = "Show a sum & its result?"
    data = locate_inputs(load(None, data={"train": f"{SOURCE}&suffix={line}"})).data
    plain = locate_inputs(load(None, data={"train": SOURCE})).data
    questions = [
        [row["prompt"][0]["content"] for row in pq.read_table(each.train).to_pylist()] for each in (data, plain)
    ]
    assert questions[0] == [f"{question}\n{line}" for question in questions[1]]
    assert [suffix_of(Path(file)) for file in (data.train, data.validation, plain.train)] == [line, line, None]


def test_files_stay_as_they_are():
    config = load(None, data={"train": "train.parquet"})
    assert locate_inputs(config) == config


def test_a_run_or_one_of_its_steps_is_a_model_to_start_from(shared_run):
    run = shared_run("method=am", "train.steps=1")
    assert locate_inputs(load(None, model={"path": str(run.path)})).model.path == str(run.export_path)
    assert locate_inputs(load(None, model={"path": f"{run.path}@1"})).model.path == str(run.model_path(1))


def test_the_shipped_quickstart_config_needs_nothing_prepared(monkeypatch):
    monkeypatch.setattr(locate, "locate_model", lambda ref: Located(ref, Path("model")))
    config = locate_inputs(load("quickstart"))
    assert config.model.path == "model"
    assert Path(config.data.validation).is_file()
