"""LaTRO (arXiv 2411.04282v2; SalesforceAIResearch/LaTRO at ff18ac3, `latro_trainer.py`)."""

from typing import ClassVar

from nrt_cli.methods.method import Formula, Formulas, Group, Method, Signals


class Latro(Method):
    """R = log P(y*|x,z) - beta (log pi(z|x) - log pi_ref(z|x)), pi_ref the starting model; RLOO, and y* by plain SFT.

    beta is `objective.reward_kl`. The divergence moves with the policy too; the mean of that gradient is 0.
    """

    name = "latro"
    title = "LaTRO"
    summary = "the answer's log-probability less the trace's divergence from the starting model (arXiv 2411.04282)"
    place = 15
    asks = frozenset({"traces", "reference"})
    reads = ("reward_kl",)
    free = ("baseline",)
    defaults: ClassVar = {
        "objective": {
            **{"token_signal": "derived", "balance": "off", "baseline": "none", "advantage": "rloo"},
            "reward_kl": 0.05,
            "weights": {"format": 0.0},
        }
    }
    formulas = Formulas(
        "LaTRO",
        Formula("Σⱼ log cⱼ", r"\sum_{j=1}^T \log c_j"),
        Formula(
            "log π(y*|x,z) - β · log(π(z|x) / π_ref(z|x))",
            r"\log \pi_\theta(y^*|x,z) - \beta \log \frac{\pi_\theta(z|x)}{\pi_{\mathrm{ref}}(z|x)}",
        ),
        Formula("1", "1"),
        place=106,
    )

    def signals(self, group: Group) -> Signals:
        assert group.trace_logprobs_KZ is not None
        assert group.reference_trace_KZ is not None
        divergence_K = (group.trace_logprobs_KZ - group.reference_trace_KZ).sum(-1)
        reward_K = group.logprobs_KT.sum(-1) - group.settings.reward_kl * divergence_K
        # The null trace is nobody's choice, so it diverges from nothing.
        return Signals.of(reward_K, group.base_logprobs_T.sum(), group.logprobs_KT.new_ones(group.logprobs_KT.shape))
