"""What `nrt score` prints of numbers that are none: a model that diverged still has its table, with dashes."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from nrt_cli import console
from nrt_cli.commands.score import _show
from nrt_cli.records import json_line

NAN = float("nan")


def answer(logprob: float) -> dict[str, Any]:
    return {"logprobs": [logprob], "c": [logprob], "logprob": logprob, "probability": logprob}


@pytest.mark.parametrize("value", [NAN, -float("inf")])
def test_what_is_not_finite_is_a_dash(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = {"reward": value, "reward_base": value, "clipped": value, "advantage": None, "dead_group": None}
    scheme |= {"token_signals": [value]}
    trace = {"trace": "so", "trace_tokens": 1, "stop": "end", **answer(value), "gains": [value], "gain": value}
    trace |= {"schemes": {"am": scheme}, "sentences": [{"sentence": "so", "tokens": 1, "gain": value}]}
    about = {"model": "m", "title": None, "method": "am", "tokens": ["7"]}
    record = about | {"direct": answer(value), "null": answer(value), "traces": [trace]}
    said = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=said, width=100))
    _show([json.loads(json_line(record))], tokens=True)
    text = said.getvalue()
    assert "P(y*) = -, log P(y*) = - nats" in text
    assert "nan" not in text
    assert "None" not in text
    (row,) = (line for line in text.splitlines() if line.strip().startswith("am "))
    assert row.split()[1:] == ["-"] * 4
