"""What is said of a trace from its log-probabilities, by hand and for any numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.measures.xray import MATTERS, decided_at, lasting, needed, smuggled_share, tolerance

NATS = st.floats(-50, 0)


@pytest.mark.parametrize(
    ("kept", "decided"),
    [
        ([-5.0], 0),  # an empty trace
        ([-5.0, -5.0, -0.0], 2),
        ([-5.0, -0.4, -0.0], 1),  # lacks less than a tenth of the gain of 5
        ([-5.0, -0.6, -0.0], 2),
        ([-5.0, -0.1, -4.0, 0.0], 3),  # was lost again
        ([-0.05, -0.1, -0.02], 0),  # hardly anything is to be gained
        ([-1.0, -3.0, -4.0], 0),  # the trace harms
        ([-5.0, 0.0, -1.0], 1),
        ([-5.0, math.nan, 0.0], None),
    ],
)
def test_when_an_answer_is_decided(kept: list[float], decided: int | None) -> None:
    assert decided_at(kept) == decided


@given(st.lists(NATS, min_size=1, max_size=12))
def test_from_there_on_it_is_as_good_as_with_the_whole_trace_and_not_before(kept: list[float]) -> None:
    at, least = decided_at(kept), kept[-1] - tolerance(kept[-1] - kept[0])
    assert at is not None
    assert all(logprob >= least for logprob in kept[at:])
    assert at == 0 or kept[at - 1] < least


def test_only_what_is_never_lost_again_lasts() -> None:
    assert lasting([-3.0, -5.0, -1.0, -2.0, -0.5]).tolist() == [-5.0, -5.0, -2.0, -2.0, -0.5]
    assert lasting([-3.0]).tolist() == [-3.0]


def test_a_step_is_needed_by_way_of_those_that_follow_from_it() -> None:
    none = -math.inf
    falls = np.full((4, 5), none)
    falls[0, 1], falls[1, 2], falls[2, 4], falls[0, 3] = 2.0, 3.0, 4.0, 9.0
    # 0 -> 1 -> 2 -> answer; step 3 is not needed, so what it takes from step 0 does not count.
    assert needed([0.0, 0.05, 0.2, -0.3], falls) == [2.0, 3.0, 4.0, -0.3]
    falls[2, 4] = MATTERS / 2  # nothing reaches the answer but by deletion
    assert needed([0.0, 0.05, 0.0, -0.3], falls) == [0.0, 0.05, MATTERS / 2, -0.3]
    assert needed([], np.full((0, 1), none)) == []


def test_what_surprise_pays_for_was_not_computed() -> None:
    # Told: as surprising as it is useful. Computed: expected, and useful all the same.
    assert smuggled_share([0.0, 2.3], [4.0, 2.3]) == 1
    assert smuggled_share([0.0, 2.3], [4.0, 0.0]) == 0
    assert smuggled_share([1.0, 2.0], [0.5, 5.0]) == pytest.approx(2.5 / 3)
    assert smuggled_share([-4.0, 2.0], [9.0, 0.5]) == 0.25  # a loss pays for nothing
    assert math.isnan(smuggled_share([0.0, -1.0], [1.0, 1.0]))
    assert smuggled_share(torch.tensor([2.0]), torch.tensor([1.0])) == 0.5


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_who_computes_nothing_has_it_all_from_surprise(answers: int, traces: int, seed: int) -> None:
    """By enumeration: whatever the joint distribution of z and y*, a reader that applies Bayes' rule gains from z no
    more than z's surprise; and no more than what seeing y* does for z, which is the sharper price."""
    joint_ZY = np.random.default_rng(seed).dirichlet(np.ones(answers * traces)).reshape(traces, answers)
    of_z, of_y = joint_ZY.sum(1), joint_ZY.sum(0)
    for z in range(traces):
        for y in range(answers):
            gain = math.log(joint_ZY[z, y] / of_z[z] / of_y[y])
            if gain > 1e-6:
                assert smuggled_share([gain], [-math.log(of_z[z])]) == pytest.approx(1)
                assert smuggled_share([gain], [math.log(joint_ZY[z, y] / of_y[y] / of_z[z])]) == pytest.approx(1)
