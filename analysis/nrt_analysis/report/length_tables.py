"""What is left of a reward's signal on longer answers: do probabilities flatline, and log-probabilities not?"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from nrt_analysis.document import Cell, Column, Figure, Row, Table, numbers
from nrt_analysis.figures import TEXT, StepLine, StepPanel, draw_steps
from nrt_analysis.frames import STEP, trace_frames, trace_steps
from nrt_analysis.report.run_cards import RunCard
from nrt_cli.measures.collapse import WINDOW

STEPS_READ = 40
"""Of a run, evenly spaced: as many as say how it goes on."""

PARTS = 3
"""Parts of the answers by length, equally many groups in each."""

APART = 2.0
"""The longest part's answers are so many times as long as the shortest's at least, or there is nothing to see."""

SIGNALS = {
    "dead": ("dead groups", "share of groups"),
    "spread": ("spread of R in a group", "sd / |mean|"),
    "magnitude": ("sd of R in a group", "log10"),
    "advantage": ("advantage", "mean |A|"),
    "one_token": ("R told by one token", "r^2"),
}
"""Measures of a group's signal: panel title and unit."""

COLUMNS = (
    "step", "example", "answer_ids", "answer_logprobs", "reward_scaled", "reward_log_scale", "advantage", "dead_group",
)  # fmt: skip


def by_length(cards: Sequence[RunCard]) -> pd.DataFrame:
    """A row for each stored group of the runs whose answers differ in length: model, title, seed, step, tokens,
    `SIGNALS`, and the `part` of its model's answers it belongs to, from 0; without rows where all are about as long."""
    rows: list[dict[str, object]] = []
    for card in cards:
        steps = trace_steps(card.run, STEP) if card.samples else []
        chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, STEPS_READ).astype(int))] if steps else []
        for frame in trace_frames(card.run, STEP, chosen, COLUMNS, required=False):
            tokens = frame["answer_ids"].map(len, na_action="ignore")
            if not rows and tokens.max() < APART * tokens.min():
                break  # of a data set whose answers are alike, the first step says so
            if frame["reward_scaled"].notna().all():
                about = {"model": card.model, "title": card.title, "seed": card.seed}
                rows += [about | signal(group) for _, group in frame.groupby(["step", "example"])]
    if not rows:
        return pd.DataFrame(columns=["model", "title", "seed", "step", "tokens", *SIGNALS, "part"])
    found, kept = pd.DataFrame(rows), []
    for _, of in found.groupby("model", sort=False):
        ends = np.quantile(of["tokens"], np.arange(1, PARTS) / PARTS)
        of = of.assign(part=np.searchsorted(ends, of["tokens"], side="left"))
        middle = of.groupby("part")["tokens"].median()
        if middle.max() >= APART * middle.min():
            kept.append(of)
    return pd.concat(kept, ignore_index=True) if kept else found.assign(part=0).iloc[:0]


def signal(group: pd.DataFrame) -> dict[str, float]:
    """The signal in one group's rewards, K traces of one question.

    `magnitude` is of R as it is, whatever it was divided by. `one_token`: the square of the correlation of R (scaled)
    with log c of the one answer token on which the traces differ the most; NaN where either is alike for all.
    """
    scaled_K = group["reward_scaled"].to_numpy(dtype=float)
    logprobs_KT = np.array(group["answer_logprobs"].tolist(), dtype=float)
    deviation, size = float(scaled_K.std()), float(abs(scaled_K.mean()))
    spreads_T = logprobs_KT.std(0)
    told = math.nan
    if deviation > 0 and spreads_T.max() > 0:
        told = float(np.corrcoef(scaled_K, logprobs_KT[:, spreads_T.argmax()])[0, 1] ** 2)
    scale = float(group["reward_log_scale"].iloc[0]) / math.log(10)
    return {
        "step": int(group["step"].iloc[0]),
        "tokens": logprobs_KT.shape[1],
        "dead": float(group["dead_group"].iloc[0]),
        "spread": deviation / size if size else math.nan,
        "magnitude": math.log10(deviation) + scale if deviation else math.nan,
        "advantage": float(group["advantage"].abs().mean()),
        "one_token": told,
    }


def length_table(found: pd.DataFrame) -> Table | None:
    """Each method's signal by the length of the answers, mean over groups, steps and seeds; None without any."""
    if found.empty:
        return None
    rows = []
    for (model, title), of in found.groupby(["model", "title"], sort=False):
        for _, here in of.groupby("part"):
            low, high = here["tokens"].min(), here["tokens"].max()
            cells = [Cell(str(title)), Cell(f"{low} to {high}", float(here["tokens"].median()))]
            for name, form in zip(SIGNALS, (".0%", ".2g", ".1f", ".2f", ".2f"), strict=True):
                value = here[name].median() if name in ("spread", "magnitude") else here[name].mean()
                cells.append(Cell(format(value, form), value) if math.isfinite(value) else Cell(reason="no signal"))
            rows.append(Row(tuple(cells), section=str(model)))
    return Table(
        "answer-length",
        "Signal by answer length",
        "What a group's rewards say on short and on long answers, under each method's own training.",
        (
            *(Column("Method"), *numbers("Answer tokens", "Dead groups", "Spread of R", "log10 sd of R", "|A|")),
            *numbers("Told by one token"),
        ),
        tuple(rows),
        notes=(
            f"Groups of at most {STEPS_READ} stored steps of each run, in {PARTS} parts by length; means, of spreads "
            "medians. Spread: a group's sd of R over its |mean|, which no scale changes. log10 sd of R: R as it is, so "
            "what a method that divides by no deviation has to learn from.",
            "Told by one token: r^2 of R with log c of the one answer token on which a group's traces differ the most: "
            "of 1, R is that token's; of 0, what the other tokens do drowns it.",
        ),
    )


def length_figure(found: pd.DataFrame) -> Figure | None:
    """The same by training step: a column of panels for each part, shortest answers first; None without any."""
    if found.empty:
        return None
    models = list(found["model"].unique())
    of = found[found["model"] == models[-1]]
    shown = ("dead", "magnitude", "advantage", "one_token")
    panels: list[list[StepPanel]] = []
    for name in shown:
        title, unit = SIGNALS[name]
        panels.append([])
        for _, here in of.groupby("part"):
            lines = {}
            for label, each in here.groupby("title", sort=False):
                mean = each.groupby("step")[name].mean().rolling(WINDOW, min_periods=1).mean()
                lines[str(label)] = StepLine(mean.index, mean)
            length = f"{here['tokens'].min()} to {here['tokens'].max()}"
            panels[-1].append(
                StepPanel(
                    f"{title}: {length}", unit, lines, share=name in ("dead", "one_token"), zero=name != "magnitude"
                )
            )
    drawing, said = draw_steps(panels, TEXT, 0.4 + 1.5 * len(shown))
    for first in range(0, len(drawing.axes), len(panels[0])):  # short and long answers are read against each other
        row = drawing.axes[first : first + len(panels[0])]
        low, high = zip(*(axis.get_ylim() for axis in row), strict=True)
        for axis in row:
            axis.set_ylim(min(low), max(high))
    notes = (f"mean over seeds and groups, then the trailing mean over {WINDOW} stored steps", *said)
    if len(models) > 1:
        notes = (*notes, f"drawn: {models[-1]}; the numbers have all models")
    caption = "What is left of the signal on longer answers, by training step; a column for answers of so many tokens."
    return Figure("figure-length", "Signal by answer length", caption, drawing, {"groups": found}, notes)
