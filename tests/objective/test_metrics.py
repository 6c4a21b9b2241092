"""A step's metrics by hand: one group of two traces, two answer tokens."""

import math

import pytest
import torch

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection
from nrt_cli.objective.losses import GroupContext, GroupLogprobs, GroupScore, group_loss, step_metrics


def score(sampler_gap=0.25, hardest=-3.0):
    """Trace 1: one token and a sampled t_end. Trace 2: a forced t_end alone, so nothing was sampled."""
    trace = torch.tensor([[-1.0, -2.0], [-3.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    sampled = torch.tensor([[True, True], [False, False]])
    logprobs = GroupLogprobs(
        start_K=torch.tensor([-0.5, -0.5], dtype=torch.float64),
        trace_KZ=trace,
        entropy_KZ=torch.tensor([[0.4, 0.8], [5.0, 7.0]], dtype=torch.float64),
        end_K=torch.tensor([-2.0, -3.0], dtype=torch.float64),
        answer_KT=torch.tensor([[-0.1, -1.0], [-0.3, -4.0]], dtype=torch.float64),
    )
    context = GroupContext(
        trace_mask_KZ=mask,
        sampled_mask_KZ=sampled,
        forced_K=torch.tensor([False, True]),
        base_logprobs_T=torch.tensor([-0.2, hardest], dtype=torch.float64),
        # One too likely, one not likely enough.
        sampler_trace_KZ=trace - sampler_gap * torch.tensor([[1.0, -1.0], [1.0, 1.0]]),
    )
    loss = group_loss(methods.get("logp"), logprobs, context, ObjectiveSection(), rows=2, divisor=4)
    return GroupScore(logprobs, context, loss)


def test_metrics_by_hand():
    got = step_metrics([score()])
    want = {
        # log P(y*|z): -1.1 and -4.3; null: -3.2.
        "answer_logprob": -2.7,
        "answer_logprob_per_token": -1.35,
        "null_logprob": -3.2,
        "gain": 0.5,
        "helpful_share": 0.5,
        # The hardest token of the null trace is the second: -1 - -3 = 2 and -4 - -3 = -1.
        "hardest_token_gain": 0.5,
        # logp: R is log P, every token's signal is 1.
        "reward": -2.7,
        "reward_base": -3.2,
        "token_signal": 1.0,
        "answer_tokens": 2.0,
        # R' = max(0, 2.1) and max(0, -1.1) = 2.1 and 0: A = +1 and -1, not dead.
        "dead_groups": 0.0,
        "filtered_groups": 0.0,
        # z has 1 token and 0 tokens; t_end does not count.
        "trace_length": 0.5,
        "forced_share": 0.5,
        # Over the two sampled positions alone.
        "entropy": 0.6,
        "sampled_nll": 1.5,
        "sampler_gap": 0.25,
        "sampler_gap_max": 0.25,
        "ratio_clipped": 0.0,
        # All terms over rows x divisor = 8. On policy the ratio is 1 whatever the log-probs, so the surrogate's value
        # is -(1 + 1) * A_1 with A_1 = 1; trace 2 has nothing to credit.
        "loss_trace": -2.0 / 8,
        "loss_answer": (1.1 + 4.3) / 8,
        # t_start twice, t_end at -2 and -3.
        "loss_format": (0.5 + 0.5 + 2.0 + 3.0) / 8,
        "kl": 0.0,
        # Pushes, |slope| (1 - p): trace 1's two tokens with |A| = 1; four answer tokens; 0.3 of four format tokens.
        "share_trace": 1.4967853 / 4.2454795,
        "share_answer": 1.9681493 / 4.2454795,
        "share_format": 0.7805449 / 4.2454795,
        # Plain cross-entropy is what logp's signals are.
        "answer_weight": 1.0,
    }
    want["loss"] = want["loss_trace"] + want["loss_answer"] + 0.3 * want["loss_format"]
    assert got == pytest.approx(want)


def test_means_are_over_traces_and_groups_not_over_the_last_one():
    once, twice = step_metrics([score(0.25)]), step_metrics([score(0.25), score(0.75)])
    assert twice["sampler_gap"] == pytest.approx(0.5)
    assert twice["sampler_gap_max"] == pytest.approx(0.75)
    assert twice["answer_logprob"] == pytest.approx(once["answer_logprob"])
    assert twice["loss"] == pytest.approx(2 * once["loss"])


def test_a_better_null_trace_leaves_less_to_gain():
    """Its log P goes from -3.2 to -2.7, so both gains shrink by 0.5; of -1.1 and -4.3, one is still above it."""
    got = step_metrics([score(hardest=-2.5)])
    assert got["gain"] == pytest.approx(0.0)
    assert got["hardest_token_gain"] == pytest.approx(0.0)
    assert got["null_logprob"] == pytest.approx(-2.7)


def test_what_was_not_sampled_is_not_measured():
    one = score()
    silent = GroupContext(**{**one.context.__dict__, "sampled_mask_KZ": torch.zeros(2, 2, dtype=torch.bool)})
    assert math.isnan(step_metrics([GroupScore(one.logprobs, silent, one.loss)])["sampler_gap_max"])


def test_metrics_are_made_where_the_scores_are():
    """As on a GPU, where pi_old of some groups is the sampler's own: nothing may be made on the default device."""
    one = score()
    same = GroupContext(**{**one.context.__dict__, "old_trace_KZ": one.context.sampler_trace_KZ})
    with torch.device("meta"):
        metrics = step_metrics([one, GroupScore(one.logprobs, same, one.loss)])
    assert metrics["sampler_gap"] == step_metrics([one])["sampler_gap"]
