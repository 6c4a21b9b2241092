"""NOVER (arXiv 2505.16022v1; thinkwee/NOVER at cb1a4ef: `reward_functions.py`, `utils.py`, `trainer.py`).

An answer is sampled after each trace: it has to end, as the trace has, and gets the trace's advantage. y* itself is
only looked at.
"""

from typing import ClassVar

from nrt_cli.methods.method import Formula, Formulas, Group, Method, Signals


class Nover(Method):
    """R = 1 + (share of traces that are not better) + (share of the others that are both longer and worse).

    Of traces that end by themselves, as their answers do; others get 0 and are compared with nothing. Better is a lower
    perplexity of y* under the slow copy, its exponent divided by N = max(1, 1 + log10 of the trace's length). Where the
    public code ranks equal traces by where they stand, they are equal here.
    """

    name = "nover"
    title = "NOVER"
    summary = (
        "ranks of the answer's perplexity under a slow copy of the policy, shorter ones favoured (arXiv 2505.16022)"
    )
    place = 16
    asks = frozenset({"traces", "answers", "follower"})
    free = ("baseline", "token signals")
    defaults: ClassVar = {
        "objective": {
            **{"baseline": "none", "advantage": "mean", "clip_low": 0.1, "clip_high": 0.2},
            **{"follower_keep": 0.9, "follower_every": 100, "weights": {"answer": 0.0, "format": 0.0}},
        }
    }
    formulas = Formulas(
        "NOVER",
        Formula(
            "exp(-1/(N·T) · Σⱼ log cⱼ,slow)", r"\exp\left(-\frac{1}{N T}\sum_{j=1}^T \log c_{j,\mathrm{slow}}\right)"
        ),
        Formula(
            "[z, y end] · (1 + rank + share of longer and worse)",
            r"[z, y\text{ end}]\left(1 + R_{\mathrm{rank}} + R_{\mathrm{shorter}}\right)",
        ),
        Formula("0 (unused)", r"0 \text{ (unused)}"),
        place=107,
    )

    def signals(self, group: Group) -> Signals:
        assert group.follower_logprobs_KT is not None
        assert group.lengths_K is not None
        assert group.closed_K is not None
        assert group.finished_K is not None
        length_K, closed_K = group.lengths_K.double(), group.closed_K & group.finished_K
        perplexity_K = (-group.follower_logprobs_KT.mean(-1) / (1 + length_K.clamp(min=1).log10())).exp()
        both_KK = closed_K[:, None] & closed_K
        better_KK = (perplexity_K[:, None] < perplexity_K) & both_KK  # of row over column
        shorter_KK = (length_K[:, None] < length_K) & better_KK
        closed = closed_K.sum()
        rank_K = (closed - better_KK.sum(0)) / closed.clamp(min=1)
        bonus_K = shorter_KK.sum(1) / (closed - 1).clamp(min=1)
        reward_K = (closed_K * (1 + rank_K + bonus_K)).double()
        return Signals.of(reward_K, reward_K.new_zeros(()), group.logprobs_KT.new_zeros(group.logprobs_KT.shape))
