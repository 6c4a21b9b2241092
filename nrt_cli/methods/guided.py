"""Guided traces: a share is sampled with the answer in view, and corrected to the policy that does not see it.

After RAVR (arXiv 2510.25206), which samples from the policy that sees y*, and CoVRL (arXiv 2512.12576), which samples
from a mixture of both, by whole traces, and weighs by the mixture's density. Both learn another distribution than the
policy's own (a posterior, a mixture); here it is pi itself, and no divergence is taken off. The reward is CoVRL's.
"""

from typing import ClassVar

from nrt_cli.methods.method import Formula, Formulas, Group, Method, Signals

SMUGGLED = 0.5
"""Share of what a trace gained from which on its surprise has paid for it, rather than a computation."""


class Guided(Method):
    """R = log P(y*|x,z); each trace counts for w = pi(z) / mu(z), mu the mixture that the group was sampled from.

    With F traces of K from pi and G from q, the policy that sees y*, mu = (F pi + G q) / K: the balance heuristic
    (Veach and Guibas 1995), whose estimator sum_k w_k f(z_k) / K of E_pi[f] has no bias, and weights of K / F at most:
    nothing needs to be cut off.

    By Bayes' rule a reader that works out nothing gains from z no more than log q(z) / pi(z), which whoever is told the
    answer pays for writing it down, as a lucky guess does. A trace that paid for `SMUGGLED` of its gain counts for 0.
    """

    name = "guided"
    title = "Guided (JLB)"
    summary = "the answer's log-probability; some traces are sampled with it in view (arXiv 2510.25206, 2512.12576)"
    place = 18
    asks = frozenset({"guide"})
    reads = ("guided_share",)
    defaults: ClassVar = {"objective": {"baseline": "none"}}
    formulas = Formulas(
        "Guided (logP)",
        Formula("Σⱼ log cⱼ", r"\sum_{j=1}^T \log c_j"),
        Formula("log π(y*|x,z), z ~ μ", r"\log \pi_\theta(y^*|x,z),\ z \sim \mu"),
        Formula("w", r"\frac{\pi_\theta(z|x)}{\mu(z)}"),
        place=109,
    )

    def signals(self, group: Group) -> Signals:
        from nrt_cli.measures.xray import smuggled_share  # late: it imports numpy, and facts are read by every --help

        assert group.guide_gap_K is not None
        assert group.guided_K is not None
        guided = group.guided_K.double().mean()
        # 1 / ((1 - g) + g q / pi)
        weight_K = 1 / (1 - guided + guided * group.guide_gap_K.clamp(max=700).exp())
        reward_K, base = group.logprobs_KT.sum(-1), group.base_logprobs_T.sum()
        pairs = zip((reward_K.detach() - base).tolist(), group.guide_gap_K.tolist(), strict=True)
        smuggled = [smuggled_share([gain], [price]) >= SMUGGLED for gain, price in pairs]
        weight_K = weight_K.masked_fill(weight_K.new_tensor(smuggled) > 0, 0.0)
        ones_KT = group.logprobs_KT.new_ones(group.logprobs_KT.shape)
        return Signals(reward_K, base, base.new_zeros(()), ones_KT, base, weight_K=weight_K)
