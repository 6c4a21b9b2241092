"""From the store to a report's contents."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nrt_analysis.document import Document, Made, Table
from nrt_analysis.report import method_tables, result_tables
from nrt_analysis.report.case_tables import cases_table, confidence_table
from nrt_analysis.report.held_out_tables import asked_twice, compared_table, doubts, held_out_table
from nrt_analysis.report.paper_figures import figures
from nrt_analysis.report.run_cards import RunCard, find_cards, read_study, unfinished
from nrt_analysis.report.run_scores import results
from nrt_cli import __version__
from nrt_cli.store.evals import find_evaluations


def gather(paths: Sequence[Path]) -> Document:
    """A report over studies, runs, and folders of them.

    Nothing is computed with a model: what was not run, evaluated or scored is an empty cell with the reason.

    Raises StoreError where a path does not exist or no run is found.
    """
    cards = find_cards(paths)
    # The one study that all runs are of; else what the runs began from.
    study = cards[0].study if len({card.study for card in cards}) == 1 else None
    asked = read_study(study)[0] if study else None
    models = ", ".join(dict.fromkeys(card.model for card in cards))
    title = f"Native Reasoning Training: {models}" if study is None else asked.title if asked else study.name
    # The newest time that the store recorded: it changes when the store does, and only then.
    times = [str(card.manifest.get("created", "")) for card in cards]
    for card in cards:
        times += [str(event.get("time", "")) for event in card.run.events()[-1:]]
        for folder in sorted(card.run.path.glob("evals/*")):
            times += [str((evaluation.scores() or {}).get("finished", "")) for evaluation in find_evaluations(folder)]
    made = Made(program=__version__, newest=max(times))
    return Document(title, made, tuple(cards), tables(cards), figures(cards), tuple(_notes(cards)))


def tables(cards: Sequence[RunCard]) -> tuple[Table, ...]:
    """All tables, in the order of the paper; what it has not stands after what it belongs to."""
    found = results(cards)
    ours = (result_tables.results_table(found), result_tables.own_table(found))
    scores = (*ours, compared_table(cards), held_out_table(cards), result_tables.gain_table(found))
    twice = asked_twice(cards)
    return (
        method_tables.schemes_table(cards),
        method_tables.weights_table(cards),
        *(replace(table, notes=(*table.notes, *twice)) for table in scores if table),
        result_tables.paper_table(found),
        result_tables.overall_table(),
        result_tables.documents_table(),
        method_tables.data_table(cards),
        method_tables.methods_table(cards),
        method_tables.settings_table(cards),
        method_tables.benchmarks_table(),
        method_tables.judge_table(cards),
        confidence_table(cards),
        cases_table(cards),
    )


def _notes(cards: Sequence[RunCard]) -> list[str]:
    """What a reader must know before the numbers."""
    notes = []
    if len({(card.model, card.title) for card in cards}) == len(cards):
        notes.append("Every row is one seed: differences between methods are not told from differences between seeds.")
    for folder, planned, reason in unfinished(cards):
        notes.append(f"{folder.name}: {planned.name} is missing ({reason}).")
    for card in cards:
        if card.status != "finished":
            notes.append(f"{card.label} is {card.status} after step {card.step} of {card.manifest.get('steps', '?')}.")
    notes += doubts(cards)
    data = {card.fingerprint("train") for card in cards}
    if len(data) > 1:
        notes.append(f"The runs were trained on {len(data)} different data files.")
    return notes
