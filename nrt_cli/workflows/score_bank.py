"""Every scheme on one stored bank of rollouts, without a model: what each would have rewarded.

Shapes: K traces of one group, T answer tokens, eos included.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection
from nrt_cli.errors import ConfigError
from nrt_cli.methods import SCHEMES
from nrt_cli.objective.comparison import half_agreement, view_group
from nrt_cli.records import TraceRow
from nrt_cli.store import Run
from nrt_cli.store.tables import bank_rows, bank_tables
from nrt_cli.workflows.scoring import Report

NEEDED = ("step", "example", "k", "trace", "trace_ids", "trace_entropies", "answer_logprobs", "null_logprobs")


@dataclass(frozen=True)
class Bank:
    """Where rollouts are stored, with the objective that schemes are judged under."""

    path: Path
    objective: ObjectiveSection
    method: str | None


def open_bank(path: Path) -> Bank:
    """A run, or a trace table or a folder of them, for which the paper's objective holds."""
    if (path / "manifest.json").is_file():
        config = Run.open(path).config()
        return Bank(path, config.objective, config.method)
    return Bank(path, ObjectiveSection(), None)


def score_schemes(
    bank: Bank, report: Report, schemes: Sequence[str] = SCHEMES, count: int = 500
) -> Iterator[dict[str, Any]]:
    """Rows of traces (`kind: trace`) and of groups (`kind: group`) under each scheme.

    Args:
        count: groups, evenly spaced over those there are.
    """
    if len(schemes) < 2:
        raise ConfigError("name at least two schemes: what one would reward is seen beside another.")
    built = {name: methods.get(name) for name in schemes}
    tables = bank_tables(bank.path)
    sizes = [_groups(bank_rows(table, ("step", "example"))) for table in tables]
    total = sum(map(len, sizes))
    chosen = set(np.linspace(0, total - 1, min(count, total)).astype(int).tolist())
    number = 0
    for done, table in enumerate(tables, 1):
        for group in _groups(bank_rows(table, NEEDED)):
            if number in chosen and len(group) > 1:
                yield from _group_rows(number, group, built, bank.objective)
            number += 1
        report("trace tables", done, len(tables))


def _groups(rows: Sequence[TraceRow]) -> list[list[TraceRow]]:
    return [list(group) for _, group in groupby(rows, key=lambda row: (row.step, row.example))]


def _group_rows(
    number: int, group: Sequence[TraceRow], schemes: Mapping[str, Any], objective: ObjectiveSection
) -> Iterator[dict[str, Any]]:
    logprobs_KT = torch.tensor([row.answer_logprobs for row in group], dtype=torch.float64)
    null_T = torch.tensor(group[0].null_logprobs, dtype=torch.float64)
    where = {"group": number, "step": group[0].step, "example": group[0].example}
    hardest = int(null_T.argmin())
    for name, scheme in schemes.items():
        view = view_group(scheme, logprobs_KT, null_T, objective)
        agreement = half_agreement(scheme, logprobs_KT, null_T, objective)
        yield where | {"kind": "group", "scheme": name, "dead_group": view.advantage.dead, "agreement": agreement}
        signal_T = view.reward.token_KT.abs().mean(0)
        for k, row in enumerate(group):
            yield where | {
                "kind": "trace",
                "scheme": name,
                "k": row.k,
                # The log orders rewards alike and does not underflow.
                "rank_by": float(view.log_reward_K[k] if scheme.in_log else view.reward.scaled_K[k]),
                "scaled": float(view.reward.scaled_K[k]),
                "reward": float(view.reward.reward_K[k]),
                "reward_base": float(view.reward.base),
                "clipped": float(view.clipped_K[k]),
                "advantage": float(view.advantage.advantage_K[k]),
                "hardest_signal": float(signal_T[hardest] / signal_T.sum()),
                "gain": float(logprobs_KT[k].sum() - null_T.sum()),
                "hardest_gain": float(logprobs_KT[k, hardest] - null_T[hardest]),
                "trace_length": len(row.trace_ids or ()),
                "entropy": float(np.mean(row.trace_entropies)) if row.trace_entropies else np.nan,
                "trace": row.trace,
            }
