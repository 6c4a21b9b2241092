"""Each run's metrics by step, for the page's charts."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from nrt_analysis.dynamics_report import PANELS, SHARES, UNITS, collapses
from nrt_analysis.figures import span
from nrt_analysis.formats.page.trace_samples import four_digits, spread
from nrt_analysis.frames import steps_frame
from nrt_analysis.report.run_cards import RunCard
from nrt_cli.measures.collapse import WINDOW

POINTS = 300
"""Steps of a run that are drawn."""

HELD_OUT = "held_out"
ANSWER = "answer_logprob_per_token"


def series(cards: Sequence[RunCard]) -> dict[str, Any]:
    """Panels and every run's numbers in them, ready for JSON; a run has only the metrics that its method has.

    `seen`: by model, metric, and whether single steps are drawn too (`raw`), the heights that a panel shows of the
    model's runs, and which of them leave it.
    """
    # Figures have titles in TeX, and one that names a thin line.
    titles = {key: title.replace("$R-R_{base}$", "R − R_base") for key, (title, _) in PANELS.items()}
    about = {
        HELD_OUT: ("held-out log P(y*)", "nats per answer", "mean over the held-out examples, after a step"),
        ANSWER: ("training log P(y*)", "nats per answer token", "mean over the step's answer tokens"),
        **{key: (titles[key], unit, UNITS[key]) for key, (_, unit) in PANELS.items()},
        "forced_share": ("forced ends", "share of traces", UNITS["forced_share"]),
    }
    panels: list[dict[str, Any]] = []
    for key in dict.fromkeys((HELD_OUT, "gain", "trace_length", "entropy", *about)):  # what matters first
        said = dict(zip(("key", "title", "unit", "about"), (key, *about[key]), strict=True))
        zero = key in ("entropy", "trace_length", "gain", "reward_gain")
        panels.append({**said, "share": key in SHARES, "zero": zero, "log": key == "token_signal"})
    runs = [_run(card) for card in cards]
    seen: dict[str, dict[str, dict[str, Any]]] = {}
    for model in dict.fromkeys(card.model for card in cards):
        its = {card.label: run["values"] for card, run in zip(cards, runs, strict=True) if card.model == model}
        for key in (one["key"] for one in panels):
            found = {label: values[key] for label, values in its.items() if key in values}
            for line in ("mean", "raw"):
                lines = {label: pd.Series(one.get(line, one["mean"]), dtype=float) for label, one in found.items()}
                low, high, beyond = span(lines)
                leave = "; ".join(f"{label} goes to {value:.3g}" for label, value in beyond.items())
                heights = {"low": four_digits(low), "high": four_digits(high), "beyond": leave}
                seen.setdefault(model, {}).setdefault(key, {})[line] = heights
    return {"panels": panels, "window": WINDOW, "runs": runs, "seen": seen}


def _run(card: RunCard) -> dict[str, Any]:
    held = card.held_out
    found: dict[str, Any] = {
        HELD_OUT: {"step": [r["step"] for r in held], "mean": [four_digits(r.get("answer_logprob")) for r in held]}
    }
    train = pd.DataFrame(card.steps)
    if train.empty:
        return {"values": found, "falls": []}
    sampled = "trace_length" in train
    frame = steps_frame(card.run) if sampled else train
    keep = spread(range(len(frame)), POINTS)
    keys = [key for key in (ANSWER, *PANELS) if key in frame]
    means = frame[keys].rolling(WINDOW, min_periods=1).mean()
    step = [int(value) for value in frame["step"].iloc[keep]]
    for key in keys:
        raw, mean = ([four_digits(float(x)) for x in of[key].iloc[keep]] for of in (frame, means))
        found[key] = {"step": step, "raw": raw, "mean": mean}
    falls = collapses(frame, card.run) if sampled else []
    return {"values": found, "falls": [{"sign": f.sign, "step": f.step, "text": str(f)} for f in falls]}
