"""One group under every scheme, by hand."""

import math

import pytest
import torch

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection
from nrt_cli.objective.losses import SchemeView, half_agreement

C = torch.tensor([[0.5, 0.8], [0.2, 0.9]], dtype=torch.float64)
BASE = torch.tensor([0.25, 0.5], dtype=torch.float64)
# Two traces, two tokens: R of both traces and of the null trace, and alpha = df/dc of the first trace.
BY_HAND = {
    "logp": ([math.log(0.4), math.log(0.18)], math.log(0.125), [1 / 0.5, 1 / 0.8]),
    "p": ([0.4, 0.18], 0.125, [0.8, 0.5]),
    "gm": ([math.sqrt(0.4), math.sqrt(0.18)], math.sqrt(0.125), [math.sqrt(0.4) / 2 / 0.5, math.sqrt(0.4) / 2 / 0.8]),
    "am": ([0.65, 0.55], 0.375, [0.5, 0.5]),
    "ws-inv-p": ([0.5 / 0.25 + 0.8 / 0.5, 0.2 / 0.25 + 0.9 / 0.5], 2.0, [4.0, 2.0]),
    "ws-neg-log-p": (
        [0.5 * math.log(4) + 0.8 * math.log(2), 0.2 * math.log(4) + 0.9 * math.log(2)],
        0.25 * math.log(4) + 0.5 * math.log(2),
        [math.log(4), math.log(2)],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_every_number_of_a_view(name: str) -> None:
    rewards, base, weights = BY_HAND[name]
    view = SchemeView(methods.get(name), C.log(), BASE.log(), ObjectiveSection())
    assert view.reward.reward_K.tolist() == pytest.approx(rewards)
    assert float(view.reward.base) == pytest.approx(base)
    assert view.clipped_K.tolist() == pytest.approx([max(0.0, reward - base) for reward in rewards])
    assert view.weight_KT[0].tolist() == pytest.approx(weights)
    assert (view.weight_KT * C).flatten().tolist() == pytest.approx(view.reward.token_KT.flatten().tolist())
    # Two traces whose clipped rewards differ are one standard deviation from their mean.
    assert view.advantage.advantage_K.tolist() == pytest.approx([1.0, -1.0])
    if name == "logp":
        assert view.log_reward_K.isnan().all()
    else:
        assert view.log_reward_K.exp().tolist() == pytest.approx(rewards)


def test_the_objective_decides_the_advantage_but_not_the_clipped_reward() -> None:
    view = SchemeView(methods.get("am"), C.log(), BASE.log(), ObjectiveSection(baseline="none", advantage="mean"))
    assert view.advantage.advantage_K.tolist() == pytest.approx([0.05, -0.05])
    assert view.clipped_K.tolist() == pytest.approx([0.275, 0.175])


def test_halves_of_an_answer_agree_or_not() -> None:
    """Even tokens are the 1st and 3rd, odd ones the 2nd and 4th."""
    objective, am = ObjectiveSection(baseline="none"), methods.get("am")
    null_T = torch.full((4,), 0.1, dtype=torch.float64).log()
    alike = torch.tensor([[0.9, 0.8, 0.9, 0.8], [0.3, 0.2, 0.3, 0.2]]).double().log()
    opposed = torch.tensor([[0.9, 0.2, 0.9, 0.2], [0.3, 0.8, 0.3, 0.8]]).double().log()
    assert half_agreement(am, alike, null_T, objective) == pytest.approx(1.0)
    assert half_agreement(am, opposed, null_T, objective) == pytest.approx(-1.0)


def test_halves_that_say_nothing_are_not_measured() -> None:
    objective, am = ObjectiveSection(baseline="none"), methods.get("am")
    one = torch.tensor([[0.9], [0.3]]).double().log()
    assert math.isnan(half_agreement(am, one, one[0], objective))
    dead = torch.tensor([[0.9, 0.5], [0.3, 0.5]]).double().log()  # the odd half cannot tell the traces apart
    assert math.isnan(half_agreement(am, dead, dead[0], objective))
