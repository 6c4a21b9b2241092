"""The methods that others published, as their papers write them and as their public code computes them.

Typed from there, one group at a time; nothing of the project's own is imported, and no shortcut is taken. A policy is
a function `logprob(prefix, token)`, differentiable; `slow` and `start` are such functions of the slow copy and of the
starting model. A trace is (chosen, z, closed): the tokens that the policy chose after the opening, those of the trace,
and whether it ended the trace itself; the t_end that is put where it did not, or in place of an eos, is nobody's
choice. An answer that was sampled after it is (ids, finished).

Every `loss_*` is minus the objective of the paper, per trace of the group: a scalar to differentiate.
"""

import math

import torch


def path(logprob, prefix, ids):
    """log pi of `ids` after a prefix, [N]."""
    return torch.stack([logprob((*prefix, *ids[:i]), token) for i, token in enumerate(ids)])


class Group:
    """Log-probabilities of one group under one policy."""

    def __init__(self, logprob, opening, end, answer, traces, sampled=()):
        self.traces = [path(logprob, opening, chosen) for chosen, _, _ in traces]
        self.answers = torch.stack([path(logprob, (*opening, *z, end), answer) for _, z, _ in traces])
        self.null = path(logprob, (*opening, end), answer)
        self.closed = [closed for _, _, closed in traces]
        both = list(zip(traces, sampled, strict=bool(sampled)))
        self.sampled = [path(logprob, (*opening, *z, end), ids) for (_, z, _), (ids, _) in both]
        self.formed = [closed and finished for (_, _, closed), (_, finished) in both]
        self.lengths = [len(z) for _, z, _ in traces]


def reinforce(group, advantages):
    """Sum over traces of A_i log pi(z_i | x): its gradient is the policy gradient. With the answers that were sampled
    after them, if any were: log pi(z_i, y_i | x)."""
    both = [torch.cat(parts) for parts in zip(group.traces, *([group.sampled] if group.sampled else []), strict=True)]
    return sum((a * lp.sum() for a, lp in zip(advantages, both, strict=True)), torch.zeros((), dtype=torch.float64))


# --- VeriFree -------------------------------------------------------------------------------------------------------


def loss_verifree(group):
    """Eq. 7: 1/G sum_i A_i grad log pi(z_i|x) + R_i grad log pi(y*|x, z_i), A_i against the mean of the others."""
    p = group.answers.sum(-1).exp()
    size, reward = len(p), p.detach()
    advantages = [reward[i] - (reward.sum() - reward[i]) / (size - 1) for i in range(size)]
    # R_i grad log pi = grad pi: the answer term is the objective's own gradient by y*, E[pi(y*|x,z)].
    return -(reinforce(group, advantages) + p.sum()) / size


def verifree_code(logp_reward, think_logps, answer_logps, num_samples):
    """sail-sg/VeriFree at 718b363 (Apache-2.0), `verifree.py`: compute_rloo_advantages and learning_step, with the
    options of `run.sh`: critic_type rloo, reward_source p, sft_coef_source reward. A few lines, retyped."""
    final_rewards = torch.exp(logp_reward)
    mean_grouped_rewards = final_rewards.view(-1, num_samples).mean(dim=1).repeat_interleave(num_samples, dim=0)
    advantages = (final_rewards - mean_grouped_rewards) * (num_samples / (num_samples - 1))
    pg_loss = -advantages.detach() * torch.stack([lp.sum() for lp in think_logps])
    sft_loss = (-answer_logps * final_rewards[:, None].detach()).sum(dim=1)
    return pg_loss.mean() + sft_loss.mean()


# --- RLPR -----------------------------------------------------------------------------------------------------------


def rewards_rlpr(group, format_share=0.1):
    """r = clip(0, 1, mean of p over y* - the same without z), with the share of the format reward."""
    p, without = group.answers.detach().exp().mean(-1), group.null.detach().exp().mean()
    return [
        (1 - format_share) * min(1.0, max(0.0, float(r - without))) + format_share * float(formed)
        for r, formed in zip(p, group.formed, strict=True)
    ]


def loss_rlpr(group):
    """GRPO's advantages, on policy; what is sampled after z gets the same advantage."""
    rewards = torch.tensor(rewards_rlpr(group), dtype=torch.float64)
    return -reinforce(group, (rewards - rewards.mean()) / rewards.std()) / len(rewards)


def rlpr_code(score_b, score_a, format_score, format_coefficient=0.1, std_filter=1e-6):
    """OpenBMB/RLPR at 8490fca (Apache-2.0): ProbRewardManager.__call__ with the shaping function threshold_0, and
    compute_grpo_outcome_advantage without its epsilon of 1e-6. A few lines, retyped."""
    scores = []
    for b, f in zip(score_b, format_score, strict=True):
        score_delta = b - score_a
        score_delta = 0 if score_delta < 0 else score_delta
        scores.append((1 - format_coefficient) * score_delta + format_coefficient * f)
    scores = torch.tensor(scores, dtype=torch.float64)
    deviation = torch.std(scores)
    return scores, (torch.zeros_like(scores) if deviation < std_filter else (scores - scores.mean()) / deviation)


def rlpr_bounds(deviations_by_step, ema_start=6, start=11, ratio=0.99, beta=0.5):
    """Of each step, below which deviation prompts are filtered out: ray_trainer.py:1549-1590 and 2108-2119, retyped
    with lists of each step's deviations for what the code gathers. None before the filter starts."""
    score_std_list, ema_mean, bounds = [], None, []
    for step, deviations in enumerate(deviations_by_step, 1):
        bound = None
        if step >= ema_start:
            if step >= start:
                if ema_mean is None:
                    ema_mean = sum(score_std_list) / len(score_std_list)
                else:
                    ema_mean = score_std_list[-1] * (1 - ratio) + ema_mean * ratio
                bound = ema_mean * beta
            score_std_list.append(sum(deviations) / len(deviations))
        bounds.append(bound)
    return bounds


# --- JEPO -----------------------------------------------------------------------------------------------------------


def jepo_terms(group):
    """Eq. 7: the bound, and what each trace's score function is multiplied with, control variate included."""
    p = group.answers.sum(-1).exp()
    size = len(p)
    bound = (p.sum() / size).log()
    advantages = [bound.detach() - ((p.detach().sum() - p[i].detach()) / (size - 1)).log() for i in range(size)]
    return bound, advantages


def loss_jepo(group):
    """Minus the n-sample bound of Eq. 6, per trace, with the control variates of Sec. 4."""
    bound, advantages = jepo_terms(group)
    return -(reinforce(group, advantages) + bound) / len(advantages)


def loss_jepo_scaled(group):
    """App. B.2: the advantage as it is applied, clip(A_i / std(A), -1, 1), and the supervised term with beta_sup 1."""
    bound, advantages = jepo_terms(group)
    deviation = torch.stack(advantages).std(correction=0)
    scaled = [(a / deviation).clamp(-1, 1) for a in advantages]
    return -(reinforce(group, scaled) + bound) / len(advantages)


# --- log P per token ------------------------------------------------------------------------------------------------


def loss_logp_mean(group):
    """E[1/T log P], with the group's mean as control variate and Eq. 10's deviation, clipped at the null trace's."""
    mean = group.answers.mean(-1)
    shaped = (mean.detach() - group.null.detach().mean()).clamp(min=0)
    spread = shaped.std(correction=0)
    advantages = (shaped - shaped.mean()) / spread if spread > 1e-6 else torch.zeros_like(shaped)
    return -(reinforce(group, advantages) + mean.sum()) / len(mean)


# --- R3 -------------------------------------------------------------------------------------------------------------


def rewards_r3(group):
    """sum_j w(sigma_j) [log pi(y_j | q, c_i) - log pi(y_j | q, masked c)], w the share of token j in all deviations."""
    logs = group.answers.detach()
    sigma = [math.sqrt(sum((x - logs[:, j].mean()) ** 2 for x in logs[:, j]) / len(logs)) for j in range(logs.shape[1])]
    weights = [s / sum(sigma) for s in sigma]
    return torch.stack([
        sum(w * (x - b) for w, x, b in zip(weights, row, group.null.detach(), strict=True)) for row in logs
    ]), sigma  # fmt: skip


def loss_r3(group):
    """GRPO (Eq. 1 and 2 there) on policy."""
    rewards, _ = rewards_r3(group)
    return -reinforce(group, (rewards - rewards.mean()) / rewards.std(correction=0)) / len(rewards)


# --- LaTRO ----------------------------------------------------------------------------------------------------------


def loss_latro(group, start, beta=0.05):
    """E_z[log pi(y*|x,z)] - beta KL(pi(z|x) || pi_0(z|x)): REINFORCE with leave-one-out, and the gradient by y*."""
    log_p = group.answers.sum(-1)
    rewards = [
        float(a.detach()) - beta * float(lp.detach().sum() - ref.sum())
        for a, lp, ref in zip(log_p, group.traces, start.traces, strict=True)
    ]
    size = len(rewards)
    advantages = [r - (sum(rewards) - r) / (size - 1) for r in rewards]
    return -(reinforce(group, advantages) + log_p.sum()) / size


def latro_code(rewards, logprobs, ref_logprobs, rationale_logprobs, kl_coef=0.05):
    """SalesforceAIResearch/LaTRO at ff18ac3 (Apache-2.0), `latro_trainer.py`: advantages and rloo_losses, without the
    penalty on rationales that do not stop. A few lines, retyped."""
    kl_penalty = -kl_coef * (logprobs - ref_logprobs)
    adjusted_rewards = (rewards + kl_penalty).reshape(-1, len(rewards))
    baseline = (adjusted_rewards.sum(1, keepdim=True) - adjusted_rewards) / (len(rewards) - 1)
    advantages = (adjusted_rewards - baseline).flatten()
    return (-advantages * rationale_logprobs).mean()


# --- NOVER ----------------------------------------------------------------------------------------------------------


def nover_code(nll, reasoning_len, closed):
    """thinkwee/NOVER at cb1a4ef (MIT): calculate_perplexity, tag_format_reward, reasoning_reward and efficiency_reward,
    each with weight 1. A few lines, retyped."""
    ppl_values = [math.exp(n / max(1, 1 + math.log10(max(1, m)))) for n, m in zip(nll, reasoning_len, strict=True)]
    rewards = [1.0 if valid else 0.0 for valid in closed]
    valid_pairs = [(i, ppl) for i, ppl in enumerate(ppl_values) if closed[i]]
    for rank, (i, _) in enumerate(sorted(valid_pairs, key=lambda pair: pair[1])):
        rewards[i] += (len(valid_pairs) - rank) / len(valid_pairs)
    if len(valid_pairs) >= 2:
        for i, ppl in valid_pairs:
            pairs = sum(reasoning_len[i] < reasoning_len[j] and ppl < other for j, other in valid_pairs)
            rewards[i] += pairs / (len(valid_pairs) - 1)
    return rewards


def loss_nover(group, slow):
    """R_f + [R_f = 1] (R_r + R_e), GRPO without scaling by the deviation."""
    rewards = torch.tensor(
        nover_code((-slow.answers.mean(-1)).tolist(), group.lengths, group.formed), dtype=torch.float64
    )
    return -reinforce(group, rewards - rewards.mean()) / len(rewards)


# --- RLP ------------------------------------------------------------------------------------------------------------


def loss_rlp(group):
    """Sec. 3: r(c) = log p(x_t | x_<t, c) - log p_bar(x_t | x_<t), averaged over the tokens of a continuation here;
    A = G/(G-1) (r - mean r), on the thought's tokens alone, r and A constants. On policy, the clipped ratio is 1."""
    gains = [float((row - group.null).mean()) for row in group.answers.detach()]
    size, mean = len(gains), sum(gains) / len(gains)
    return -reinforce(group, [size / (size - 1) * (gain - mean) for gain in gains]) / size
