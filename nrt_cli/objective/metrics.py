"""What a step's groups say in a few numbers. Shapes as in `losses.py`: K traces, Z trace positions, T answer tokens."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt_cli.config import ObjectiveSection
from nrt_cli.objective.losses import GroupContext, GroupLogprobs, GroupLoss

TERMS = ("trace", "answer", "format")

VANISHING = 0.01
"""An answer term that pulls less than this share of plain cross-entropy teaches y* too slowly to be seen."""

DROWNING = 0.2
"""Plain cross-entropy above this share of the gradient was seen to wipe out the way from trace to answer."""


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


def step_metrics(scores: Sequence[GroupScore], minibatches: int = 1) -> dict[str, float]:
    """Means over the traces (or groups, or tokens, as named) of one step. Log-probabilities and entropies in nats.

    A minibatch's loss is the sum over its groups; losses here are means over minibatches. Of the gradient, each term's
    share, and the weight that plain cross-entropy on y* would have with the same push; NaN where nothing pushes.
    """
    sampled = [s.context.sampled_mask_KZ for s in scores]
    tokens = max(1, sum(int(mask.sum()) for mask in sampled))
    # Trainer's pi_old minus the sampler's log-probability, for each sampled token.
    gaps = [scores[0].logprobs.answer_KT.new_zeros(0, dtype=torch.float64)]
    hardest_gains = []
    for s, mask_KZ in zip(scores, sampled, strict=True):
        old_KZ, sampler_KZ, base_T = s.context.old_trace_KZ, s.context.sampler_trace_KZ, s.context.base_logprobs_T
        # Where the sampler's numbers stand for pi_old's, there is nothing to compare.
        if sampler_KZ is not None and old_KZ is not sampler_KZ:
            gaps.append(((s.logprobs.trace_KZ if old_KZ is None else old_KZ) - sampler_KZ)[mask_KZ].double().abs())
        hardest_gains.append(s.logprobs.answer_KT[:, base_T.argmin()] - base_T.min())
    gap, gains = torch.cat(gaps), torch.cat([s.gain_K for s in scores])
    pushes = {term: _total(getattr(s.loss, f"push_{term}") for s in scores) for term in TERMS}
    pushed, plain = sum(pushes.values()), _total(s.loss.push_plain for s in scores)
    return {
        "loss": _total(s.loss.total for s in scores) / minibatches,
        **{f"loss_{term}": _total(getattr(s.loss, term) for s in scores) / minibatches for term in TERMS},
        "kl": _total(s.loss.kl for s in scores) / minibatches,
        "reward": _mean(torch.cat([s.loss.reward.reward_K for s in scores])),
        "reward_base": _mean(torch.stack([s.loss.reward.base for s in scores])),
        "gain": _mean(gains),
        "helpful_share": _mean((gains > 0).double()),
        "answer_logprob": _mean(torch.cat([s.logprobs.answer_KT.double().sum(-1) for s in scores])),
        "answer_logprob_per_token": _mean(torch.cat([s.logprobs.answer_KT.double().mean(-1) for s in scores])),
        "null_logprob": _mean(torch.stack([s.context.base_logprobs_T.double().sum() for s in scores])),
        "hardest_token_gain": _mean(torch.cat(hardest_gains)),
        "token_signal": _mean(torch.cat([s.loss.signal_KT.mean(-1) for s in scores])),
        "answer_tokens": sum(s.logprobs.answer_KT.shape[-1] for s in scores) / len(scores),
        **{f"share_{term}": push / pushed if pushed else math.nan for term, push in pushes.items()},
        "answer_weight": pushes["answer"] / plain if plain else math.nan,
        "dead_groups": sum(s.loss.advantage.dead for s in scores) / len(scores),
        "trace_length": _mean(torch.cat([s.context.trace_mask_KZ.sum(-1) - 1 for s in scores])),
        "forced_share": _mean(torch.cat([s.context.forced_K for s in scores])),
        "entropy": sum(float(s.logprobs.entropy_KZ[m].sum()) for s, m in zip(scores, sampled, strict=True)) / tokens,
        "sampled_nll": -sum(float(s.logprobs.trace_KZ[m].sum()) for s, m in zip(scores, sampled, strict=True)) / tokens,
        "ratio_clipped": _mean(torch.stack([s.loss.ratio_clipped for s in scores])),
        "sampler_gap": _mean(gap),
        "sampler_gap_max": float(gap.max()) if len(gap) else math.nan,  # nothing was sampled
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _total(values: Iterable[Tensor]) -> float:
    return float(sum(float(v) for v in values))


# --- whether what trains y* and what trains the trace are in proportion: too little of the answer term, and y* is never
# learned; too much, and y* is learned without the trace before the policy gradient has found what a trace is good for


def balance_described(metrics: Mapping[str, float]) -> str:
    """A step's shares and token signals in words."""
    shares = ", ".join(f"{term} {metrics[f'share_{term}']:.0%}" for term in ("trace", "answer", "format"))
    total, length = metrics["token_signal"] * metrics["answer_tokens"], metrics["answer_tokens"]
    return (
        f"{shares}; an answer's token signals sum to {total:.3g} of {length:.0f} tokens, and its "
        f"term pulls {metrics['answer_weight']:.2g} times as hard as plain cross-entropy"
    )


def balance_doubt(metrics: Mapping[str, float], objective: ObjectiveSection) -> str:
    """What is out of proportion and what to do; "" where nothing is, or nothing pulls."""
    if not objective.weights.answer or not objective.weights.trace:
        return ""  # the control, or a run that is not meant to learn y*
    if metrics["answer_weight"] < VANISHING:
        return "y* is as good as not learned from: set objective.token_signal=shared or raise objective.weights.answer."
    # Balanced, its share is only large where no trace is rewarded yet.
    plain = objective.token_signal == "fixed" and objective.balance == "off"
    if plain and metrics["share_answer"] > DROWNING:
        return (
            "the answers' cross-entropy may teach y* without the trace before a trace can help: set "
            "objective.balance=auto or lower objective.weights.answer."
        )
    return ""
