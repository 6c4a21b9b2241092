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
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nrt_cli.errors import StoreError
from nrt_cli.records import Ended
from nrt_cli.store.files import pretty_json, read_json, sole_writer, write, writes_to

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
        self.runs_path = path / "runs"

    @classmethod
    def open(cls, path: Path) -> "Study":
        """An existing study. Raises StoreError where there is none."""
        study = cls(path)
        if not study.config_path.is_file():
            raise StoreError(f"{path}: no study ({STUDY} is missing); `nrt reproduce` makes one.")
        return study

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer, in a folder that is made if need be. Raises StoreError where another process is."""
        with writes_to(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.path, f"{self.path}: another process works on this study; wait for it or stop it."):
            # Drafts of data and models that a killed process left.
            for left in [*self.path.glob(".*.tmp"), *self.path.glob("models/.*.tmp")]:
                shutil.rmtree(left, ignore_errors=True)
            yield

    def write_config(self, study_yaml: str) -> None:
        with writes_to(self.path):
            write(self.config_path, study_yaml)

    def outcomes(self) -> dict[str, Outcome]:
        """How the runs ended that have ended, by name."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            return {name: Outcome(**record) for name, record in read_json(self.path / OUTCOMES)["runs"].items()}
        return {}

    def record(self, name: str, outcome: Outcome) -> None:
        """Note how a run ended."""
        known = {**self.outcomes(), name: outcome}
        records = {key: asdict(known[key]) for key in sorted(known)}
        with writes_to(self.path):
            write(self.path / OUTCOMES, pretty_json({"runs": records}))

    def log_path(self, name: str) -> Path:
        """Where a run's output goes."""
        return self.path / "logs" / f"{name}.log"

    def holds(self, name: str) -> bool:
        """Whether a run has left its model."""
        return (self.runs_path / name / "export").is_dir()

    def write_documents(self, benchmark: str, lines: str) -> Path:
        """Documents of the study's own benchmark, as JSON lines, where eval.data_dir finds them."""
        folder = self.path / "benchmarks" / benchmark
        with writes_to(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / "test.jsonl", lines)
        return folder
