"""RLP, reinforcement as a pretraining objective (arXiv 2510.01265v2, Sec. 3): to think before reading on.

x is plain text and y* what follows it there (`nrt data prepare --spans`). Two departures: the published gain is of one
next token, here of each of a continuation, on average; and the published counterfactual is a slow copy of the policy
without a thought, here the policy's own null trace. A group's traces share it, so no advantage depends on it.
"""

from typing import Any, ClassVar

from nrt_cli.methods.method import Formula, Formulas, Rowwise, Tensor


class ReadingOn(Rowwise):
    """R = 1/T sum_j (log c_j - log c_base,j), so the null trace has 0; leave-one-out, and nothing trains y*."""

    name = "rlp"
    title = "RLP"
    summary = "plain text: the gain in log-probability per token of what follows (arXiv 2510.01265)"
    place = 17
    text = True
    defaults: ClassVar = {
        "objective": {
            "baseline": "none",
            "advantage": "rloo",
            "token_signal": "derived",
            "weights": {"answer": 0.0, "format": 0.0},
        }
    }
    formulas = Formulas(
        "RLP",
        Formula("1/T · Σⱼ log cⱼ", r"\frac{1}{T}\sum_{j=1}^T \log c_j"),
        Formula(
            "1/T · (log π(y*|x,z) - log π(y*|x))",
            r"\frac{1}{T}\left(\log \pi_\theta(y^*|x,z) - \log \pi_\theta(y^*|x)\right)",
        ),
        Formula("1/T (unused)", r"\frac{1}{T}\text{ (unused)}"),
        place=108,
    )

    def reward(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return (logprobs_KT - constants).mean(-1)

    def token_signal(self, logprobs_KT: Tensor, constants: Any) -> Tensor:
        return logprobs_KT.new_full(logprobs_KT.shape, 1 / logprobs_KT.shape[-1])
