"""The store as pandas frames. What a run lacks is an error that names the command which makes it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nrt_cli.commandline import resume
from nrt_cli.config.titles import run_label, thinks
from nrt_cli.errors import StoreError
from nrt_cli.measures.collapse import distinct_ngrams
from nrt_cli.methods import PAPER, facts
from nrt_cli.records import TRACE_COLUMNS
from nrt_cli.store import Reference, Run
from nrt_cli.store.evals import find_evaluations

STEP, HELD_OUT = "step", "held-out"
"""Kinds of stored traces: sampled for training, and for held-out scores."""


def open_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """Runs by label. Raises StoreError for what is no run."""
    return dict(zip(labels_of([Reference(path, None) for path in paths]), map(Run.open, paths), strict=True))


def labels_of(references: Sequence[Reference]) -> list[str]:
    """A name for each run: its method, its folder where two share one, its steps where two share a folder."""
    runs = [Run.open(reference.path) for reference in references]
    methods = [run_label(str(run.manifest()["method"]), run.settings()) for run in runs]
    folders = [reference.path.resolve().name for reference in references]
    spans = []
    for reference in references:
        steps = [str(a) if a == b else f"{a}-{b}" for a, b in reference.spans or ()]
        spans.append("@" + ",".join(steps) if steps else "")
    paths = [str(reference.path) for reference in references]
    for names, ends in ((methods, [""] * len(spans)), (methods, spans), (folders, spans), (paths, spans)):
        labels = [f"{name}{end}" for name, end in zip(names, ends, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    raise StoreError(f"{', '.join(paths)}: the same run is named twice{' with the same steps' if any(spans) else ''}.")


STEP_METRICS = (
    "entropy", "trace_length", "forced_share", "gain", "reward", "reward_base", "dead_groups", "token_signal",
    "answer_logprob_per_token",
)  # fmt: skip
"""Metrics of a training step that analyses read; a run may lack some."""


def frame_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a frame that has these columns in any case: one that no row has is empty, NaN, and comes last."""
    frame = pd.DataFrame(list(rows))
    return frame.assign(**{name: np.nan for name in columns if name not in frame})


MOST = 2000
"""As many steps of a run as a figure can show."""


def averaged(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """A frame of a row for each `step` as one of at most `MOST`, and of how many steps each row is the mean."""
    of = math.ceil(len(frame) / MOST)
    if of <= 1:
        return frame, 1
    blocks = np.arange(len(frame)) // of
    return frame.groupby(blocks).mean().assign(step=frame["step"].groupby(blocks).last()), of


def stacked(frames: Iterable[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Frames one after another; where there is none, a frame without rows that has these columns."""
    found = list(frames)
    return pd.concat(found, ignore_index=True) if found else frame_of([], columns)


def steps_frame(run: Run, records: Sequence[Mapping[str, Any]] | None = None) -> pd.DataFrame:
    """One row per training step: its `STEP_METRICS` (see the store's README), and `reward_gain`, R - R_base.

    `truncated_share` and `distinct_ngrams` come from the stored traces where the run's metrics lack them. Raises
    StoreError for a run that has no step yet or samples no traces.

    Args:
        records: its metrics, where they have been read.
    """
    always, health = ("step", *STEP_METRICS), ("truncated_share", "distinct_ngrams")
    records = run.metrics(names=(*always, *health)) if records is None else records
    if not records:
        raise StoreError(f"{run.path}: no training step is recorded; `{resume(run.path)}` takes some.")
    known = set().union(*records)
    if "trace_length" not in known:
        raise StoreError(f"{run.path}: {_why_no_traces(run, STEP)}")
    frame = pd.DataFrame(records, columns=[*always, *(name for name in health if name in known)])
    frame["reward_gain"] = frame["reward"] - frame["reward_base"]
    if "distinct_ngrams" not in known:
        rows = []
        for traces in trace_frames(run, STEP, columns=("step", "example", "stop", "trace_ids"), required=False):
            groups = traces.groupby("example")["trace_ids"].apply(list)
            truncated = float((traces["stop"] == "cap").mean())
            rows.append((int(traces["step"].iloc[0]), truncated, distinct_ngrams(groups)))
        told = pd.DataFrame(rows, columns=["step", "truncated_share", "distinct_ngrams"])
        frame = frame.merge(told[["step", *(name for name in told if name not in frame)]], on="step", how="left")
    return frame


def trace_steps(run: Run, kind: str) -> list[int]:
    """The steps whose traces of a kind (`STEP`, `HELD_OUT`) are stored, in order."""
    return [int(name.removeprefix(kind + "-")) for name in run.trace_names() if name.startswith(kind + "-")]


def trace_frames(
    run: Run,
    kind: str,
    steps: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    required: bool = True,
    first: int | None = None,
) -> Iterator[pd.DataFrame]:
    """The stored traces, a frame per step, so that only one step's are held: one row per trace.

    Args:
        steps: those to read, all by default.
        columns: of `TRACE_COLUMNS`, all by default. Lists are Python lists; held-out traces have no scores (None).
        required: whether a run without such traces is an error.
        first: of each step, only so many traces; all by default.

    Raises StoreError where nothing is stored.
    """
    there = trace_steps(run, kind)
    if not there and required:
        raise StoreError(f"{run.path}: {_why_no_traces(run, kind)}")
    for step in there if steps is None else steps:
        frame = pd.DataFrame(run.traces(f"{kind}-{step:06d}", columns, first))
        if not frame.empty:
            yield frame


def _why_no_traces(run: Run, kind: str) -> str:
    method = run.manifest()["method"]
    if not facts(method).samples and not (kind == HELD_OUT and thinks(method, run.settings())):
        return f"method {method!r} samples no traces; name a run of another, such as of {PAPER[-1]}."
    if kind == HELD_OUT:
        return "no held-out traces are stored; `nrt train ... --validation FILE` scores and stores some."
    return "no traces of training steps are stored; `nrt train ... --set train.trace_groups=32` stores them."


def traces_frame(
    run: Run,
    kind: str,
    steps: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
    first: int | None = None,
) -> pd.DataFrame:
    """`trace_frames` as one frame, for small selections."""
    found = trace_frames(run, kind, steps, columns, first=first)
    return stacked(found, list(TRACE_COLUMNS) if columns is None else columns)


class OpenRun:
    """A run directory to look into, also while it is in training. Columns are explained in the store's README.

    Attributes:
        path: the run directory.
        manifest: versions, device, fingerprints, command, status.
    """

    def __init__(self, path: str | Path) -> None:
        self._run = Run.open(Path(path))
        self.path = self._run.path

    def __repr__(self) -> str:
        return f"OpenRun({str(self.path)!r}: {self.manifest['method']}, {self.manifest['status']})"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return self._run.manifest()

    @property
    def steps(self) -> pd.DataFrame:
        """One row per training step: its metrics, as they are now. NaN is "not measured"."""
        return frame_of(self._run.metrics(), ("step", "kind")).drop(columns="kind")

    @property
    def held_out(self) -> pd.DataFrame:
        """One row per held-out score, in nats per answer; no row where there was no held-out data."""
        metrics = ("step", "examples", "answer_logprob", "null_logprob", "gain", "kind")
        return frame_of(self._run.metrics("held_out"), metrics).drop(columns="kind")

    @property
    def evaluations(self) -> pd.DataFrame:
        """One row per finished benchmark: which model of the run (`of`), `benchmark`, `score`, `error`, `n`, ..."""
        rows = [
            {"of": folder.name, **(found.scores() or {})}
            for folder in sorted(self.path.glob("evals/*"))
            for found in find_evaluations(folder)
        ]
        frame = frame_of(rows, ("of", "benchmark", "score", "error", "n", "metrics", "subsets"))
        return frame.drop(columns=["metrics", "subsets"])

    def traces(self, step: int | None = None, held_out: bool = False) -> pd.DataFrame:
        """One row per stored trace of a step, or of all steps; with its text, token ids, log-probs, reward, advantage.

        Held-out traces have no scores (None). Raises StoreError where none are stored.
        """
        return traces_frame(self._run, HELD_OUT if held_out else STEP, None if step is None else [step])
