"""Tables 9 and 10: single questions, and what models thought and how sure they were."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from nrt_analysis.case_report import clipped, cut_mark, stored_cases
from nrt_analysis.document import Cell, Column, Row, Table, numbers
from nrt_analysis.frames import HELD_OUT
from nrt_analysis.report.paper import paper
from nrt_analysis.report.run_cards import RunCard, first_seeds, in_words, stored_analyses, title_of
from nrt_cli.config.titles import method_title
from nrt_cli.errors import StoreError
from nrt_cli.measures.held_out import probability
from nrt_cli.store import Reference
from nrt_cli.text.questions import plain_text

PART = 1500
"""Characters of a text that stand in one row."""

SEEN = 200
"""Held-out traces of each run that they are chosen from: the first of them."""


def confidence_table(cards: Sequence[RunCard]) -> Table:
    """Table 9 from what `nrt score ... --json` printed."""
    rows: list[Row] = []
    for path, records in stored_analyses(cards, "score"):
        for record in records if isinstance(records, list) else ():
            if not (isinstance(record, dict) and {"question", "answer", "model"} <= record.keys()):
                continue
            section = f"{record['question']} | reference answer: {record['answer']}"
            title = title_of(str(record["model"]), cards, path)
            if title == record["model"] and record.get("method"):  # a run that is not in this report
                title = str(record.get("title") or method_title(str(record["method"])))
            scored: list[tuple[dict[str, Any], list[Cell]]] = []
            if isinstance(direct := record.get("direct"), dict):
                scored.append((direct, [Cell(reason="answers directly")]))
            for trace in (record.get("traces") or [])[:1]:
                scored.append((trace, _parts(plain_text(str(trace.get("trace", ""))), "an empty trace")))
            for by, (first, *more) in scored:
                # With the eos that ends the answer, and without.
                tokens: Any = by.get("logprobs") or [None]
                short = sum(tokens[:-1]) if all(isinstance(logprob, int | float) for logprob in tokens) else None
                given = (by.get("logprob"), short)
                known = (Cell(probability(x), math.exp(x)) if isinstance(x, int | float) else None for x in given)
                rows.append(
                    Row((Cell(title), first, *(cell or Cell(reason="not measured") for cell in known)), section)
                )
                rows += [Row((Cell(), part, Cell(), Cell()), section) for part in more]
    unscored = (
        "no question was scored; `nrt score RUN... --question X --answer Y --json` into analysis/score/NAME.json of a "
        "run or study does"
    )
    theirs = ", ".join(f"{method_title(method)} {p:.4f}" for method, p in paper()["case"]["probabilities"].items())
    return Table(
        "table-9",
        "Table 9",
        "How sure models are of a reference answer after their own trace.",
        (Column("Model"), Column("Trace z", kind="long"), *numbers("with eos", "without", group="P(y*|x,z)")),
        tuple(rows),
        notes=(
            "The first sampled trace of each model; SFT answers without one. The paper does not say whether its P has "
            "the eos that ends an answer.",
            f"The paper, for the answer {paper()['case']['answer']!r} to {paper()['case']['question']!r}: {theirs}.",
        ),
        reason="" if rows else unscored,
    )


def cases_table(cards: Sequence[RunCard]) -> Table:
    """Table 10: what `nrt analyze cases` kept, else the first held-out traces that all runs of a model have stored."""
    rows: list[Row] = []
    for path, record in stored_analyses(cards, "cases"):
        tables = record.get("tables") if isinstance(record, dict) else None
        kept = tables.get("cases") if isinstance(tables, dict) else None
        rows += _case_rows([case for case in kept or () if isinstance(case, dict)], cards, path)
    notes = ["as `nrt analyze cases` or the study kept them, uncut"]
    if not rows:
        notes = ["first held-out examples of the last stored step, long ones cut; a run's first seed"]
        for model in dict.fromkeys(card.model for card in cards if card.thinks):
            thinking = {card.title: card for card in first_seeds(cards) if card.model == model and card.thinks}
            references = [Reference(card.run.path, None) for card in thinking.values()]
            try:
                found = stored_cases(references, HELD_OUT, 3, SEEN).frames["cases"]
            except StoreError as error:
                notes.append(f"{model}: {in_words(error, cards)}")
                continue
            labels = dict(zip(dict.fromkeys(found["run"]), thinking, strict=True))
            found = found.assign(run=found["run"].map(labels), question=[f"{model}: {q}" for q in found["question"]])
            for column in ("question", "reference", "trace"):
                found[column] = found[column].map(clipped)
            rows += _case_rows(found.to_dict(orient="records"), cards)
    return Table(
        "table-10",
        "Table 10",
        "The same questions across methods.",
        (Column("Method"), Column("What"), Column("Text", kind="long")),
        tuple(rows),
        notes=(*notes, "Special tokens are left out."),
        reason="" if rows else "no two runs have stored traces of the same held-out example",
    )


def _case_rows(cases: Sequence[Mapping[Any, Any]], cards: Sequence[RunCard], found: Path | None = None) -> list[Row]:
    """Rows of each text; the question is their section."""
    rows: list[Row] = []
    for question in dict.fromkeys(str(case.get("question", "")) for case in cases):
        of = [case for case in cases if str(case.get("question", "")) == question]
        if reference := of[0].get("reference"):
            rows += _text_rows("reference", "answer", reference, question)
        for case in of:
            title = title_of(str(case.get("run", "")), cards, found)
            thought = f"reasoning{cut_mark(case, 'trace')}"
            rows += _text_rows(title, thought, case.get("trace"), question, "does not think")
            if "answer" in case:
                rows += _text_rows(title, f"answer{cut_mark(case, 'answer')}", case["answer"], question)
    return rows


def _text_rows(title: str, what: str, text: Any, section: str, none: str = "nothing was said") -> Iterator[Row]:
    said = "" if text is None or (isinstance(text, float) and pd.isna(text)) else str(text)
    first, *more = _parts(said, "empty" if isinstance(text, str) else none)
    yield Row((Cell(title), Cell(what), first), section=section)
    yield from (Row((Cell(), Cell(), part), section=section) for part in more)


def _parts(text: str, empty: str) -> list[Cell]:
    """A text in cells of some lines each: pages of print break between rows only."""
    parts, left = [], text.strip()
    while len(left) > PART:
        end = next((at + 1 for mark in ("\n\n", "\n", " ") if (at := left.rfind(mark, 0, PART)) > 0), PART)
        parts.append(left[:end].rstrip())
        left = left[end:].lstrip(" \n")
    return [Cell(part) for part in (*parts, left)] if text.strip() else [Cell(reason=empty)]
