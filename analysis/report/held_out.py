"""The held-out pairs of every run as a table: log P(y*), the gain of thinking and accuracies, before and after."""

from collections.abc import Iterator, Sequence

from analysis.report.contents import Cell, Column, Row, RunCard, Table
from nrt_cli.config.titles import thinks
from nrt_cli.core.held_out import Found, Measure, before_and_after, measures, shown
from nrt_cli.core.statistics import Difference

NOT_STORED = "not stored, the run is of an older version"
NOT_GRADED = "not measured: the answers have no grader, or the engine is verl"


def held_out_table(cards: Sequence[RunCard]) -> Table | None:
    """All measures of every run with held-out pairs; None where no run has any."""
    cards = [card for card in cards if card.held_out]
    if not cards:
        return None
    return Table(
        "held-out",
        "Held-out pairs",
        "log P(y*) in nats per answer and accuracy in percent, before and after training, with 95 % intervals over the "
        "held-out pairs. Changes are within pairs.",
        (
            Column("Measure"),
            *(Column(title, "", "number") for title in ("Before", "After", "After minus before", "Pairs")),
        ),
        tuple(row for card in cards for row in _rows(card)),
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


def of_run(card: RunCard) -> list[Found]:
    """A run's measures from its first and its last held-out score."""
    first, last = (card.run.held_out_rows(int(card.held_out[i]["step"])) for i in (0, -1))
    return before_and_after(thinks(card.method, card.config), first, last)


def best_of_run(card: RunCard) -> str | None:
    """Which stored step of a run is best, and by what; None where only one could be, or none was scored."""
    best = card.run.best()
    if best is None or len(best.steps) == 1:
        return None
    measure = next(m for m in measures(thinks(card.method, card.config)) if m.key == best.measure)
    said, chose = (
        f"{100 * value:.1f} %" if measure.share else f"{value:.2f} nats" for value in (best.reported, best.chosen)
    )
    return (
        f"{card.label}: the best step that is stored is {best.step} ({card.run.path.name}@best), by {measure.title}: "
        f"{said} over {best.reported_rows} held-out pairs; the {best.chosen_rows} pairs of every other question, "
        f"{chose}, chose it."
    )


def _rows(card: RunCard) -> Iterator[Row]:
    measured = of_run(card)
    reason = NOT_GRADED if measured[0].after.n else NOT_STORED
    for found in measured:
        measure, n = found.measure, found.after.n
        cells = (
            _cell(found.before, measure, measure.difference, reason),
            _cell(found.after, measure, measure.difference, reason),
            _cell(found.change, measure, True, reason),
            Cell(str(n), n) if n else Cell(reason=reason),
        )
        yield Row((Cell(measure.title), *cells), card.label)


def _cell(found: Difference, measure: Measure, signed: bool, reason: str) -> Cell:
    scale = 100 if measure.share else 1
    if not found.n:
        return Cell(reason=reason)
    return Cell(shown(found, measure, signed), scale * found.value, scale * found.low, scale * found.high)
