"""Runs whose every number is known, and a viewer of them."""

import pytest
from worlds import hostile_world, small_world


@pytest.fixture
def world(tmp_path):
    """A folder with two runs, `a` and `b`: two steps of groups, held-out traces at steps 0 and 2."""
    return small_world(tmp_path / "runs")


@pytest.fixture
def hostile(tmp_path):
    """A folder with a run that is hostile wherever a run can be."""
    return hostile_world(tmp_path / "runs")
