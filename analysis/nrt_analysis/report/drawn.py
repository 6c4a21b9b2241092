"""Figures 2 to 4 in the paper's layout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from nrt_analysis import dynamics
from nrt_analysis.figures import COLUMN, TEXT, legend_above, limits, line_style, new_figure, numbered, panel, render
from nrt_analysis.frames import STEP
from nrt_analysis.judged import asked_with, judged_frame, quality_table
from nrt_analysis.report.contents import Figure, RunCard
from nrt_analysis.report.left import in_words, left_by, title_of
from nrt_analysis.report.paper import paper
from nrt_analysis.tokens import UNITS as TOKEN_UNITS
from nrt_analysis.tokens import token_figure
from nrt_analysis.vocabulary import vocabulary
from nrt_cli.errors import StoreError
from nrt_cli.measures.collapse import WINDOW
from nrt_cli.store.reference import Reference

SUFFIXES = ("png", "pdf", "svg")

TRACES_READ = 200
"""Traces of each step whose words Figure 4 counts."""

BEST = ("ws-neg-log-p", "ws-inv-p", "gm", "am", "p", "logp")
"""Whose words Figure 4 shows: the first of these methods that a model has."""

PANELS = {key: dynamics.PANELS[key] for key in ("entropy", "trace_length")}

DYNAMICS_UNITS = {
    "step": "training step, from 1; of quality, steps taken",
    "entropy": "nats, exact, mean over sampled trace tokens",
    "trace_length": "tokens, mean over traces, without the end token",
    "quality": "mean score of the judge, 0 (worst) to 1",
    "asked": "the judge, and the template that it was asked with",
    "low": "95 % interval of the mean",
    "high": "95 % interval of the mean",
}


def figures(cards: Sequence[RunCard]) -> tuple[Figure, ...]:
    """All figures; one that the store has nothing for says why."""
    models = dict.fromkeys(card.model for card in cards)
    return (
        dynamics_figure(cards),
        *token_figures(cards),
        *(words_figure([card for card in cards if card.model == model], len(models) > 1) for model in models),
    )


# --- Figure 2 ---------------------------------------------------------------------------------------------------------


def dynamics_figure(cards: Sequence[RunCard]) -> Figure:
    """Entropy, length and quality of traces by step: a column of panels per model, a row per judge's template."""
    steps = {card.label: steps_of(card) for card in cards}
    thinking = [card for card in cards if not steps[card.label].empty]
    about: dict[str, Any] = {
        "key": "figure-2",
        "title": "Figure 2",
        "caption": "How traces change while models train: diversity (entropy), length, and quality by an LLM judge.",
    }
    if not thinking:
        return Figure(**about, reason="no run here sampled traces and took a step")
    by_step = pd.concat([steps[card.label] for card in thinking], ignore_index=True)
    quality = _quality(thinking)
    rows: list[tuple[str, pd.DataFrame, str, str]] = [(key, by_step, *PANELS[key]) for key in PANELS]
    rows += [("quality", frame, f"judged quality, {asked}", "score") for asked, frame in quality.groupby("asked")]
    if quality.empty:
        rows.append(("quality", quality, "judged quality", "score"))
    models, titles = by_step["model"].unique(), by_step["title"].unique()
    figure, axes = new_figure(len(rows), len(models), TEXT if len(models) > 1 else COLUMN, 0.4 + 1.4 * len(rows))
    handles: dict[str, Any] = {}
    numbers_of, said = numbered(titles), []
    for column, model in enumerate(models):
        for row, (metric, frame, title, unit) in enumerate(rows):
            axis, letter = axes[row, column], chr(ord("a") + row * len(models) + column)
            named = f"{title}, {model}" if len(models) > 1 else title
            panel(axis, letter, named.replace("$", r"\$"))  # in a name it begins no formula
            axis.set_ylabel(unit)
            if beyond := _lines(axis, frame[frame["model"] == model], metric, numbers_of, handles):
                said.append(f"({letter}) leaves out what is far off: {beyond}")
        axes[-1, column].set_xlabel("training step")
    figure.align_ylabels(axes)
    legend_above(figure, list(handles.values()), list(handles))
    notes = [f"thick: mean over seeds of the trailing mean over {WINDOW} steps; thin: steps of a single seed"]
    notes += [f"quality: {asked}" for asked in quality["asked"].unique()]
    notes += said if len(quality) else [*said, "no traces were judged: `nrt judge RUN` scores them"]
    numbers = {"steps": by_step} | ({"quality": quality} if len(quality) else {})
    return Figure(**about, files=render(figure, SUFFIXES), numbers=numbers, units=DYNAMICS_UNITS, notes=tuple(notes))


def steps_of(card: RunCard) -> pd.DataFrame:
    """One row per step of a run that samples traces: model, title, seed, step, entropy, trace_length."""
    frame = pd.DataFrame(card.steps, columns=["step", *PANELS]).dropna(subset=["trace_length"])
    return frame.assign(model=card.model, title=card.title, seed=card.seed)[["model", "title", "seed", "step", *PANELS]]


def _quality(cards: Sequence[RunCard]) -> pd.DataFrame:
    """The mean score by run, judge and step, `asked` with one template: scores for different questions do not mix."""
    columns = ["model", "title", "seed", "step", "judge", "asked", "quality", "low", "high", "n"]
    frame = judged_frame({card.label: card.run for card in cards})
    if frame.empty:
        return pd.DataFrame(columns=columns)
    by_label = {card.label: card for card in cards}
    tables = []
    for _, of in frame.groupby("template"):
        judges = ", ".join(sorted(of["judge"].unique()))
        tables.append(quality_table(of).assign(asked=f"{judges} asked with {asked_with(of)}"))
    table = pd.concat(tables, ignore_index=True)
    for name in ("model", "title", "seed"):
        table[name] = [getattr(by_label[label], name) for label in table["run"]]
    return table[columns]


def _lines(axis: Axes, frame: pd.DataFrame, metric: str, numbers_of: Mapping[str, int], handles: dict[str, Any]) -> str:
    """A line per method: the mean over seeds. Returns what is said of lines that leave the panel."""
    drawn = {}
    if frame.empty:
        axis.text(0.5, 0.5, "not judged", ha="center", va="center", transform=axis.transAxes, color="0.4", fontsize=7)
        axis.set_xticks([])
    for title, of in frame.groupby("title", sort=False):
        style = line_style(numbers_of[str(title)])
        if metric == "quality":
            mean = of.groupby("step")["quality"].mean()
            line: Any = axis.errorbar(mean.index, mean, _margin(of), capsize=1.5, elinewidth=0.6, markersize=3, **style)
        else:
            del style["marker"]
            wide = of.pivot_table(index="step", columns="seed", values=metric)
            if len(wide.columns) == 1:
                axis.plot(wide.index, wide, color=style["color"], linewidth=0.4, alpha=0.45)
            mean = wide.rolling(WINDOW, min_periods=1).mean().mean(axis=1)
            (line,) = axis.plot(mean.index, mean, **style)
        handles.setdefault(str(title), line)
        drawn[str(title)] = mean if metric == "quality" or len(wide.columns) > 1 else wide.iloc[:, 0]
    return limits(axis, drawn, zero=True, share=metric == "quality")


def _margin(of: pd.DataFrame) -> np.ndarray | None:
    """Half an interval at each step; none where lines are means over seeds or judges."""
    return (of["high"] - of["quality"]).to_numpy() if of["step"].is_unique else None


# --- Figure 3 ---------------------------------------------------------------------------------------------------------


def token_figures(cards: Sequence[RunCard]) -> list[Figure]:
    """One for every `tokens.json` that `nrt analyze tokens` left."""
    found = [
        (path, record["tables"])
        for path, record in left_by(cards, "tokens")
        if isinstance(record, dict) and {"tokens", "entropy"} <= record.get("tables", {}).keys()
    ]
    if found:
        names = ["figure-3"] if len(found) == 1 else [f"figure-3-{i}" for i in range(1, len(found) + 1)]
        return [_token_figure(name, path, tables, cards) for name, (path, tables) in zip(names, found, strict=True)]
    reason = "token probabilities were not scored; `nrt analyze tokens --baseline SFT_RUN --runs RUN...` does"
    return [Figure("figure-3", "Figure 3", TOKENS_CAPTION, reason=reason)]


TOKENS_CAPTION = (
    "Ground-truth tokens by how unsure the SFT model is of them: (a) how many there are; (b) their probability given a "
    "sampled trace, relative to SFT's; (c) the geometric mean of that."
)


def _token_figure(key: str, path: Path, tables: Mapping[str, Any], cards: Sequence[RunCard]) -> Figure:
    tokens, entropy = (pd.DataFrame(tables[name]) for name in ("tokens", "entropy"))
    titles = {run: title_of(str(run), cards, path) for run in dict.fromkeys(tokens["run"])}
    tokens = tokens.assign(run=tokens["run"].map(titles))
    return Figure(
        key,
        "Figure 3",
        TOKENS_CAPTION,
        files=render(token_figure(entropy, tokens), SUFFIXES),
        numbers={"tokens": tokens, "entropy": entropy},
        units=TOKEN_UNITS,
        notes=(
            f"{entropy['tokens'].sum():,} tokens; 95 % bootstrap intervals, whole examples resampled.",
            f"The paper's median entropy is {paper()['tokens']['median_entropy']} nats.",
        ),
    )


# --- Figure 4 ---------------------------------------------------------------------------------------------------------


def words_figure(cards: Sequence[RunCard], several: bool) -> Figure:
    """The words of one model's traces against its answers: of the first of `BEST`, first seed."""
    model = cards[0].model
    key = f"figure-4-{slug(model)}" if several else "figure-4"
    caption = "Words that traces use more (a) and less (c) than reference answers, and word clouds of both (b, d)"
    chosen = min(
        (card for card in cards if card.method != "sft"),
        key=lambda card: BEST.index(card.method) if card.method in BEST else len(BEST),
        default=None,
    )
    if chosen is None:
        return Figure(key, "Figure 4", f"{caption}.", reason=f"no run of {model} samples traces")
    caption += f": {chosen.label}."
    try:
        report = vocabulary(Reference(chosen.run.path, None), STEP, first=TRACES_READ)
    except StoreError as error:
        return Figure(key, "Figure 4", caption, reason=in_words(error, cards))
    return Figure(
        key,
        "Figure 4",
        caption,
        files=render(report.figures["vocab"], SUFFIXES),
        numbers={"changes": report.tables["changes"]},
        units=report.units,
        notes=(*report.notes, f"counted: at most {TRACES_READ} traces of each step"),
    )


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name.lower()).strip("-.")
