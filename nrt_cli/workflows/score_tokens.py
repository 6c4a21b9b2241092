"""Probabilities of ground-truth tokens under an SFT model and under models that think first (Sec. 4.4, Figure 3).

Examples are scored a few at a time and stored as rows at once: memory is that of one model and one part, however many
examples there are, and what an interruption left is not done again.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt_cli.backends.local.scoring import Scorer
from nrt_cli.config import RolloutSection
from nrt_cli.config.titles import run_label
from nrt_cli.data.sources import file_sha256
from nrt_cli.errors import ConfigError, ModelError
from nrt_cli.models.loading import load_tokenizer
from nrt_cli.models.sources import model_fingerprint
from nrt_cli.objective.rows import Row
from nrt_cli.records import Example, Rollout
from nrt_cli.store.tables import PartTable
from nrt_cli.text.pieces import pieces
from nrt_cli.workflows.scoring import SCORING_STREAM, Report, Subject, data_file, in_parts, pick_examples, subject

PART = 16
"""Examples sampled, scored and stored together."""

COLUMNS = {
    "example": "int64",
    "position": "int64",
    "token_id": "int64",
    "token": "string",
    "logprob": "double",
    "entropy": "double",
    "trace_tokens": "int64",
    "stop": "string",
}
"""One row per token of y*, its eos included; the last two are null where the model answered directly."""


@dataclass(frozen=True)
class ScoredModel:
    """Where a model's rows are, `parts` of them; `thinks` says whether they are given a sampled trace."""

    label: str
    thinks: bool
    table: PartTable
    parts: int


def score_tokens(
    baseline: str,
    models: Sequence[str],
    folder: Path,
    report: Report,
    data: Path | None = None,
    count: int = 200,
    seed: int = 0,
    max_trace_tokens: int | None = None,
) -> list[ScoredModel]:
    """Score the same examples with the baseline, which comes first, and with each model.

    Args:
        folder: where the rows go, each model's in a folder of its own.
        data: None is the held-out data of the baseline's run.
        max_trace_tokens: None is what each model's run had.

    Raises:
        ConfigError: the baseline thinks, or there is nothing to compare it with.
        ModelError: the models' tokenizers differ, so that they have no ground-truth tokens in common.
    """
    subjects = [subject(ref) for ref in (baseline, *models)]
    _check(subjects)
    file = data_file(subjects[0], data)
    tokenizer = load_tokenizer(subjects[0].located.folder)
    for other in subjects[1:]:
        if reason := tokenizer_difference(tokenizer, load_tokenizer(other.located.folder)):
            raise ModelError(
                f"{other.located.ref} and {subjects[0].located.ref} have different tokenizers ({reason}), so that they "
                "give no probabilities to the same tokens; compare models that began from the same one."
            )
    limits = subjects[0].config.data
    examples = pick_examples(file, count, seed, limits, tokenizer)
    asked = {"data": file_sha256(file), "count": count, "seed": seed}
    asked |= {"limits": [limits.max_prompt_tokens, limits.max_answer_tokens]}
    jobs = [
        _Job(label, one, one.rollout(max_trace_tokens), asked, folder)
        for label, one in zip(labels(subjects), subjects, strict=True)
    ]
    return [job.run(examples, report) for job in jobs]


def _check(subjects: Sequence[Subject]) -> None:
    first, *others = subjects
    if not others:
        raise ConfigError("name at least one model to compare with the baseline: --runs RUN.")
    if first.thinks:
        raise ConfigError(
            f"{first.located.ref}: the baseline is to answer directly, but this model thinks; name a run of "
            "`nrt train --method sft` (P_SFT and H_SFT are an SFT model's)."
        )


def labels(subjects: Sequence[Subject]) -> list[str]:
    """A short, unique name for each: its method, or where two share that, its folder's name."""
    methods = [run_label(s.config.method, s.config.model_dump()) if s.located.run else s.located.name for s in subjects]
    names = [s.located.name if methods.count(m) > 1 else m for s, m in zip(subjects, methods, strict=True)]
    return [s.located.ref if names.count(name) > 1 else name for s, name in zip(subjects, names, strict=True)]


def tokenizer_difference(first: Any, second: Any) -> str | None:
    """Why two tokenizers do not make the same tokens of a question and an answer; None where they do."""
    a, b = first.get_vocab(), second.get_vocab()
    if len(a) != len(b):
        return f"{len(a):,} and {len(b):,} tokens"
    for token in sorted(a.keys() | b.keys()):
        if a.get(token) != b.get(token):
            return f"{token!r} is {a.get(token, 'unknown')} in one and {b.get(token, 'unknown')} in the other"
    probe = "The 1,234 naïve cafés — 中文 don't cost $5.67!\n\n  x = y**2  "
    if first.encode(probe) != second.encode(probe):
        return "the same vocabulary, but they cut a text differently"
    if first.chat_template != second.chat_template:
        return "the same tokens, but other chat templates, so that prompts differ"
    return None


@dataclass(frozen=True)
class _Job:
    """One model's share of the work."""

    label: str
    of: Subject
    rollout: RolloutSection
    asked: dict[str, Any]
    folder: Path

    def run(self, examples: Sequence[Example], report: Report) -> ScoredModel:
        """Make the parts that are not there."""
        parts = list(in_parts(len(examples), PART))
        table = self._table()
        scorer: Scorer | None = None
        for number, part in parts:
            if not table.has(number):
                scorer = scorer or self.of.open()
                key = (self.asked["seed"], SCORING_STREAM)
                table.write(number, _rows(scorer, examples[part], self.rollout if self.of.thinks else None, key))
            report(self.label, part.stop, len(examples))
        return ScoredModel(self.label, self.of.thinks, table, len(parts))

    def _table(self) -> PartTable:
        """In a folder named by all that the rows depend on."""
        settings = self.asked | {"model": model_fingerprint(self.of.located.folder), "thinks": self.of.thinks}
        settings |= {"dtype": self.of.section.dtype}
        if self.of.thinks:
            settings |= {"cap": self.rollout.max_trace_tokens, "temperature": self.rollout.temperature}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^\w.@-]", "-", self.label)
        return PartTable(self.folder / "scored" / f"{name}-{digest[:12]}", COLUMNS)


def _rows(
    scorer: Scorer, examples: Sequence[Example], rollout: RolloutSection | None, key: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The rows of some examples, each given a sampled trace of the model's own; directly where `rollout` is None."""
    traces: list[Rollout | None] = [None] * len(examples)
    if rollout:
        traces = [group.rollouts[0] for group in scorer.sample(examples, 1, rollout, key)]
    rows: list[Row] = [
        scorer.direct_row(e) if z is None else scorer.row(e, z.trace_ids) for e, z in zip(examples, traces, strict=True)
    ]
    table = []
    for example, trace, scores in zip(examples, traces, scorer.score(rows), strict=True):
        texts = pieces(scorer.tokenizer, example.answer_ids)
        numbers = (scores.logprobs_T.tolist(), scores.entropies_T.tolist())
        about = {} if trace is None else {"trace_tokens": len(trace.trace_ids), "stop": trace.stop}
        for position, cells in enumerate(zip(example.answer_ids, texts, *numbers, strict=True)):
            row = dict(zip(("token_id", "token", "logprob", "entropy"), cells, strict=True))
            table.append({"example": example.index, "position": position, **row, **about})
    return table
