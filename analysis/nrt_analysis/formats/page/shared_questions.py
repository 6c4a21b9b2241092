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


def _held_out(model: str, cards: Mapping[int, RunCard]) -> Iterator[dict[str, Any]]:
    """Held-out examples that all runs with traces have: each run's first and last trace of it."""
    tables = {number: table for number, card in cards.items() if (table := _traces(card))}
    # An example's index means the same in runs that were trained on the same; one that does not say is taken to agree.
    if not tables or len({cards[number].fingerprint("validation") for number in tables} - {None}) > 1:
        return
    for example in sorted(set.intersection(*(set(table) for table in tables.values())))[:CASES]:
        first = next(iter(tables.values()))[example]
        said = []
        for number, table in tables.items():
            row = table[example]
            about = {"trace": clipped(row["trace"], LONGEST), "stop": row["stop"], "before": row["before"]}
            said.append({"run": number, "step": row["step"], **about})
        yield _case(model, f"held-out example {example}", first["question"], first["answer"], said)


def _traces(card: RunCard) -> dict[int, dict[str, Any]]:
    """The last stored held-out trace of each example; `before` is the one before training."""

    def read(step: int) -> list[dict[str, Any]]:
        columns = ("step", "example", "k", "prompt", "trace", "answer", "stop")
        rows = card.run.traces(f"{HELD_OUT}-{step:06d}", columns, first=LINES)
        return [r | {key: plain_text(r[key]) for key in ("trace", "answer")} for r in rows if r["k"] == 0]

    steps = trace_steps(card.run, HELD_OUT)
    rows = read(steps[-1]) if steps else []
    before = {row["example"]: clipped(row["trace"], LONGEST) for row in (read(steps[0]) if len(steps) > 1 else ())}
    return {
        row["example"]: row | {"question": question, "before": before.get(row["example"])}
        for row, question in zip(rows, questions([row["prompt"] for row in rows]), strict=True)
    }


def _documents(model: str, cards: Mapping[int, RunCard]) -> Iterator[dict[str, Any]]:
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
                        "trace": clipped(reply.trace, LONGEST) if reply and reply.stop else None,
                        "stop": reply.stop if reply else None,
                        "answer": clipped(reply.answer, LONGEST) if reply else "",
                        "extracted": document.extracted[0] if document.extracted else None,
                        "score": next((score for score in document.scores.values() if score == score), None),
                    }
                )
            question = str(first[key].messages[-1].get("content", "")) if first[key].messages else ""
            gold = first[key].gold
            reference = gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False)
            yield _case(model, f"{benchmark} {first[key].id}", question, reference, said)


def _case(model: str, name: str, question: str, reference: str, said: list[dict[str, Any]]) -> dict[str, Any]:
    texts = {"question": clipped(question, LONGEST), "reference": clipped(reference, LONGEST)}
    return {"model": model, "name": name, **texts, "said": said}
