"""The traces that the page can hold: whole groups of some steps, the first stored ones, not chosen by what they say."""

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from nrt_analysis.formats import Pieces
from nrt_analysis.frames import STEP, questions, trace_steps
from nrt_analysis.report.run_cards import RunCard, stored_analyses

Cutter = Callable[[Sequence[int]], list[str]]
"""Token ids -> the text of each."""

STEPS, GROUPS = 4, 8
"""Steps of a run, from the first to the last stored; groups of a step."""
LONGEST = 400
"""Tokens of a trace or an answer that are shown."""
BUDGET = 250_000
"""Tokens on the page, an answer's once per trace: at about 15 bytes each, well below the page's 15 MB."""

SCORED = 40
"""Records of `nrt score` on the page."""

COLUMNS = (
    "example", "source", "k", "prompt", "trace", "answer", "stop", "trace_ids", "answer_ids", "trace_entropies",
    "answer_logprobs", "null_logprobs", "token_signals", "gain", "reward", "reward_base", "advantage", "dead_group",
)  # fmt: skip


def sample_traces(cards: Sequence[RunCard], pieces: Pieces | None) -> dict[str, Any]:
    """Stored groups, ready for JSON: `sets` of a run and a step, how many traces are `shown` and how many `stored`.

    One group of every run's last step comes first, then of its other steps, then the second groups, until the page
    holds `BUDGET` tokens: with many runs each has fewer, and none is missing before all have one.
    """
    waiting: list[tuple[int, dict[str, Any], list[list[dict[str, Any]]]]] = []
    for number, card in enumerate(cards):
        size = int(card.settings.get("rollout.group_size", 8))
        for rank, step in enumerate(reversed(spread(trace_steps(card.run, STEP), STEPS))):
            rows = card.run.traces(f"{STEP}-{step:06d}", COLUMNS, first=GROUPS * size)
            rows = [row | {"question": q} for row, q in zip(rows, questions([r["prompt"] for r in rows]), strict=True)]
            groups = [list(group) for _, group in groupby(rows, key=lambda row: row["example"])]
            waiting.append((rank, {"run": number, "step": step, "groups": []}, groups))
    read, room = cache(pieces or (lambda _: None)), BUDGET  # a tokenizer is read once

    def cut(card: RunCard) -> Cutter | None:
        folders = (card.run.export_path, Path(str(card.settings.get("model.path", ""))))
        return next((found for folder in folders if (found := read(folder))), None)

    for turn in range(GROUPS):
        for _, one, groups in sorted(waiting, key=lambda entry: entry[0]):
            if turn < len(groups) and room > 0:
                group = _group(groups[turn], cut(cards[one["run"]]))
                one["groups"].append(group)
                room -= sum(len(trace["tokens"]) + len(group["answer"]) for trace in group["traces"])
    sets = [one for _, one, _ in waiting if one["groups"]]
    stored = [card.run.count_traces(f"{STEP}-{step:06d}") for card in cards for step in trace_steps(card.run, STEP)]
    return {
        "sets": sets,
        "shown": sum(len(group["traces"]) for one in sets for group in one["groups"]),
        "stored": sum(stored),
    }


def spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of some values, evenly from the first to the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _group(rows: Sequence[dict[str, Any]], cut: Cutter | None) -> dict[str, Any]:
    """One question's traces. Without a tokenizer, texts are one piece each and nothing is known of single tokens."""

    def texts(ids: Sequence[int], text: str) -> list[str]:
        # The first `LONGEST` tokens, or as many characters as those might have.
        return cut(ids[:LONGEST]) if cut else [text[: 4 * LONGEST]]

    first = rows[0]
    about = {key: first[key] for key in ("example", "source", "question")}
    return {
        **about,
        "answer": texts(first["answer_ids"], first["answer"]),
        "base": thousandths(first["null_logprobs"]) if cut else [],
        "traces": [
            {
                "k": row["k"],
                "stop": row["stop"],
                "length": len(row["trace_ids"]),
                "tokens": texts(row["trace_ids"], row["trace"]),
                "entropy": thousandths(row["trace_entropies"]) if cut else [],
                "logp": thousandths(row["answer_logprobs"]) if cut else [],
                "signal": [four_digits(value) for value in (row["token_signals"] or [])[:LONGEST]] if cut else [],
                "dead": row["dead_group"],
                **{key: four_digits(row[key]) for key in ("gain", "reward", "reward_base", "advantage")},
            }
            for row in rows
        ],
    }


def thousandths(values: Sequence[float] | None) -> list[float | None]:
    """Log-probabilities and entropies to a thousandth of a nat."""
    return [round(value, 3) if math.isfinite(value) else None for value in (values or [])[: LONGEST + 1]]


def four_digits(value: float | None) -> float | None:
    """A number to 4 significant digits: rewards and signals may lie far below 1."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def scored_sets(cards: Sequence[RunCard]) -> list[dict[str, Any]]:
    """What `nrt score --json` said, kept beside the runs, in the form of `sample_traces` and under every scheme; not a
    run but `name` says by which model."""
    records = [record for _, found in stored_analyses(cards, "score") if isinstance(found, list) for record in found]
    sets = []
    for record in records[:SCORED]:
        # A model that answers directly has no traces; what is no record at all has nothing of one.
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            group = {
                "question": str(record["question"]),
                "answer": [str(token) for token in record["tokens"]],
                "base": thousandths(record["null"]["logprobs"]),
                "traces": [_scored(k, trace) for k, trace in enumerate(record["traces"])],
            }
            sets.append({"name": f"nrt score: {record['model']}", "groups": [group]})
    return sets


def _scored(k: int, trace: dict[str, Any]) -> dict[str, Any]:
    return {
        "k": k,
        "stop": str(trace["stop"]),
        "length": int(trace["trace_tokens"]),
        "tokens": [str(trace["trace"])],
        "entropy": [],
        "logp": thousandths(trace["logprobs"]),
        "gain": four_digits(trace["gain"]),
        "schemes": {
            str(name): {
                **{key: four_digits(scheme[key]) for key in ("reward", "reward_base", "advantage")},
                "dead": scheme["dead_group"],
                "signal": [four_digits(value) for value in scheme["token_signals"]],
            }
            for name, scheme in trace["schemes"].items()
        },
    }
