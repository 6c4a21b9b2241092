"""One group of traces under any scheme, token by token: what was rewarded, and what it would have been otherwise.

Shapes: K traces of one group, T answer tokens, eos included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt_cli.config import ObjectiveSection
from nrt_cli.methods import Group, Method, Signals
from nrt_cli.objective.losses import GroupAdvantage, group_advantage


@dataclass(frozen=True)
class SchemeView:
    """A group as one scheme sees it."""

    reward: Signals
    log_reward_K: Tensor
    """log R where R is made in logs and so is positive; NaN otherwise."""
    clipped_K: Tensor
    """R' = max(0, R - R_base), Eq. 9."""
    advantage: GroupAdvantage
    weight_KT: Tensor
    """alpha = df/dc_i, such that the token signal is alpha_i c_i (Table 1)."""


def view_group(method: Method, logprobs_KT: Tensor, base_T: Tensor, objective: ObjectiveSection) -> SchemeView:
    """Rewards, clipped rewards, advantages, weights and token signals of one group under one scheme."""
    reward = method.signals(Group.of(logprobs_KT, base_T, objective))
    log_reward_K = reward.scaled_K.log() + reward.log_scale
    if not method.in_log:
        log_reward_K = torch.full_like(log_reward_K, torch.nan)
    return SchemeView(
        reward,
        log_reward_K,
        # `raw` leaves R' as it is.
        group_advantage(reward, "clip", "raw").advantage_K,
        group_advantage(reward, objective.baseline, objective.advantage, objective.std_floor),
        reward.token_KT / logprobs_KT.double().exp(),
    )


def half_agreement(method: Method, logprobs_KT: Tensor, base_T: Tensor, objective: ObjectiveSection) -> float:
    """Mean over traces of A from the even answer tokens times A from the odd ones; NaN where a half cannot say.

    Each half's advantages have mean 0 and variance 1 within the group (Eq. 10), so this is their correlation. Halves of
    one answer share what the trace does for the whole answer; what one token happens to do is in one half only.
    """
    if logprobs_KT.shape[1] < 2:
        return torch.nan
    halves: Sequence[GroupAdvantage] = [
        group_advantage(method.signals(Group.of(half_KT, half_base_T, objective)), objective.baseline, "std")
        for half_KT, half_base_T in ((logprobs_KT[:, i::2], base_T[i::2]) for i in (0, 1))
    ]
    if any(half.dead for half in halves):
        return torch.nan
    return float((halves[0].advantage_K * halves[1].advantage_K).mean())
