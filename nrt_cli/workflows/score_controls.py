"""Does a trace reason, or does it smuggle the answer in? Copied words, and the reward of traces tampered with.

Shapes: C controls of one trace, T answer tokens, eos included.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nrt_cli import methods
from nrt_cli.backends.local.scoring import Scorer
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.methods import Group
from nrt_cli.models.sources import model_fingerprint
from nrt_cli.records import Example
from nrt_cli.store import Run
from nrt_cli.store.tables import PartTable
from nrt_cli.text.copying import copied_share, copied_words
from nrt_cli.text.pieces import pieces, words
from nrt_cli.workflows.scoring import Report, Subject, in_parts, subject

CONTROLS = ("sampled", "empty", "shuffled", "swapped", "masked")
NGRAMS = (1, 2, 3, 4)
MASK = " _"
"""Stands for a masked token; its last token is used."""

PART = 8
"""Traces scored and stored together."""

COLUMNS = {
    "example": "int64",
    "k": "int64",
    "control": "string",
    "trace_tokens": "int64",
    "changed_tokens": "int64",
    "logprob": "double",
    "gain": "double",
    "reward": "double",
    "reward_base": "double",
    **{f"copied_{n}": "double" for n in NGRAMS},
}
"""One row per trace and control. `copied_N` is the share of the answer's N-grams that are in the controlled trace."""

TRACE_COLUMNS = ("step", "example", "source", "k", "prompt", "answer", "prompt_ids", "trace_ids", "answer_ids")


@dataclass(frozen=True)
class ScoredControls:
    """Where the rows are, in `parts` parts, and what they were made from."""

    table: PartTable
    parts: int
    run: Path
    method: str
    traces: str
    span: int


def score_controls(
    ref: str, folder: Path, report: Report, traces: str | None = None, count: int = 200, span: int = 1, seed: int = 0
) -> ScoredControls:
    """Score stored traces of a run, and controls of each, with the model that sampled them.

    Args:
        ref: RUN or RUN@STEP.
        traces: name of a trace table of that step; None is the held-out traces.
        count: traces, evenly spaced over those there are.
        span: words in a row that count as copied from the answer where they are masked.
    """
    of = subject(ref)
    if of.located.run is None or not of.thinks:
        raise ConfigError(f"{ref}: leakage is looked for in the traces of a run; name one whose method samples traces.")
    run = Run.open(of.located.run)
    name = traces or f"held-out-{of.located.step or 0:06d}"
    rows = _stored(run, name)
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    settings = {"model": model_fingerprint(of.located.folder), "traces": name, "rows": len(rows), "seed": seed}
    settings |= {"dtype": of.section.dtype}
    digest = hashlib.sha256(json.dumps(settings | {"span": span}, sort_keys=True).encode()).hexdigest()
    table = PartTable(folder / "scored" / f"{name}-{digest[:12]}", COLUMNS)
    parts = list(in_parts(len(rows), PART))
    controls: _Controls | None = None
    for number, part in parts:
        if not table.has(number):
            controls = controls or _Controls(of, rows, span, seed)
            table.write(number, [row for i in range(part.start, part.stop) for row in controls.score(i)])
        report(f"traces of {name}", part.stop, len(rows))
    return ScoredControls(table, len(parts), run.path, of.config.method, name, span)


def _stored(run: Run, name: str) -> list[dict[str, Any]]:
    if name not in run.trace_names():
        raise StoreError(
            f"{run.path}: no traces {name} are stored (there are {', '.join(run.trace_names()) or 'none'}); name "
            "others with --traces, or train with --validation FILE, which stores held-out traces."
        )
    if not (rows := run.traces(name, TRACE_COLUMNS)):
        raise StoreError(f"{run.path}: the table {name} holds no traces; name another with --traces.")
    return rows


class _Controls:
    """The scorer and what it needs to tamper with traces."""

    def __init__(self, of: Subject, rows: Sequence[Mapping[str, Any]], span: int, seed: int) -> None:
        self.rows, self.span, self.seed = rows, span, seed
        self.scorer: Scorer = of.open()
        self.objective = of.config.objective
        self.method = methods.get(of.config.method)
        self.mask = self.scorer.tokenizer.encode(MASK, add_special_tokens=False)[-1]

    def score(self, i: int) -> list[dict[str, Any]]:
        """The rows of one trace: each control's reward, on the same answer."""
        row = self.rows[i]
        example = Example(row["example"], row["source"], tuple(row["prompt_ids"]), tuple(row["answer_ids"]))
        traces = self.traces(i)
        scored = self.scorer.score(
            [self.scorer.null_row(example), *(self.scorer.row(example, ids) for ids in traces.values())]
        )
        null_T, *given = (scores.logprobs_T.double() for scores in scored)
        # Rewards of one group are made together, constants of the group's own among them.
        reward = self.method.signals(Group.of(torch.stack(given), null_T, self.objective))
        return [
            {
                "example": example.index,
                "k": row["k"],
                "control": control,
                "trace_tokens": len(ids),
                "changed_tokens": _changed(traces["sampled"], ids),
                "logprob": float(logprobs_T.sum()),
                "gain": float(logprobs_T.sum() - null_T.sum()),
                "reward": float(reward.reward_K[c]),
                "reward_base": float(reward.base),
                **self._copied(row, ids),
            }
            for c, ((control, ids), logprobs_T) in enumerate(zip(traces.items(), given, strict=True))
        ]

    def traces(self, i: int) -> dict[str, list[int]]:
        """A trace as it was sampled, and tampered with; `swapped` is left out where there is no other example."""
        row = self.rows[i]
        ids = list(row["trace_ids"])
        stream = np.random.default_rng((self.seed, row["example"], row["k"]))
        found = {"sampled": ids, "empty": [], "shuffled": [ids[j] for j in stream.permutation(len(ids))]}
        others = [other for other in (*self.rows[i + 1 :], *self.rows[:i]) if other["example"] != row["example"]]
        if others:
            found["swapped"] = list(others[0]["trace_ids"])
        found["masked"] = self._masked(row)
        return found

    def _masked(self, row: Mapping[str, Any]) -> list[int]:
        """The trace with every token masked that touches a word copied from the answer."""
        ids = list(row["trace_ids"])
        texts = pieces(self.scorer.tokenizer, ids)
        found = words("".join(texts))
        answer, question = (_plain(row[column]) for column in ("answer", "prompt"))
        marks = copied_words(answer, [word for word, _, _ in found], question, self.span)
        spans = [(start, end) for (_, start, end), copied in zip(found, marks, strict=True) if copied]
        end = 0
        for j, text in enumerate(texts):
            start, end = end, end + len(text)
            if any(start < stop and begin < end for begin, stop in spans):
                ids[j] = self.mask
        return ids

    def _copied(self, row: Mapping[str, Any], ids: Sequence[int]) -> dict[str, float]:
        answer, question = (_plain(row[column]) for column in ("answer", "prompt"))
        trace = _plain("".join(pieces(self.scorer.tokenizer, ids)))
        return {f"copied_{n}": copied_share(answer, trace, question, n) for n in NGRAMS}


def _plain(text: str) -> list[str]:
    return [word for word, _, _ in words(text)]


def _changed(before: Sequence[int], after: Sequence[int]) -> int:
    """Places where two traces differ; what one has more counts too."""
    return sum(a != b for a, b in zip(before, after, strict=False)) + abs(len(before) - len(after))
