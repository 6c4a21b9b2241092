"""Does a trace reason, or does it smuggle the answer in? Copied words, and the reward of traces tampered with.

Shapes: C controls of one trace, T answer tokens, eos included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nrt_cli import methods
from nrt_cli.backends.local.scoring import Scorer
from nrt_cli.config import RunConfig
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.methods import Group
from nrt_cli.records import Example
from nrt_cli.store import Run
from nrt_cli.store.tables import PartTable
from nrt_cli.text.pieces import copied_share, copied_words, pieces, words
from nrt_cli.workflows.score_tokens import fill, table_for
from nrt_cli.workflows.scoring import Report, subject

CONTROLS = ("sampled", "empty", "shuffled", "swapped", "masked")
NGRAMS = (1, 2, 3, 4)
MASK = " _"
"""Stands for a masked token; its last token is used."""

PART = 8
"""Traces scored and stored together."""

COLUMNS = {
    "example": "int64", "k": "int64", "control": "string", "trace_tokens": "int64", "changed_tokens": "int64",
    **dict.fromkeys(("logprob", "gain", "reward", "reward_base", *(f"copied_{n}" for n in NGRAMS)), "double"),
}  # fmt: skip
"""One row per trace and control. `copied_N` is the share of the answer's N-grams that are in the controlled trace."""

TRACE_COLUMNS = ("step", "example", "source", "k", "prompt", "answer", "prompt_ids", "trace_ids", "answer_ids")


@dataclass(frozen=True)
class ScoredControls:
    """Where the rows are, in `parts` parts, and what they were made from."""

    table: PartTable
    parts: int
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
    if name not in run.trace_names():
        raise StoreError(
            f"{run.path}: no traces {name} are stored (there are {', '.join(run.trace_names()) or 'none'}); name "
            "others with --traces, or train with --validation FILE, which stores held-out traces."
        )
    if not (stored := run.traces(name, TRACE_COLUMNS)):
        raise StoreError(f"{run.path}: the table {name} holds no traces; name another with --traces.")
    rows = [stored[i] for i in np.linspace(0, len(stored) - 1, min(count, len(stored))).astype(int)]
    settings = {"traces": name, "rows": len(rows), "seed": seed, "span": span}
    table = table_for(of, folder, name, settings, COLUMNS)

    def score(scorer: Scorer, part: slice) -> list[dict[str, Any]]:
        controls = _Controls(scorer, of.config, rows, span, seed)
        return [row for i in range(part.start, part.stop) for row in controls.score(i)]

    parts = fill(table, of, f"traces of {name}", len(rows), PART, score, report)
    return ScoredControls(table, parts, of.config.method, name, span)


class _Controls:
    """The scorer and what it needs to tamper with traces."""

    def __init__(
        self, scorer: Scorer, config: RunConfig, rows: Sequence[Mapping[str, Any]], span: int, seed: int
    ) -> None:
        self.scorer, self.rows, self.span, self.seed = scorer, rows, span, seed
        self.objective, self.method = config.objective, methods.get(config.method)
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
        answer, question = (_plain(row[column]) for column in ("answer", "prompt"))
        trace_words = {name: _plain("".join(pieces(self.scorer.tokenizer, ids))) for name, ids in traces.items()}
        return [
            {
                "example": example.index,
                "k": row["k"],
                "control": control,
                "trace_tokens": len(ids),
                # Places where they differ; what one has more counts too.
                "changed_tokens": sum(a != b for a, b in zip(traces["sampled"], ids, strict=False))
                + abs(len(traces["sampled"]) - len(ids)),
                "logprob": float(logprobs_T.sum()),
                "gain": float(logprobs_T.sum() - null_T.sum()),
                "reward": float(reward.reward_K[c]),
                "reward_base": float(reward.base),
                **{f"copied_{n}": copied_share(answer, trace_words[control], question, n) for n in NGRAMS},
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


def _plain(text: str) -> list[str]:
    return [word for word, _, _ in words(text)]
