"""NRT-WS: the answer tokens' probabilities, weighed by how unsure the model is of them without a trace (Table 2)."""

import math
from typing import ClassVar

from nrt_cli.methods.method import Formula, Formulas, Group, Rowwise, Tensor

SUM = Formula("Σⱼ wⱼ cⱼ", r"\sum_{j=1}^T w_j c_j")

WEIGHTED = Formulas("Weighted Sum (WS)", SUM, SUM, Formula("wᵢ cᵢ", "w_i c_i"))
"""Table 1's last row, of which Table 2 has the two weightings."""


class WeightedSum(Rowwise):
    """R = sum_j w_j c_j; `objective.weighted_sum` mean divides by T, `objective.weight_cap` bounds w."""

    in_log = True
    paper = True
    reads = ("weight_cap", "weighted_sum")

    def log_weight(self, base_T: Tensor) -> Tensor:
        """log w of each token from log c_base."""
        raise NotImplementedError

    def constants(self, group: Group) -> Tensor:
        """What is added to each token's log c."""
        # Rounding can put log c_base a hair above 0, where -log c_base would be negative.
        log_weight_T = self.log_weight(group.base_logprobs_T.clamp(max=0.0))
        if group.settings.weight_cap is not None:
            log_weight_T = log_weight_T.clamp(max=math.log(group.settings.weight_cap))
        return log_weight_T - (math.log(len(log_weight_T)) if group.settings.weighted_sum == "mean" else 0.0)

    def reward(self, logprobs_KT: Tensor, constants: Tensor) -> Tensor:
        return (logprobs_KT + constants).logsumexp(-1)

    def token_signal(self, logprobs_KT: Tensor, constants: Tensor) -> Tensor:
        return (logprobs_KT + constants).exp()


class InverseProbability(WeightedSum):
    """w = 1 / c_base."""

    name = "ws-inv-p"
    title = "NRT-WS (1/p)"
    summary = "their sum weighed by 1 / c_base"
    aliases = ("nrt-ws-inv-p", "nrt-ws (1/p)")
    place = 5
    formulas = Formulas(
        "Inverse-Probability (1/p)",
        SUM,
        Formula("Σⱼ cⱼ / cⱼ,base", r"\sum_{j=1}^T \frac{c_j}{c_{j,\mathrm{base}}}"),
        Formula("cᵢ / cᵢ,base", r"\frac{c_i}{c_{i,\mathrm{base}}}"),
        Formula("1 / cᵢ,base", r"\frac{1}{c_{i,\mathrm{base}}}"),
        place=5,
    )

    def log_weight(self, base_T: Tensor) -> Tensor:
        return -base_T


class NegativeLogProbability(WeightedSum):
    """w = -log c_base."""

    name = "ws-neg-log-p"
    title = "NRT-WS (-log p)"
    summary = "their sum weighed by -log c_base, the paper's best"
    aliases: ClassVar[tuple[str, ...]] = ("nrt-ws-neg-log-p", "nrt-ws (-log p)", "nrt-ws")
    place = 6
    default = True
    formulas: ClassVar[Formulas | None] = Formulas(
        "Log-Probability (-log p)",
        SUM,
        Formula("-Σⱼ cⱼ log cⱼ,base", r"-\sum_{j=1}^T c_j \log c_{j,\mathrm{base}}"),
        Formula("-cᵢ log cᵢ,base", r"-c_i \log c_{i,\mathrm{base}}"),
        Formula("-log cᵢ,base", r"-\log c_{i,\mathrm{base}}"),
        place=6,
    )

    def log_weight(self, base_T: Tensor) -> Tensor:
        return (-base_T).log()


class Control(NegativeLogProbability):
    """The same with no policy gradient: what y* alone teaches. `objective.weights.trace` 0 is its old spelling."""

    name = "control"
    title = "Control: no policy gradient"
    summary = "no policy gradient: traces are sampled and scored, and only the answer and the format are learned"
    aliases = ()
    place = 9
    default = False
    paper = False
    formulas = None
    policy_gradient = False
