"""Which method is better, by how much and how sure: methods that were trained alike, held against each other.

Runs stand side by side that began from one model and were scored on the same held-out questions. The unit is the seed;
two methods are compared on the seeds and the rows that both have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from nrt_analysis.document import Cell, Column, Row, Table, numbers
from nrt_analysis.intervals import POWER, Paired, holm, paired_over_seeds
from nrt_analysis.report.run_cards import RunCard, read_study
from nrt_cli.measures.held_out import COLUMNS, measures
from nrt_cli.measures.leakage import NGRAM, tells
from nrt_cli.measures.statistics import mean

SURE = 0.05
"""Below this p, Holm's among all pairs of an arena, one method is called better than another."""

ALIKE = 0.05
"""Two shares whose difference's whole interval lies within so much of 0 are called alike."""

ONE_SEED = "one seed: what another would have changed is not known, so nothing is ranked"


@dataclass(frozen=True)
class Entrant:
    """One method in an arena: its finished runs by seed."""

    title: str
    cards: Mapping[int, RunCard]

    @property
    def first(self) -> RunCard:
        return next(iter(self.cards.values()))

    @property
    def accuracy(self) -> str:
        """The measure of its accuracy: with what its model learned to do."""
        return "accuracy_thinking" if self.first.thinks else "accuracy_direct"

    def rows(self, share: bool) -> dict[int, dict[int, float]]:
        """Seed -> held-out example -> its accuracy (`share`) or log P(y*) after the last step, where measured."""
        key = self.accuracy if share else "answer_logprob"
        measure, found = next(each for each in measures(self.first.thinks) if each.key == key), {}
        for seed, card in self.cards.items():
            scored = {
                int(row["example"]): measure.of(row)
                for row in card.run.held_out_rows(int(card.held_out[-1]["step"]), COLUMNS)
            }
            found[seed] = {example: score for example, score in scored.items() if math.isfinite(score)}
        return found

    def over_steps(self, key: str) -> list[float]:
        """Each seed's mean over its training steps of a metric; none of a seed that has it not."""
        means = [mean([v for row in card.steps if math.isfinite(v := row.get(key, math.nan))]) for card in self.runs]
        return [value for value in means if math.isfinite(value)]

    @property
    def runs(self) -> list[RunCard]:
        return list(self.cards.values())

    @property
    def on_the_way(self) -> float:
        """Held-out accuracy, mean over seeds and over the scored steps but for that before the first."""
        scored = [row.get(self.accuracy, math.nan) for card in self.runs for row in card.held_out[1:]]
        return mean([value for value in scored if math.isfinite(value)])

    @property
    def collapsed(self) -> int:
        """Of its runs, those in which the collapse sentinel warned."""
        return sum(any(event.get("kind") == "collapse" for event in card.run.events()) for card in self.runs)

    @property
    def told(self) -> float:
        """The share of held-out traces that say the answer; NaN without traces, or answers too short to tell."""
        found = []
        for card in self.runs if self.first.thinks else ():
            columns = ("prompt", "trace", "answer")
            rows = card.run.held_out_rows(int(card.held_out[-1]["step"]), columns)
            found += [tells(*(str(row[name] or "") for name in columns)) for row in rows]
        return mean([share for share in found if not math.isnan(share)])


@dataclass(frozen=True)
class Arena:
    """Methods whose runs began from one model and were scored on the same rows."""

    title: str
    entrants: tuple[Entrant, ...]
    share: bool
    """Whether they are compared by accuracy; else by log P(y*), in nats, since not all of them have one."""
    scores: Mapping[str, Mapping[int, Mapping[int, float]]]
    """Title -> seed -> example -> score."""

    def score(self, title: str) -> float:
        return mean([mean(list(of.values())) for of in self.scores[title].values()])

    def paired(self, of: str, minus: str) -> Paired:
        """One method above another, over the seeds and the rows that both have."""
        one, other = self.scores[of], self.scores[minus]
        seeds = [seed for seed in one if seed in other]
        every = [set(side[seed]) for side in (one, other) for seed in seeds]
        rows = sorted(set.intersection(*every)) if every else []
        of_SN, minus_SN = (
            np.array([[side[seed][row] for row in rows] for seed in seeds]).reshape(len(seeds), len(rows))
            for side in (one, other)
        )
        return paired_over_seeds(of_SN, minus_SN, self.share)

    @cached_property
    def pairs(self) -> dict[tuple[str, str], Paired]:
        """Every two methods, the better one first, and equals in the order of methods."""
        found = {}
        for one, other in combinations((entrant.title for entrant in self.entrants), 2):
            pair = (one, other) if self.score(one) >= self.score(other) else (other, one)
            found[pair] = self.paired(*pair)
        return found

    @cached_property
    def sure(self) -> dict[tuple[str, str], float]:
        """The p of every pair, as it is among all of them."""
        return holm({pair: found.p for pair, found in self.pairs.items()})

    @property
    def ranks(self) -> bool:
        """Whether there is anything to rank by: two methods with two seeds in common."""
        return any(found.seeds > 1 for found in self.pairs.values())

    def verdict(self, pair: tuple[str, str]) -> str:
        """What can be said of a pair's first method."""
        found = self.pairs[pair]
        if math.isnan(found.p):
            return ""
        if self.sure[pair] < SURE:
            return "better"
        if self.share and found.low > -ALIKE and found.high < ALIKE:
            return "alike"
        return "not told apart"


def arenas(cards: Sequence[RunCard]) -> list[Arena]:
    """One for each model and its held-out rows, where two methods or more have finished runs and a score in common."""
    found: dict[tuple[str, str], dict[str, dict[int, RunCard]]] = {}
    for card in cards:
        if card.finished and card.held_out:
            here = found.setdefault((card.model, str(card.fingerprint("validation"))), {})
            here.setdefault(card.title, {})[card.seed] = card
    made = []
    for (model, _), titles in found.items():
        entrants = [Entrant(title, of) for title, of in titles.items()]
        studies = {entrant.first.study for entrant in entrants}
        study = read_study(studies.pop() or entrants[0].first.run.path)[0] if len(studies) == 1 else None
        for share in (True, False):
            scores = {entrant.title: entrant.rows(share) for entrant in entrants}
            if len(entrants) > 1 and all(all(of.values()) for of in scores.values()):
                made.append(Arena(study.title if study else model, tuple(entrants), share, scores))
                break
    return made


def arena_table(found: Sequence[Arena]) -> Table | None:
    """Every method beside the best one, with what a reader of a score has to know of its traces; None without any."""
    if not found:
        return None
    rows, lone = [], [arena.title for arena in found if not arena.ranks]
    for arena in found:
        entrants = list(arena.entrants)
        if arena.ranks:  # one seed has no order but that of the methods
            entrants.sort(key=lambda each: (-arena.score(each.title), -_known(each.on_the_way)))
        for entrant in entrants:
            rows.append(Row(_row(arena, entrant, entrants[0]), section=arena.title))
    scores = " and ".join(
        dict.fromkeys(
            "held-out accuracy after thinking, of SFT directly, in percent" if a.share else "log P(y*) in nats"
            for a in found
        )
    )
    return Table(
        "arena",
        "Method against method",
        f"The same model, rows and seeds for each: {scores}; the best first, where there are seeds to tell.",
        (
            Column("Method"),
            *numbers("Mean", "Each seed", "On the way", group="Score"),
            *numbers("Difference [95 %]", "Detectable", group="Against the best"),
            Column("Verdict", "Against the best"),
            *numbers("Gain", "Collapsed", "Length", "Dead", "Tell", group="Traces"),
        ),
        tuple(rows),
        notes=(
            *([f"{', '.join(lone)}: {ONE_SEED}. More: `nrt reproduce STUDY --set 'seeds=[0,1,2]'`."] if lone else []),
            "The unit is the seed, paired on the same questions: E = sqrt(s^2/S + v/N), s^2 the variance over S seeds "
            "of the mean difference, v over N questions of theirs; the interval is mean +- t E. Detectable: L E, "
            f"L the noncentrality at which t is beyond its 97.5 % point in {POWER:.0%} of the cases (5.65 for three "
            "seeds). A smaller difference may be there all the same.",
            f"Worse, as better: p < {SURE:g}, Holm's among all pairs of its arena. Alike: the whole interval lies "
            f"within {100 * ALIKE:g} points of 0. Else these seeds do not tell the two apart, in whatever order.",
            "On the way: accuracy, mean over all scored steps, so it says who was there sooner. Gain: what traces do "
            "for log P(y*), in nats, after the last step; where it is high and the score is not, traces help, and what "
            "fails is the answer after them, which some methods do not train. Collapsed: runs in which the sentinel "
            "warned. Length: tokens of held-out traces after the last step. Dead: groups of all steps without signal.",
            f"Tell: held-out traces with {NGRAM} words of the answer in a row that the question has not. "
            "Whether they compute it, too, `nrt analyze xray` and another question's trace say.",
        ),
    )


def _known(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _row(arena: Arena, entrant: Entrant, best: Entrant) -> tuple[Cell, ...]:
    scale, form = (100.0, ".1f") if arena.share else (1.0, ".2f")

    def number(
        value: float, form: str = form, scale: float = scale, reason: str = "not measured", text: str = ""
    ) -> Cell:
        return Cell(text or format(scale * value, form), scale * value) if math.isfinite(value) else Cell(reason=reason)

    title = entrant.title
    each = [mean(list(arena.scores[title][seed].values())) for seed in entrant.cards]
    seeds = tuple(scale * value for value in each)
    pair = next((pair for pair in arena.pairs if {*pair} == {title, best.title}), None)
    if not arena.ranks:
        below = [Cell(reason="one seed ranks nothing")] * 3
    elif pair is None:
        below = [Cell(reason="it is the best one")] * 3
    elif math.isnan((apart := arena.pairs[pair]).p):
        below = [Cell(reason="fewer than two seeds in common with the best one")] * 3
    else:
        sign = -1 if pair[0] == best.title else 1
        ends = sorted((sign * scale * apart.low, sign * scale * apart.high))
        value = sign * scale * apart.value
        text = f"{value:+z{form}} [{ends[0]:+z{form}}, {ends[1]:+z{form}}]"
        word = {"better": "worse"}.get(arena.verdict(pair), arena.verdict(pair))
        below = [Cell(text, value, ends[0], ends[1]), number(apart.least), Cell(word)]
    thinks = entrant.first.thinks
    none = "not measured" if thinks else "it samples no traces"
    gain, length = (
        mean([float(card.held_out[-1].get(name, math.nan)) for card in entrant.runs])
        for name in ("gain", "trace_length")
    )
    dead = mean(entrant.over_steps("dead_groups"))
    fell, of = entrant.collapsed, len(entrant.cards)
    short = f"answers have no {NGRAM} words of their own" if thinks else none
    return (
        Cell(title, note=f"{of} seeds" if of != 1 else "one seed"),
        replace(number(arena.score(title)), seeds=seeds if len(seeds) > 1 else ()),
        Cell(", ".join(format(value, form) for value in seeds)),
        number(entrant.on_the_way, ".1f", 100),
        *below,
        number(gain, "+.1f", 1, none),
        number(fell, "", 1, text=f"{fell} of {of}") if thinks else Cell(reason=none),
        number(length, ".1f", 1, none),
        number(dead, ".0%", 1, none),
        number(entrant.told, ".0%", 1, short),
    )


def pairs_table(found: Sequence[Arena]) -> Table | None:
    """Every two methods of every arena; None where no arena has seeds to tell."""
    found = [arena for arena in found if arena.ranks]
    rows = []
    for arena in found:
        scale, form = (100.0, ".1f") if arena.share else (1.0, ".2f")
        for pair, apart in sorted(arena.pairs.items(), key=lambda item: (arena.sure[item[0]], -item[1].value)):
            value, low, high = (scale * each for each in (apart.value, apart.low, apart.high))
            lone = Cell(reason="fewer than two seeds in common")
            known = not math.isnan(apart.p)
            cells = (
                Cell(f"{value:+z{form}} [{low:+z{form}}, {high:+z{form}}]", value, low, high) if known else lone,
                Cell(format(arena.sure[pair], ".2g"), arena.sure[pair]) if known else lone,
                Cell(format(scale * apart.least, form), scale * apart.least) if known else lone,
                Cell(f"{apart.seeds}, {apart.rows}", note="seeds, questions"),
                Cell(arena.verdict(pair)) if known else lone,
            )
            rows.append(Row((*map(Cell, pair), *cells), section=arena.title))
    if not rows:
        return None
    return Table(
        "arena-pairs",
        "Method against method, pair by pair",
        "How far the first is above the second, the surest pairs first.",
        (
            *(Column("Method"), Column("Against")),
            *numbers("Difference [95 %]", "p (Holm)", "Detectable", "Seeds, questions"),
            Column("Verdict: the first is"),
        ),
        tuple(rows),
        notes=("As in `Method against method`. Intervals are of each pair alone; p counts all pairs of its arena.",),
    )
