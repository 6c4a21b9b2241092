"""The data that the page holds for its scripts, ready for JSON: charts, traces, and the same questions across runs.

Traces and questions are the first stored ones, not chosen by what they say; of traces, whole groups of some steps.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from nrt_analysis.case_report import clipped
from nrt_analysis.document import shipped
from nrt_analysis.dynamics_report import PANELS, SHARES, collapses
from nrt_analysis.figures import span
from nrt_analysis.formats import Pieces
from nrt_analysis.frames import HELD_OUT, STEP, steps_frame, trace_steps
from nrt_analysis.report.run_cards import RunCard, first_seeds, stored_analyses
from nrt_cli.measures.collapse import WINDOW
from nrt_cli.records import Document
from nrt_cli.store import Run
from nrt_cli.store.evals import find_evaluations
from nrt_cli.text.questions import plain_text, questions
from nrt_cli.viewer.screens import Cutter, four_digits, log_of, spread, thousandths
from nrt_cli.viewer.static import sampled

LIKELIHOOD = "held_out"
ANSWER = "answer_logprob_per_token"


def series(cards: Sequence[RunCard]) -> dict[str, Any]:
    """Panels and every run's numbers in them, ready for JSON; a run has only the metrics that its method has.

    `seen`: by model, metric, and whether single steps are drawn too (`raw`), the heights that a panel shows of the
    model's runs, and which of them leave it.
    """
    # Figures have titles in TeX, and one that names a thin line.
    titles = {key: title.replace("$R-R_{base}$", "R − R_base") for key, (title, _) in PANELS.items()}
    meant = shipped("columns.yaml")["dynamics"]
    about = {
        LIKELIHOOD: ("held-out log P(y*)", "nats per answer", "mean over the held-out examples, after a step"),
        ANSWER: ("training log P(y*)", "nats per answer token", "mean over the step's answer tokens"),
        **{key: (titles[key], unit, meant[key]) for key, (_, unit) in PANELS.items()},
        "forced_share": ("forced ends", "share of traces", meant["forced_share"]),
    }
    panels: list[dict[str, Any]] = []
    for key in dict.fromkeys((LIKELIHOOD, "gain", "trace_length", "entropy", *about)):  # what matters first
        said = dict(zip(("key", "title", "unit", "about"), (key, *about[key]), strict=True))
        zero = key in ("entropy", "trace_length", "gain", "reward_gain")
        panels.append({**said, "share": key in SHARES, "zero": zero, "log": key == "token_signal"})
    runs: list[dict[str, Any]] = []
    for card in cards:
        held, train = card.held_out, pd.DataFrame(card.steps)
        mean = [four_digits(record.get("answer_logprob")) for record in held]
        values: dict[str, Any] = {LIKELIHOOD: {"step": [record["step"] for record in held], "mean": mean}}
        falls = []
        if not train.empty:
            sampled = "trace_length" in train
            frame = steps_frame(card.run, card.steps) if sampled else train
            falls = collapses(frame, card.run) if sampled else []
            keys = [key for key in (ANSWER, *PANELS) if key in frame]
            means = frame[keys].rolling(WINDOW, min_periods=1).mean()
            keep = spread(range(len(frame)), 300)  # steps that are drawn
            step = [int(value) for value in frame["step"].iloc[keep]]
            for key in keys:
                raw, mean = ([four_digits(float(x)) for x in of[key].iloc[keep]] for of in (frame, means))
                values[key] = {"step": step, "raw": raw, "mean": mean}
        told = [{"sign": fall.sign, "step": fall.step, "text": str(fall)} for fall in falls]
        runs.append({"values": values, "falls": told})
    seen: dict[str, dict[str, dict[str, Any]]] = {}
    for model in dict.fromkeys(card.model for card in cards):
        its = {card.label: run["values"] for card, run in zip(cards, runs, strict=True) if card.model == model}
        for key in (one["key"] for one in panels):
            found = {label: values[key] for label, values in its.items() if key in values}
            for line in ("mean", "raw"):
                lines = {label: pd.Series(one.get(line, one["mean"]), dtype=float) for label, one in found.items()}
                low, high, beyond = span(lines)
                leave = "; ".join(f"{label} goes to {value:.3g}" for label, value in beyond.items())
                heights = {"low": four_digits(low), "high": four_digits(high), "beyond": leave}
                seen.setdefault(model, {}).setdefault(key, {})[line] = heights
    return {"panels": panels, "window": WINDOW, "runs": runs, "seen": seen}


STEPS, GROUPS = 4, 8
"""Steps of a run, from the first to the last stored; groups of a step."""
LONGEST = 400
"""Tokens of a trace or an answer that are shown."""
BUDGET = 250_000
"""Tokens on the page, an answer's once per trace: at about 20 bytes each, well below the page's 15 MB."""


def sample_traces(cards: Sequence[RunCard], pieces: Pieces | None) -> dict[str, Any]:
    """Stored groups of training steps, as the viewer has them, and what `nrt score --json` said."""
    read = cache(pieces or (lambda _: None))  # a tokenizer is read once

    def cutter(run: Run) -> Cutter | None:
        folders = (run.export_path, Path(str((run.settings().get("model") or {}).get("path", ""))))
        return next((found for folder in folders if (found := read(folder))), None)

    runs = {card.label: card.run for card in cards}
    found = sampled(runs, cutter, (STEP,), STEPS, GROUPS, LONGEST, BUDGET)
    found["groups"] += scored_groups(cards)
    return found


def scored_groups(cards: Sequence[RunCard]) -> list[dict[str, Any]]:
    """What `nrt score --json` said, kept beside the runs, in the form of `group_of`: as if each scheme were a run."""
    records = [record for _, found in stored_analyses(cards, "score") if isinstance(found, list) for record in found]
    groups: list[dict[str, Any]] = []
    for number, record in enumerate(records[:40]):
        # A model that answers directly has no traces; what is no record at all has nothing of one.
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):
            asked = {"kind": "scored", "step": 0, "example": number, "question": str(record["question"])}
            asked["answer"] = [str(token) for token in record["tokens"]]
            asked["base"] = [*map(thousandths, record["null"]["logprobs"])]
            for name in record["traces"][0]["schemes"]:
                traces = [_scored(k, trace, trace["schemes"][name]) for k, trace in enumerate(record["traces"])]
                groups.append({"run": f"nrt score: {record['model']}, {name}", **asked, "traces": traces})
    return groups


def _scored(k: int, trace: Mapping[str, Any], scheme: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "k": k,
        "stop": str(trace["stop"]),
        "length": int(trace["trace_tokens"]),
        "tokens": [str(trace["trace"])],
        "entropy": [],
        "chance": [],
        "after": [*map(thousandths, trace["logprobs"])],
        "signal": [*map(four_digits, scheme["token_signals"])],
        "gain": four_digits(trace["gain"]),
        "dead": scheme["dead_group"],
        "log_reward": log_of(scheme["reward"], 0.0),
        "log_baseline": log_of(scheme["reward_base"], 0.0),
        **{key: four_digits(scheme[key]) for key in ("reward", "reward_base", "advantage")},
    }


CASES, BENCHMARK_CASES = 8, 3
"""Held-out questions, and those of each benchmark, for each model."""
LINES = 64
"""Documents of a benchmark that are looked at for those which all runs answered."""
CHARACTERS = 1500
"""Characters of a text: seven methods on nine benchmarks make half a megabyte of a model."""


def cases(cards: Sequence[RunCard]) -> list[dict[str, Any]]:
    """Questions with what each run of a model made of them, ready for JSON; the first stored ones, not chosen.

    Of runs that differ in their seed alone, the first is shown.
    """
    found: list[dict[str, Any]] = []
    for model in dict.fromkeys(card.model for card in cards):
        numbers = {cards.index(card): card for card in first_seeds(cards) if card.model == model}
        for name, question, reference, said in (*_documents(numbers), *_held_out(numbers)):
            texts = {"question": clipped(question, CHARACTERS), "reference": clipped(reference, CHARACTERS)}
            found.append({"model": model, "name": name, **texts, "said": said})
    return found


Case = tuple[str, str, str, list[dict[str, Any]]]
"""Its name, the question, the reference answer, and what each run said."""


def _held_out(cards: Mapping[int, RunCard]) -> Iterator[Case]:
    """Held-out examples that all runs with traces have: each run's first and last trace of it."""
    tables: dict[int, dict[int, dict[str, Any]]] = {}  # of each run, by example
    columns = ("step", "example", "k", "prompt", "trace", "answer", "stop")
    for number, card in cards.items():
        before: dict[int, dict[str, Any]] = {}
        steps = trace_steps(card.run, HELD_OUT)
        for step in dict.fromkeys((*steps[:1], *steps[-1:])):
            stored = [r for r in card.run.traces(f"{HELD_OUT}-{step:06d}", columns, first=LINES) if r["k"] == 0]
            asked = questions([row["prompt"] for row in stored])
            rows = {}
            for row, question in zip(stored, asked, strict=True):
                text = {"question": question, "trace": clipped(plain_text(row["trace"]), CHARACTERS)}
                rows[row["example"]] = row | text | {"before": before.get(row["example"], {}).get("trace")}
            before = rows
        if before:
            tables[number] = before
    # An example's index means the same in runs that were trained on the same; one that does not say is taken to agree.
    if not tables or len({cards[number].fingerprint("validation") for number in tables} - {None}) > 1:
        return
    for example in sorted(set.intersection(*(set(table) for table in tables.values())))[:CASES]:
        first = next(iter(tables.values()))[example]
        said = []
        for number, table in tables.items():
            row = table[example]
            said.append({"run": number, **{key: row[key] for key in ("step", "trace", "stop", "before")}})
        yield f"held-out example {example}", first["question"], plain_text(first["answer"]), said


def _documents(cards: Mapping[int, RunCard]) -> Iterator[Case]:
    """Documents that all runs which met a benchmark have answered: each run's first reply, and how it was graded."""
    answered: dict[str, dict[int, dict[str, Document]]] = {}
    for number, card in cards.items():
        for evaluation in find_evaluations(card.run.path / "evals" / "export"):
            benchmark = str(evaluation.about().get("benchmark"))
            answered.setdefault(benchmark, {})[number] = evaluation.documents(LINES)
    for benchmark, by_run in answered.items():
        first = next(iter(by_run.values()))
        common = [key for key in first if all(key in documents for documents in by_run.values())]
        for key in common[:BENCHMARK_CASES]:
            said = []
            for number, documents in by_run.items():
                document = documents[key]
                reply = document.replies[0] if document.replies else None
                said.append(
                    {
                        "run": number,
                        "trace": clipped(reply.trace, CHARACTERS) if reply and reply.stop else None,
                        "stop": reply.stop if reply else None,
                        "answer": clipped(reply.answer, CHARACTERS) if reply else "",
                        "extracted": document.extracted[0] if document.extracted else None,
                        "score": next((score for score in document.scores.values() if score == score), None),
                    }
                )
            question = str(first[key].messages[-1].get("content", "")) if first[key].messages else ""
            gold = first[key].gold
            reference = gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)
            yield f"{benchmark} {first[key].id}", question, reference, said
