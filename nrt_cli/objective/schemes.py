"""Reward schemes: how the probabilities of a reference answer become the reward of a trace (Tables 1 and 2).

Shapes: K traces of one group, T tokens of the group's one reference answer (eos included).

A scheme maps log c, `logprobs_KT`, and the null trace's log c_base, `base_logprobs_T`, to one reward per trace. All
answers of a group have the same tokens, so nothing here is padded. Everything stays in the log domain, since an
answer's probability underflows float32 from about -100 nats on (decision 5); advantages do not depend on the scale of
R, so a group's rewards are handed on divided by their largest, and that divisor's log is kept beside them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt_cli.config.named import load_named
from nrt_cli.errors import ConfigError

RewardFunction = Callable[[Tensor, Tensor], Tensor]
"""(logprobs_KT, base_logprobs_T) -> reward_K, differentiable in the first argument, row by row."""


@dataclass(frozen=True)
class Scheme:
    """An aggregation function f and, where it is known in closed form, its token signal.

    `reward` returns log R if `in_log`, else R. `signal` returns (df/dc_i) c_i, shape KT; None asks autograd. Both are
    the same thing: with u_i = log c_i, (df/dc_i) c_i = df/du_i.
    """

    name: str
    reward: RewardFunction
    in_log: bool = False
    signal: RewardFunction | None = None


@dataclass(frozen=True)
class GroupReward:
    """Rewards of one group, R = scaled_K * exp(log_scale), and the null trace's on the same scale.

    At least one of the scaled rewards is of order 1, so differences between tiny rewards survive.
    """

    scaled_K: Tensor
    scaled_base: Tensor
    """R_base / exp(log_scale), but no more than exp(700), so that it is finite; any value above 1 is above every R."""
    log_scale: Tensor
    signal_KT: Tensor
    base: Tensor
    """R_base itself, a scalar; like R, may underflow to 0."""

    @property
    def reward_K(self) -> Tensor:
        """R itself; may underflow to 0 where `scaled_K` does not."""
        return self.scaled_K * self.log_scale.exp()


def group_reward(scheme: Scheme, logprobs_KT: Tensor, base_logprobs_T: Tensor) -> GroupReward:
    """Rewards, null-trace reward and token signals of one group, detached, in float64.

    Args:
        logprobs_KT: log c of every answer token given each trace.
        base_logprobs_T: log c_base, given the null trace, under pi_old.
    """
    logprobs_KT = logprobs_KT.detach().double()
    base_T = base_logprobs_T.detach().double()
    reward_K = scheme.reward(logprobs_KT, base_T)
    reward_base = scheme.reward(base_T[None], base_T)[0]
    signal_KT = _signal(scheme, logprobs_KT, base_T)
    if not scheme.in_log:
        return GroupReward(reward_K, reward_base, torch.zeros_like(reward_base), signal_KT, reward_base)
    # One divisor for the whole group: exact, since max(0, R - R_base) is homogeneous in R. The null trace's reward is
    # no candidate: where it is far larger, the group's would underflow, even with no baseline to subtract.
    top = reward_K.max()
    log_scale = torch.where(top.isfinite(), top, torch.zeros_like(top))
    scaled_base = (reward_base - log_scale).clamp(max=700).exp()
    return GroupReward((reward_K - log_scale).exp(), scaled_base, log_scale, signal_KT, reward_base.exp())


def _signal(scheme: Scheme, logprobs_KT: Tensor, base_T: Tensor) -> Tensor:
    if scheme.signal is not None:
        return scheme.signal(logprobs_KT, base_T)
    return autograd_signal(scheme, logprobs_KT, base_T)


def autograd_signal(scheme: Scheme, logprobs_KT: Tensor, base_T: Tensor) -> Tensor:
    """(df/dc_i) c_i by automatic differentiation: the slow truth for closed forms, the only form for user schemes."""
    with torch.enable_grad():
        leaf_KT = logprobs_KT.detach().requires_grad_()
        reward_K = scheme.reward(leaf_KT, base_T)
        # d exp(log R) = R d(log R). Summing over K is safe: R_k depends on row k alone.
        total = (reward_K.exp() if scheme.in_log else reward_K).sum()
        (signal_KT,) = torch.autograd.grad(total, leaf_KT)
    return signal_KT


def _joint(logprobs_KT: Tensor, _: Tensor) -> Tensor:
    """log pi(y* | x, z): the sum of log c."""
    return logprobs_KT.sum(-1)


def _geometric(logprobs_KT: Tensor, _: Tensor) -> Tensor:
    return logprobs_KT.mean(-1)


def _arithmetic(logprobs_KT: Tensor, _: Tensor) -> Tensor:
    return logprobs_KT.logsumexp(-1) - math.log(logprobs_KT.shape[-1])


def _spread(log_total_K: Tensor, logprobs_KT: Tensor) -> Tensor:
    """The same signal for each token of a trace."""
    return log_total_K.exp()[:, None].expand_as(logprobs_KT)


def _weighted_sum(name: str, log_weight: Callable[[Tensor], Tensor], cap: float | None, mean: bool) -> Scheme:
    """R = sum_j w_j c_j with weights from the null trace (Table 2); `mean` divides by T, `cap` bounds w."""

    def log_terms(logprobs_KT: Tensor, base_T: Tensor) -> Tensor:
        # Rounding can put log c_base a hair above 0, where -log c_base would be negative.
        log_weight_T = log_weight(base_T.clamp(max=0.0))
        if cap is not None:
            log_weight_T = log_weight_T.clamp(max=math.log(cap))
        return logprobs_KT + log_weight_T - (math.log(logprobs_KT.shape[-1]) if mean else 0.0)

    return Scheme(
        name,
        reward=lambda logprobs_KT, base_T: log_terms(logprobs_KT, base_T).logsumexp(-1),
        in_log=True,
        signal=lambda logprobs_KT, base_T: log_terms(logprobs_KT, base_T).exp(),
    )


def get_scheme(name: str, weight_cap: float | None = None, weighted_sum: str = "sum") -> Scheme:
    """A scheme by name, or a user's own as `module:attribute`.

    Args:
        weight_cap: upper bound on the weights of the weighted sums (decision 6).
        weighted_sum: `sum` as in Table 2, or `mean` over tokens (decision 7).
    """
    if ":" in name:
        return _user_scheme(name)
    mean = weighted_sum == "mean"
    schemes = {
        "logp": Scheme("logp", _joint, signal=lambda c, _: torch.ones_like(c)),
        "p": Scheme("p", _joint, in_log=True, signal=lambda c, b: _spread(_joint(c, b), c)),
        "gm": Scheme("gm", _geometric, in_log=True, signal=lambda c, b: _spread(_geometric(c, b), c) / c.shape[-1]),
        "am": Scheme("am", _arithmetic, in_log=True, signal=lambda c, _: c.exp() / c.shape[-1]),
        # w = 1 / c_base and w = -log c_base, as logs.
        "ws-inv-p": _weighted_sum("ws-inv-p", lambda base_T: -base_T, weight_cap, mean),
        "ws-neg-log-p": _weighted_sum("ws-neg-log-p", lambda base_T: (-base_T).log(), weight_cap, mean),
    }
    if name not in schemes:
        raise ConfigError(f"scheme {name!r} is unknown; choose one of {', '.join(schemes)} or module:function.")
    return schemes[name]


def _user_scheme(name: str) -> Scheme:
    """A `Scheme`, or a plain function of (logprobs_KT, base_logprobs_T) returning R, tried on a small example."""
    found = load_named(name, "scheme")
    scheme = found if isinstance(found, Scheme) else Scheme(name, found)
    probe_KT = torch.tensor([[-0.5, -2.0, -0.1], [-1.0, -1.5, -0.2]], dtype=torch.float64)
    try:
        reward = group_reward(scheme, probe_KT, probe_KT.mean(0))
    except Exception as error:
        raise ConfigError(
            f"scheme {name!r} fails on two traces of three answer tokens ({type(error).__name__}: {error}). It takes "
            "log-probabilities of shape [K, T] and null-trace log-probabilities of shape [T], and returns K rewards "
            "that are differentiable in the first."
        ) from None
    if reward.scaled_K.shape != (2,) or not bool(reward.scaled_K.isfinite().all()):
        raise ConfigError(
            f"scheme {name!r} must return one finite reward per trace, shape [K]; for two traces it "
            f"returned {reward.scaled_K.tolist()}."
        )
    if reward.signal_KT.shape != probe_KT.shape or not bool(reward.signal_KT.isfinite().all()):
        raise ConfigError(
            f"scheme {name!r} must have one finite token signal per answer token, shape [K, T]; for two traces of "
            f"three tokens it is {reward.signal_KT.tolist()}."
        )
    return scheme
