"""RLVR, the upper bound that rewards without a verifier are held against; and a mixture of both by rows.

After each trace the policy goes on and answers, and the row's grader gives the answer a score (`grading.verdicts`). The
gradient is that of the whole completion, trace and sampled answer. Nothing trains y*, which the policy never reads.
Group-relative advantages: GRPO, arXiv 2402.03300 Sec. 4.1.2; verifiable rewards: Tulu 3, arXiv 2411.15124 Sec. 6.
"""

from dataclasses import replace
from typing import ClassVar

from nrt_cli.methods.method import Formula, Formulas, Group, Method, Signals
from nrt_cli.methods.weighted_sum import NegativeLogProbability


class Verified(Method):
    """R = v(y), y ~ pi(. | x, z), in [0, 1]; the null trace is not asked, and has 0."""

    name = "rlvr"
    title = "RLVR (verifier)"
    summary = "an answer sampled after the trace, judged by the row's grader; y* itself is not trained"
    place = 30
    asks = frozenset({"verdicts"})
    free = ("token signals", "baseline")
    every_row = True
    defaults: ClassVar = {"objective": {"weights": {"answer": 0.0, "format": 0.0}}}
    formulas = Formulas(
        "Verdict on a sampled answer",
        Formula("v(y)", "v(y)"),
        Formula("v(y), y ~ π(·|x,z)", r"v(y),\ y \sim \pi_\theta(\cdot|x,z)"),
        Formula("0", "0"),
        place=130,
    )

    def signals(self, group: Group) -> Signals:
        assert group.verdicts_K is not None
        nothing_KT = group.logprobs_KT.new_zeros(group.logprobs_KT.shape)
        # 0, not v(null): with objective.baseline=clip it takes nothing off, and the group's mean is what compares.
        return Signals.of(group.verdicts_K, group.verdicts_K.new_zeros(()), nothing_KT)


class Mixed(NegativeLogProbability):
    """R = v(y) on rows that name a verifier, and NRT-WS (-log p)'s reward on all others, whose y* alone is trained."""

    name = "mix"
    title = "Verifier or NRT-WS (-log p)"
    summary = "a verdict where the row has a grader, the likelihood of the answer elsewhere"
    aliases = ()
    place = 31
    default = False
    paper = False
    asks = frozenset({"verdicts"})
    free = ("token signals", "baseline")
    formulas = Formulas(
        "Verdict, or Log-Probability (-log p)",
        Formula("v(y), else -Σⱼ cⱼ log cⱼ,base", r"v(y)\ \text{or}\ -\sum_{j=1}^T c_j \log c_{j,\mathrm{base}}"),
        Formula("v(y), else -Σⱼ cⱼ log cⱼ,base", r"v(y)\ \text{or}\ -\sum_{j=1}^T c_j \log c_{j,\mathrm{base}}"),
        Formula("0, else -cᵢ log cᵢ,base", r"0\ \text{or}\ -c_i \log c_{i,\mathrm{base}}"),
        place=131,
    )

    def signals(self, group: Group) -> Signals:
        judged = group.verdicts_K is not None and not bool(group.verdicts_K.isnan().any())
        return replace(Verified().signals(group), answer=False) if judged else super().signals(group)
