"""JLB, NRT-GM, and the paper's VeriFree and RLPR: one number of the answer tokens' probabilities each (Table 1)."""

import math
from typing import Any, ClassVar

from nrt_cli.methods.method import Formula, Formulas, Rowwise, Tensor

JOINT = Formula("π(y*|x,z)", r"\pi_\theta(y^*|x,z)")
MEAN = Formula("1/T · Σⱼ cⱼ", r"\frac{1}{T}\sum_{j=1}^T c_j")


class SequenceLogprob(Rowwise):
    """R = sum_j log c_j."""

    name = "logp"
    title = "JLB"
    summary = "the answer's log-probability"
    aliases: ClassVar[tuple[str, ...]] = ("jlb",)
    place = 1
    paper = True
    formulas = Formulas(
        "Sequence Log-Prob (logP)",
        Formula("Σⱼ log cⱼ", r"\sum_{j=1}^T \log c_j"),
        Formula("log π(y*|x,z)", r"\log \pi_\theta(y^*|x,z)"),
        Formula("1", "1"),
        place=1,
    )

    def reward(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.sum(-1)

    def token_signal(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.new_ones(logprobs_KT.shape)


class SequenceProbability(SequenceLogprob):
    """R = prod_j c_j, whose log is the reward above."""

    name = "p"
    title = "VeriFree (paper's version)"
    summary = "the answer's probability"
    aliases: ClassVar = ("verifree (paper's version)",)
    place = 2
    in_log = True
    formulas = Formulas("Sequence Probability (P)", Formula("Πⱼ cⱼ", r"\prod_{j=1}^T c_j"), JOINT, JOINT, place=2)

    def token_signal(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.sum(-1, keepdim=True).exp().expand_as(logprobs_KT)


class ArithmeticMean(Rowwise):
    """R = 1/T sum_j c_j."""

    name = "am"
    title = "RLPR (paper's version)"
    summary = "the arithmetic mean of the answer tokens' probabilities"
    aliases = ("rlpr (paper's version)",)
    place = 3
    paper = True
    in_log = True
    formulas = Formulas("Arithmetic Mean (AM)", MEAN, MEAN, Formula("1/T · cᵢ", r"\frac{1}{T}\,c_i"), place=4)

    def reward(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.logsumexp(-1) - math.log(logprobs_KT.shape[-1])

    def token_signal(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.exp() / logprobs_KT.shape[-1]


class GeometricMean(Rowwise):
    """R = (prod_j c_j)^(1/T)."""

    name = "gm"
    title = "NRT-GM"
    summary = "the geometric mean of the answer tokens' probabilities"
    aliases = ("nrt-gm",)
    place = 4
    paper = True
    in_log = True
    formulas = Formulas(
        "Geometric Mean (GM)",
        Formula("(Πⱼ cⱼ)^(1/T)", r"\left(\prod_{j=1}^T c_j\right)^{1/T}"),
        Formula("π(y*|x,z)^(1/T)", r"\pi_\theta(y^*|x,z)^{1/T}"),
        Formula("1/T · π(y*|x,z)^(1/T)", r"\frac{1}{T}\,\pi_\theta(y^*|x,z)^{1/T}"),
        place=3,
    )

    def reward(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.mean(-1)

    def token_signal(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.mean(-1, keepdim=True).exp().expand_as(logprobs_KT) / logprobs_KT.shape[-1]
