"""A run as data frames, for notebooks."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from nrt_analysis.frames import HELD_OUT, HELD_OUT_METRICS, STEP, frame_of, traces_frame
from nrt_cli.store import Run
from nrt_cli.store.evals import find_evaluations


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
        return frame_of(self._run.metrics("held_out"), (*HELD_OUT_METRICS, "kind")).drop(columns="kind")

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
