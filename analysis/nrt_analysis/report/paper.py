"""The paper's own numbers, which ship as data: `paper/nrt.yaml` beside this room."""

import math
from typing import Any

from nrt_analysis.document import shipped
from nrt_cli.config.suite import benchmark
from nrt_cli.measures.statistics import Mean, overall

PRINTED = 0.05
"""Half of the last digit that Table 3 prints, in percent."""


def paper() -> dict[str, Any]:
    """All of the file, as it is."""
    return shipped("paper/nrt.yaml")


def paper_model(name: str) -> str | None:
    """The paper's title of a starting model, by our name for it; None for a model that it has not."""
    return next((model["title"] for model in paper()["models"] if name.lower() in model["names"]), None)


def scores(model: str, method: str) -> dict[str, float]:
    """Table 3's row in percent, by benchmark, and `overall` as printed; empty where the paper has none."""
    row = paper()["scores"].get(model, {}).get(method)
    return {} if row is None else dict(zip((*paper()["benchmarks"], "overall"), row, strict=True))


def documents(name: str) -> int:
    """How many documents a benchmark's printed scores are taken to be of: as their digits tell, else all there are."""
    counted = paper()["digits"]["counted"]
    return counted["documents"] if name in counted["columns"] else benchmark(name).instances


def uncertain(model: str, method: str, name: str) -> Mean:
    """A printed score as a share, with the error that its documents give it; of `overall`, recomputed.

    Of scores in [0, 1] with mean p, none vary more than right and wrong do, whose error is sqrt(p (1 - p) / n).
    """
    if name == "overall":
        return overall(
            {each: uncertain(model, method, each) for each in paper()["benchmarks"]}, [*paper()["benchmarks"]]
        )[0]
    share, n = scores(model, method)[name] / 100, documents(name)
    return Mean(share, math.sqrt(share * (1 - share) / n), n)


def recomputed_overall(model: str, method: str) -> float:
    """The mean of the nine benchmarks that the paper prints, in percent."""
    row = scores(model, method)
    return sum(row[name] for name in paper()["benchmarks"]) / len(paper()["benchmarks"])


def overall_differs(model: str, method: str) -> bool:
    """Whether the printed Overall is not that mean, by more than rounding of all ten numbers explains."""
    # A mean of numbers that are each off by at most PRINTED is off by no more than that, and so is the printed mean.
    return abs(scores(model, method)["overall"] - recomputed_overall(model, method)) > 2 * PRINTED + 1e-9
