"""What `nrt score --json` said, kept beside the runs: the same view as of stored traces, and under every scheme."""

import contextlib
from collections.abc import Sequence
from typing import Any

from nrt_analysis.report.contents import RunCard
from nrt_analysis.report.left import left_by
from nrt_analysis.report.page.samples import four_digits, thousandths

MOST = 40
"""Records on the page."""


def scored_sets(cards: Sequence[RunCard]) -> list[dict[str, Any]]:
    """Groups that users scored, in the form of `samples.sample_traces`; not a run but `name` says by which model."""
    records = [record for _, found in left_by(cards, "score") if isinstance(found, list) for record in found]
    sets = []
    for record in records[:MOST]:
        # A model that answers directly has no traces; what is no record at all has nothing of one.
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            sets.append({"name": f"nrt score: {record['model']}", "groups": [_group(record)]})
    return sets


def _group(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "question": str(record["question"]),
        "answer": [str(token) for token in record["tokens"]],
        "base": thousandths(record["null"]["logprobs"]),
        "traces": [_trace(k, trace) for k, trace in enumerate(record["traces"])],
    }


def _trace(k: int, trace: dict[str, Any]) -> dict[str, Any]:
    return {
        "k": k,
        "stop": str(trace["stop"]),
        "length": int(trace["trace_tokens"]),
        "tokens": [str(trace["trace"])],
        "entropy": [],
        "logp": thousandths(trace["logprobs"]),
        "gain": four_digits(trace["gain"]),
        "schemes": {
            str(name): {
                **{key: four_digits(scheme[key]) for key in ("reward", "reward_base", "advantage")},
                "dead": scheme["dead_group"],
                "signal": [four_digits(value) for value in scheme["token_signals"]],
            }
            for name, scheme in trace["schemes"].items()
        },
    }
