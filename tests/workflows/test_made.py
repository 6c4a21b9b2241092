"""What a training config may name instead of files."""

from pathlib import Path

import pytest

from nrt_cli.config import load
from nrt_cli.workflows import made

SOURCE = "generated:sums?size=24&seed=0"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(made.platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "cache")


def test_generated_pairs_become_files_with_some_held_out():
    data = made.with_files(load(None, data={"train": SOURCE})).data
    assert Path(data.train).is_file()
    assert Path(data.validation).is_file()


def test_held_out_pairs_of_the_users_own_stay(tmp_path):
    mine = str(tmp_path / "mine.parquet")
    data = made.with_files(load(None, data={"train": SOURCE, "validation": mine})).data
    assert data.validation == mine


def test_files_stay_as_they_are():
    config = load(None, data={"train": "train.parquet"})
    assert made.with_files(config) == config
