"""What the driver decides without asking the ranks."""

from types import SimpleNamespace

import needs_verl  # noqa: F401
import pytest

from nrt_cli.backends.verl.backend import VerlBackend
from nrt_cli.objective.rows import Row, Unit
from nrt_cli.records import Example, Rollout

LENGTHS = [(3, 3), (9,), (4, 4), (2,), (5, 5)]
"""Of each unit's rows; verl takes two of each, so that a single row counts twice: 6, 18, 8, 4 and 10 tokens."""


@pytest.mark.parametrize(
    ("budget", "ranks", "fit"), [(18, 1, [0, 1, 2, 3, 4]), (18, 2, [0, 2, 3, 4]), (8, 1, [0, 2, 3]), (8, 2, [0, 3]),
                                 (3, 1, []), (8, 4, [])]
)  # fmt: skip
def test_as_many_units_of_each_rank_go_in_one_pass_as_fit_it(budget, ranks, fit):
    backend = object.__new__(VerlBackend)
    backend.budget, backend.processes = budget, SimpleNamespace(ranks=ranks)
    backend.units = [Unit(tuple(Row((1,) * n, 1) for n in rows), lambda *_: None) for rows in LENGTHS]
    assert backend._fitting() == fit


def test_traces_of_a_prompt_ask_for_one_server_and_no_two_prompts_or_calls_for_the_same(tiny_config):
    """verl keeps to the server that it once gave an id: at the next step, another may be less busy."""
    asked = []
    config = tiny_config("engine.name=verl")
    backend = object.__new__(VerlBackend)
    backend.config, backend.tokens = config, SimpleNamespace(start_id=None)
    trace = Rollout((5,), (-1.0,), "cap")
    backend.processes = SimpleNamespace(sample=lambda requests, _: asked.extend(requests) or [trace] * len(requests))
    examples = [Example(3, "made", (9,), (3, 1)), Example(4, "made", (9,), (3, 1))]
    for step in (1, 2):
        backend.sample(examples, 3, (0, 0, step))
    ids = [request["group"] for request in asked]
    assert [ids.count(each) for each in dict.fromkeys(ids)] == [3] * 4
