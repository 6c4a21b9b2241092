"""The loss of one group: policy gradient on the trace, token signals on the answer, format supervision (Eq. 8 to 11).

Shapes: K traces of one group; Z trace positions, t_end included, padded to the longest; T answer tokens, eos included.

A trace's positions are its sampled tokens z and what ended it: t_end, sampled or appended, or an eos that is credited
as the policy's choice. Two masks tell them apart: `trace_mask_KZ` marks real positions, `credit_KZ` those whose token
the policy chose. Departures from Algorithm 1 are decisions of the config, each named where it acts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nrt_cli.config import ObjectiveSection
from nrt_cli.methods import Group, Method, Signals

ANSWER_SHARE = 0.1
"""Under `balance: auto`: the most that the answer term pulls, as a share of what a trace term of advantages 1 would."""


@dataclass(frozen=True)
class GroupAdvantage:
    """`advantage_K` multiplies the trace's policy gradient; `dead` says that the group has no signal (all 0)."""

    advantage_K: Tensor
    dead: bool


def group_advantage(
    reward: Signals, baseline: str = "clip", normalise: str = "std", std_floor: float = 1e-6
) -> GroupAdvantage:
    """Advantages of one group; none where its method filters it out.

    Args:
        baseline: `clip` is R' = max(0, R - R_base), Eq. 9; `none` is R' = R, since centring removes any constant.
        normalise: `std` is Eq. 10 with the population's standard deviation, so that the group has exactly unit
            variance; `unbiased-std` divides by K - 1 inside; `mean` only centres; `rloo` subtracts the mean of the
            other K - 1; `raw` is R' itself, as in Eq. 8; `scaled` is R' over its deviation, not centred, and cut at 1
            on both sides.
        std_floor: under `std`, `unbiased-std` and `scaled`, a group whose deviation is at most this share of its
            largest reward (baseline included, if there is one) is dead. Relative: an absolute one would disable `p` on
            long answers.

    Where traces count for more or less, means and deviations are weighted, and so is the advantage: the mean of w R'
    over traces from a mixture is the policy's own mean of R', if w corrects for the mixture.
    """
    if not reward.kept:
        return GroupAdvantage(torch.zeros_like(reward.scaled_K), True)
    scaled_K = reward.scaled_K
    weight_K = torch.ones_like(scaled_K) if reward.weight_K is None else reward.weight_K
    total = weight_K.sum().clamp(min=1e-300)  # all may be 0
    shaped_K = (scaled_K - reward.scaled_base).clamp(min=0) if baseline == "clip" else scaled_K
    # The largest is taken off before the mean: the mean of equal rewards may round, and their differences must be 0.
    centred_K = shaped_K - shaped_K.max()
    centred_K = centred_K - (weight_K * centred_K).sum() / total
    size = len(scaled_K)
    if normalise in ("std", "unbiased-std", "scaled"):
        count = total * max(1, size - 1) / size if normalise == "unbiased-std" else total
        deviation = ((weight_K * centred_K.square()).sum() / count).sqrt()
        scale = scaled_K.abs().max()
        if baseline == "clip":
            scale = torch.maximum(scale, reward.scaled_base.abs())
        dead = bool(deviation <= std_floor * scale)
        if normalise == "scaled":
            centred_K = shaped_K.clamp(-deviation, deviation)
        return GroupAdvantage(torch.zeros_like(centred_K) if dead else weight_K * centred_K / deviation, dead)
    others_K = (total - weight_K).clamp(min=1e-12 * total)
    unscaled_K = {"mean": centred_K, "rloo": centred_K * total / others_K, "raw": shaped_K}[normalise]
    advantage_K = weight_K * unscaled_K * reward.log_scale.exp()
    return GroupAdvantage(advantage_K, not bool(advantage_K.any()))


@dataclass(frozen=True)
class GroupLogprobs:
    """What one forward pass says about a group. Log-probabilities are natural logs under the current policy."""

    start_K: Tensor | None
    """log pi(t_start | x), the same number K times; None where the config has no t_start."""
    trace_KZ: Tensor
    entropy_KZ: Tensor
    """Exact entropy of the distribution each trace position was drawn from, in nats."""
    end_K: Tensor
    """log pi(t_end | x, t_start, z): the last of a trace's positions, unless an eos is credited there."""
    answer_KT: Tensor
    sampled_answer_KS: Tensor | None = None
    """Of answers that were sampled after the traces, where any were."""
    sampled_answer_entropy_KS: Tensor | None = None

    @property
    def chosen_KZ(self) -> Tensor:
        """Of all that the policy may have chosen: the trace's positions, then those of its sampled answer."""
        return _joined(self.trace_KZ, self.sampled_answer_KS)


def _joined(trace_KZ: Tensor, answer_KS: Tensor | None) -> Tensor:
    return trace_KZ if answer_KS is None else torch.cat([trace_KZ, answer_KS], -1)


@dataclass(frozen=True)
class GroupContext:
    """What is constant while a group's loss is differentiated."""

    trace_mask_KZ: Tensor
    sampled_mask_KZ: Tensor
    """True where the policy sampled the token that is scored: everything but padding and an appended t_end."""
    forced_K: Tensor
    base_logprobs_T: Tensor
    """log c_base of the null trace under pi_old."""
    old_trace_KZ: Tensor | None = None
    """`chosen_KZ` under pi_old; None on the first minibatch after sampling, where they are the current ones."""
    sampler_trace_KZ: Tensor | None = None
    """What the sampler reported for the same tokens, for truncated importance sampling."""
    reference_trace_KZ: Tensor | None = None
    """`chosen_KZ` under the starting model, for the KL term."""
    lengths_K: Tensor | None = None
    """Tokens of each trace, without what ended it."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Group` that were computed for the method before the forward pass."""
    sampled_answer_mask_KS: Tensor | None = None

    def chosen_mask_KZ(self, forced_ends: bool = False) -> Tensor:
        """Where the policy chose what is scored in `chosen_KZ`; with `forced_ends`, at an appended t_end too."""
        return _joined(self.trace_mask_KZ if forced_ends else self.sampled_mask_KZ, self.sampled_answer_mask_KS)


@dataclass(frozen=True)
class Known:
    """What is known of a group before its forward pass; `GroupContext` says what each is."""

    base_logprobs_T: Tensor | None = None
    """None where the null trace is scored in that very pass, its row the last."""
    old_trace_KZ: Tensor | None = None
    sampler_is_old: bool = False
    """Whether `old_trace_KZ` is what the sampler reported: it is pi_old itself."""
    reference_trace_KZ: Tensor | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupLoss:
    """A group's share of the loss (`total` is differentiable) and the detached numbers it was made of."""

    total: Tensor
    trace: Tensor
    answer: Tensor
    format: Tensor
    kl: Tensor
    reward: Signals
    advantage: GroupAdvantage
    signal_KT: Tensor
    """What multiplied each answer token's cross-entropy."""
    ratio_clipped: Tensor
    """Share of credited trace tokens whose ratio is outside the clip range."""
    push_trace: Tensor
    """How hard a term pulls at the model: see `_push`. Of all tokens of the group's K traces, weights included."""
    push_answer: Tensor
    push_format: Tensor
    push_plain: Tensor
    """What `push_answer` would be for plain cross-entropy on y*: every signal and the weight 1."""


def group_of(method: Method, logprobs: GroupLogprobs, context: GroupContext, objective: ObjectiveSection) -> Group:
    """What a method is shown of a group after its forward pass."""
    asked = dict(context.asked)
    if "traces" in method.asks:
        mask_KZ = context.sampled_mask_KZ
        asked["trace_logprobs_KZ"] = torch.where(mask_KZ, logprobs.trace_KZ, 0.0)
        asked |= {"trace_mask_KZ": mask_KZ, "lengths_K": context.lengths_K, "closed_K": ~context.forced_K}
    if (reference_KZ := asked.get("reference_trace_KZ")) is not None:
        asked["reference_trace_KZ"] = torch.where(context.sampled_mask_KZ, reference_KZ, 0.0)
    if (guide_KZ := asked.pop("guide_trace_KZ", None)) is not None:
        # The weight is that of the policy that sampled, however far the minibatches before have moved it.
        old_KZ = (logprobs.chosen_KZ if context.old_trace_KZ is None else context.old_trace_KZ)[:, : guide_KZ.shape[1]]
        gap_KZ = torch.where(context.sampled_mask_KZ, guide_KZ - old_KZ.detach().double(), 0.0)
        asked["guide_gap_K"] = gap_KZ.sum(-1)
    return Group.of(logprobs.answer_KT, context.base_logprobs_T, objective, **asked)


def group_loss(
    method: Method, logprobs: GroupLogprobs, context: GroupContext, objective: ObjectiveSection, rows: int, divisor: int
) -> GroupLoss:
    """Loss of one group, such that the sum over a minibatch's groups is that minibatch's loss.

    Args:
        rows: traces in the whole minibatch. With `divisor` the only normaliser, a constant known before the forward
            pass, so results cannot depend on padding, on trace lengths or on how a minibatch is cut up (decision 16).
        divisor: Dr.GRPO's constant, alike for all three terms.
    """
    reward = method.signals(group_of(method, logprobs, context, objective))
    advantage = group_advantage(reward, objective.baseline, objective.advantage, objective.std_floor)
    # An answer that was sampled is the policy's choice as the trace is: all of it moves what was rewarded.
    chosen_KZ, sampled_KZ = logprobs.chosen_KZ, context.chosen_mask_KZ()
    credit_KZ, dtype = context.chosen_mask_KZ(objective.credit_forced_end), chosen_KZ.dtype
    old_KZ = chosen_KZ.detach() if context.old_trace_KZ is None else context.old_trace_KZ
    # Padding holds arbitrary numbers; a difference of 0 there keeps exp finite.
    log_ratio_KZ = torch.where(credit_KZ, chosen_KZ - old_KZ, 0.0)
    sequence_ratio_K = log_ratio_KZ.detach().sum(-1).exp()

    # The objective to maximise, its slope by log pi, and where its ratio is outside the clip range (decision 8). All
    # three have the gradient A * grad log pi where the ratio is 1.
    advantage_K1 = advantage.advantage_K.to(dtype)[:, None]
    ratio_KZ, low, high = log_ratio_KZ.exp(), 1 - objective.clip_low, 1 + objective.clip_high
    bounded_KZ, clipped_KZ = ratio_KZ.clamp(low, high), (ratio_KZ < low) | (ratio_KZ > high)
    if objective.ratio == "ppo":
        free_KZ, held_KZ = ratio_KZ * advantage_K1, bounded_KZ * advantage_K1
        surrogate_KZ, slope_KZ = torch.minimum(free_KZ, held_KZ), torch.where(free_KZ <= held_KZ, free_KZ, 0.0).detach()
    else:
        if objective.ratio == "sequence":
            slope_KZ = (sequence_ratio_K[:, None] * advantage_K1).expand_as(ratio_KZ)
            clipped_KZ = torch.zeros_like(clipped_KZ)
        else:
            # cispo: the clamped ratio is a weight, not differentiated; tokens already pushed past the range in the
            # direction of their advantage are left out.
            past_KZ = ((advantage_K1 > 0) & (ratio_KZ > high)) | ((advantage_K1 < 0) & (ratio_KZ < low))
            slope_KZ = torch.where(past_KZ, 0.0, bounded_KZ.detach() * advantage_K1)
        surrogate_KZ = slope_KZ * chosen_KZ
    if objective.tis_cap is not None and context.sampler_trace_KZ is not None:
        # The gap between pi_old in the trainer and in the sampler is numerical; its ratio is cut at the cap.
        sampler_gap_KZ = old_KZ.detach() - context.sampler_trace_KZ
        sampler_gap_KZ = torch.where(sampled_KZ & sampler_gap_KZ.isfinite(), sampler_gap_KZ, 0.0)
        correction_KZ = sampler_gap_KZ.exp().clamp(max=objective.tis_cap)
        surrogate_KZ, slope_KZ = surrogate_KZ * correction_KZ, slope_KZ * correction_KZ
    trace_K = -torch.where(credit_KZ, surrogate_KZ, 0.0).sum(-1)

    # What multiplies each answer token's cross-entropy, constant in the gradient (decision 1). `shared` gives trace k's
    # token i the signal c_ki / mean_k c_ki: then the answer term is the gradient of the sum over tokens of log (mean
    # over traces of c). A token counts as much as under `fixed` when all traces are taken together, but the traces that
    # made it likely have most of it, so those that did not are not taught to do without a trace.
    answer_KT = logprobs.answer_KT
    if objective.token_signal == "derived":
        signal_KT = reward.token_KT.to(dtype)
    elif objective.token_signal == "fixed":
        signal_KT = torch.ones_like(answer_KT).to(dtype)
    else:
        signal_KT = (answer_KT.detach().double().softmax(0) * len(answer_KT)).to(dtype)
    if objective.ratio == "sequence":
        # Eq. 8 to the letter: r_k multiplies both terms, without clipping.
        signal_KT = signal_KT * sequence_ratio_K[:, None]
    if objective.balance == "auto":
        # At most 1: what keeps the answer term's push within a share of what the trace term has to work with. That is a
        # trace term whose advantages are all 1, since those of a group that is dead today say nothing about the
        # balance, and whose traces each have a token left to choose: where traces are empty or certain, y* is learned
        # on. It depends on nothing outside the group, so results do not depend on how a minibatch is cut up.
        undecided_KZ = torch.where(credit_KZ, -torch.expm1(chosen_KZ.detach()), 0.0)
        allowed = ANSWER_SHARE * undecided_KZ.sum(-1).clamp(min=1.0).sum()
        signal_KT = signal_KT * (allowed / _push(answer_KT, signal_KT).clamp(min=allowed))
    if not reward.answer:
        signal_KT = torch.zeros_like(signal_KT)
    answer_K = -(signal_KT * answer_KT).sum(-1)

    # Eq. 11: log pi(t_end | x, t_start, z) and log pi(t_start | x), 0 where not supervised (decision 10).
    end_K, start_K = logprobs.end_K, logprobs.start_K
    if objective.format == "missed-end":
        end_K, start_K = torch.where(context.forced_K, end_K, 0.0), None
    start_K = torch.zeros_like(end_K) if start_K is None else start_K
    format_K = -(end_K + start_K)
    kl_K = torch.zeros_like(chosen_KZ[:, 0])
    if context.reference_trace_KZ is not None:
        # KL(pi || starting model) by the estimator e^d - d - 1 with d = log pi_ref - log pi (Schulman's k3).
        gap_KZ = context.reference_trace_KZ - chosen_KZ
        gap_KZ = torch.where(sampled_KZ, gap_KZ, 0.0)
        kl_K = (gap_KZ.exp() - gap_KZ - 1).sum(-1)
    entropy_KZ = _joined(logprobs.entropy_KZ, logprobs.sampled_answer_entropy_KS)
    entropy_K = torch.where(credit_KZ, entropy_KZ, 0.0).sum(-1)
    if reward.weight_K is not None:  # that of the trace term is in its advantage
        weight_K = reward.weight_K.to(dtype)
        answer_K, format_K, kl_K, entropy_K = (each * weight_K for each in (answer_K, format_K, kl_K, entropy_K))
    weights, scale = objective.weights, 1.0 / (rows * divisor)
    trace_weight = weights.trace if method.policy_gradient else 0.0
    total_K = trace_weight * trace_K + weights.answer * answer_K + weights.format * format_K
    total_K = total_K + objective.kl_weight * kl_K
    if objective.entropy_weight:
        total_K = total_K - objective.entropy_weight * entropy_K
    return GroupLoss(
        total=total_K.sum() * scale,
        trace=trace_K.detach().sum() * scale,
        answer=answer_K.detach().sum() * scale,
        format=format_K.detach().sum() * scale,
        kl=kl_K.detach().sum() * scale,
        reward=reward,
        advantage=advantage,
        signal_KT=signal_KT,
        ratio_clipped=(clipped_KZ & credit_KZ).sum() / credit_KZ.sum().clamp(min=1),
        push_trace=trace_weight * _push(torch.where(credit_KZ, chosen_KZ, 0.0), slope_KZ),
        push_answer=weights.answer * _push(answer_KT, signal_KT),
        push_format=weights.format * (_push(end_K) + _push(start_K)),
        push_plain=_push(answer_KT),
    )


def _push(logprobs: Tensor, slope: Tensor | None = None) -> Tensor:
    """Sum over tokens of |slope| (1 - p): the size of the loss's gradient by each token's own logit.

    The loss falls by slope * log p; without one, by log p. By the other logits its gradient adds up to as much again:
    this is the size of what a token sends back into the model, whatever the model is.
    """
    size = -torch.expm1(logprobs.detach())
    return (size if slope is None else slope.abs() * size).sum()


# --- what a step's groups say in a few numbers ------------------------------------------------------------------------

TERMS = ("trace", "answer", "format")

VANISHING = 0.01
"""An answer term that pulls less than this share of plain cross-entropy teaches y* too slowly to be seen."""

DROWNING = 0.2
"""Plain cross-entropy above this share of the gradient was seen to wipe out the way from trace to answer."""

ENDING = 0.3
"""The think tokens' loss above this share of the gradient was seen to shorten traces to nothing."""


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
    for s in scores:
        old_KZ, sampler_KZ, base_T = s.context.old_trace_KZ, s.context.sampler_trace_KZ, s.context.base_logprobs_T
        # Where the sampler's numbers stand for pi_old's, there is nothing to compare.
        if sampler_KZ is not None and old_KZ is not sampler_KZ:
            gap_KZ = (s.logprobs.chosen_KZ if old_KZ is None else old_KZ) - sampler_KZ
            # What another prompt's sampler said is nothing to compare with either: NaN.
            gaps.append(gap_KZ[s.context.chosen_mask_KZ() & sampler_KZ.isfinite()].double().abs())
        hardest_gains.append(s.logprobs.answer_KT[:, base_T.argmin()] - base_T.min())
    gap, gains = torch.cat(gaps), torch.cat([s.gain_K for s in scores])
    pushes = {term: _total(getattr(s.loss, f"push_{term}") for s in scores) for term in TERMS}
    pushed, plain = sum(pushes.values()), _total(s.loss.push_plain for s in scores)
    weights = [s.loss.reward.weight_K for s in scores if s.loss.reward.weight_K is not None]
    counted = {}
    if weights:
        # Kish's: so many traces of weight 1 would say as much.
        effective = [w_K.sum().square() / w_K.square().sum().clamp(min=1e-300) for w_K in weights]
        counted["effective_traces"] = _mean(torch.stack(effective))
        counted["uncounted_share"] = _mean(torch.cat([w_K == 0 for w_K in weights]))
    return {
        **counted,
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
        "filtered_groups": sum(not s.loss.reward.kept for s in scores) / len(scores),
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
    shares = ", ".join(f"{term} {metrics[f'share_{term}']:.0%}" for term in ("trace", "answer", "format"))
    total, length = metrics["token_signal"] * metrics["answer_tokens"], metrics["answer_tokens"]
    return (
        f"{shares}; an answer's token signals sum to {total:.3g} of {length:.0f} tokens, and its "
        f"term pulls {metrics['answer_weight']:.2g} times as hard as plain cross-entropy"
    )


def balance_doubt(metrics: Mapping[str, float], objective: ObjectiveSection) -> str:
    """What is out of proportion and what to do; "" where nothing is, or nothing pulls."""
    if not objective.weights.trace:
        return ""  # the control
    if metrics["share_format"] > ENDING and metrics["share_trace"]:  # 0 only says that no trace is rewarded yet
        shrinks = objective.advantage not in ("std", "unbiased-std", "scaled")
        other = ", or set objective.advantage=std, which does not shrink with the reward" * shrinks
        return f"the think tokens' own loss may shorten traces to nothing: lower objective.weights.format{other}."
    if not objective.weights.answer:
        return ""  # not meant to learn y*
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


# --- one group of traces under any scheme: what was rewarded, and what it would have been otherwise ------------------


class SchemeView:
    """Rewards, clipped rewards, advantages, weights and token signals of one group under one scheme; `asked` are the
    fields of `Group` that it asks for."""

    def __init__(
        self, method: Method, logprobs_KT: Tensor, base_T: Tensor, objective: ObjectiveSection, **asked: Any
    ) -> None:
        reward = self.reward = method.signals(Group.of(logprobs_KT, base_T, objective, **asked))
        # Where R is not made in logs, it may be negative.
        self.log_reward_K = reward.scaled_K.log() + reward.log_scale if method.in_log else reward.scaled_K * torch.nan
        # R' = max(0, R - R_base), Eq. 9: `raw` leaves it as it is.
        self.clipped_K = group_advantage(reward, "clip", "raw").advantage_K
        self.advantage = group_advantage(reward, objective.baseline, objective.advantage, objective.std_floor)
        # alpha = df/dc_i, such that the token signal is alpha_i c_i (Table 1).
        self.weight_KT = reward.token_KT / logprobs_KT.double().exp()


def half_agreement(
    method: Method, logprobs_KT: Tensor, base_T: Tensor, objective: ObjectiveSection, **asked: Any
) -> float:
    """Mean over traces of A from the even answer tokens times A from the odd ones; NaN where a half cannot say.

    Each half's advantages have mean 0 and variance 1 within the group (Eq. 10), so this is their correlation. Halves of
    one answer share what the trace does for the whole answer; what one token happens to do is in one half only.
    """
    if logprobs_KT.shape[1] < 2:
        return torch.nan
    groups = [Group.of(logprobs_KT[:, i::2], base_T[i::2], objective, **asked) for i in (0, 1)]
    halves = [group_advantage(method.signals(half), objective.baseline, "std") for half in groups]
    if any(half.dead for half in halves):
        return torch.nan
    return float((halves[0].advantage_K * halves[1].advantage_K).mean())
