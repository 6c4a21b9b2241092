"""What evaluations leave behind: a folder per benchmark and settings, a line per answered document.

`README.md` beside this file describes the layout. A folder's name ends in the hash of everything that decides its
answers, so a changed setting never meets an old answer.
"""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nrt_cli.errors import StoreError
from nrt_cli.files import damage, read_record, record_text
from nrt_cli.records import Document, Reply, measured
from nrt_cli.store.files import append_line, lines, now, reads, sole_writer, write, write_report

FORMAT = "nrt-eval-1"
SETTINGS, DOCUMENTS, SCORES = "settings.json", "documents.jsonl", "scores.json"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hex digest of settings, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def document_hash(document: Document) -> str:
    """Hex digest of what a document asks and accepts: data that changed is another document."""
    asked = [document.subset, document.id, [dict(message) for message in document.messages], document.gold]
    return settings_hash({"asked": asked})


class Evaluation:
    """One benchmark under one set of settings. Read it at any time; hold `writing()` to add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, root: Path, benchmark: str, settings: Mapping[str, Any], about: Mapping[str, Any]) -> "Evaluation":
        """The evaluation of a benchmark below `root`; where one with these settings is there, that one.

        Args:
            settings: everything that decides the answers and their grades.
            about: what else is worth knowing: model, versions, device, command.
        """
        digest = settings_hash(settings)
        evaluation = cls(root / f"{benchmark}-{digest[:12]}")
        if not (evaluation.path / SETTINGS).is_file():
            record = {"format": FORMAT, "benchmark": benchmark, "hash": digest, "created": now(), **about}
            content = record_text(SETTINGS, record | {"settings": dict(settings)}).encode()
            write_report(evaluation.path, {SETTINGS: content})
        return evaluation

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Be the only writer. Raises StoreError where another process already is."""
        return sole_writer(self.path, f"{self.path}: another process is evaluating this; wait for it or stop it.")

    def about(self) -> dict[str, Any]:
        """What `create` recorded: benchmark, hash, settings, model, versions."""
        with reads(self.path / SETTINGS, "remove the folder, and evaluate again"):
            found = read_record(self.path / SETTINGS)
            if found.get("format") != FORMAT:
                raise ValueError("is not an evaluation's")
            return found

    def append(self, document: Document) -> None:
        append_line(self.path / DOCUMENTS, {"hash": document_hash(document), **asdict(document)})

    def documents(self, first: int | None = None) -> dict[str, Document]:
        """Answered documents by `document_hash`; of one answered twice, the last. With `first`, of so many lines."""
        records = itertools.islice(lines(self.path / DOCUMENTS), first)
        return {
            record["hash"]: Document(
                benchmark=record["benchmark"],
                subset=record["subset"],
                id=record["id"],
                messages=tuple(record["messages"]),
                gold=record["gold"],
                replies=tuple(Reply(**reply) for reply in record["replies"]),
                extracted=tuple(record["extracted"]),
                scores=_restored(record["scores"]),
            )
            for record in records
            if "hash" in record
        }

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        write(self.path / SCORES, record_text(SCORES, measured({**scores, "finished": now()})))

    def scores(self) -> dict[str, Any] | None:
        """What `write_scores` wrote, and when; null as NaN; None for an evaluation that is not finished."""
        if not (self.path / SCORES).is_file():
            return None
        with reads(self.path / SCORES, "the same `nrt eval` makes it again, from the answers that are kept"):
            return _restored(read_record(self.path / SCORES, "score"))


def find_evaluations(root: Path) -> list[Evaluation]:
    """Every finished evaluation directly below a folder, oldest first; damaged ones are left out, with a warning."""
    found = []
    for evaluation in (Evaluation(path.parent) for path in sorted(root.glob(f"*/{SCORES}"))):
        try:
            evaluation.about()
            found.append((str((evaluation.scores() or {}).get("finished", "")), evaluation.path, evaluation))
        except StoreError as error:
            damage(f"{error} This evaluation is left out.")
    return [evaluation for *_, evaluation in sorted(found, key=lambda one: one[:2])]


def _restored(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores as they were before null stood for NaN."""
    return {key: math.nan if value is None else value for key, value in scores.items()}
