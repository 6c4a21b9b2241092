"""`nrt eval compare`: two models on the same documents."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from nrt_cli.commandline import nrt
from nrt_cli.config import flatten
from nrt_cli.config.suite import NAMES, ORDER
from nrt_cli.errors import StoreError
from nrt_cli.evaluation.pairs import DATA
from nrt_cli.measures.statistics import mean, mean_of, paired_difference
from nrt_cli.records import ACCURACIES, OLMES
from nrt_cli.store import Reference
from nrt_cli.store.evals import Evaluation, find_evaluations


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


def compare(a: str, b: str) -> dict[str, Any]:
    """How much better b is than a: per benchmark, and over all nine where both have them.

    Of several evaluations of a benchmark, those are compared whose settings agree best, the newest first. Documents are
    paired by subset and id; those that only one has are left out and counted.

    Raises:
        StoreError: one has no results, or they share no benchmark.
    """
    found: dict[str, dict[str, list[Evaluation]]] = {}
    for ref in (a, b):
        folder = results_of(ref)
        of_ref = found[ref] = {}
        for evaluation in find_evaluations(folder):
            of_ref.setdefault(evaluation.about()["benchmark"], []).append(evaluation)
        if not of_ref:
            raise StoreError(f"{ref}: no results in {folder}; make them with `{nrt('eval', '--model', Path(ref))}`.")
    rows: list[dict[str, Any]] = []
    for name in [name for name in dict.fromkeys((*NAMES, *found[a])) if name in found[a] and name in found[b]]:
        # Both lists are oldest first, and min takes the first of equals.
        pairs = [(one, other) for one in reversed(found[a][name]) for other in reversed(found[b][name])]
        pair = min(pairs, key=lambda pair: len(_differing(*pair)))
        left, right = (evaluation.scores() or {} for evaluation in pair)
        if name.startswith(DATA):
            kinds = [kind for kind in ACCURACIES if kind in left["metrics"] and kind in right["metrics"]]
            titles = {kind: f"{name.removeprefix(DATA)}: {ACCURACIES[kind]}" for kind in kinds}
        else:
            titles = {right["metric"]: right["title"]}
        one, other = ({(d.subset, d.id): d for d in e.documents().values()} for e in pair)
        both = [key for key in one if key in other]
        subsets, aggregation = [subset for subset, _ in both], right["aggregation"]
        # Where one side shows OLMES's grades, both are compared by them if they can be.
        if OLMES in (left.get("grading"), right.get("grading")) and all(
            OLMES in side[key].scores for side in (one, other) for key in both
        ):
            titles = {OLMES: right["title"]}
        for metric, title in titles.items():
            of_a, of_b = ([side[key].scores[metric] for key in both] for side in (one, other))
            difference = paired_difference(of_a, of_b, subsets, aggregation)
            rows.append(
                {
                    "benchmark": name,
                    "title": title,
                    "a": mean_of(of_a, subsets, aggregation).value,
                    "b": mean_of(of_b, subsets, aggregation).value,
                    "difference": difference.value,
                    "low": difference.low,
                    "high": difference.high,
                    "n": difference.n,
                    "unpaired": len(one) + len(other) - 2 * len(both),
                    "differing": _differing(*pair),
                    "folders": [str(evaluation.path) for evaluation in pair],
                }
            )
    if not rows:
        names = {ref: ", ".join(sorted(found[ref])) or "none" for ref in (a, b)}
        raise StoreError(f"{a} ({names[a]}) and {b} ({names[b]}) share no benchmark; evaluate both on the same ones.")
    means = {key: mean([row[key] for row in rows]) for key in ("a", "b", "difference")}
    # Benchmarks are independent, so the squares of their margins add; what is measured of the same pairs is not.
    below, above = Counter[str](), Counter[str]()
    for row in rows:
        below[row["benchmark"]] += (row["difference"] - row["low"]) / len(rows)
        above[row["benchmark"]] += (row["high"] - row["difference"]) / len(rows)
    of_all = {
        **means,
        "low": means["difference"] - math.hypot(*below.values()),
        "high": means["difference"] + math.hypot(*above.values()),
        "missing": [name for name in ORDER if name not in {row["benchmark"] for row in rows}],
    }
    return {"a": a, "b": b, "benchmarks": rows, "mean": of_all}


def _differing(left: Evaluation, right: Evaluation) -> list[str]:
    """Names of the settings that differ, where neither is silent."""
    one, other = (flatten(evaluation.about()["settings"]) for evaluation in (left, right))
    # The model is what two models differ in by nature.
    return sorted(k for k in one if k in other and one[k] != other[k] and k.partition(".")[0] != "model")
