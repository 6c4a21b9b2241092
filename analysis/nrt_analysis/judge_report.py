"""What LLM judges made of the traces, by step (Fig. 2e-f of the paper), and how far the judges agree."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from nrt_analysis.document import Document, number, section
from nrt_analysis.figures import COLUMN, StepLine, StepPanel, draw_steps
from nrt_analysis.intervals import over_seeds, trusted
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.measures.statistics import mean_of, paired_difference
from nrt_cli.store import Run
from nrt_cli.store.judgements import Judgements

KEY = ["run", "step", "example", "judge", "template"]


def judged(
    runs: Mapping[str, Run], steps: Mapping[str, Sequence[int]], keys: Collection[str] | None = None
) -> Document:
    """Mean score by run, judge and step; first against last step on the same examples; agreement of judges.

    Args:
        runs: by label; `steps` are those to report, by the same labels.
        keys: judgements to count, by the digest of what was asked; None for all. Of a trace judged twice by one
            judge with one template, the last counts.

    Raises StoreError where nothing was judged.
    """
    frame = judged_frame(runs, keys)
    frame = frame[[step in steps[run] for run, step in zip(frame["run"], frame["step"], strict=True)]]
    if frame.empty:
        paths = ", ".join(str(run.path) for run in runs.values())
        raise StoreError(f"{paths}: nothing was judged at these steps; `nrt judge RUN@STEPS` judges them.")
    quality = quality_table(frame)
    tables = {"judged": quality, "change": change_table(frame), "traces": frame.drop(columns=["key", "replies"])}
    if frame["judge"].nunique() > 1:
        tables |= {"agreement": agreement_table(frame)}
    figures = {}
    if quality["quality"].notna().any():
        several, width = quality["judge"].nunique() > 1, max(1, quality["step"].max() - quality["step"].min())
        series, lines = list(quality.groupby(["run", "judge"], sort=False)), {}
        for i, ((run, judge), of) in enumerate(series):
            # Side by side, so that bars at one step do not hide each other.
            steps = of["step"] + 0.012 * width * (i - (len(series) - 1) / 2)
            bars = (of["high"] - of["quality"]).to_numpy()
            lines[f"{run}, {judge}" if several else str(run)] = StepLine(steps, of["quality"], bars=bars)
        title = f"asked with {asked_with(frame)}".replace("$", r"\$")  # in a file's name it begins no formula
        one = StepPanel(title, "judged trace quality (0 to 1)", lines, share=True, points=True)
        figures["judged"], _ = draw_steps([[one]], COLUMN, 2.3)
    notes = [
        f"prompt template {asked_with(frame)}; its text is in the run's judgements/",
        "bars are 95 % intervals of the mean",
    ]
    for row in tables["change"].itertuples():
        if not math.isnan(row.change):
            notes.append(
                f"{row.run}, {row.judge}: from {row.first:.3f} to {row.last:.3f} on the same {row.n} examples, change "
                f"{row.change:+.3f} (95 % interval {row.low:+.3f} to {row.high:+.3f})"
            )
    for row in tables["agreement"].itertuples() if "agreement" in tables else ():
        alpha, spearman = (number(value, ".3f", "not defined") for value in (row.alpha, row.spearman))
        notes.append(f"{row.judges}: alpha {alpha}, Spearman {spearman}; {row.n} traces all scored")
    for reason, count in frame.loc[frame["score"].isna(), "reason"].value_counts().items():
        notes.append(f"{count} unscored: {reason}")
    return section("judged", tables, figures, notes)


def judged_frame(runs: Mapping[str, Run], keys: Collection[str] | None = None) -> pd.DataFrame:
    """One row per run, judge, step and example: the record of the store, and the run's label. Unscored is NaN."""
    rows = [
        {"run": label, **record}
        for label, run in runs.items()
        for record in Judgements(run).records()
        if keys is None or record["key"] in keys
    ]
    about = ("score", "reason", "justification", "flags", "template_name", "temperature", "cost", "key", "replies")
    frame = pd.DataFrame(rows, columns=[*KEY, *about])
    # One that got no score was asked again, and both were paid for.
    frame["cost"] = frame.groupby(KEY)["cost"].transform("sum", skipna=False)
    frame = frame.drop_duplicates(KEY, keep="last").sort_values(["judge", "step", "example"])
    # Runs stay in the order given.
    return frame.sort_values("run", key=lambda run: run.map(list(runs).index), kind="stable", ignore_index=True)


def template_label(digest: str, name: Any) -> str:
    """How a template is called: by its file's name, where the record has it, and its digest."""
    return f"{name} ({digest})" if isinstance(name, str) else digest


def asked_with(frame: pd.DataFrame) -> str:
    pairs = frame[["template", "template_name"]].drop_duplicates("template", keep="last").sort_values("template")
    return ", ".join(template_label(*pair) for pair in pairs.itertuples(index=False))


def quality_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The mean score by run, judge and step, with its 95 % interval; NaN where nothing was scored."""
    rows = []
    for of, group in frame.groupby(["run", "judge", "step"], sort=False):
        scored = group["score"].dropna().tolist()
        mean = over_seeds([trusted(mean_of(scored, [""] * len(scored), "micro"))])
        rows.append((*of, len(group), len(group) - len(scored), mean.value, mean.low, mean.high))
    return pd.DataFrame(rows, columns=["run", "judge", "step", "n", "unscored", "quality", "low", "high"])


def change_table(frame: pd.DataFrame) -> pd.DataFrame:
    """How the score of the same examples changed from a run's first to its last judged step, by judge."""
    rows = []
    for (run, judge), group in frame.groupby(["run", "judge"], sort=False):
        by_step = group.pivot(index="example", columns="step", values="score")
        ends = by_step[[by_step.columns.min(), by_step.columns.max()]].dropna()
        ends.columns = pd.Index(["first", "last"])
        if len(by_step.columns) > 1:
            difference = paired_difference(ends["first"].tolist(), ends["last"].tolist(), [""] * len(ends), "micro")
            interval = {"change": difference.value, "low": difference.low, "high": difference.high}
            rows.append({"run": run, "judge": judge, "n": len(ends), **ends.mean().to_dict(), **interval})
    return pd.DataFrame(rows, columns=["run", "judge", "n", "first", "last", "change", "low", "high"])


def agreement_table(frame: pd.DataFrame) -> pd.DataFrame:
    """How far judges agree on the traces they all saw: each pair, and where there are more than two, all of them.

    Spearman's correlation asks whether they rank traces alike; Krippendorff's alpha also whether they mean the same by
    a score, and copes with traces that one of them left unscored. NaN where fewer than two traces or scores are left.
    A trace that several checkpoints share was judged once and counts once.
    """
    scores = frame.drop_duplicates("key").pivot(index=["run", "step", "example"], columns="judge", values="score")
    ranks = scores.corr(method="spearman", min_periods=2)
    groups = [list(pair) for pair in combinations(scores.columns, 2)]
    if len(scores.columns) > 2:
        groups.append(list(scores.columns))
    rows = []
    for group in groups:
        pair, alone = scores[group], len(group) == 2
        both = pair.dropna()
        spearman = float(ranks.loc[group[0], group[1]]) if alone else math.nan
        difference = float((both[group[1]] - both[group[0]]).mean()) if alone else math.nan
        rows.append((" / ".join(group), len(both), spearman, krippendorff_alpha(pair), difference))
    return pd.DataFrame(rows, columns=["judges", "n", "spearman", "alpha", "difference"])


def krippendorff_alpha(scores: pd.DataFrame) -> float:
    """Krippendorff's alpha for interval data, traces by judges; NaN where it is not defined: all scores alike."""
    try:
        import krippendorff
    except ImportError:
        raise ConfigError(
            "how far judges agree needs the krippendorff package: pip install 'nrt-cli[judge]'."
        ) from None
    shared = scores[scores.notna().sum(axis=1) > 1]
    if shared.stack().nunique() < 2:
        return math.nan
    return float(krippendorff.alpha(reliability_data=shared.to_numpy().T, level_of_measurement="interval"))
