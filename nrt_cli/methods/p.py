"""Verifree: the probability of the answer (Table 1)."""

from typing import Any

from nrt_cli.methods.method import Formula, Formulas, Rowwise, Tensor

JOINT = Formula("π(y*|x,z)", r"\pi_\theta(y^*|x,z)")


class SequenceProbability(Rowwise):
    """R = prod_j c_j."""

    name = "p"
    title = "Verifree"
    summary = "the answer's probability"
    aliases = ("verifree",)
    place = 2
    in_log = True
    formulas = Formulas("Sequence Probability (P)", Formula("Πⱼ cⱼ", r"\prod_{j=1}^T c_j"), JOINT, JOINT, place=2)

    def reward(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.sum(-1)

    def token_signal(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.sum(-1, keepdim=True).exp().expand_as(logprobs_KT)
