"""NRT-GM: the geometric mean of the answer tokens' probabilities (Table 1)."""

from typing import Any

from nrt_cli.methods.method import Formula, Formulas, Rowwise, Tensor


class GeometricMean(Rowwise):
    """R = (prod_j c_j)^(1/T)."""

    name = "gm"
    title = "NRT-GM"
    summary = "the geometric mean of the answer tokens' probabilities"
    aliases = ("nrt-gm",)
    place = 4
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
