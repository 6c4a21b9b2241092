"""What the runs were made with, as tables of the page: settings, machines, data, and the commands that made them."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt_analysis.report.run_cards import RunCard
from nrt_cli.commandline import nrt


@dataclass(frozen=True)
class Setting:
    """A key and its value in each run."""

    key: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


@dataclass(frozen=True)
class Kind:
    """Runs of which a page says the same: `runs` are their labels."""

    runs: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def settings(cards: Sequence[RunCard]) -> list[Setting]:
    """Every key of some runs' configs, in their order, its values as YAML has them."""
    spelled = {None: "null", True: "true", False: "false"}

    def shown(card: RunCard, key: str) -> str:
        value = card.settings.get(key, "")
        return spelled[value] if value is None or isinstance(value, bool) else str(value)

    keys = dict.fromkeys(key for card in cards for key in card.settings)
    return [Setting(key, tuple(shown(card, key) for card in cards)) for key in keys]


def columns(cards: Sequence[RunCard]) -> list[RunCard]:
    """One run for each model and method: its settings stand for its other seeds'."""
    first: dict[tuple[str, str], RunCard] = {}
    for card in cards:
        first.setdefault((card.model, card.title), card)
    return list(first.values())


def environments(cards: Sequence[RunCard]) -> list[Kind]:
    """Machines and versions; runs that had the same are named together."""

    def facts(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        yield "engine", manifest.get("engine")
        yield from ((f"device: {key}", value) for key, value in manifest.get("device", {}).items())
        yield from sorted(manifest.get("versions", {}).items())

    return _kinds((card.label, [pair for pair in facts(card.manifest) if pair[1] is not None]) for card in cards)


def data(cards: Sequence[RunCard]) -> list[Kind]:
    """What was trained on: examples, what was dropped and why, fingerprints, and where the examples came from."""

    def facts(card: RunCard) -> Iterator[tuple[str, Any]]:
        if "examples" in card.pairs:
            yield "trained on", f"{card.pairs['examples']:,} examples"
        for reason, count in card.pairs.get("dropped", {}).items():
            yield f"dropped: {reason}", f"{count:,}"
        for source in card.sources:
            yield f"source {source.name}", f"{source.count:,} examples ({source.percentage:.1f} %)"
        for key, value in card.manifest.get("fingerprints", {}).items():
            yield f"SHA-256 of {key}", value

    return _kinds((card.label, facts(card)) for card in cards)


def _kinds(pairs: Iterable[tuple[str, Iterable[tuple[str, Any]]]]) -> list[Kind]:
    """Runs with the same facts, together."""
    by_facts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for label, facts in pairs:
        by_facts.setdefault(tuple((str(key), str(value)) for key, value in facts), []).append(label)
    return [Kind(tuple(labels), facts) for facts, labels in by_facts.items()]


def commands(cards: Sequence[RunCard]) -> list[tuple[str, str]]:
    """(the runs and how long they took, the command that made them)."""
    made: dict[str, list[str]] = {}
    for card in cards:
        took = ""
        if (seconds := card.manifest.get("summary", {}).get("seconds")) is not None:
            took = f", took {seconds / 60:.1f} min" if seconds >= 60 else f", took {seconds:.0f} s"
        made.setdefault(str(card.manifest.get("command", "")), []).append(card.label + took)
    return [("; ".join(labels), command) for command, labels in made.items()]


def whole_commands(cards: Sequence[RunCard]) -> list[tuple[str, str]]:
    """(what is made, the command): the studies that the runs belong to, and this report.

    They are run from the folder that holds all of these, whose own name is no business of a reader's.
    """
    folder = os.path.commonpath([(card.study or card.run.path).resolve().parent for card in cards])
    studies = list(dict.fromkeys(card.study.resolve() for card in cards if card.study))
    places = [*studies, *(card.run.path.resolve() for card in cards if not card.study)]
    again = []
    for study in studies:
        name = Path(os.path.relpath(study, folder))
        again.append((f"the study {study.name}", nrt("reproduce", name / "study.yaml", "--out", name)))
    return [*again, ("this report", nrt("report", *(Path(os.path.relpath(place, folder)) for place in places)))]
