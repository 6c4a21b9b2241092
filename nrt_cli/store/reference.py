"""`RUN@STEPS`: a run directory and which of its steps, as typed on a command line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nrt_cli.errors import StoreError
from nrt_cli.store import Run

BEST = "best"
"""The step that is best by the run's held-out rows, as typed after the @."""

_SPANS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass(frozen=True)
class Reference:
    """A run's folder and the spans of steps asked for, both ends included; None where none were named."""

    path: Path
    spans: tuple[tuple[int, int], ...] | None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """`runs/a`, `runs/a@30`, `runs/a@0,30`, `runs/a@10-20`, or `runs/a@best`, which becomes its step.

        A folder whose own name has an @ is that folder.
        """
        path, at, steps = text.rpartition("@")
        if not at or Path(text).is_dir():
            return cls(Path(text), None)
        if steps == BEST:
            best = Run.open(Path(path)).best()
            if best is None:
                raise StoreError(
                    f"{text}: no stored model of this run has held-out rows to compare; a run has them with "
                    "data.validation, if it was not made by an older version."
                )
            return cls(Path(path), ((best.step, best.step),))
        if not _SPANS.fullmatch(steps):
            raise StoreError(f"{text}: after @ come steps, such as {path}@30, {path}@0,30 or {path}@10-20, or best.")
        ends = [span.split("-") for span in steps.split(",")]
        return cls(Path(path), tuple((int(span[0]), int(span[-1])) for span in ends))

    def choose(self, available: Sequence[int]) -> list[int]:
        """The steps asked for among those there are, in order; all of them where none were named.

        Raises StoreError where a span holds none of them.
        """
        for first, last in self.spans or ():
            if not any(first <= step <= last for step in available):
                asked = f"step {first}" if first == last else f"steps {first} to {last}"
                steps = list(map(str, sorted(available)))
                there = ", ".join(steps if len(steps) <= 8 else [*steps[:3], "...", steps[-1]]) or "none"
                raise StoreError(f"{self.path}: nothing is stored for {asked}; there is something for: {there}.")
        return [s for s in sorted(available) if self.spans is None or any(a <= s <= b for a, b in self.spans)]
