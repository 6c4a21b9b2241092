"""When each method's answers are decided, and how many of its traces' steps they need: from `nrt analyze xray`."""

from collections.abc import Sequence

import pandas as pd

from nrt_analysis.document import Cell, Column, Figure, Row, Table, interval, numbers
from nrt_analysis.figures import COLUMN, new_figure
from nrt_analysis.report.run_cards import RunCard, stored_analyses
from nrt_analysis.xray_report import by_model, decided_curve, draw_decided

NEEDS = {"example", "model_step", "steps", "matters", "harms", "decided", "smuggled", "gain", "copied", "unit"}
"""Columns of an X-ray's traces that are read."""


def xray_parts(cards: Sequence[RunCard]) -> tuple[Table, Figure]:
    """A row and a line per method: the traces of its runs' last models that were looked into, all seeds together."""
    by_run, found = {card.run.path.resolve(): card for card in cards}, []
    for path, record in stored_analyses(cards, "xray"):
        card = by_run.get(path.parents[2].resolve())
        traces = pd.DataFrame(record.get("tables", {}).get("traces", ()) if isinstance(record, dict) else ())
        if card is None or not NEEDS.issubset(traces):
            continue
        steps = traces["model_step"]
        found.append(traces[steps.isna() | (steps == steps.max())].assign(model=f"{card.model}, {card.title}"))
    title, caption = "X-ray", "Which steps of its traces a method's answers need, and when they are decided."
    none = "no traces were looked into; `nrt analyze xray RUN` does"
    if not found:
        return Table("xray", title, caption, (), reason=none), Figure("xray", title, caption, reason=none)
    traces = pd.concat(found, ignore_index=True).astype({"smuggled": float, "decided": float, "matters": float})
    if traces["model"].map(lambda name: name.partition(", ")[0]).nunique() == 1:
        traces["model"] = traces["model"].map(lambda name: name.partition(", ")[2])
    names = list(dict.fromkeys(traces["model"]))
    summary, units = by_model(traces, names), traces.groupby("model")["unit"].first()

    def cells(name: str) -> tuple[Cell, ...]:
        row, made = summary.loc[name], [Cell(name), Cell(str(units[name]))]
        made.append(Cell(f"{summary['steps'][name]:.1f}", float(summary["steps"][name])))
        for what in ("matters", "decided", "smuggled"):
            value, low, high = (float(row[f"{what}{end}"]) for end in ("", "_low", "_high"))
            told = "" if pd.isna(value) else interval((value, low, high), ".0%")
            made.append(Cell(told, value, low, high, reason="no trace told enough of its answer"))
        return tuple(made)

    columns = (Column("Method"), Column("A step is a"), *numbers("Steps", "Needed", "Decided after", "Smuggled"))
    table = Table(
        "xray",
        title,
        caption,
        columns,
        tuple(Row(cells(name)) for name in names),
        notes=(
            f"{len(traces)} traces, of the last model of each run that was looked into; 95 % bootstrap intervals over "
            "whole questions, not over seeds.",
            "Needed: share of a trace's steps without which the answer, or what it follows from, loses a tenth of its "
            "probability. Decided after: share of the steps that it takes. Smuggled: share of what the telling words "
            "add that their own surprise pays for, told or guessed; the rest was computed. `nrt help analysis` has the "
            "definitions.",
        ),
    )
    drawing, axes = new_figure(1, 1, COLUMN, 2.2)
    curves = {name: decided_curve(traces[traces["model"] == name]) for name in names}
    draw_decided(drawing, axes[0, 0], curves)
    behind = pd.concat([curve.assign(method=name) for name, curve in curves.items()], ignore_index=True)
    figure = Figure("xray", "When is the answer decided?", caption, drawing, {"decided": behind}, (
        "Share of traces of which so many first steps make the answer as likely as all do, within a tenth of the gain; "
        "early is the sign of a shortcut (arXiv 2510.01367).",
    ))  # fmt: skip
    return table, figure
