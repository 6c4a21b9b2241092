"""What other commands left in the folders of a report's runs and studies: `analysis/NAME/*.json`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nrt_analysis.report.contents import RunCard
from nrt_cli.config.titles import TITLES


def left_by(cards: Sequence[RunCard], name: str) -> Iterator[tuple[Path, Any]]:
    """The readable JSON files of one analysis, of studies and then of runs, in order of their paths."""
    folders = {card.study for card in cards if card.study} | {card.run.path.resolve() for card in cards}
    studies = {card.study for card in cards}
    for folder in sorted(folders, key=lambda folder: (folder not in studies, folder)):
        for path in sorted((folder / "analysis" / name).glob("*.json")):
            try:
                yield path, json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue


def in_words(error: Exception, cards: Sequence[RunCard]) -> str:
    """What an error says, with the names that a report gives runs in place of where they are."""
    text = str(error)
    for card in cards:
        text = text.replace(str(card.run.path), card.label)
    return text


def title_of(label: str, cards: Sequence[RunCard], found: Path | None = None) -> str:
    """What a report calls the run that another analysis called by its method, its folder or its path.

    Args:
        found: the file of that analysis: of several runs with one name, it is about the one that it lies beside.
    """
    path, _, _ = label.partition("@")
    beside = [card for card in cards if found and {card.study, card.run.path.resolve()} & set(found.parents)]
    for card in (*beside, *cards):
        if path in (str(card.run.path), card.run.path.resolve().name):
            several = sum(other.title == card.title and other.model == card.model for other in cards) > 1
            return f"{card.title}, seed {card.seed}" if several else card.title
    return TITLES.get(path, label)
