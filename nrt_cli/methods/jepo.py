"""JEPO: the multi-sample Jensen bound (arXiv 2503.19618v2, Eq. 6, 7 and App. B.2; no code is public)."""

import math
from typing import ClassVar

from nrt_cli.methods.method import Formula, Formulas, Group, Method, Signals, Tensor


class Jepo(Method):
    """The objective is log 1/K sum_k P_k: R_k is what trace k adds to it, and y* is trained under the likely traces.

    R_k = log 1/K sum_j P_j - log 1/(K-1) sum_{j != k} P_j, of the null trace as one more; its derivative by log P_k,
    the others held, is P_k / sum_j P_j. All in logs.
    """

    name = "jepo"
    title = "JEPO"
    summary = "what a trace adds to the log of the group's mean probability of the answer (arXiv 2503.19618)"
    place = 12
    defaults: ClassVar = {
        "objective": {
            **{"token_signal": "derived", "balance": "off", "baseline": "none", "advantage": "scaled"},
            "weights": {"format": 0.0},
        }
    }
    formulas = Formulas(
        "JEPO",
        Formula("log(1/K · Σₖ Pₖ)", r"\log \frac{1}{K}\sum_{k=1}^K P_k"),
        Formula(
            "log(1/K · Σⱼ Pⱼ) - log(1/(K-1) · Σⱼ≠ₖ Pⱼ)",
            r"\log \frac{1}{K}\sum_j P_j - \log \frac{1}{K-1}\sum_{j \neq k} P_j",
        ),
        Formula("Pₖ / Σⱼ Pⱼ", r"\frac{P_k}{\sum_j P_j}"),
        place=103,
    )

    def signals(self, group: Group) -> Signals:
        log_K, log_base = group.logprobs_KT.sum(-1), group.base_logprobs_T.sum()
        size, own_K = len(log_K), log_K.new_ones(len(log_K)).diag().bool()
        # log(1 + e^x) - log(K / (K - 1)), x being log P_k less the log of the others' sum: what is tiny stays exact.
        others_K = log_K.expand(size, size).masked_fill(own_K, -math.inf).logsumexp(-1)
        reward_K = _softplus(log_K - others_K) - math.log(size / (size - 1)) if size > 1 else log_K
        base = _softplus(log_base - log_K.logsumexp(0)) - math.log((size + 1) / size)
        return Signals.of(reward_K, base, log_K.softmax(0)[:, None].expand_as(group.logprobs_KT))


def _softplus(x: Tensor) -> Tensor:
    return x.logaddexp(x.new_zeros(()))
