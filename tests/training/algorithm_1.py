"""Algorithm 1 line by line, slow and obvious: one trace at a time, plain probabilities, nothing of the project's own.

A model is a function `logits(ids)`: row i of what it returns says what comes after ids[: i + 1]. Line numbers are
Algorithm 1's; every decision of the config that departs from it has its line too.
"""

import torch

ANSWER_SHARE = 0.1


def logprobs(model, ids, first, temperature=1.0):
    """log pi(ids[i] | ids[:i]) for i >= first."""
    table = (model(ids)[first - 1 : len(ids) - 1] / temperature).log_softmax(-1)
    return [table[i, token] for i, token in enumerate(ids[first:])]


def aggregate(method, c, b, objective):
    """f(c), Tables 1 and 2, in plain probabilities."""
    cap = objective.weight_cap or float("inf")
    length = len(c) if objective.weighted_sum == "mean" else 1
    return {
        "logp": lambda: c.log().sum(),
        "p": lambda: c.prod(),
        "am": lambda: c.mean(),
        "gm": lambda: c.prod() ** (1 / len(c)),
        "ws-inv-p": lambda: (c * (1 / b).clamp(max=cap)).sum() / length,
        "ws-neg-log-p": lambda: (c * (-b.log()).clamp(max=cap)).sum() / length,
        "control": lambda: (c * (-b.log()).clamp(max=cap)).sum() / length,
    }[method]()


def advantages(rewards, base, objective):
    """Lines 8 and 9."""
    shaped = (rewards - base).clamp(min=0) if objective.baseline == "clip" else rewards
    if objective.advantage == "raw":
        return shaped
    centred = shaped - shaped.mean()
    if objective.advantage == "mean":
        return centred
    if objective.advantage == "rloo":
        return centred * len(rewards) / (len(rewards) - 1)
    spread = shaped.std(correction=1 if objective.advantage == "unbiased-std" else 0)
    largest = max(rewards.abs().max(), base.abs() if objective.baseline == "clip" else 0)
    return centred / spread if spread > objective.std_floor * largest else torch.zeros_like(centred)


def loss(model, old, start_model, groups, config, tokens):
    """L_total of one minibatch.

    Args:
        model, old, start_model: the policy, pi_old that sampled, and what training began from.
    """
    objective, weights, tau = config.objective, config.objective.weights, config.rollout.temperature
    opening = [] if tokens.start_id is None else [tokens.start_id]
    rows = sum(len(group.rollouts) for group in groups)
    divisor = config.rollout.max_trace_tokens if objective.length_divisor == "cap" else objective.length_divisor
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        x, y = list(group.example.prompt_ids), list(group.example.answer_ids)
        null = [*x, *([] if objective.null_trace == "bare" else opening), tokens.end_id]
        with torch.no_grad():  # line 6: the null trace, under pi_old
            b = torch.stack(logprobs(old, [*null, *y], len(null))).exp()
        rewards, derived, answers, formats, chosen = [], [], [], [], []
        for rollout in group.rollouts:
            z, at = list(rollout.trace_ids), len(x) + len(opening)
            ids = [*x, *opening, *z, tokens.end_id, *y]  # line 5: t_end is appended where it is missing
            log_c = torch.stack(logprobs(model, ids, len(ids) - len(y)))
            c = log_c.detach().exp().requires_grad_()
            reward = aggregate(config.method, c, b, objective)  # line 7
            derived.append(torch.autograd.grad(reward, c)[0] * c.detach())  # line 11
            rewards.append(reward.detach())
            answers.append(log_c)
            # What the policy chose: z, and what ended it, each from the tempered distribution.
            last = rollout.ended_by if rollout.stop == "eos" and objective.credit_eos else tokens.end_id
            sampled = rollout.stop == "end" or (rollout.stop == "eos" and objective.credit_eos)
            path = [*x, *opening, *z, last]
            lp, lp_old, lp_start = (torch.stack(logprobs(m, path, at, tau)) for m in (model, old, start_model))
            table = (model(path)[at - 1 : len(path) - 1] / tau).log_softmax(-1)
            entropy = -(table.exp() * table).sum(-1)
            count = len(z) + (sampled or objective.credit_forced_end)
            known = len(z) + sampled
            gaps = torch.zeros(count, dtype=torch.float64)
            gaps[:known] = lp_old.detach()[:known] - torch.tensor(rollout.sampler_logprobs[:known], dtype=torch.float64)
            chosen.append((lp[:count], lp_old.detach()[:count], entropy[:count], lp_start.detach(), known, gaps))
            end = logprobs(model, ids[: at + len(z) + 1], at + len(z), tau)[0]
            begin = logprobs(model, ids[:at], len(x))[0] if opening else torch.zeros((), dtype=torch.float64)
            formats.append(-(end + begin) if objective.format == "both" else -end if rollout.forced else end * 0)
        base = aggregate(config.method, b, b, objective)
        advantage = advantages(torch.stack(rewards), base, objective)
        c_KT = torch.stack(answers).detach().exp()
        signals = {
            "derived": lambda: torch.stack(derived),  # noqa: B023
            "fixed": lambda: torch.ones_like(c_KT),  # noqa: B023
            "shared": lambda: c_KT / c_KT.mean(0),  # noqa: B023
        }[objective.token_signal]()
        ratios = [(lp.detach() - lp_old).sum().exp() for lp, lp_old, *_ in chosen]
        if objective.ratio == "sequence":
            signals = signals * torch.stack(ratios)[:, None]
        if objective.balance == "auto":
            allowed = ANSWER_SHARE * sum((1 - lp.detach().exp()).sum().clamp(min=1) for lp, *_ in chosen)
            signals = signals * min(1.0, allowed / (signals.abs() * (1 - c_KT)).sum())
        for k, (lp, lp_old, entropy, lp_start, known, gaps) in enumerate(chosen):
            ratio, a = (lp - lp_old).exp(), advantage[k]
            bounded = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
            if objective.ratio == "sequence":
                surrogate = ratios[k] * a * lp
            elif objective.ratio == "ppo":
                surrogate = torch.minimum(ratio * a, bounded * a)
            else:  # cispo: a token that was pushed past the range in its advantage's direction is left out
                past = (ratio > 1 + objective.clip_high) if a > 0 else (ratio < 1 - objective.clip_low)
                surrogate = torch.where(past & (a != 0), 0.0, bounded.detach() * a) * lp
            if objective.tis_cap is not None:
                surrogate = surrogate * gaps.exp().clamp(max=objective.tis_cap)
            d = lp_start[:known] - lp[:known]
            trace = 0.0 if config.method == "control" else weights.trace
            total = total - trace * surrogate.sum() - weights.answer * (signals[k] * answers[k]).sum()  # line 12
            total = total + weights.format * formats[k]  # lines 14 and 15
            total = total + objective.kl_weight * (d.exp() - d - 1).sum() - objective.entropy_weight * entropy.sum()
    return total / (rows * divisor)
