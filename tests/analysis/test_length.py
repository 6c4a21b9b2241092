"""Signal by answer length: hand arithmetic on planted groups."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from nrt_analysis.report.length_tables import by_length, length_figure, length_table, signal
from nrt_analysis.report.run_cards import find_cards


def group(
    step: int, example: int, tokens: int, hard: tuple[float, float], rewards: tuple[float, float], **more: Any
) -> list[dict[str, Any]]:
    """Two traces of a group that differ at one token."""
    about = {"step": step, "example": example, "source": "t", "prompt": "Q", "trace": "z", "answer": "y", "stop": "end"}
    shared = {"trace_ids": [1], "answer_ids": [1] * tokens, "dead_group": False, "reward_log_scale": 0.0} | more
    return [
        about | shared | {"k": k, "answer_logprobs": [-1.0] * (tokens - 1) + [hard[k]], "reward_scaled": rewards[k]}
        | {"advantage": (-1.0) ** k}
        for k in range(2)
    ]  # fmt: skip


def test_a_groups_signal_by_hand() -> None:
    rows = pd.DataFrame(group(3, 7, 4, (-2.0, -1.0), (0.2, 1.0), reward_log_scale=math.log(1e-5)))
    found = signal(rows)
    assert (found["step"], found["tokens"], found["dead"], found["advantage"]) == (3, 4, 0.0, 1.0)
    assert found["spread"] == pytest.approx(0.4 / 0.6)  # sd of (0.2, 1) over their mean
    assert found["magnitude"] == pytest.approx(math.log10(0.4e-5))
    assert found["one_token"] == pytest.approx(1.0)  # two traces always lie on a line
    dead = signal(pd.DataFrame(group(3, 7, 4, (-2.0, -1.0), (1.0, 1.0), dead_group=True)))
    assert dead["spread"] == 0
    assert math.isnan(dead["magnitude"])
    assert math.isnan(dead["one_token"])


def test_lengths_stand_beside_each_other_where_they_differ(make_run: Callable[..., Any], tmp_path: Path) -> None:
    traces = {}
    for step in (1, 2, 3):
        rows: list[dict[str, Any]] = []
        for example, tokens in enumerate((10, 30, 90)):
            rows += group(step, example, tokens, (-2.0, -1.0), (0.5, 1.0), dead_group=tokens == 90)
        traces[f"step-{step:06d}"] = rows
    make_run("long", "p", steps=[{}] * 3, traces=traces)
    found = by_length(find_cards([tmp_path]))
    assert sorted(found.groupby("part")["tokens"].unique().map(list).tolist()) == [[10], [30], [90]]
    table = length_table(found)
    assert table is not None
    assert [(row.cells[1].text, row.cells[2].text) for row in table.rows] == [
        ("10 to 10", "0%"), ("30 to 30", "0%"), ("90 to 90", "100%"),
    ]  # fmt: skip
    figure = length_figure(found)
    assert figure is not None
    assert figure.whole
    assert len(figure.drawing.axes) == 4 * 3


def test_answers_of_one_length_have_no_such_table(make_run: Callable[..., Any], tmp_path: Path) -> None:
    rows = [each for example in range(3) for each in group(1, example, 10 + example, (-2.0, -1.0), (0.5, 1.0))]
    make_run("short", "p", steps=[{}], traces={"step-000001": rows})
    found = by_length(find_cards([tmp_path]))
    assert found.empty
    assert length_table(found) is None
    assert length_figure(found) is None
