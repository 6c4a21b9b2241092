"""What the runs of a report scored, from their evaluations."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt_analysis.intervals import Estimate, over_seeds, trusted
from nrt_analysis.report.run_cards import RunCard, planned_title, unfinished
from nrt_cli.config.suite import ORDER, benchmark
from nrt_cli.measures.statistics import Mean, overall
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
    settings: str
    """Its `SHARED` settings, to compare."""
    remarks: tuple[str, ...]


RowName = tuple[str, str]
"""A row of a results table: model and title."""


BASE = "Base"
"""The row of the starting model itself."""


@dataclass(frozen=True)
class Member:
    """One run of a row, or the starting model."""

    label: str
    method: str
    seed: int | None
    status: str


@dataclass(frozen=True)
class Results:
    """Every run's scores, and the rows they belong to."""

    rows: Mapping[RowName, Sequence[Member]]
    scores: Mapping[str, Mapping[str, Score]]
    """Label of a member -> benchmark -> score."""
    absent: Mapping[RowName, str]
    """Rows that a study planned and that have no run, and why."""

    def seeds(self, row: RowName, benchmark: str) -> list[Score]:
        """The scores of a row's runs."""
        found = (self.scores[member.label].get(benchmark) for member in self.rows.get(row, ()))
        return [score for score in found if score is not None]

    def estimate(self, row: RowName, benchmark: str) -> Estimate:
        """The mean over a row's seeds; of `overall`, over the seeds that have all nine."""
        return over_seeds(self.means(row, benchmark))

    def means(self, row: RowName, benchmark: str) -> list[Mean]:
        """What each of a row's seeds scored; NaN where one has not all nine."""
        if benchmark == OVERALL:
            return [self._overall(member) for member in self.rows.get(row, ())]
        return [score.mean for score in self.seeds(row, benchmark)]

    def mean(self, row: RowName, benchmarks: Sequence[str]) -> Estimate:
        """The mean over some benchmarks, of the seeds that have them all."""
        return over_seeds([self._overall(member, benchmarks) for member in self.rows.get(row, ())])

    def missing(self, row: RowName) -> list[str]:
        """Which of the nine no run of a row has."""
        return [name for name in ORDER if not self.seeds(row, name)]

    def benchmarks(self) -> list[str]:
        """Every benchmark that some run has: the nine in the suite's order, then the others by name."""
        found = {name for scores in self.scores.values() for name in scores}
        return [name for name in ORDER if name in found] + sorted(found - set(ORDER))

    def _overall(self, member: Member, names: Sequence[str] = ORDER) -> Mean:
        scores = self.scores[member.label]
        return overall({name: scores[name].mean for name in names if name in scores}, names)[0]


def results(cards: Sequence[RunCard]) -> Results:
    """Read the evaluations of every run: those of its result, else of its last evaluated step.

    Where a run has several of a benchmark, the settings that most runs have are chosen, then the most documents, then
    the newest.
    """
    found: dict[str, dict[str, list[Score]]] = {}
    for card in cards:
        steps = sorted(card.run.path.glob("evals/step-*"), reverse=True)
        notes = {folder: (f"after step {int(folder.name.removeprefix('step-'))}",) for folder in steps}
        of = (_scores(folder, notes.get(folder, ())) for folder in (card.run.path / "evals" / "export", *steps))
        found[card.label] = next(filter(None, of), {})
    rows: dict[RowName, list[Member]] = {}
    for model, folder in {card.model: card.study / "evals" / "base" for card in cards if card.study}.items():
        if scores := _scores(folder, ()):  # what a study asked its starting model
            base = Member(f"{model}, {BASE}", "", None, "finished")
            rows[model, BASE], found[base.label] = [base], scores
    for card in cards:
        member = Member(card.label, card.method, card.seed, card.status)
        rows.setdefault((card.model, card.title), []).append(member)
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
        mean = trusted(Mean(float(scores["score"]), float(scores["error"]), int(scores["n"])))
        if math.isnan(mean.value):
            continue
        name, settings = str(about["benchmark"]), about.get("settings", {})
        suite = (settings.get("benchmark") or {}).get("suite") or {}
        # Imported results do not say; of the nine we know.
        of = int(suite.get("instances") or (benchmark(name).instances if name in ORDER else mean.n))
        remarks = [*at, *([f"{mean.n} of {of} documents"] if mean.n < of else [])]
        if (cut := scores.get("truncated_share", 0.0)) > 0:
            remarks.append(f"{100 * cut:.0f} % of answers were cut at their cap")
        if scores.get("backend") not in (None, "lm-eval"):
            remarks.append(f"by {scores['backend']}")
        shared = json.dumps({key: settings.get(key) for key in SHARED}, sort_keys=True, default=str)
        found[name].append(Score(mean, of, str(scores.get("title") or name), shared, tuple(remarks)))
    return dict(found)


def differing_settings(scores: Sequence[Score]) -> list[str]:
    """Names of the shared settings in which some scores differ."""
    values: list[dict[str, Any]] = [json.loads(score.settings) for score in scores]
    return [key for key in SHARED if len({json.dumps(value[key], sort_keys=True) for value in values}) > 1]
