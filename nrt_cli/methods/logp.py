"""JLB: the log-probability of the answer (Table 1)."""

from typing import Any

from nrt_cli.methods.method import Formula, Formulas, Rowwise, Tensor


class SequenceLogprob(Rowwise):
    """R = sum_j log c_j."""

    name = "logp"
    title = "JLB"
    summary = "the answer's log-probability"
    aliases = ("jlb",)
    place = 1
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
