"""What `nrt score` prints of numbers that are none: a model that diverged still has its table, with dashes."""

import io

import pytest
from rich.console import Console

from nrt_cli import console
from nrt_cli.commands.score import _show
from nrt_cli.workflows.scoring import AnswerScore, SchemeScore, Scored, SentenceScore, TraceScore

NAN = float("nan")


@pytest.mark.parametrize("value", [NAN, -float("inf")])
def test_what_is_not_finite_is_a_dash(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = AnswerScore([value], [value], value, value)
    scheme = SchemeScore(value, value, value, value, None, None, [value], [value])
    sentences = [SentenceScore("so", 1, value)]
    trace = TraceScore("so", 1, "end", **vars(answer), gains=[value], gain=value, sentences=sentences)
    trace.schemes["am"] = scheme
    record = Scored("m", "f", "am", None, "x", "7", ["7"], [7], {}, answer, answer, [trace])
    said = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=said, width=100))
    _show([record], tokens=True)
    text = said.getvalue()
    assert "P(y*) = -, log P(y*) = - nats" in text
    assert "nan" not in text
    assert "None" not in text
    (row,) = (line for line in text.splitlines() if line.strip().startswith("am "))
    assert row.split()[1:] == ["-"] * 4
