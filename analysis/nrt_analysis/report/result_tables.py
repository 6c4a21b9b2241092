"""What runs scored in their evaluations: Table 3, own benchmarks, the numbers of the paper, its Overall recomputed."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from nrt_analysis.document import Cell, Column, Place, Row, Table, numbers
from nrt_analysis.intervals import difference, over_seeds, trusted
from nrt_analysis.report.paper import (
    documents,
    overall_differs,
    paper,
    paper_model,
    recomputed_overall,
    scores,
    uncertain,
)
from nrt_analysis.report.run_cards import RunCard, planned_title, unfinished, with_results
from nrt_cli.config.suite import ORDER, benchmark
from nrt_cli.config.titles import method_title
from nrt_cli.measures.statistics import NORMAL, Difference, Mean, overall
from nrt_cli.methods import SUPERVISED
from nrt_cli.store.evals import find_evaluations

OVERALL = "overall"

SHARED = ("benchmark", "backend", "limit", "seed", "max_answer_tokens")
"""Settings that rows of one table must share, so that the same documents were asked and graded alike."""


@dataclass(frozen=True)
class Score:
    """One run on one benchmark, a share of 1."""

    mean: Mean
    of: int
    """Documents that the benchmark has in full."""
    title: str
    settings: tuple[str, ...]
    """Its `SHARED` settings, to compare."""
    remarks: tuple[str, ...]


RowName = tuple[str, str]
"""A row of a results table: model and title."""

BASE = "Base"
"""The row of the starting model itself."""


@dataclass(frozen=True)
class Results:
    """The scores of the runs that have results, and the rows they belong to."""

    rows: Mapping[RowName, Sequence[RunCard]]
    """The starting model itself is a card of that label, without a method."""
    scores: Mapping[str, Mapping[str, Score]]
    """Label of a card -> benchmark -> score."""
    absent: Mapping[RowName, str]
    """Rows that a study planned and that have no run, and why."""

    def seeds(self, row: RowName, benchmark: str) -> list[Score]:
        found = (self.scores[card.label].get(benchmark) for card in self.rows.get(row, ()))
        return [score for score in found if score is not None]

    def unfinished(self, *rows: RowName) -> str:
        """The word for what is of a run that is not finished; empty where all is of results."""
        return "unfinished" if any(not card.finished for row in rows for card in self.rows.get(row, ())) else ""

    def estimate(self, row: RowName, *benchmarks: str) -> Difference:
        """The mean over benchmarks and over a row's seeds that have them all; `overall` is all nine."""
        return over_seeds(self.means(row, *benchmarks))

    def means(self, row: RowName, *benchmarks: str) -> list[Mean]:
        """The mean over benchmarks of each of a row's seeds; NaN where one has not all of them."""
        names = ORDER if benchmarks == (OVERALL,) else benchmarks
        of = (self.scores[card.label] for card in self.rows.get(row, ()))
        return [overall({name: scores[name].mean for name in names if name in scores}, names)[0] for scores in of]

    def benchmarks(self) -> list[str]:
        """Every benchmark that some run has: the nine in the suite's order, then the others by name."""
        found = {name for scores in self.scores.values() for name in scores}
        return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def results(cards: Sequence[RunCard]) -> Results:
    """Read the evaluations of every run: those of its result, else of its last evaluated step.

    Of several evaluations of a benchmark: the settings that most runs have, then the most documents, then the newest.
    """
    found: dict[str, dict[str, list[Score]]] = {}
    for card in cards:
        steps = sorted(card.run.path.glob("evals/step-*"), reverse=True)
        notes = {folder: (f"after step {int(folder.name.removeprefix('step-'))}",) for folder in steps}
        of = (_scores(folder, notes.get(folder, ())) for folder in (card.run.path / "evals" / "export", *steps))
        found[card.label] = next(filter(None, of), {})
    rows: dict[RowName, list[RunCard]] = {}
    for model, card in {card.model: card for card in cards if card.study}.items():
        if scores := _scores(Path(card.study or "") / "evals" / "base", ()):  # what a study asked its starting model
            base = replace(card, label=f"{model}, {BASE}", method="", status="finished")
            rows[model, BASE], found[base.label] = [base], scores
    for card in with_results(cards):
        rows.setdefault((card.model, card.title), []).append(card)
    usual = Counter(
        (name, settings)
        for scores in found.values()
        for name, several in scores.items()
        for settings in {score.settings for score in several}
    )

    def best(name: str, several: Sequence[Score]) -> Score:
        return max(reversed(several), key=lambda score: (usual[name, score.settings], score.mean.n))

    chosen = {label: {name: best(name, several) for name, several in scores.items()} for label, scores in found.items()}
    models, absent = {card.study: card.model for card in cards}, {}
    for folder, planned, reason in unfinished(cards):
        model, title = models[folder], str(planned_title(folder, planned.name))
        if not any(at == model and (own == title or own.startswith(f"{title} [")) for at, own in rows):
            absent[model, title] = reason
    return Results(rows, chosen, absent)


def _scores(folder: Path, at: tuple[str, ...]) -> dict[str, list[Score]]:
    """By benchmark, the oldest first; failed ones have no score and are left out."""
    found = defaultdict(list)
    for evaluation in find_evaluations(folder):
        about, scores = evaluation.about(), evaluation.scores() or {}
        # What the paper's numbers can be compared with; what was stored before OLMES's grades were has the others.
        kept = "olmes_" if "olmes_score" in scores else ""
        mean = trusted(Mean(float(scores[f"{kept}score"]), float(scores[f"{kept}error"]), int(scores["n"])))
        if math.isnan(mean.value):
            continue
        name, settings = str(about["benchmark"]), about.get("settings", {})
        suite = (settings.get("benchmark") or {}).get("suite") or {}
        # Imported results do not say; of the nine we know.
        of = int(suite.get("instances") or (benchmark(name).instances if name in ORDER else mean.n))
        remarks = [*at, *([f"{mean.n} of {of} documents"] if mean.n < of else [])]
        if (cut := scores.get("truncated_share", 0.0)) > 0:
            remarks.append(f"{100 * cut:.0f} % of answers were cut at their cap")
        if name in ORDER and not kept:
            remarks.append("not graded as OLMES grades")
        if scores.get("backend") not in (None, "lm-eval"):
            remarks.append(f"by {scores['backend']}")
        shared = (json.dumps(settings.get(key), sort_keys=True, default=str) for key in SHARED)
        found[name].append(Score(mean, of, str(scores.get("title") or name), tuple(shared), tuple(remarks)))
    return dict(found)


INTERVALS = (
    "Intervals are 95 %: over documents, and where a row has several seeds over seeds too; those of one seed do not "
    "hold what another seed would have changed."
)


def results_table(results: Results) -> Table:
    """Table 3: the nine benchmarks and their mean, percent. The paper's seven methods always have a row."""
    layout = paper()["benchmarks"]
    columns = (Column("Method"), *(Column(at["title"], at["group"], "number") for at in layout.values()))
    rows = [_row(results, row, [*layout, OVERALL], False) for row in _all_rows(results)]
    return Table(
        "table-3",
        "Table 3",
        "Scores on the nine benchmarks of the paper, in percent. Bold and underlined are the best two of each model.",
        (*columns, *numbers("Overall")),
        _placed(rows),
        notes=(
            "Overall is the mean of all nine, and empty where one is missing.",
            "Answers are graded as OLMES grades them, as the paper's were; `nrt eval` shows strict grades.",
            f"The intervals of these numbers are in tables/table-3.csv. {INTERVALS}",
            *_remarks(results, layout),
        ),
        reason="" if results.rows else "no runs",
    )


def own_table(results: Results) -> Table | None:
    """The same for benchmarks that are not the paper's; None where no run has any."""
    names = [name for name in results.benchmarks() if name not in ORDER]
    if not names:
        return None
    titles = {name: next(found[name].title for found in results.scores.values() if name in found) for name in names}
    known = [row for row in _all_rows(results) if row in results.rows or row in results.absent]
    return Table(
        "table-3-own",
        "Own benchmarks",
        "Scores on benchmarks that the paper does not have, in percent, with 95 % intervals. Bold and underlined are "
        "the best two of each model.",
        (Column("Method"), *numbers(*(titles[name] for name in names))),
        _placed([_row(results, row, names, True) for row in known]),
        notes=(INTERVALS, *_remarks(results, names)),
    )


def _all_rows(results: Results) -> list[RowName]:
    """Every model's rows: the paper's methods, whether they were run or not, then the others."""
    rows: list[RowName] = []
    for model in dict.fromkeys(model for model, _ in results.rows):
        own = [title for at, title in (*results.rows, *results.absent) if at == model]
        known = [method_title(method) for method in paper()["methods"]]
        base = [title for title in own if title == BASE]
        rows += [(model, title) for title in dict.fromkeys([*base, *known, *own])]
    return rows


def _row(results: Results, row: RowName, names: Sequence[str], interval: bool) -> Row:
    """A row's title, with the seeds that some of its numbers are of where it has several runs, and its scores."""
    members = results.rows.get(row, ())
    seeds = [card.seed for card in members if any(name in results.scores[card.label] for name in names)]
    note = _seeds(sorted(seeds)) if len(members) > 1 and seeds else results.unfinished(row)
    scores = (_score_cell(results, row, name, interval) for name in names)
    return Row((Cell(row[1], note=note), *scores), section=row[0])


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _score_cell(results: Results, row: RowName, name: str, interval: bool = False) -> Cell:
    if row not in results.rows:
        return Cell(reason=results.absent.get(row, "not run"))
    found, members = results.estimate(row, name), results.rows[row]
    if math.isnan(found.value):
        if results.unfinished(row) and not results.scores[members[0].label]:
            return Cell(reason=f"not evaluated; the run is {members[0].status}")
        missing = ", ".join([n for n in ORDER if not results.seeds(row, n)] or ["a seed that has all nine"])
        return Cell(reason=f"missing: {missing}" if name == OVERALL else "not evaluated")
    remarks = list(dict.fromkeys(remark for score in results.seeds(row, name) for remark in score.remarks))
    having = [card.seed for card in members if name in results.scores[card.label]]
    if name != OVERALL and len(having) < len(members):
        remarks.append(f"{_seeds(having)} only")
    each = tuple(100 * mean.value for mean in results.means(row, name) if not math.isnan(mean.value))
    return replace(percent(found, interval), note="; ".join(remarks), seeds=each if len(each) > 1 else ())


def percent(found: Difference, interval: bool = False, signed: bool = False) -> Cell:
    """A share as a cell in percent, with one decimal as in the paper."""
    value, low, high = (100 * number for number in (found.value, found.low, found.high))
    form = "+z.1f" if signed else ".1f"
    text = format(round(value, 1) + 0.0, form)  # no minus before a rounded 0
    if interval:
        text += " [not known]" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return Cell(text, value, low, high)


def _placed(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Mark the best and second of each column and section; equal values share a place, a lone value has none."""
    values = pd.DataFrame([[cell.value for cell in row.cells] for row in rows]).groupby([row.section for row in rows])
    ranks = values.rank(method="dense", ascending=False).where(values.transform("nunique") > 1)
    places: dict[float, Place] = {1.0: 1, 2.0: 2}
    return tuple(
        replace(row, cells=tuple(replace(c, place=places.get(r, 0)) for c, r in zip(row.cells, of_row, strict=True)))
        for row, of_row in zip(rows, ranks.to_numpy(), strict=True)
    )


def _remarks(results: Results, names: Sequence[str]) -> list[str]:
    """What makes numbers of a column less than they look: fewer documents, cut answers, settings that differ."""
    notes = []
    for name in names:
        found = [score for scores in results.scores.values() if (score := scores.get(name)) is not None]
        if not found:
            continue
        shared = zip(SHARED, *(score.settings for score in found), strict=True)
        if differing := [key for key, *values in shared if len(set(values)) > 1]:
            notes.append(f"{found[0].title}: rows differ in {', '.join(differing)}, so they do not compare.")
        counts = sorted({score.mean.n for score in found})
        if counts[0] < found[0].of:
            notes.append(f"{found[0].title}: {' or '.join(map(str, counts))} of {found[0].of} documents.")
    return notes


def paper_table(results: Results) -> Table:
    """Ours, theirs and the difference, for every score that both have."""
    rows = []
    for row, members in results.rows.items():
        model = paper_model(row[0])
        theirs = scores(model, members[0].method) if model and row[1] == method_title(members[0].method) else {}
        for name in [name for name in (*paper()["benchmarks"], OVERALL) if name in theirs]:
            method, ours = members[0].method, results.estimate(row, name)
            cell = percent(ours, interval=True) if not math.isnan(ours.value) else _score_cell(results, row, name)
            printed = {"Overall" if name == OVERALL else paper()["benchmarks"][name]["title"]: theirs[name]}
            if name == OVERALL and overall_differs(str(model), method):  # it is not the mean of its columns
                mean = recomputed_overall(str(model), method)
                printed = {"Overall, as printed": theirs[name], "Overall, mean of its nine": mean}
            for what, number in printed.items():
                stated = over_seeds([replace(uncertain(str(model), method, name), value=number / 100)])
                gap = percent(difference(ours, stated), interval=True, signed=True)
                apart = Cell(reason=cell.reason) if cell.reason else gap
                cells = (
                    Cell(row[1], note=results.unfinished(row)),
                    Cell(what),
                    cell,
                    percent(stated, interval=True),
                    apart,
                )
                rows.append(Row(cells, section=row[0]))
    known = ", ".join(model["title"] for model in paper()["models"])
    models = ", ".join(dict.fromkeys(model for model, _ in results.rows))
    unlike = f"the paper trained {known}, and these runs began from {models}"
    return Table(
        "table-3-paper",
        "Table 3, ours and theirs",
        "Each score, the number that the paper prints, and the difference, in percent with 95 % intervals.",
        (Column("Method"), Column("Benchmark"), *numbers("Ours [95 %]", "Paper [95 %]", "Difference [95 %]")),
        tuple(rows),
        notes=(_their_errors(), INTERVALS),
        reason="" if rows else f"{unlike}: nothing to set beside each other; the gains over SFT do compare",
    )


def _their_errors() -> str:
    """What the paper's numbers are uncertain by, since it prints no errors."""
    columns, n, chance = paper()["digits"]["counted"].values()
    titles = ", ".join(paper()["benchmarks"][name]["title"] for name in columns)
    count = len(columns) * sum(map(len, paper()["scores"].values()))
    return (
        f"The paper prints no errors. {titles}: about {n} documents each, ±{_margin(n):.1f} points at 50 %, since all "
        f"{count} scores are multiples of 1/{n} (by chance: {chance:.0e}). The others are taken to be of all documents "
        "there are, so their errors are the least. All are taken as independent of ours."
    )


def _margin(n: int) -> float:
    """Half of the 95 % interval of 50 % of n documents, in points."""
    return 100 * NORMAL * math.sqrt(0.25 / n)


def documents_table() -> Table:
    """How many documents the paper's scores are of, as far as their last digits tell."""
    rows = []
    for name, at in paper()["benchmarks"].items():
        n, (on, grid, chance) = documents(name), paper()["digits"]["columns"][name].values()
        told = name in paper()["digits"]["counted"]["columns"]
        cells = (
            Cell(at["title"]),
            Cell(f"{on} of {sum(map(len, paper()['scores'].values()))}", on),
            Cell(f"1/{grid}", grid) if grid else Cell(reason="only one of which all such numbers are multiples"),
            Cell(f"{chance:.0e}", chance) if grid else Cell(reason="nothing is found"),
            Cell(f"about {n}", n) if told else Cell(f"{n:,}", n, note="all there are"),
            Cell(f"±{_margin(n):.1f}", _margin(n)),
        )
        rows.append(Row(cells))
    return Table(
        "table-3-documents",
        "How many documents Table 3 is of",
        "What the last digits of the paper's scores tell: a share of n documents is a multiple of 1/n.",
        (
            Column("Benchmark"),
            *numbers("Multiples of 1/300", "Coarsest grid they lie on", "Chance of one so coarse", "Documents taken"),
            *numbers("95 % at a score of 50"),
        ),
        tuple(rows),
        notes=(
            "Of numbers with one decimal 3 in 10 are multiples of 1/300: 6 of 21 by chance.",
            "100 documents that were asked three times give multiples of 1/300 too; the errors are larger then.",
            "F1, pass@10 of more than ten samples and means over subsets lie on no grid that one decimal shows: if "
            "those benchmarks were cut to 300 documents a task too, these numbers cannot tell it.",
        ),
    )


def overall_table() -> Table:
    """The paper's Table 3 as printed, and its Overall against the mean of the nine numbers beside it."""
    rows, differ = [], 0
    layout = paper()["benchmarks"]
    for model, block in paper()["scores"].items():
        for method in block:
            stated, mean = scores(model, method), recomputed_overall(model, method)
            apart = stated["overall"] - mean if overall_differs(model, method) else 0.0
            differ += apart != 0
            values = [*(stated[name] for name in layout), stated["overall"], mean]
            gap = Cell(f"{apart:+.1f}" if apart else "none", note="" if apart else "no more than rounding explains")
            errors = [uncertain(model, method, name) for name in (*layout, OVERALL, OVERALL)]
            printed = [over_seeds([replace(e, value=x / 100)]) for e, x in zip(errors, values, strict=True)]
            cells = (Cell(paper()["methods"][method]), *map(percent, printed), gap)
            rows.append(Row(cells, section=model))
    return Table(
        "table-3-overall",
        "Table 3 as the paper prints it, Overall recomputed",
        f"The paper's scores and its Overall as printed, beside the mean of the nine scores in the same row: {differ} "
        f"of {len(rows)} rows differ by more than rounding.",
        (
            Column("Method"),
            *(Column(at["title"], at["group"], "number") for at in layout.values()),
            *numbers("Printed", "Mean of nine", "Differ by", group="Overall"),
        ),
        _placed(rows),
        notes=(
            "* The paper's own implementation of others' work.",
            "Our Overall is the mean of the nine, so it is to be compared with theirs recomputed.",
            _their_errors(),
            "Bold and underlined are the best two of each model, by these numbers.",
        ),
    )


def gain_table(results: Results) -> Table:
    """What each method adds to SFT: ours per model, beside the paper's three models."""
    sft, theirs = SUPERVISED.title, list(paper()["scores"])
    # The benchmarks that all evaluated rows of a model have: of the nine if all share some, else of the others.
    names: dict[str, list[str]] = {}
    for model in dict.fromkeys(model for model, _ in results.rows):
        rows = [row for row in results.rows if row[0] == model]
        evaluated = [row for row in rows if any(results.seeds(row, name) for name in results.benchmarks())]
        shared = [n for n in results.benchmarks() if evaluated and all(results.seeds(row, n) for row in evaluated)]
        names[model] = [name for name in shared if name in ORDER] or shared
    titles = {name: score.title for scores in results.scores.values() for name, score in scores.items()}
    titles |= {name: benchmark(name).title for name in ORDER}
    notes = [
        f"{model}: over {'all nine benchmarks' if found == [*ORDER] else ', '.join(titles[n] for n in found)}."
        for model, found in names.items()
        if found
    ]
    known = [BASE, *map(method_title, paper()["methods"])]
    others = dict.fromkeys(title for _, title in results.rows if title not in known)
    methods = {method_title(method): method for method in paper()["methods"] if method != SUPERVISED.name}
    gains = []
    for title in (*methods, *others):
        cells = []
        for model, found in names.items():
            ours, base = (results.estimate((model, name), *found) for name in (title, sft))
            if (model, title) not in results.rows:
                cells.append(Cell(reason=results.absent.get((model, title), "not run")))
            elif (model, sft) not in results.rows or math.isnan(base.value):
                cells.append(Cell(reason="no SFT run with these benchmarks"))
            elif math.isnan(ours.value):
                cells.append(Cell(reason="not evaluated"))
            else:
                gain, mark = (
                    percent(difference(ours, base), True, True),
                    results.unfinished((model, title), (model, sft)),
                )
                cells.append(replace(gain, text=f"{gain.text}, {mark}" if mark else gain.text))
        for model in theirs:
            if title not in methods:
                cells.append(Cell(reason="not in the paper"))
                continue
            of, minus = (over_seeds([uncertain(model, each, OVERALL)]) for each in (methods[title], SUPERVISED.name))
            cells.append(percent(difference(of, minus), interval=True, signed=True))
        gains.append(Row((Cell(title), *cells)))
    return Table(
        "table-3-gain",
        "Gain over SFT",
        "Mean score minus that of SFT, in points with 95 % intervals. The paper's are of the means of its nine scores, "
        "not of its printed Overall.",
        (
            Column("Method"),
            *(Column(model, "Ours", "number") for model in names),
            *(Column(model, "Paper", "number") for model in theirs),
        ),
        tuple(gains),
        notes=(
            *notes,
            "Both are taken as independent although the documents are the same, so the intervals are wide; `nrt eval "
            "compare` pairs documents.",
        ),
    )
