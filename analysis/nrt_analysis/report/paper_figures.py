"""Figures 2 to 4 in the paper's layout."""

from collections.abc import Sequence

import pandas as pd

from nrt_analysis.document import Figure
from nrt_analysis.dynamics_report import PANELS
from nrt_analysis.figures import COLUMN, TEXT, StepLine, StepPanel, draw_steps
from nrt_analysis.frames import STEP
from nrt_analysis.judge_report import asked_with, judged_frame, quality_table
from nrt_analysis.report.paper import paper
from nrt_analysis.report.run_cards import RunCard, in_words, stored_analyses, title_of
from nrt_analysis.token_report import token_figure
from nrt_analysis.vocabulary_report import vocabulary
from nrt_cli.errors import StoreError
from nrt_cli.measures.collapse import WINDOW
from nrt_cli.methods import SCHEMES
from nrt_cli.store import Reference

TRACES_READ = 200
"""Traces of each step whose words Figure 4 counts."""

BEST = SCHEMES[::-1]
"""Whose words Figure 4 shows: the first of these methods that a model has."""

METRICS = ("entropy", "trace_length")


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
    caption = "How traces change while models train: diversity (entropy), length, and quality by an LLM judge."
    steps, thinking = [], {}  # a row per step of each run that samples traces
    for card in cards:
        of = pd.DataFrame(card.steps, columns=["step", *METRICS]).dropna(subset=["trace_length"])
        if not of.empty:
            of = of.assign(model=card.model, title=card.title, seed=card.seed)
            steps.append(of[["model", "title", "seed", "step", *METRICS]])
            thinking[card.label] = card
    if not steps:
        return Figure("figure-2", "Figure 2", caption, reason="no run here sampled traces and took a step")
    by_step = pd.concat(steps, ignore_index=True)
    # The mean score by run, judge and step, `asked` with one template: scores for different questions do not mix.
    columns = ["model", "title", "seed", "step", "judge", "asked", "quality", "low", "high", "n"]
    judged = [pd.DataFrame(columns=[*columns, "run"])]
    for _, of in judged_frame({label: card.run for label, card in thinking.items()}).groupby("template"):
        judges = ", ".join(sorted(of["judge"].unique()))
        judged.append(quality_table(of).assign(asked=f"{judges} asked with {asked_with(of)}"))
    quality = pd.concat(judged[1:] or judged, ignore_index=True)
    for name in ("model", "title", "seed"):
        quality[name] = [getattr(thinking[label], name) for label in quality["run"]]
    quality = quality[columns]
    rows = [(metric, by_step, *PANELS[metric]) for metric in METRICS]
    rows += [("quality", of, f"judged quality, {asked}", "score") for asked, of in quality.groupby("asked")]
    if quality.empty:
        rows.append(("quality", quality, "judged quality", "score"))
    models, panels = list(by_step["model"].unique()), []
    for metric, frame, title, unit in rows:
        named = [f"{title}, {model}".replace("$", r"\$") if len(models) > 1 else title for model in models]
        found = [_lines(frame[frame["model"] == model], metric) for model in models]
        dots = metric == "quality"
        panels.append([StepPanel(n, unit, f, share=dots, points=dots) for n, f in zip(named, found, strict=True)])
    drawing, said = draw_steps(panels, TEXT if len(models) > 1 else COLUMN, 0.4 + 1.4 * len(rows))
    notes = [f"thick: mean over seeds of the trailing mean over {WINDOW} steps; thin: steps of a single seed"]
    notes += [f"quality: {asked}" for asked in quality["asked"].unique()]
    notes += said if len(quality) else [*said, "no traces were judged: `nrt judge RUN` scores them"]
    numbers = {"steps": by_step} | ({"quality": quality} if len(quality) else {})
    return Figure("figure-2", "Figure 2", caption, drawing, numbers, tuple(notes))


def _lines(frame: pd.DataFrame, metric: str) -> dict[str, StepLine]:
    """A line per method: the mean over seeds, of quality at the steps that were judged."""
    lines = {}
    for title, of in frame.groupby("title", sort=False):
        if metric == "quality":
            mean = of.groupby("step")["quality"].mean()
            # Where lines are means over seeds or judges there are no intervals.
            bars = (of["high"] - of["quality"]).to_numpy() if of["step"].is_unique else None
            lines[str(title)] = StepLine(mean.index, mean, bars=bars)
        else:
            wide = of.pivot_table(index="step", columns="seed", values=metric)
            mean = wide.rolling(WINDOW, min_periods=1).mean().mean(axis=1)
            lines[str(title)] = StepLine(mean.index, mean, wide.iloc[:, 0] if len(wide.columns) == 1 else None)
    return lines


# --- Figure 3 ---------------------------------------------------------------------------------------------------------


def token_figures(cards: Sequence[RunCard]) -> list[Figure]:
    """One for every `tokens.json` that `nrt analyze tokens` left."""
    caption = (
        "Ground-truth tokens by how unsure the SFT model is of them: (a) how many there are; (b) their probability "
        "given a sampled trace, relative to SFT's; (c) the geometric mean of that."
    )
    found = [
        (path, record["tables"])
        for path, record in stored_analyses(cards, "tokens")
        if isinstance(record, dict) and {"tokens", "entropy"} <= record.get("tables", {}).keys()
    ]
    if not found:
        reason = "token probabilities were not scored; `nrt analyze tokens --baseline SFT_RUN --runs RUN...` does"
        return [Figure("figure-3", "Figure 3", caption, reason=reason)]
    figures = []
    for i, (path, tables) in enumerate(found, 1):
        tokens, entropy = (pd.DataFrame(tables[name]) for name in ("tokens", "entropy"))
        titles = {run: title_of(str(run), cards, path) for run in dict.fromkeys(tokens["run"])}
        tokens = tokens.assign(run=tokens["run"].map(titles))
        notes = (
            f"{entropy['tokens'].sum():,} tokens; 95 % bootstrap intervals, whole examples resampled.",
            f"The paper's median entropy is {paper()['tokens']['median_entropy']} nats.",
        )
        key, numbers = "figure-3" if len(found) == 1 else f"figure-3-{i}", {"tokens": tokens, "entropy": entropy}
        figures.append(Figure(key, "Figure 3", caption, token_figure(entropy, tokens), numbers, notes))
    return figures


# --- Figure 4 ---------------------------------------------------------------------------------------------------------


def words_figure(cards: Sequence[RunCard], several: bool) -> Figure:
    """The words of one model's traces against its answers: of the first of `BEST`, first seed."""
    model = cards[0].model
    # The name as part of a file's name.
    slug = "".join(c if c.isalnum() or c in "-." else "-" for c in model.lower()).strip("-.")
    key = f"figure-4-{slug}" if several else "figure-4"
    caption = "Words that traces use more (a) and less (c) than reference answers, and word clouds of both (b, d)"
    chosen = min(
        (card for card in cards if card.samples),
        key=lambda card: BEST.index(card.method) if card.method in BEST else len(BEST),
        default=None,
    )
    if chosen is None:
        return Figure(key, "Figure 4", f"{caption}.", reason=f"no run of {model} samples traces")
    caption += f": {chosen.label}."
    try:
        found = vocabulary(Reference(chosen.run.path, None), STEP, first=TRACES_READ)
    except StoreError as error:
        return Figure(key, "Figure 4", caption, reason=in_words(error, cards))
    notes = (*found.notes, f"counted: at most {TRACES_READ} traces of each step")
    numbers = {"changes": found.frames["changes"]}
    return Figure(key, "Figure 4", caption, found.figures[0].drawing, numbers, notes)
