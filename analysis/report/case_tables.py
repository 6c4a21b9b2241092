"""Tables 9 and 10: single questions, and what models thought and how sure they were."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cases import clipped, stored_cases
from analysis.frames import HELD_OUT, plain_text
from analysis.report.contents import Cell, Column, Row, RunCard, Table
from analysis.report.left import in_words, left_by, title_of
from analysis.report.paper import paper
from nrt_cli.config.titles import method_title
from nrt_cli.errors import StoreError
from nrt_cli.store.reference import Reference

CASES = 3
"""Questions of Table 10 for each model."""

SEEN = 200
"""Held-out traces of each run that they are chosen from: the first of them."""


def confidence_table(cards: Sequence[RunCard]) -> Table:
    """Table 9 from what `nrt score ... --json` printed."""
    rows: list[Row] = []
    for path, records in left_by(cards, "score"):
        for record in records if isinstance(records, list) else ():
            if isinstance(record, dict) and {"question", "answer", "model"} <= record.keys():
                rows += _scored(record, cards, path)
    theirs = ", ".join(f"{method_title(method)} {p:.4f}" for method, p in paper()["case"]["probabilities"].items())
    return Table(
        "table-9",
        "Table 9",
        "How sure models are of a reference answer after their own trace.",
        (Column("Model"), Column("Trace z", kind="long"), Column("P(y*|x,z)", "", "number")),
        tuple(rows),
        notes=(
            "The first sampled trace of each model; SFT answers without one.",
            f"The paper, for the answer {paper()['case']['answer']!r} to {paper()['case']['question']!r}: {theirs}.",
        ),
        reason=""
        if rows
        else "no question was scored; `nrt score RUN... --question X --answer Y --json` into "
        "analysis/score/NAME.json of a run or study does",
    )


def _scored(record: Mapping[str, Any], cards: Sequence[RunCard], found: Path) -> Iterator[Row]:
    section = f"{record['question']} | reference answer: {record['answer']}"
    title = title_of(str(record["model"]), cards, found)
    if title == record["model"] and record.get("method"):  # a run that is not in this report
        title = str(record.get("title") or method_title(str(record["method"])))
    if isinstance(direct := record.get("direct"), dict):
        yield Row((Cell(title), Cell("", reason="answers directly"), _probability(direct)), section=clipped(section))
    for trace in (record.get("traces") or [])[:1]:
        text = plain_text(str(trace.get("trace", "")))
        shown = Cell(clipped(text)) if text else Cell(reason="an empty trace")
        yield Row((Cell(title), shown, _probability(trace)), section=clipped(section))


def _probability(scored: Mapping[str, Any]) -> Cell:
    """exp(log P), also where it is below what a float holds."""
    logprob = scored.get("logprob")
    if not isinstance(logprob, int | float):
        return Cell(reason="not measured")
    if logprob > math.log(1e-4):
        return Cell(f"{math.exp(logprob):.4f}", math.exp(logprob))
    exponent = math.floor(logprob / math.log(10))
    return Cell(f"{math.exp(logprob - exponent * math.log(10)):.2f}e{exponent}", math.exp(logprob))


def cases_table(cards: Sequence[RunCard]) -> Table:
    """Table 10: what `nrt analyze cases` kept, else the first held-out traces that all runs of a model have stored."""
    rows, notes = _kept_cases(cards), ["as `nrt analyze cases` kept them"]
    if not rows:
        notes = ["first held-out examples of the last stored step; a run's first seed"]
        for model in dict.fromkeys(card.model for card in cards):
            found, said = _stored(cards, model)
            rows, notes = rows + found, notes + said
    return Table(
        "table-10",
        "Table 10",
        "The same questions across methods.",
        (Column("Method"), Column("What"), Column("Text", kind="long")),
        tuple(rows),
        notes=(*notes, "Special tokens are left out; long texts are cut."),
        reason="" if rows else "no two runs have stored traces of the same held-out example",
    )


def _kept_cases(cards: Sequence[RunCard]) -> list[Row]:
    rows: list[Row] = []
    for path, record in left_by(cards, "cases"):
        tables = record.get("tables") if isinstance(record, dict) else None
        cases = tables.get("cases") if isinstance(tables, dict) else None
        rows += _case_rows([case for case in cases or () if isinstance(case, dict)], cards, path)
    return rows


def _stored(cards: Sequence[RunCard], model: str) -> tuple[list[Row], list[str]]:
    """From the stored traces of the first seed of each method; and why there are none."""
    thinking: dict[str, RunCard] = {}
    for card in cards:
        if card.model == model and card.method != "sft":
            thinking.setdefault(card.title, card)
    if not thinking:
        return [], []
    try:
        report = stored_cases([Reference(card.run.path, None) for card in thinking.values()], HELD_OUT, CASES, SEEN)
    except StoreError as error:
        return [], [f"{model}: {in_words(error, cards)}"]
    frame = report.tables["cases"]
    labels = dict(zip(dict.fromkeys(frame["run"]), thinking, strict=True))
    frame = frame.assign(run=frame["run"].map(labels), question=frame["question"].map(lambda q: f"{model}: {q}"))
    return _case_rows(frame.to_dict(orient="records"), cards), []


def _case_rows(cases: Sequence[Mapping[Any, Any]], cards: Sequence[RunCard], found: Path | None = None) -> list[Row]:
    """A row per text; the question is their section."""
    rows = []
    for question in dict.fromkeys(str(case.get("question", "")) for case in cases):
        section = clipped(question)
        of = [case for case in cases if str(case.get("question", "")) == question]
        if reference := of[0].get("reference"):
            rows.append(Row((Cell("reference"), Cell("answer"), _text(reference)), section=section))
        for case in of:
            title = title_of(str(case.get("run", "")), cards, found)
            rows.append(
                Row((Cell(title), Cell("reasoning"), _text(case.get("trace"), "does not think")), section=section)
            )
            if "answer" in case:
                rows.append(Row((Cell(title), Cell("answer"), _text(case["answer"])), section=section))
    return rows


def _text(text: Any, none: str = "nothing was said") -> Cell:
    if text is None or (isinstance(text, float) and pd.isna(text)):
        return Cell(reason=none)
    return Cell(clipped(str(text))) if str(text).strip() else Cell(reason="empty")
