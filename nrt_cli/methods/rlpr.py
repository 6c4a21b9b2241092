"""RLPR as published (arXiv 2506.18254; OpenBMB/RLPR at 8490fca: `prob.py`, `ray_trainer.py`, `reproduce_qwen.sh`).

An answer is sampled after each trace: its end is half of the format, and it gets the trace's advantage. y* itself is
only looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from nrt_cli.methods.method import Formula, Formulas, Group, Method, Signals


class Rlpr(Method):
    """R = 0.9 clip(mean c - mean c_base, 0, 1) + 0.1 [trace and answer end]; a group with little spread is left out."""

    name = "rlpr"
    title = "RLPR (published)"
    summary = "the mean of the answer tokens' probabilities less that without a trace, and a filter (arXiv 2506.18254)"
    aliases = ("rlpr (published)",)
    place = 11
    asks = frozenset({"traces", "answers"})
    free = ("baseline", "token signals")
    defaults: ClassVar = {
        "objective": {
            **{"baseline": "none", "advantage": "unbiased-std", "clip_low": 0.2, "clip_high": 0.27},
            "weights": {"answer": 0.0, "format": 0.0},
        }
    }
    formulas = Formulas(
        "RLPR (published)",
        Formula("1/T · Σⱼ cⱼ", r"\frac{1}{T}\sum_{j=1}^T c_j"),
        Formula(
            "0.9 · clip(1/T · Σⱼ (cⱼ - cⱼ,base), 0, 1) + 0.1 · [z, y end]",
            r"0.9\,\mathrm{clip}\left(\frac{1}{T}\sum_{j=1}^T (c_j - c_{j,\mathrm{base}}), 0, 1\right)"
            r" + 0.1\,[z, y\text{ end}]",
        ),
        Formula("0.9/T · cᵢ (unused)", r"\frac{0.9}{T}\,c_i \text{ (unused)}"),
        place=102,
    )

    format_share = 0.1
    first, filters, keep, factor = 6, 11, 0.99, 0.5
    """From step `first` on the deviation is averaged, and from step `filters` on by shares, groups below `factor` of it
    being left out."""

    def signals(self, group: Group) -> Signals:
        assert group.closed_K is not None
        assert group.finished_K is not None
        c_KT, share = group.logprobs_KT.exp(), 1 - self.format_share
        gain_K = (c_KT.mean(-1) - group.base_logprobs_T.exp().mean()).clamp(0, 1)
        reward_K = share * gain_K + self.format_share * (group.closed_K & group.finished_K).double()
        deviation = float(reward_K.detach().std())
        bound, active = self.factor * group.memory.get("mean", 0.0), group.memory.get("steps", 0) + 1 >= self.filters
        signals = Signals.of(reward_K, reward_K.new_tensor(self.format_share), share * c_KT / c_KT.shape[-1])
        return replace(signals, kept=not (active and deviation < bound), noted={"deviation": deviation})

    def remember(self, memory: Mapping[str, float], signals: Sequence[Signals]) -> Mapping[str, float]:
        """The mean deviation of a group's rewards: of the steps before `filters` alike, then by exponential decay."""
        step, mean = int(memory.get("steps", 0)) + 1, memory.get("mean", 0.0)
        new = sum(each.noted["deviation"] for each in signals) / len(signals)
        if step >= self.first:
            keep = self.keep if step >= self.filters else (step - self.first) / (step - self.first + 1)
            mean = keep * mean + (1 - keep) * new
        return {"steps": step, "mean": mean}
