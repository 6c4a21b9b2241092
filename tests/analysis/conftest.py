"""Runs whose every number is known: written through the store, not trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nrt_cli.cli import app
from nrt_cli.records import TraceRow
from nrt_cli.store import Run

METRICS = {"entropy": 2.0, "trace_length": 40.0, "forced_share": 0.1, "gain": 1.0, "reward": 0.6, "reward_base": 0.5}
METRICS |= {"dead_groups": 0.25, "token_signal": 0.01}


def trace_row(step: int, example: int, k: int, trace: str, **more: Any) -> dict[str, Any]:
    """A row of a trace file; ids are the characters' code points."""
    question = more.pop("question", f"Question {example}?")
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    where = {"step": step, "example": example, "source": "test", "k": k, "prompt": prompt, "stop": "end"}
    said = {"trace": trace, "answer": f"answer {example}<|im_end|>", "trace_ids": [ord(c) for c in trace]}
    return where | said | more


@pytest.fixture(scope="session")
def row() -> Callable[..., dict[str, Any]]:
    """Makes rows of trace files."""
    return trace_row


@pytest.fixture(scope="session")
def make_run_in() -> Callable[[Path], Callable[..., Run]]:
    """What `make_run` is, for a folder of one's own."""
    return run_maker


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run: `make_run("a", steps=[{"entropy": 1.0}, ...], traces={"step-000001": [row, ...]})`."""
    return run_maker(tmp_path)


def run_maker(root: Path) -> Callable[..., Run]:
    """Makes runs below a folder."""

    def make(
        name: str = "run",
        method: str = "am",
        steps: list[dict[str, float]] | None = None,
        traces: dict[str, list[dict[str, Any]]] | None = None,
        data: str = "data",
    ) -> Run:
        prints = {"train": data, "validation": data}
        run = Run.create(root / name, "{}", {"method": method, "status": "finished", "fingerprints": prints})
        for step, metrics in enumerate(steps or [], 1):
            run.append_metrics({"kind": "train", "step": step, **(METRICS if method != "sft" else {}), **metrics})
        for file, rows in (traces or {}).items():
            run.write_traces(file, [TraceRow(**each) for each in rows])
        return run

    return make


@pytest.fixture
def typed() -> Callable[..., str]:
    """Runs a command in this process: `typed("analyze", "vocab", RUN)` -> its standard output."""

    def run(*arguments: Any) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run
