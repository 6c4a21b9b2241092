"""The same questions across runs, side by side (Table 10 of the paper)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nrt_analysis.document import Document, section
from nrt_analysis.frames import STEP, labels_of, trace_steps, traces_frame
from nrt_cli.errors import StoreError
from nrt_cli.store import Reference, Run
from nrt_cli.text.questions import plain_text, questions

SHOWN = 600
"""Characters of a text that the short table has."""


def stored_cases(references: Sequence[Reference], kind: str, n: int, first: int | None = None) -> Document:
    """The first trace of each run on the first `n` examples that all of them have stored.

    Args:
        kind: `HELD_OUT` or `STEP`. Each run gives the steps of its reference: the latest, if it names none.
        first: of each step, only so many traces are looked at; all by default.

    Raises StoreError where the runs have no example in common or were trained on other data.
    """
    runs = [Run.open(reference.path) for reference in references]
    part = "train" if kind == STEP else "validation"
    if len({run.manifest().get("fingerprints", {}).get(part) for run in runs} - {None}) > 1:
        paths = ", ".join(str(run.path) for run in runs)
        raise StoreError(
            f"{paths}: their {part} data differ, so they share no examples; give questions with --question."
        )
    labels = labels_of(references)
    frames = []
    for run, reference in zip(runs, references, strict=True):
        there = trace_steps(run, kind)
        steps = reference.choose(there) if reference.spans else there[-1:]
        of = traces_frame(
            run, kind, steps, ("step", "example", "prompt", "answer", "trace", "stop", "k", "gain"), first
        )
        of = of.assign(question=questions(list(of["prompt"])), reference=of["answer"].map(plain_text))
        # Trained on twice: the latest trace counts.
        of = of[of["k"] == 0].sort_values("step").drop_duplicates("example", keep="last")
        frames.append(of.assign(trace=of["trace"].map(plain_text), gain=of["gain"].astype(float)))
    common = sorted(set.intersection(*(set(frame["example"]) for frame in frames)))[:n]
    if not common:
        raise StoreError(
            f"{', '.join(labels)}: no example has stored traces of all of them; held-out traces, the default, are on "
            "the same examples in every run, and RUN@STEPS names the steps."
        )
    table = pd.concat([f.assign(run=label) for f, label in zip(frames, labels, strict=True)], ignore_index=True)
    table = table[table["example"].isin(common)]
    table["order"] = table["run"].map(labels.index)
    table = table.sort_values(["example", "order"], ignore_index=True)
    # Runs whose chat templates differ render one question in several ways: the first run's is shown.
    table["question"] = table.groupby("example")["question"].transform("first")
    return _report(table[["example", "question", "reference", "run", "step", "trace", "stop", "gain"]], ())


def generated_cases(rows: Sequence[Mapping[str, Any]], how: str) -> Document:
    """What models say now: rows of `question`, `run`, `trace` (None where it does not think), `answer` and `cut`."""
    return _report(pd.DataFrame(rows, columns=["question", "run", "trace", "answer", "cut"]), (how,))


def stored_questions(references: Sequence[Reference], n: int, kind: str) -> list[str]:
    """The questions of the first `n` examples in the stored traces of the first run that has any, without template."""
    for reference in references:
        run = Run.open(reference.path)
        if steps := trace_steps(run, kind):
            prompts = traces_frame(run, kind, steps[-1:], ("example", "prompt")).drop_duplicates("example")
            return questions(list(prompts.sort_values("example")["prompt"]))[:n]
    raise StoreError("none of these runs stored traces to take questions from; ask one with --question TEXT.")


def _report(table: pd.DataFrame, notes: tuple[str, ...]) -> Document:
    """With a row per text, as Table 10 has them: the question, the reference answer, then what each run said."""
    rows = []
    for number, (question, cases) in enumerate(table.groupby("question", sort=False), 1):
        texts = [("question", question)]
        if "reference" in cases:
            texts.append(("reference", cases["reference"].iloc[0]))
        for case in cases.to_dict(orient="records"):
            if "answer" in case:
                thought = "(does not think)" if pd.isna(case["trace"]) else case["trace"] or "(empty)"
                said = {"trace": thought, "answer": case["answer"] or "(empty)"}
                texts += [(f"{case['run']}: {part}{cut_mark(case, part)}", text) for part, text in said.items()]
            else:
                gain = "" if np.isnan(case["gain"]) else f" (gain {case['gain']:+.2f} nats)"
                texts.append((f"{case['run']}{gain}", case["trace"] or "(empty)"))
        rows += [{"case": number, "what": what, "text": clipped(str(text))} for what, text in texts]
    return section("cases", {"side-by-side": pd.DataFrame(rows), "cases": table}, {}, notes)


def cut_mark(case: Mapping[Any, Any], part: str) -> str:
    """What is said of a trace or answer whose model was stopped at a cap."""
    return ", cut at the cap" if part in str(case.get("cut") or "").split(", ") else ""


def clipped(text: str, most: int = SHOWN) -> str:
    """A text that a table can hold; one that is cut says how long it is."""
    return text if len(text) <= most else f"{text[:most]} ... ({len(text)} characters)"
