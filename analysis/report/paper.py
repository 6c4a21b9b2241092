"""The paper's own numbers, which ship as data: `analysis/paper/nrt.yaml`."""

from functools import cache
from importlib.resources import files
from typing import Any

from nrt_cli.config import load_yaml

PRINTED = 0.05
"""Half of the last digit that Table 3 prints, in percent."""


@cache
def paper() -> dict[str, Any]:
    """All of the file, as it is."""
    text = files("analysis").joinpath("paper", "nrt.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = load_yaml(text, "nrt.yaml")
    return values


def paper_model(name: str) -> str | None:
    """The paper's title of a starting model, by our name for it; None for a model that it has not."""
    return next((model["title"] for model in paper()["models"] if name.lower() in model["names"]), None)


def scores(model: str, method: str) -> dict[str, float]:
    """Table 3's row in percent, by benchmark, and `overall` as printed; empty where the paper has none."""
    row = paper()["scores"].get(model, {}).get(method)
    return {} if row is None else dict(zip((*paper()["benchmarks"], "overall"), row, strict=True))


def recomputed_overall(model: str, method: str) -> float:
    """The mean of the nine benchmarks that the paper prints, in percent."""
    row = scores(model, method)
    return sum(row[name] for name in paper()["benchmarks"]) / len(paper()["benchmarks"])


def overall_differs(model: str, method: str) -> bool:
    """Whether the printed Overall is not that mean, by more than rounding of all ten numbers explains."""
    # A mean of numbers that are each off by at most PRINTED is off by no more than that, and so is the printed mean.
    return abs(scores(model, method)["overall"] - recomputed_overall(model, method)) > 2 * PRINTED + 1e-9
