"""What the runs' training data asks that is asked again: it stands beside every figure on held-out questions."""

from collections.abc import Callable, Sequence
from dataclasses import fields

from nrt_analysis.report.contents import RunCard
from nrt_cli.measures.overlap import described, warnings
from nrt_cli.records import Overlap


def asked_twice(cards: Sequence[RunCard]) -> list[str]:
    """Both numbers, in a sentence for each data set of the runs; none of runs that did not compare."""
    return _by_data(cards, described)


def doubts(cards: Sequence[RunCard]) -> list[str]:
    """What is wrong with held-out figures, if anything is."""
    return _by_data(cards, lambda overlap: " ".join(warnings(overlap)))


def _by_data(cards: Sequence[RunCard], say: Callable[[Overlap], str]) -> list[str]:
    names = [field.name for field in fields(Overlap)]
    said: dict[str, list[str]] = {}
    for card in cards:
        data = card.manifest.get("data", {})
        if all(name in data for name in names) and (text := say(Overlap(**{name: data[name] for name in names}))):
            said.setdefault(text, []).append(card.label)
    alike = len(said) == 1 and len(cards) == sum(map(len, said.values()))
    return list(said) if alike else [f"{'; '.join(labels)}: {text}" for text, labels in said.items()]
