"""Eq. 9 and 10 by hand, dead groups, and invariances. K traces of one group."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection
from nrt_cli.methods import Group
from nrt_cli.objective.losses import group_advantage

# The one answer token's "log-prob" is the reward itself, so that tests can choose rewards.
GIVEN = methods.reward(lambda c, _: c[:, 0])
NORMALISERS = ["std", "unbiased-std", "mean", "rloo", "raw"]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def given_rewards(rewards, base):
    """Plain rewards."""
    return GIVEN.signals(Group(double(*rewards)[:, None], double(base), ObjectiveSection()))


def log_rewards(logs, base):
    """exp(logs), by way of `p` and an answer of one token; logs above 0 are fine."""
    return methods.get("p").signals(Group(double(*logs)[:, None], double(base), ObjectiveSection()))


# R = (1, 2, 3, 6), R_base = 2. Clipped: R' = (0, 0, 1, 4), mean 1.25, differences (-1.25, -1.25, -0.25, 2.75), squares
# sum to 10.75. Not clipped: mean 3, differences (-2, -1, 0, 3), squares sum to 14.
CLIPPED, PLAIN = (-1.25, -1.25, -0.25, 2.75), (-2.0, -1.0, 0.0, 3.0)
BY_HAND = {
    ("clip", "std"): [d / math.sqrt(10.75 / 4) for d in CLIPPED],
    ("none", "std"): [d / math.sqrt(14 / 4) for d in PLAIN],
    ("clip", "unbiased-std"): [d / math.sqrt(10.75 / 3) for d in CLIPPED],
    ("none", "unbiased-std"): [d / math.sqrt(14 / 3) for d in PLAIN],
    ("clip", "mean"): CLIPPED,
    ("none", "mean"): PLAIN,
    # R'_k minus the mean of the other three, such as 4 - 1/3 and 6 - 2.
    ("clip", "rloo"): [-5 / 3, -5 / 3, -1 / 3, 11 / 3],
    ("none", "rloo"): [-8 / 3, -4 / 3, 0, 4],
    ("clip", "raw"): [0, 0, 1, 4],
    ("none", "raw"): [1, 2, 3, 6],
}


@pytest.mark.parametrize("logs", [False, True])
@pytest.mark.parametrize(("baseline", "normalise"), BY_HAND)
def test_a_group_of_four_by_hand(baseline, normalise, logs):
    values, base = [1.0, 2.0, 3.0, 6.0], 2.0
    reward = log_rewards([math.log(v) for v in values], math.log(base)) if logs else given_rewards(values, base)
    got = group_advantage(reward, baseline, normalise)
    assert not got.dead
    assert got.advantage_K.tolist() == pytest.approx(BY_HAND[baseline, normalise], abs=1e-12)


@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("normalise", ["std", "unbiased-std", "mean", "rloo"])
@pytest.mark.parametrize("value", [0.1, -0.3, -5000.7])
def test_equal_rewards_are_a_dead_group_whatever_their_mean_rounds_to(value, normalise, floor):
    """In floating point (0.1 + 0.1 + 0.1) / 3 is not 0.1."""
    got = group_advantage(given_rewards([value] * 3, -9000), "none", normalise, floor)
    assert got.dead
    assert got.advantage_K.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("floor", [0.0, 1e-6])
@pytest.mark.parametrize("normalise", NORMALISERS)
def test_a_group_below_the_null_trace_is_dead_where_eq_9_clips(normalise, floor):
    got = group_advantage(given_rewards([1.0, 2.0, 3.0], 3), "clip", normalise, floor)
    assert got.dead
    assert got.advantage_K.tolist() == [0.0, 0.0, 0.0]
    assert not group_advantage(given_rewards([1.0, 2.0, 3.0], 3), "none", normalise, floor).dead


@pytest.mark.parametrize("scale", [-20_000.0, -700.0, 0.0, 500.0])
@pytest.mark.parametrize("normalise", ["std", "unbiased-std"])
def test_the_floor_is_relative_to_the_largest_reward(normalise, scale):
    """R of 1 and 1 + 4e-6 have a deviation of 2e-6 (unbiased: 2.8e-6), on whatever scale."""
    reward = log_rewards([scale, scale + math.log1p(4e-6)], scale - 50)
    for floor, dead in ((1e-6, False), (1.9e-6, False), (3e-6, True)):
        got = group_advantage(reward, "clip", normalise, floor)
        assert got.dead == dead
        size = 1 if normalise == "std" else math.sqrt(0.5)
        want = [0, 0] if dead else [-size, size]
        assert got.advantage_K.tolist() == pytest.approx(want, rel=1e-6)


def test_the_floor_counts_the_baseline_only_where_it_is_subtracted():
    """R of 1 and 2 differ by less than a millionth of a null trace's e^20, which `none` has nothing to do with."""
    got = group_advantage(log_rewards([0.0, math.log(2)], 20.0), "none")
    assert got.advantage_K.tolist() == pytest.approx([-1, 1])
    # Where it is subtracted, differences are of numbers of its size: R' = 10 and 10.001 beside R_base = 1e6.
    rewards = given_rewards([1e6 + 10, 1e6 + 10.001], 1e6)
    assert group_advantage(rewards, std_floor=1e-6).dead
    assert not group_advantage(rewards, std_floor=1e-12).dead


def test_a_single_trace_has_nothing_to_be_compared_with():
    for normalise in ("std", "unbiased-std", "mean", "rloo"):
        assert group_advantage(given_rewards([5.0], 2), "clip", normalise).dead
    assert group_advantage(given_rewards([5.0], 2), "clip", "raw").advantage_K.tolist() == [3.0]


values = st.lists(st.floats(-60, 0), min_size=2, max_size=8)
reward = st.floats(-10, 10)
baselines = st.sampled_from(["clip", "none"])
# Multiples of 1/64, to which integers up to 20,000 can be added without rounding.
exact = st.integers(-60 * 64, 0).map(lambda n: n / 64)


@settings(deadline=None)
@given(logs=st.lists(exact, min_size=2, max_size=8), base=exact, shift=st.integers(-20_000, 20_000), baseline=baselines)
def test_the_scale_of_rewards_does_not_matter(logs, base, shift, baseline):
    """exp(shift) R instead of R, far beyond what float64 can hold."""
    one = group_advantage(log_rewards(logs, base), baseline)
    other = group_advantage(log_rewards([v + shift for v in logs], base + shift), baseline)
    assert one.dead == other.dead
    assert one.advantage_K.tolist() == other.advantage_K.tolist()


@settings(deadline=None)
@given(rewards=st.lists(reward, min_size=2, max_size=8), base=reward, power=st.integers(-60, 60))
def test_powers_of_two_scale_exactly(rewards, base, power):
    assume(all(v == 0 or abs(v) > 1e-100 for v in (*rewards, base)))
    one = group_advantage(given_rewards(rewards, base))
    other = group_advantage(given_rewards([v * 2.0**power for v in rewards], base * 2.0**power))
    assert one.dead == other.dead
    assert one.advantage_K.tolist() == other.advantage_K.tolist()


@settings(deadline=None)
@given(logs=values, base=st.floats(-60, 0), baseline=baselines)
def test_a_live_group_has_mean_0_and_unit_deviation(logs, base, baseline):
    got = group_advantage(log_rewards(logs, base), baseline)
    if got.dead:
        assert not got.advantage_K.any()
        return
    assert got.advantage_K.mean().item() == pytest.approx(0, abs=1e-7)
    assert got.advantage_K.std(correction=0).item() == pytest.approx(1, abs=1e-7)
    # A better trace never has the smaller advantage.
    assert got.advantage_K[double(*logs).argsort()].diff().ge(0).all()
