"""The held-out pairs of every run as tables: log P(y*), the gain of thinking and accuracies, before and after."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from nrt_analysis.document import Cell, Column, Row, Table, numbers
from nrt_analysis.intervals import over_seeds, trusted
from nrt_analysis.report.run_cards import RunCard
from nrt_cli.measures.held_out import (
    DIRECT,
    THINKING,
    Found,
    Measure,
    before_and_after,
    measures,
    overlap_described,
    shown,
)
from nrt_cli.measures.statistics import Difference, Mean, mean
from nrt_cli.records import Overlap


def held_out_table(cards: Sequence[RunCard]) -> Table | None:
    """All measures of every run with held-out pairs; None where no run has any."""
    cards = [card for card in cards if card.held_out]
    if not cards:
        return None
    rows = []
    for card in cards:
        measured = of_run(card)
        reason = "not measured: the answers have no grader, or the engine is verl"
        if not measured[0].after.n:
            reason = "not stored, the run is of an older version"
        for found in measured:
            measure, n, signed = found.measure, found.after.n, found.measure.difference
            ends = (_cell(at, measure, signed, reason) for at in (found.before, found.after))
            cells = (*ends, _cell(found.change, measure, True, reason), Cell(str(n), n) if n else Cell(reason=reason))
            rows.append(Row((Cell(measure.title), *cells), _marked(card.label, card)))
    return Table(
        "held-out",
        "Held-out pairs",
        "log P(y*) in nats per answer and accuracy in percent, before and after training, with 95 % intervals over the "
        "held-out pairs. Changes are within pairs.",
        (Column("Measure"), *numbers("Before", "After", "After minus before", "Pairs")),
        tuple(rows),
        notes=(
            "After minus before alone flatters: training makes answers likelier after any trace, another row's too. "
            "What thinking is worth is the gain, and thinking minus the null trace, direct, and another row's trace.",
            "Accuracies are of greedy answers; with the null trace and without think tokens these may use as many "
            "tokens as trace and answer together.",
            "Intervals are over pairs: the bootstrap's; of accuracies Wilson's, of their differences Agresti's. "
            "Another seed would add to them.",
            *(text for card in cards if (text := best_of_run(card))),
        ),
    )


COMPARED = tuple({m.title: m for m in (*THINKING, *DIRECT) if not m.difference}.values())
"""What the models of a report are compared by. An accuracy without think tokens is the same question to all of them."""


def compared_table(cards: Sequence[RunCard]) -> Table | None:
    """Every run after training beside the others and the model that they began from; None of fewer than two runs."""
    cards = [card for card in cards if card.held_out]
    if len(cards) < 2:
        return None
    columns = sorted(COMPARED, key=lambda measure: not measure.share)
    measured = {card.label: {found.measure.title: found for found in of_run(card)} for card in cards}
    rows: list[Row] = []
    for section in dict.fromkeys(map(_began, cards)):
        here = [card for card in cards if _began(card) == section]
        before: dict[str, Difference] = {}
        for one in (one for card in here for one in measured[card.label].values() if one.before.n):
            before.setdefault(one.measure.title, one.before)
        rows.append(_compared("untrained", "", columns, before, section[0]))
        for title in dict.fromkeys(card.title for card in here):
            seeds = [card for card in here if card.title == title]
            after = [
                {key: found.after for key, found in measured[card.label].items() if found.after.n} for card in seeds
            ]
            for card, found in zip(seeds, after, strict=True):
                rows.append(_compared(_marked(title, card), str(card.seed), columns, found, section[0]))
            if len(seeds) > 1:
                cells = []  # of their mean: a column that one of them lacks is empty
                for measure in columns:
                    of = [each[measure.title] for each in after if measure.title in each]
                    if len(of) < len(seeds):
                        cells.append(Cell(reason="not measured for all seeds"))
                    elif not measure.share:
                        value = mean([one.value for one in of])
                        cells.append(Cell(f"{value:.2f}", value, note="without an interval"))
                    else:
                        # Right or wrong: the standard error follows from the share.
                        each = [Mean(one.value, math.nan, one.n) for one in of]
                        cells.append(_cell(over_seeds([trusted(one) for one in each]), measure, False, ""))
                rows.append(Row((Cell(title), Cell("mean"), *cells), section[0]))
    return Table(
        "held-out-models",
        "Held-out pairs, model by model",
        "After training: accuracy of greedy answers in percent, and log P(y*) in nats per answer, with 95 % intervals.",
        (
            Column("Model"),
            Column("Seed"),
            *(Column(m.title.partition(", ")[2], "Accuracy" if m.share else "log P(y*)", "number") for m in columns),
        ),
        tuple(rows),
        notes=("A seed's intervals are over pairs; those of a mean are over pairs and seeds.",),
    )


def _marked(name: str, card: RunCard) -> str:
    """A name that says so where a run's last score is not its result."""
    return name if card.finished else f"{name}, unfinished: after step {card.held_out[-1]['step']}"


def _began(card: RunCard) -> tuple[str, str]:
    """Runs that began from one model and are scored on the same pairs stand under one heading."""
    return card.model, str(card.fingerprint("validation"))


def _compared(title: str, seed: str, columns: Sequence[Measure], found: Mapping[str, Difference], section: str) -> Row:
    empty = "this model answers directly" if COMPARED[0].title not in found else "SFT's measure"
    cells = (
        _cell(found[measure.title], measure, False, "") if measure.title in found else Cell(reason=empty)
        for measure in columns
    )
    return Row((Cell(title), Cell(seed, note="" if seed else "every run begins here"), *cells), section)


def of_run(card: RunCard) -> list[Found]:
    """A run's measures from its first and its last held-out score."""
    first, last = (card.run.held_out_rows(int(card.held_out[i]["step"])) for i in (0, -1))
    return before_and_after(card.thinks, first, last)


def best_of_run(card: RunCard) -> str | None:
    """Which stored step of a run is best, and by what; None where only one could be, or none was scored."""
    best = card.run.best()
    if best is None or len(best.steps) == 1:
        return None
    measure = next(m for m in measures(card.thinks) if m.key == best.measure)
    said, chose = (
        f"{100 * value:.1f} %" if measure.share else f"{value:.2f} nats" for value in (best.reported, best.chosen)
    )
    return (
        f"{card.label}: the best step that is stored is {best.step} ({card.run.path.name}@best), by {measure.title}: "
        f"{said} over {best.reported_rows} held-out pairs; the {best.chosen_rows} pairs of every other question, "
        f"{chose}, chose it."
    )


def _cell(found: Difference, measure: Measure, signed: bool, reason: str) -> Cell:
    scale = 100 if measure.share else 1
    if not found.n:
        return Cell(reason=reason)
    return Cell(shown(found, measure, signed), scale * found.value, scale * found.low, scale * found.high)


def asked_twice(cards: Sequence[RunCard], say: Callable[[Overlap], str] = overlap_described) -> list[str]:
    """Questions of the training data that are asked again, said beside every figure on held-out questions: a sentence
    for each data set of the runs; none of runs that did not compare."""
    names = [field.name for field in fields(Overlap)]
    said: dict[str, list[str]] = {}
    for card in cards:
        data = card.pairs
        if all(name in data for name in names) and (text := say(Overlap(**{name: data[name] for name in names}))):
            said.setdefault(text, []).append(card.label)
    alike = len(said) == 1 and len(cards) == sum(map(len, said.values()))
    return list(said) if alike else [f"{'; '.join(labels)}: {text}" for text, labels in said.items()]
