"""Probabilities of ground-truth tokens under an SFT model and under models that think first (Sec. 4.4, Figure 3).

Examples are scored a few at a time and stored as rows at once: memory is that of one model and one part, however many
examples there are, and what an interruption left is not done again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
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
    **dict.fromkeys(("example", "position", "token_id"), "int64"),
    "token": "string", "logprob": "double", "entropy": "double", "trace_tokens": "int64", "stop": "string",
}  # fmt: skip
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
    first, *others = subjects
    if not others:
        raise ConfigError("name at least one model to compare with the baseline: --runs RUN.")
    if first.thinks:
        raise ConfigError(
            f"{first.located.ref}: the baseline is to answer directly, but this model thinks; name a run of "
            "`nrt train --method sft` (P_SFT and H_SFT are an SFT model's)."
        )
    file, tokenizer = data_file(first, data), load_tokenizer(first.located.folder)
    for other in others:
        if reason := tokenizer_difference(tokenizer, load_tokenizer(other.located.folder)):
            raise ModelError(
                f"{other.located.ref} and {first.located.ref} have different tokenizers ({reason}), so that they "
                "give no probabilities to the same tokens; compare models that began from the same one."
            )
    limits = first.config.data
    examples = pick_examples(file, count, seed, limits, tokenizer)
    asked = {"data": file_sha256(file), "count": count, "seed": seed}
    asked |= {"limits": [limits.max_prompt_tokens, limits.max_answer_tokens]}
    scored = []
    for label, of in zip(labels(subjects), subjects, strict=True):
        rollout = of.rollout(max_trace_tokens) if of.thinks else None
        settings = asked | {"thinks": of.thinks}
        settings |= {"cap": rollout.max_trace_tokens, "temperature": rollout.temperature} if rollout else {}
        table = table_for(of, folder, re.sub(r"[^\w.@-]", "-", label), settings, COLUMNS)

        def rows(scorer: Scorer, part: slice, rollout: RolloutSection | None = rollout) -> list[dict[str, Any]]:
            return _rows(scorer, examples[part], rollout, (seed, SCORING_STREAM))

        parts = fill(table, of, label, len(examples), PART, rows, report)
        scored.append(ScoredModel(label, of.thinks, table, parts))
    return scored


def table_for(
    of: Subject, folder: Path, name: str, settings: Mapping[str, Any], columns: Mapping[str, str]
) -> PartTable:
    """Where a model's rows go: a folder named by all that they depend on."""
    whole = {**settings, "model": model_fingerprint(of.located.folder), "dtype": of.section.dtype}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return PartTable(folder / "scored" / f"{name}-{digest[:12]}", columns)


def fill(
    table: PartTable,
    of: Subject,
    what: str,
    total: int,
    size: int,
    rows: Callable[[Scorer, slice], list[dict[str, Any]]],
    report: Report,
) -> int:
    """Make the parts of a table that are not there, the model opened where there are any; returns how many it has."""
    scorer: Scorer | None = None
    parts = list(in_parts(total, size))
    for number, part in parts:
        if not table.has(number):
            scorer = scorer or of.open()
            table.write(number, rows(scorer, part))
        report(what, part.stop, total)
    return len(parts)


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
