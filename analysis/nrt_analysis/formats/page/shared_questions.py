"""The same questions across runs, for the page: held-out traces, and what benchmarks' documents were answered."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nrt_analysis.case_report import clipped
from nrt_analysis.frames import HELD_OUT, plain_text, questions, trace_steps
from nrt_analysis.report.run_cards import RunCard
from nrt_cli.records import Document
from nrt_cli.store.evals import find_evaluations

CASES, BENCHMARK_CASES = 8, 3
"""Held-out questions, and those of each benchmark, for each model."""
LINES = 64
"""Documents of a benchmark that are looked at for those which all runs answered."""
LONGEST = 1500
"""Characters of a text: seven methods on nine benchmarks make half a megabyte of a model."""


def cases(cards: Sequence[RunCard]) -> list[dict[str, Any]]:
    """Questions with what each run of a model made of them, ready for JSON; the first stored ones, not chosen.

    Of runs that differ in their seed alone, the first is shown.
    """
    found: list[dict[str, Any]] = []
    for model in dict.fromkeys(card.model for card in cards):
        chosen: dict[str, int] = {}
        for number, card in enumerate(cards):
            if card.model == model:
                chosen.setdefault(card.title, number)
        numbers = {number: cards[number] for number in chosen.values()}
        found += _documents(model, numbers)
        found += _held_out(model, numbers)
    return found


# --- held-out traces -------------------------------------------------------------------------------------------------


def _held_out(model: str, cards: Mapping[int, RunCard]) -> Iterator[dict[str, Any]]:
    """Held-out examples that all runs with traces have: each run's first and last trace of it."""
    tables = {number: table for number, card in cards.items() if (table := _traces(card))}
    if not tables or not _same_examples([cards[number] for number in tables]):
        return
    common = set.intersection(*(set(table) for table in tables.values()))
    for example in sorted(common)[:CASES]:
        first = next(iter(tables.values()))[example]
        said = [
            {
                "run": number,
                "step": row["step"],
                "trace": clipped(row["trace"], LONGEST),
                "stop": row["stop"],
                "before": row["before"],
            }
            for number, row in ((number, table[example]) for number, table in tables.items())
        ]
        yield _case(model, f"held-out example {example}", first["question"], first["answer"], said)


def _traces(card: RunCard) -> dict[int, dict[str, Any]]:
    """The last stored held-out trace of each example; `before` is the one before training."""
    steps = trace_steps(card.run, HELD_OUT)
    if not steps:
        return {}
    before = {row["example"]: clipped(row["trace"], LONGEST) for row in _rows(card, steps[0])} if len(steps) > 1 else {}
    rows = _rows(card, steps[-1])
    asked = questions([row["prompt"] for row in rows])
    return {
        row["example"]: row | {"question": question, "before": before.get(row["example"])}
        for row, question in zip(rows, asked, strict=True)
    }


def _rows(card: RunCard, step: int) -> list[dict[str, Any]]:
    columns = ("step", "example", "k", "prompt", "trace", "answer", "stop")
    rows = card.run.traces(f"{HELD_OUT}-{step:06d}", columns, first=LINES)
    texts = {key: [plain_text(row[key]) for row in rows] for key in ("trace", "answer")}
    rows = [row | {key: texts[key][i] for key in texts} for i, row in enumerate(rows)]
    return [row for row in rows if row["k"] == 0]


def _same_examples(cards: Sequence[RunCard]) -> bool:
    """Whether an example's index means the same in all runs; a run that does not say is taken to agree."""
    return len({card.fingerprint("validation") for card in cards} - {None}) < 2


# --- benchmarks ------------------------------------------------------------------------------------------------------


def _documents(model: str, cards: Mapping[int, RunCard]) -> Iterator[dict[str, Any]]:
    """Documents that all runs which met a benchmark have answered."""
    answered: dict[str, dict[int, dict[str, Document]]] = {}
    for number, card in cards.items():
        for evaluation in find_evaluations(card.run.path / "evals" / "export"):
            benchmark = str(evaluation.about().get("benchmark"))
            answered.setdefault(benchmark, {})[number] = evaluation.documents(LINES)
    for benchmark, by_run in answered.items():
        first = next(iter(by_run.values()))
        common = [key for key in first if all(key in documents for documents in by_run.values())]
        for key in common[:BENCHMARK_CASES]:
            said = [_answer(number, documents[key]) for number, documents in by_run.items()]
            question = str(first[key].messages[-1].get("content", "")) if first[key].messages else ""
            gold = first[key].gold
            reference = gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)
            yield _case(model, f"{benchmark} {first[key].id}", question, reference, said)


def _answer(number: int, document: Document) -> dict[str, Any]:
    """A document's first reply and how it was graded."""
    reply = document.replies[0] if document.replies else None
    return {
        "run": number,
        "trace": clipped(reply.trace, LONGEST) if reply and reply.stop else None,
        "stop": reply.stop if reply else None,
        "answer": clipped(reply.answer, LONGEST) if reply else "",
        "extracted": document.extracted[0] if document.extracted else None,
        "score": next((score for score in document.scores.values() if score == score), None),
    }


def _case(model: str, name: str, question: str, reference: str, said: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "model": model,
        "name": name,
        "question": clipped(question, LONGEST),
        "reference": clipped(reference, LONGEST),
        "said": said,
    }
