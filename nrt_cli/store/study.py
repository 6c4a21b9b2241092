"""A study's folder: what was asked, its runs, and how each of them ended.

study.yaml          the study, every key present
outcomes.json       by run: `finished`, `failed` or `interrupted`, why, and under which settings
data/               what `nrt data prepare` wrote
models/NAME/        what `nrt model prepare` wrote; NAME-source where the study made the model itself
benchmarks/         documents of the study's own benchmark, for eval.data_dir
runs/METHOD-sSEED/  ordinary run directories
evals/base/         the starting model's scores
logs/               what each run said
analysis/, report/  what was made of it all
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nrt_cli.files import read_record, record_text, sweep_drafts
from nrt_cli.records import Ended
from nrt_cli.store.files import reads, sole_writer, write

STUDY, OUTCOMES = "study.yaml", "outcomes.json"


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `digest` is of everything that decided it."""

    status: Ended
    reason: str = ""
    digest: str = ""


class Study:
    """A study's folder. Read it at any time; hold `writing()` to add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / STUDY

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer, in a folder that is made if need be. Raises StoreError where another process is."""
        with sole_writer(self.path, f"{self.path}: another process works on this study; wait for it or stop it."):
            for folder in (self.path, self.path / "models"):
                sweep_drafts(folder)
            yield

    def outcomes(self) -> dict[str, Outcome]:
        """How the runs ended that have ended, by name."""
        file = self.path / OUTCOMES
        if not file.is_file():
            return {}
        with reads(file, "remove it, and the same `nrt reproduce` looks at each run anew"):
            try:
                return {name: Outcome(**record) for name, record in read_record(file, "runs")["runs"].items()}
            except (TypeError, AttributeError):
                raise ValueError("is not a study's") from None

    def record(self, name: str, outcome: Outcome) -> None:
        """Note how a run ended."""
        known = {**self.outcomes(), name: outcome}
        records = {key: asdict(known[key]) for key in sorted(known)}
        write(self.path / OUTCOMES, record_text(OUTCOMES, {"runs": records}))

    def log_path(self, name: str) -> Path:
        """Where a run's output goes."""
        return self.path / "logs" / f"{name}.log"
