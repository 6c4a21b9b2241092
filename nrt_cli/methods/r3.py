"""R3, the reward of DRO (arXiv 2506.13351v1, Sec. 4.1.3 and 4.2.2; no code is public).

The answer that DRO samples after a trace gets the trace's advantage too, which is 0 in expectation but for a penalty on
that answer's length; here none is sampled, and y* itself is not trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from nrt_cli.methods.method import Formula, Formulas, Group, Rowwise, Signals, Tensor


class R3(Rowwise):
    """R = sum_j w_j (log c_j - log c_base,j), w_j the share of token j in the deviation of log c over the K traces.

    The paper's w "assigns greater weight to tokens with higher standard deviation" and is not written down; this is
    proportional. Groups are left out whose most telling token tells less than in the lowest `share` of the last step's.
    """

    name = "r3"
    title = "R3 (DRO)"
    summary = "the answer's log-probability, tokens weighed by how much traces differ on them (arXiv 2506.13351)"
    place = 14
    defaults: ClassVar = {
        "objective": {
            "baseline": "none",
            "advantage": "std",
            "clip_high": 0.2,
            "weights": {"answer": 0.0, "format": 0.0},
        }
    }
    formulas = Formulas(
        "R3 (DRO)",
        Formula("Σⱼ wⱼ log cⱼ", r"\sum_{j=1}^T w_j \log c_j"),
        Formula(
            "Σⱼ wⱼ (log cⱼ - log cⱼ,base), wⱼ = σⱼ / Σᵢ σᵢ",
            r"\sum_{j=1}^T \frac{\sigma_j}{\sum_i \sigma_i} (\log c_j - \log c_{j,\mathrm{base}})",
        ),
        Formula("wᵢ (unused)", r"w_i \text{ (unused)}"),
        place=105,
    )

    share = 0.1

    def constants(self, group: Group) -> tuple[Tensor, Tensor]:
        deviation_T = group.logprobs_KT.std(0, correction=0)
        total = deviation_T.sum()
        return deviation_T / total.where(total > 0, 1), group.base_logprobs_T

    def reward(self, logprobs_KT: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
        weight_T, base_T = constants
        return ((logprobs_KT - base_T) * weight_T).sum(-1)

    def token_signal(self, logprobs_KT: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
        return constants[0].expand_as(logprobs_KT)

    def signals(self, group: Group) -> Signals:
        most = float(group.logprobs_KT.detach().std(0, correction=0).max())
        kept = most >= group.memory.get("least", 0.0)
        return replace(super().signals(group), kept=kept, noted={"most": most})

    def remember(self, memory: Mapping[str, float], signals: Sequence[Signals]) -> Mapping[str, float]:
        """Below which deviation the next step leaves groups out."""
        ranked = sorted(each.noted["most"] for each in signals)
        return {"least": ranked[int(self.share * len(ranked))]}
