"""`nrt eval compare`: two models on the same documents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nrt_cli.commandline import nrt
from nrt_cli.config import flatten
from nrt_cli.config.suite import NAMES, ORDER
from nrt_cli.errors import StoreError
from nrt_cli.evaluation.pairs import DATA
from nrt_cli.measures.statistics import Aggregation, interval, mean_of, paired_difference
from nrt_cli.records import ACCURACIES
from nrt_cli.store import Reference
from nrt_cli.store.evals import Evaluation, find_evaluations

NOT_COMPARED = ("model",)
"""Settings that two models differ in by nature."""


def results_of(ref: str) -> Path:
    """Where the results of DIR, RUN, RUN@STEP or builtin:NAME are, or ref itself if it is a folder of results."""
    if ref.startswith("builtin:"):
        return Path("evals") / ref.removeprefix("builtin:")
    named = Reference.parse(ref)
    if named.spans is not None:
        return named.path / "evals" / f"step-{named.spans[0][0]:06d}"
    if (named.path / "manifest.json").is_file():
        return named.path / "evals" / "export"
    return named.path if find_evaluations(named.path) else Path("evals") / named.path.resolve().name


def compare(a: str, b: str, seed: int = 0) -> dict[str, Any]:
    """How much better b is than a: per benchmark, and over all nine where both have them.

    Of several evaluations of a benchmark, those are compared whose settings agree best, the newest first. Documents are
    paired by subset and id; those that only one has are left out and counted.

    Raises:
        StoreError: one has no results, or they share no benchmark.
    """
    found = {ref: _by_benchmark(ref) for ref in (a, b)}
    rows, draws = [], []
    for name in [name for name in dict.fromkeys((*NAMES, *found[a])) if name in found[a] and name in found[b]]:
        pair = _closest(found[a][name], found[b][name])
        left, right = (evaluation.scores() or {} for evaluation in pair)
        if name.startswith(DATA):
            kinds = [kind for kind in ACCURACIES if kind in left["metrics"] and kind in right["metrics"]]
            titles = {kind: f"{name.removeprefix(DATA)}: {ACCURACIES[kind]}" for kind in kinds}
        else:
            titles = {right["metric"]: right["title"]}
        for metric, title in titles.items():
            row, draws_R = _compare_one(name, title, metric, right["aggregation"], *pair, seed)
            rows.append(row)
            draws.append(draws_R)
    if not rows:
        names = {ref: ", ".join(sorted(found[ref])) or "none" for ref in (a, b)}
        raise StoreError(f"{a} ({names[a]}) and {b} ({names[b]}) share no benchmark; evaluate both on the same ones.")
    missing = [name for name in ORDER if name not in {row["benchmark"] for row in rows}]
    low, high = interval(np.mean(draws, axis=0))
    mean = {
        "a": float(np.mean([row["a"] for row in rows])),
        "b": float(np.mean([row["b"] for row in rows])),
        "difference": float(np.mean([row["difference"] for row in rows])),
        "low": low,
        "high": high,
        "missing": missing,
    }
    return {"a": a, "b": b, "benchmarks": rows, "mean": mean}


def _by_benchmark(ref: str) -> dict[str, list[Evaluation]]:
    folder = results_of(ref)
    found: dict[str, list[Evaluation]] = {}
    for evaluation in find_evaluations(folder):
        found.setdefault(evaluation.about()["benchmark"], []).append(evaluation)
    if not found:
        raise StoreError(f"{ref}: no results in {folder}; make them with `{nrt('eval', '--model', Path(ref))}`.")
    return found


def _closest(left: list[Evaluation], right: list[Evaluation]) -> tuple[Evaluation, Evaluation]:
    """The pair whose settings differ least; of several, the newest."""
    # Both lists are oldest first, and max takes the first of equals.
    pairs = [(one, other) for one in reversed(left) for other in reversed(right)]
    return min(pairs, key=lambda pair: len(_differing(*(evaluation.about()["settings"] for evaluation in pair))))


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ, where neither is silent."""
    one, other = flatten(left), flatten(right)
    shared = [key for key in one if key in other and key.partition(".")[0] not in NOT_COMPARED]
    return sorted(key for key in shared if one[key] != other[key])


def _compare_one(
    name: str, title: str, metric: str, aggregation: Aggregation, left: Evaluation, right: Evaluation, seed: int
) -> tuple[dict[str, Any], Any]:
    one, other = ({(d.subset, d.id): d for d in e.documents().values()} for e in (left, right))
    both = [key for key in one if key in other]
    a, b = ([side[key].scores[metric] for key in both] for side in (one, other))
    subsets = [subset for subset, _ in both]
    difference, draws_R = paired_difference(a, b, subsets, aggregation, seed)
    return {
        "benchmark": name,
        "title": title,
        "a": mean_of(a, subsets, aggregation).value,
        "b": mean_of(b, subsets, aggregation).value,
        "difference": difference.value,
        "low": difference.low,
        "high": difference.high,
        "n": difference.n,
        "unpaired": len(one) + len(other) - 2 * len(both),
        "differing": _differing(left.about()["settings"], right.about()["settings"]),
        "folders": [str(left.path), str(right.path)],
    }, draws_R
