"""From the store to a report's contents: its tables, and Figures 2 to 4 in the paper's layout."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nrt_analysis.document import Document, Figure, Made, Table
from nrt_analysis.dynamics_report import PANELS
from nrt_analysis.figures import COLUMN, TEXT, StepLine, StepPanel, draw_steps
from nrt_analysis.frames import STEP, averaged
from nrt_analysis.judge_report import asked_with, judged_frame, quality_table
from nrt_analysis.report import method_tables, result_tables
from nrt_analysis.report.arena_tables import arena_table, arenas, pairs_table
from nrt_analysis.report.case_tables import cases_table, confidence_table
from nrt_analysis.report.held_out_tables import asked_twice, compared_table, held_out_table
from nrt_analysis.report.length_tables import by_length, length_figure, length_table
from nrt_analysis.report.paper import paper
from nrt_analysis.report.run_cards import (
    RunCard,
    find_cards,
    in_words,
    read_study,
    stored_analyses,
    title_of,
    unfinished,
    with_results,
)
from nrt_analysis.report.xray_parts import xray_parts
from nrt_analysis.token_report import token_figure
from nrt_analysis.vocabulary_report import vocabulary
from nrt_cli import __version__
from nrt_cli.errors import StoreError
from nrt_cli.measures.collapse import WINDOW
from nrt_cli.measures.held_out import overlap_warnings
from nrt_cli.methods import PAPER
from nrt_cli.store import Reference
from nrt_cli.store.evals import find_evaluations

TRACES_READ = 200
"""Traces of each step whose words Figure 4 counts."""

BEST = PAPER[::-1]
"""Whose words Figure 4 shows: the first of these methods that a model has."""

METRICS = ("entropy", "trace_length")


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
    notes = []
    if len({(card.model, card.title) for card in cards}) == len(cards):
        notes.append("Every row is one seed: differences between methods are not told from differences between seeds.")
    notes += [f"{folder.name}: {planned.name} is missing ({reason})." for folder, planned, reason in unfinished(cards)]
    notes += [f"{card.so_far}." for card in cards if not card.finished]
    notes += asked_twice(cards, lambda overlap: " ".join(overlap_warnings(overlap)))
    if (data := len({card.fingerprint("train") for card in cards})) > 1:
        notes.append(f"The runs were trained on {data} different data files.")
    by_model = [[card for card in cards if card.model == model] for model in dict.fromkeys(c.model for c in cards)]
    words = (words_figure(with_results(of), len(by_model) > 1) for of in by_model)
    signals = by_length(with_results(cards))
    lengths = [figure for figure in (length_figure(signals),) if figure]
    looked, decided = xray_parts(cards)
    figures = (dynamics_figure(cards), *lengths, *token_figures(cards), *words, decided)
    found = (*tables(cards), *filter(None, [length_table(signals)]), looked)
    return Document(title, made, tuple(cards), found, figures, tuple(notes))


def tables(cards: Sequence[RunCard]) -> tuple[Table, ...]:
    """All tables, in the order of the paper; what it has not stands after what it belongs to."""
    counted = with_results(cards)
    said = {True: "its row, marked unfinished, has what there is", False: "left out"}
    left_out = [f"{card.so_far}: {said[card in counted]}." for card in cards if not card.finished]
    found, fields = result_tables.results(cards), arenas(cards)
    ours = (result_tables.results_table(found), result_tables.own_table(found))
    scores = (
        *(*ours, arena_table(fields), pairs_table(fields)),
        *(compared_table(counted), held_out_table(counted), result_tables.gain_table(found)),
    )
    twice = asked_twice(cards)

    def noted(table: Table, *more: str) -> Table:
        return replace(table, notes=(*table.notes, *left_out, *more))

    return (
        method_tables.schemes_table(cards),
        method_tables.weights_table(cards),
        *(noted(table, *twice) for table in scores if table),
        noted(result_tables.paper_table(found)),
        result_tables.overall_table(),
        result_tables.documents_table(),
        method_tables.data_table(cards),
        noted(method_tables.methods_table(counted)),
        method_tables.settings_table(cards),
        method_tables.benchmarks_table(),
        method_tables.judge_table(cards),
        confidence_table(cards),
        cases_table(cards),
    )


def dynamics_figure(cards: Sequence[RunCard]) -> Figure:
    """Entropy, length and quality of traces by step: a column of panels per model, a row per judge's template."""
    caption = "How traces change while models train: diversity (entropy), length, and quality by an LLM judge."
    steps, thinking = [], {}  # a row per step of each run that samples traces
    for card in cards:
        of = pd.DataFrame(card.steps, columns=["step", *METRICS]).dropna(subset=["trace_length"])
        if not of.empty:
            of = of.assign(model=card.model, title=card.title, seed=card.seed)
            steps.append(of[["model", "title", "seed", "step", *METRICS]])
            thinking[card.label] = card
    if not steps:
        return Figure("figure-2", "Figure 2", caption, reason="no run here sampled traces and took a step")
    by_step = pd.concat(steps, ignore_index=True)
    # The mean score by run, judge and step, `asked` with one template: scores for different questions do not mix.
    columns = ["model", "title", "seed", "step", "judge", "asked", "quality", "low", "high", "n"]
    judged = [pd.DataFrame(columns=[*columns, "run"])]
    for _, of in judged_frame({label: card.run for label, card in thinking.items()}).groupby("template"):
        judges = ", ".join(sorted(of["judge"].unique()))
        judged.append(quality_table(of).assign(asked=f"{judges} asked with {asked_with(of)}"))
    quality = pd.concat(judged[1:] or judged, ignore_index=True)
    for name in ("model", "title", "seed"):
        quality[name] = [getattr(thinking[label], name) for label in quality["run"]]
    quality = quality[columns]
    rows = [(metric, by_step, *PANELS[metric]) for metric in METRICS]
    rows += [("quality", of, f"judged quality, {asked}", "score") for asked, of in quality.groupby("asked")]
    if quality.empty:
        rows.append(("quality", quality, "judged quality", "score"))
    models, panels, means = list(by_step["model"].unique()), list[list[StepPanel]](), set[int]()
    for metric, frame, title, unit in rows:
        named = [f"{title}, {model}".replace("$", r"\$") if len(models) > 1 else title for model in models]
        panels.append([])
        for model, name in zip(models, named, strict=True):
            lines = {}  # one per method: the mean over seeds, of quality at the steps that were judged
            for label, of in frame[frame["model"] == model].groupby("title", sort=False):
                if metric == "quality":
                    mean = of.groupby("step")["quality"].mean()
                    # Where lines are means over seeds or judges there are no intervals.
                    bars = (of["high"] - of["quality"]).to_numpy() if of["step"].is_unique else None
                    lines[str(label)] = StepLine(mean.index, mean, bars=bars)
                else:
                    wide = of.pivot_table(index="step", columns="seed", values=metric)
                    mean = wide.rolling(WINDOW, min_periods=1).mean().mean(axis=1)
                    single = {"single": wide.iloc[:, 0]} if len(wide.columns) == 1 else {}
                    drawn, of_each = averaged(pd.DataFrame({"mean": mean, **single}).reset_index())
                    lines[str(label)] = StepLine(drawn["step"], drawn["mean"], drawn.get("single"))
                    means |= {of_each} - {1}
            dots = metric == "quality"
            panels[-1].append(StepPanel(name, unit, lines, share=dots, points=dots))
    drawing, said = draw_steps(panels, TEXT if len(models) > 1 else COLUMN, 0.4 + 1.4 * len(rows))
    notes = [f"thick: mean over seeds of the trailing mean over {WINDOW} steps; thin: steps of a single seed"]
    notes += [f"lines of long runs are means over {of} steps each" for of in sorted(means)]
    notes += [f"quality: {asked}" for asked in quality["asked"].unique()]
    notes += said if len(quality) else [*said, "no traces were judged: `nrt judge RUN` scores them"]
    numbers = {"steps": by_step} | ({"quality": quality} if len(quality) else {})
    return Figure("figure-2", "Figure 2", caption, drawing, numbers, tuple(notes))


def token_figures(cards: Sequence[RunCard]) -> list[Figure]:
    """One for every `tokens.json` that `nrt analyze tokens` left."""
    caption = (
        "Ground-truth tokens by how unsure the SFT model is of them: (a) how many there are; (b) their probability "
        "given a sampled trace, relative to SFT's; (c) the geometric mean of that."
    )
    found = [
        (path, record["tables"])
        for path, record in stored_analyses(cards, "tokens")
        if isinstance(record, dict) and {"tokens", "entropy"} <= record.get("tables", {}).keys()
    ]
    if not found:
        reason = "token probabilities were not scored; `nrt analyze tokens --baseline SFT_RUN --runs RUN...` does"
        return [Figure("figure-3", "Figure 3", caption, reason=reason)]
    figures = []
    for i, (path, tables) in enumerate(found, 1):
        tokens, entropy = (pd.DataFrame(tables[name]) for name in ("tokens", "entropy"))
        titles = {run: title_of(str(run), cards, path) for run in dict.fromkeys(tokens["run"])}
        tokens = tokens.assign(run=tokens["run"].map(titles))
        notes = (
            f"{entropy['tokens'].sum():,} tokens; 95 % bootstrap intervals, whole examples resampled.",
            f"The paper's median entropy is {paper()['tokens']['median_entropy']} nats.",
        )
        key, numbers = "figure-3" if len(found) == 1 else f"figure-3-{i}", {"tokens": tokens, "entropy": entropy}
        figures.append(Figure(key, "Figure 3", caption, token_figure(entropy, tokens), numbers, notes))
    return figures


def words_figure(cards: Sequence[RunCard], several: bool) -> Figure:
    """The words of one model's traces against its answers: of the first of `BEST`, first seed."""
    model = cards[0].model
    # The name as part of a file's name.
    slug = "".join(c if c.isalnum() or c in "-." else "-" for c in model.lower()).strip("-.")
    key = f"figure-4-{slug}" if several else "figure-4"
    caption = "Words that traces use more (a) and less (c) than reference answers, and word clouds of both (b, d)"
    chosen = min(
        (card for card in cards if card.samples),
        key=lambda card: BEST.index(card.method) if card.method in BEST else len(BEST),
        default=None,
    )
    if chosen is None:
        return Figure(key, "Figure 4", f"{caption}.", reason=f"no run of {model} samples traces")
    caption += f": {chosen.label}."
    try:
        found = vocabulary(Reference(chosen.run.path, None), STEP, first=TRACES_READ)
    except StoreError as error:
        return Figure(key, "Figure 4", caption, reason=in_words(error, cards))
    notes = (*found.notes, f"counted: at most {TRACES_READ} traces of each step")
    numbers = {"changes": found.frames["changes"]}
    return Figure(key, "Figure 4", caption, found.figures[0].drawing, numbers, notes)
