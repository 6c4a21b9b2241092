"""The answer's log-probability per token, as where likelihoods are normalised by length."""

from nrt_cli.methods.method import Formula, Formulas, Tensor
from nrt_cli.methods.table1 import SequenceLogprob


class MeanLogprob(SequenceLogprob):
    """R = 1/T sum_j log c_j. A group has one answer, so T divides all its rewards alike and leaves advantages as they
    are; under `token_signal=derived` a long answer's tokens count less."""

    name = "logp-mean"
    title = "Log-prob per token"
    summary = "the answer's log-probability per token: advantages are those without the mean, only token signals differ"
    aliases = ()
    place = 13
    paper = False
    formulas = Formulas(
        "Mean Log-Prob",
        Formula("1/T · Σⱼ log cⱼ", r"\frac{1}{T}\sum_{j=1}^T \log c_j"),
        Formula("1/T · log π(y*|x,z)", r"\frac{1}{T}\log \pi_\theta(y^*|x,z)"),
        Formula("1/T", r"\frac{1}{T}"),
        place=104,
    )

    def reward(self, logprobs_KT: Tensor, constants: object) -> Tensor:
        return logprobs_KT.mean(-1)

    def token_signal(self, logprobs_KT: Tensor, constants: object) -> Tensor:
        return logprobs_KT.new_full(logprobs_KT.shape, 1 / logprobs_KT.shape[-1])
