"""What a step's groups say in a few numbers. Shapes as in `losses.py`: K traces, Z trace positions, T answer tokens."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nrt_cli.objective.losses import GroupContext, GroupLogprobs, GroupLoss

TERMS = ("trace", "answer", "format")


@dataclass(frozen=True)
class GroupScore:
    """One group after its forward pass."""

    logprobs: GroupLogprobs
    context: GroupContext
    loss: GroupLoss

    @property
    def gain_K(self) -> Tensor:
        """log P(y* | x, z) - log P(y* | x, null trace) per trace, in nats over the whole answer."""
        return self.logprobs.answer_KT.double().sum(-1) - self.context.base_logprobs_T.double().sum()

    def detached(self) -> "GroupScore":
        """The same numbers without the graph they came from."""
        numbers = {name: value.detach() for name, value in vars(self.logprobs).items() if value is not None}
        logprobs = replace(self.logprobs, **numbers)
        return GroupScore(logprobs, self.context, replace(self.loss, total=self.loss.total.detach()))


def step_metrics(scores: Sequence[GroupScore], minibatches: int = 1) -> dict[str, float]:
    """Means over the traces (or groups, or tokens, as named) of one step. Log-probabilities and entropies in nats.

    A minibatch's loss is the sum over its groups; losses here are means over minibatches.
    """
    sampled = [s.context.sampled_mask_KZ for s in scores]
    tokens = max(1, sum(int(mask.sum()) for mask in sampled))
    gaps = torch.cat([_sampler_gap(s).abs() for s in scores])
    answers = torch.cat([s.logprobs.answer_KT.double().sum(-1) for s in scores])
    per_token = torch.cat([s.logprobs.answer_KT.double().mean(-1) for s in scores])
    gains = torch.cat([s.gain_K for s in scores])
    return {
        "loss": _total(s.loss.total for s in scores) / minibatches,
        **{f"loss_{term}": _total(getattr(s.loss, term) for s in scores) / minibatches for term in TERMS},
        "kl": _total(s.loss.kl for s in scores) / minibatches,
        "reward": _mean(torch.cat([s.loss.reward.reward_K for s in scores])),
        "reward_base": _mean(torch.stack([s.loss.reward.base for s in scores])),
        "gain": _mean(gains),
        "helpful_share": _mean((gains > 0).double()),
        "answer_logprob": _mean(answers),
        "answer_logprob_per_token": _mean(per_token),
        "null_logprob": _mean(torch.stack([s.context.base_logprobs_T.double().sum() for s in scores])),
        "hardest_token_gain": _mean(torch.cat([_hardest_gain(s) for s in scores])),
        "token_signal": _mean(torch.cat([s.loss.signal_KT.mean(-1) for s in scores])),
        "answer_tokens": sum(s.logprobs.answer_KT.shape[-1] for s in scores) / len(scores),
        **_balance([s.loss for s in scores]),
        "dead_groups": sum(s.loss.advantage.dead for s in scores) / len(scores),
        "trace_length": _mean(torch.cat([s.context.trace_mask_KZ.sum(-1) - 1 for s in scores])),
        "forced_share": _mean(torch.cat([s.context.forced_K for s in scores])),
        "entropy": sum(float(s.logprobs.entropy_KZ[m].sum()) for s, m in zip(scores, sampled, strict=True)) / tokens,
        "sampled_nll": -sum(float(s.logprobs.trace_KZ[m].sum()) for s, m in zip(scores, sampled, strict=True)) / tokens,
        "ratio_clipped": _mean(torch.stack([s.loss.ratio_clipped for s in scores])),
        "sampler_gap": _mean(gaps),
        "sampler_gap_max": float(gaps.max()) if len(gaps) else math.nan,  # nothing was sampled,
    }


def _balance(losses: Sequence[GroupLoss]) -> dict[str, float]:
    """Each term's share of the gradient, and the weight that plain cross-entropy on y* would have with the same push.

    NaN where nothing pushes.
    """
    pushes = {term: _total(getattr(loss, f"push_{term}") for loss in losses) for term in TERMS}
    total, plain = sum(pushes.values()), _total(loss.push_plain for loss in losses)
    shares = {f"share_{term}": push / total if total else math.nan for term, push in pushes.items()}
    return shares | {"answer_weight": pushes["answer"] / plain if plain else math.nan}


def _sampler_gap(score: GroupScore) -> Tensor:
    """Trainer's pi_old minus the sampler's log-probability, for each sampled token."""
    old_KZ = score.context.old_trace_KZ
    # Where the sampler's numbers stand for pi_old's, there is nothing to compare.
    if score.context.sampler_trace_KZ is None or old_KZ is score.context.sampler_trace_KZ:
        return score.logprobs.answer_KT.new_zeros(0, dtype=torch.float64)
    old_KZ = score.logprobs.trace_KZ if old_KZ is None else old_KZ
    return (old_KZ - score.context.sampler_trace_KZ)[score.context.sampled_mask_KZ].double()


def _hardest_gain(score: GroupScore) -> Tensor:
    """log c - log c_base at the answer token that the null trace finds hardest, per trace."""
    hardest = score.context.base_logprobs_T.argmin()
    return (score.logprobs.answer_KT[:, hardest] - score.context.base_logprobs_T[hardest]).double()


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _total(values: Iterable[Tensor]) -> float:
    return float(sum(float(v) for v in values))
