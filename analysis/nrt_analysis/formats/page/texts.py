"""What the page's template prints of runs: what came of them, with intervals or the reason why there are none, for the
first screen; and what they were made with, for the last."""

import json
import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from nrt_analysis.document import Document, Table
from nrt_analysis.report.held_out_tables import asked_twice, of_run
from nrt_analysis.report.run_cards import RunCard, with_results
from nrt_cli.commandline import nrt
from nrt_cli.measures.held_out import Found, Measure, shown
from nrt_cli.measures.statistics import Difference
from nrt_cli.records import ACCURACIES

OVERALL = "Overall"
OPEN = "the order is not settled"


@dataclass(frozen=True)
class Dot:
    """One method's result: its value and 95 % interval, and, where they are known, single seeds before and after."""

    section: str
    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    unfinished: bool = False

    @property
    def text(self) -> str:
        interval = f" [{self.low:.1f}, {self.high:.1f}]" if self.bounded else ""
        start = f"{sum(self.before) / len(self.before):.1f} → " if self.before else ""
        mark = ", unfinished" if self.unfinished else ""
        return f"{start}{self.value:.1f}{interval}{mark}".replace("-", "−")

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Panel:
    """One measure of all methods."""

    title: str
    unit: str
    dots: tuple[Dot, ...]
    verdicts: tuple[str, ...]

    def at(self, value: float) -> str:
        """Where a value lies between the panel's smallest and largest, in per cent of its width."""
        drawn = (x for dot in self.dots for x in (dot.value, dot.low, dot.high, *dot.before, *dot.after))
        ends = list(filter(math.isfinite, drawn))
        low, high = min(ends), max(ends)
        return f"{2 + 96 * (value - low) / ((high - low) or 1):.2f}%"

    @property
    def sections(self) -> dict[str, list[Dot]]:
        return {section: list(of) for section, of in groupby(self.dots, key=attrgetter("section"))}


def panels(document: Document) -> list[Panel]:
    """Benchmarks first, our own before the paper's; then held-out pairs."""
    tables, counted = {table.key: table for table in document.tables}, with_results(document.runs)
    unfinished = {(card.model, card.title) for card in counted if not card.finished}
    found = [p for key in ("table-3-own", "table-3") if key in tables for p in _scores(tables[key], unfinished)]
    return [*found[:3], *_held_out(counted)]  # the first screen has room for three


def trained(document: Document) -> str:
    """One sentence on what the report is about."""
    runs = document.runs
    if not runs:
        return f"A section of a report: {document.title}."
    titles, seeds = list(dict.fromkeys(card.title for card in runs)), {card.seed for card in runs}
    steps = sorted({card.step for card in runs})
    span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    # On how many pairs, and of which sources, where the runs agree.
    counts = {card.pairs.get("examples") for card in runs}
    sources = {tuple(source["name"] for source in card.sources) for card in runs}
    pairs = ""
    if len(counts) == 1 and counts != {None}:
        names = next(iter(sources))[:3] if len(sources) == 1 else ()
        pairs = f" on {counts.pop():,} question–answer pairs" + (f" of {', '.join(names)}" if names else "")
    if len(runs) == 1:
        return f"One run of {runs[0].model}: {titles[0]}, {span} training steps{pairs}."

    def number(count: int, noun: str) -> str:
        return f"{count} {noun}{'' if count == 1 else 's'}"

    return (
        f"{number(len(runs), 'run')} of {', '.join(document.models)}: {number(len(titles), 'method')} "
        f"({', '.join(titles)}), {number(len(seeds), 'seed')}, {span} training steps each{pairs}."
    )


def _scores(table: Table, unfinished: Container[tuple[str, str]]) -> Iterator[Panel]:
    """A table's overall score; where it has none, its first benchmarks."""
    found: dict[int, tuple[Dot, ...]] = {}
    for i, column in enumerate(table.columns):
        measured = [row for row in table.rows if math.isfinite(row.cells[i].value)] if column.kind == "number" else []
        if measured:
            cells = [((row.section, row.cells[0].text), row.cells[i]) for row in measured]
            found[i] = tuple(Dot(*of, c.value, c.low, c.high, (), c.seeds, of in unfinished) for of, c in cells)
    overall = [i for i in found if table.columns[i].title == OVERALL]
    for i in overall or found:
        title = f"{table.title}: {OVERALL}" if overall else table.columns[i].title
        seeds = "; dots are seeds" if any(dot.after for dot in found[i]) else ""
        unit = f"percent with 95 % intervals, higher is better{seeds}"
        # For each model, who leads, and whether the others are apart from it.
        panel, verdicts = Panel(title, unit, found[i], ()), []
        for model, dots in panel.sections.items():
            if len(done := [dot for dot in dots if not dot.unfinished]) > 1:
                verdicts.append(f"{model}: {_verdict(done)}" if model else _verdict(done))
        yield replace(panel, verdicts=tuple(verdicts))


def _verdict(dots: Sequence[Dot]) -> str:
    best = max(dot.value for dot in dots)
    leaders, others = [d for d in dots if d.value == best], [d for d in dots if d.value < best]
    first, names = leaders[0], " and ".join(dot.label for dot in leaders)
    has, whose = ("has", "its interval overlaps") if len(leaders) == 1 else ("share", "their intervals overlap")
    if not all(dot.bounded for dot in dots):
        return f"{names} {has} the highest score, {first.text}; without intervals, that settles nothing."
    tied = [dot.label for dot in others if dot.high >= first.low]
    if tied:
        overlap = f"{whose} with {'that' if len(tied) == 1 else 'those'} of {', '.join(tied)}"
        return f"{names} {has} the highest score, {first.text}, but {overlap}: {OPEN}."
    level = [dot.label for dot in others if dot.after and first.after and max(dot.after) >= min(first.after)]
    if level:
        # Intervals from a handful of seeds that end up in one of two places mean little.
        return (
            f"{names} {has} the highest score, {first.text}, but single seeds of {', '.join(level)} do as well: {OPEN}."
        )
    if len(leaders) > 1:
        return f"{names} share the highest score, {first.text}."
    second = max(others, key=lambda dot: dot.value)
    return f"{names} leads with {first.text}; no other interval reaches it (next: {second.label}, {second.text})."


def _held_out(cards: Sequence[RunCard]) -> Iterator[Panel]:
    """Accuracies, log P(y*) and the gain of thinking, before and after training."""
    cards = [card for card in cards if card.held_out]
    of_card = [(card, {found.measure.key: found for found in of_run(card)}) for card in cards]
    if dots := tuple(dot for kind, title in ACCURACIES.items() for dot in _dots(of_card, f"accuracy_{kind}", title)):
        said = [
            "Greedy answers that are right, before (ring) and after training (dot). Null trace and direct may use as "
            "many tokens as trace and answer together."
        ]
        for card, measured in of_card:
            keys = [f"thinking_minus_{kind}" for kind in ACCURACIES]
            differences = [measured[key] for key in keys if key in measured and measured[key].after.n]
            parts = [f"{f.measure.title.replace(' - ', ' − ')} {_said(f.after, f.measure)}" for f in differences]
            said += [f"{card.label}, points with paired intervals: {'; '.join(parts)}."] if parts else []
        yield Panel("Held-out accuracy", "percent, higher is better", dots, tuple(said))
    if dots := _dots(of_card, "answer_logprob"):
        # Over how many answers, and what intervals and dots are.
        count = "/".join(sorted({str(card.held_out[-1].get("examples")) for card in cards}))
        how = f"Mean over {count} held-out answers, before (ring) and after training (dot)"
        if (seeds := max(len(dot.after) for dot in dots)) > 1:
            how += f"; every dot is one of {seeds} seeds, the number their mean: their spread is what chance does."
        elif all(dot.bounded for dot in dots):
            how += ", with its 95 % interval over the answers; another seed would add to it."
        else:
            how += ". Single answers are not stored, so there is no interval: a difference may be chance."
        if len({card.samples for card in cards}) > 1:
            how += " Methods that think are scored given one sampled trace, SFT without any."
        flatters = "After minus before flatters: answers become likelier after any trace, another row's too."
        verdicts = (how, flatters, *asked_twice(cards))
        yield Panel("Held-out log P(y*)", "nats per answer, higher is better", dots, verdicts)
    if dots := _dots(of_card, "gain"):
        said = ["log P(y*) given a sampled trace minus that given the null trace, of the same answers."]
        for card, measured in of_card:
            if "gain" in measured and (found := measured["gain"]).change.n:
                said.append(f"{card.label}: {_said(found.change, found.measure)} nats by training, in pairs.")
        yield Panel("Gain of thinking", "nats per answer, higher is better", dots, tuple(said))


def _said(found: Difference, measure: Measure) -> str:
    return shown(found, measure, True).replace("-", "−")


def _dots(of_card: Sequence[tuple[RunCard, dict[str, Found]]], key: str, section: str = "") -> tuple[Dot, ...]:
    """Every method's measure before and after, its interval that over pairs where there is one seed."""
    # The values of each seed: before, after, and the interval's ends.
    found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for card, measured in of_card:
        if key in measured and (of := measured[key]).after.n:
            scale = 100 if of.measure.share else 1
            ends = (scale * of.before.value, scale * of.after.value, scale * of.after.low, scale * of.after.high)
            found.setdefault((card.model, card.title), []).append(ends)
    for card, _ in () if found or key != "answer_logprob" else of_card:
        # Runs from before single answers were stored have means alone.
        known = [x for r in card.held_out if math.isfinite(x := float(r.get(key, math.nan)))]
        if known:
            found.setdefault((card.model, card.title), []).append((known[0], known[-1], math.nan, math.nan))
    several = len({model for model, _ in found}) > 1
    dots = []
    for (model, title), seeds in found.items():
        before, after, lows, highs = zip(*seeds, strict=True)
        low, high = (lows[0], highs[0]) if len(seeds) == 1 else (math.nan, math.nan)
        label = f"{model}, {title}" if several and section else title
        before = before if all(map(math.isfinite, before)) else ()
        mark = (model, title) in {(card.model, card.title) for card, _ in of_card if not card.finished}
        dots.append(Dot(section or model, label, sum(after) / len(after), low, high, before, after, mark))
    return tuple(dots)


Kind = tuple[list[str], tuple[tuple[str, str], ...]]
"""The labels of runs of which a page says the same, and what."""


def settings(cards: Sequence[RunCard]) -> list[tuple[str, tuple[str, ...], bool]]:
    """Every key of some runs' configs, in their order, its values as YAML has them, and whether they differ."""

    def yaml(card: RunCard, key: str) -> str:
        value = card.settings.get(key, "")
        return json.dumps(value) if value is None or isinstance(value, bool) else str(value)

    keys = dict.fromkeys(key for card in cards for key in card.settings)
    found = [(key, tuple(yaml(card, key) for card in cards)) for key in keys]
    return [(key, values, len(set(values)) > 1) for key, values in found]


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
            yield f"source {source['name']}", f"{source['count']:,} examples ({source['percentage']:.1f} %)"
        for key, value in card.manifest.get("fingerprints", {}).items():
            yield f"SHA-256 of {key}", value

    return _kinds((card.label, facts(card)) for card in cards)


def _kinds(pairs: Iterable[tuple[str, Iterable[tuple[str, Any]]]]) -> list[Kind]:
    """Runs with the same facts, together."""
    by_facts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for label, facts in pairs:
        by_facts.setdefault(tuple((str(key), str(value)) for key, value in facts), []).append(label)
    return [(labels, facts) for facts, labels in by_facts.items()]


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
    if not cards:
        return []
    folder = os.path.commonpath([(card.study or card.run.path).resolve().parent for card in cards])
    studies = list(dict.fromkeys(card.study.resolve() for card in cards if card.study))
    places = [*studies, *(card.run.path.resolve() for card in cards if not card.study)]
    again = []
    for study in studies:
        name = Path(os.path.relpath(study, folder))
        again.append((f"the study {study.name}", nrt("reproduce", name / "study.yaml", "--out", name)))
    return [*again, ("this report", nrt("report", *(Path(os.path.relpath(place, folder)) for place in places)))]
