"""RLPR: the arithmetic mean of the answer tokens' probabilities (Table 1)."""

import math
from typing import Any

from nrt_cli.methods.method import Formula, Formulas, Rowwise, Tensor

MEAN = Formula("1/T · Σⱼ cⱼ", r"\frac{1}{T}\sum_{j=1}^T c_j")


class ArithmeticMean(Rowwise):
    """R = 1/T sum_j c_j."""

    name = "am"
    title = "RLPR"
    summary = "the arithmetic mean of the answer tokens' probabilities"
    aliases = ("rlpr",)
    place = 3
    in_log = True
    formulas = Formulas("Arithmetic Mean (AM)", MEAN, MEAN, Formula("1/T · cᵢ", r"\frac{1}{T}\,c_i"), place=4)

    def reward(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.logsumexp(-1) - math.log(logprobs_KT.shape[-1])

    def token_signal(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.exp() / logprobs_KT.shape[-1]
