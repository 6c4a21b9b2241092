"""Group advantages: how a trace did among the K traces of its prompt (Eq. 9 and 10).

Shapes: K traces of one group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nrt_cli.methods import Signals


@dataclass(frozen=True)
class GroupAdvantage:
    """`advantage_K` multiplies the trace's policy gradient; `dead` says that the group has no signal (all 0)."""

    advantage_K: Tensor
    dead: bool


def group_advantage(
    reward: Signals, baseline: str = "clip", normalise: str = "std", std_floor: float = 1e-6
) -> GroupAdvantage:
    """Advantages of one group.

    Args:
        baseline: `clip` is R' = max(0, R - R_base), Eq. 9; `none` is R' = R, since centring removes any constant.
        normalise: `std` is Eq. 10 with the population's standard deviation, so that the group has exactly unit
            variance; `unbiased-std` divides by K - 1 inside; `mean` only centres; `rloo` subtracts the mean of the
            other K - 1; `raw` is R' itself, as in Eq. 8.
        std_floor: under `std` and `unbiased-std`, a group whose deviation is at most this share of its largest reward
            (baseline included, if there is one) is dead. Relative, because an absolute floor would disable `p` on long
            answers.
    """
    scaled_K = reward.scaled_K
    shaped_K = (scaled_K - reward.scaled_base).clamp(min=0) if baseline == "clip" else scaled_K
    # The largest is taken off before the mean: the mean of equal rewards may round, and their differences must be 0.
    centred_K = shaped_K - shaped_K.max()
    centred_K = centred_K - centred_K.mean()
    size = len(scaled_K)
    if normalise in ("std", "unbiased-std"):
        deviation = centred_K.square().sum() / max(1, size - (normalise == "unbiased-std"))
        deviation = deviation.sqrt()
        scale = scaled_K.abs().max()
        if baseline == "clip":
            scale = torch.maximum(scale, reward.scaled_base.abs())
        dead = bool(deviation <= std_floor * scale)
        return GroupAdvantage(torch.zeros_like(centred_K) if dead else centred_K / deviation, dead)
    unscaled_K = {"mean": centred_K, "rloo": centred_K * size / max(1, size - 1), "raw": shaped_K}[normalise]
    advantage_K = unscaled_K * reward.log_scale.exp()
    return GroupAdvantage(advantage_K, not bool(advantage_K.any()))
