"""What LLM judges said of a run's held-out traces: `judgements/` in the run directory.

Judging needs no part of a run that training writes, so it has a lock of its own and may go on beside training.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from nrt_cli.config import load_yaml
from nrt_cli.config.titles import thinks
from nrt_cli.errors import StoreError
from nrt_cli.files import damage, read_record, record_text
from nrt_cli.records import TraceRow
from nrt_cli.store import Run
from nrt_cli.store.files import append_line, lines, reads, sole_writer, write

FOLDER, SCORES, SIZE = "judgements", "scores.jsonl", "size.json"
HELD_OUT = "held-out-"


class Judgements:
    """The judgements of one run. Read at any time; hold `writing()` to add."""

    def __init__(self, run: Run) -> None:
        self.run, self.path = run, run.path / FOLDER

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only judge at work. Raises StoreError where another process already is."""
        with sole_writer(self.path, f"{self.run.path}: another process is judging this run; wait or stop it."):
            try:
                yield
            finally:
                scores = self.path / SCORES
                if scores.is_file():  # its lines have checksums; that the last ones are gone, its size tells
                    write(self.path / SIZE, record_text(SIZE, {SCORES: scores.stat().st_size}))

    def append(self, record: Mapping[str, Any]) -> None:
        append_line(self.path / SCORES, record)

    def keep_template(self, digest: str, text: str, suffix: str = ".yaml") -> None:
        """The file that judges are asked with, under the name that records give it and a checksum."""
        if not list(self.path.glob(f"template-{digest}[-.]*")):
            content = hashlib.sha256(text.encode()).hexdigest()[:12]
            write(self.path / f"template-{digest}-{content}{suffix}", text)

    def records(self) -> list[dict[str, Any]]:
        """All judgements in the order they were made, a number that is not known as NaN.

        Mappings: older ones have fewer keys.
        """
        scores, size = self.path / SCORES, self.path / SIZE
        if size.is_file():
            with reads(size, "remove it"):
                least = int(read_record(size, SCORES)[SCORES])
            if not scores.is_file() or scores.stat().st_size < least:
                damage(f"{scores}: is damaged (it is shorter than it was); restore it from a copy, or judge again.")
        missing = dict.fromkeys(("score", "input_tokens", "output_tokens", "cost", "temperature"), math.nan)
        return [
            {key: missing.get(key) if value is None else value for key, value in record.items()}
            for record in lines(self.path / SCORES)
            if "key" in record
        ]


def templates(run: Run) -> dict[str, dict[str, str]]:
    """What this run's judges were asked with, by digest: the texts of each file by name, of which a .txt has one."""
    found = {}
    for path in sorted((run.path / FOLDER).glob("template-*")):
        with reads(path, "restore it from a copy"):
            content = path.read_bytes()
            name, _, written = path.stem.removeprefix("template-").partition("-")  # older ones have no checksum
            if written and hashlib.sha256(content).hexdigest()[:12] != written:
                raise ValueError("is damaged (its checksum differs)")
            text = content.decode()
        texts = load_yaml(text, str(path)) if path.suffix == ".yaml" else None
        found[name] = texts if isinstance(texts, dict) else {"prompt": text}
    return found


def held_out_steps(run: Run) -> list[int]:
    """Steps whose held-out traces are stored. Raises StoreError, with the command that stores them, where none are."""
    names = (name.removeprefix(HELD_OUT) for name in run.trace_names() if name.startswith(HELD_OUT))
    if steps := sorted(int(name) for name in names if name.isdigit()):
        return steps
    if not thinks(run.manifest().get("method", ""), run.settings()):
        raise StoreError(f"{run.path}: an SFT run samples no traces, so there are none to judge; name another run.")
    raise StoreError(
        f"{run.path}: no held-out traces are stored. A run stores them if it is trained with held-out pairs: nrt train "
        "... --validation VALIDATION.parquet --set train.validate_every=10 --set train.validation_size=100"
    )


def held_out_traces(run: Run, step: int) -> dict[int, TraceRow]:
    """Prompt, trace and answer by example, of the traces scored after a step."""
    columns = ("example", "k", "prompt", "trace", "answer")
    rows = run.traces(f"{HELD_OUT}{step:06d}", columns)
    return {row["example"]: TraceRow(**row) for row in rows if row["k"] == 0}
