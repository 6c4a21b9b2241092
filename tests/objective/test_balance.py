"""What is said of a step's balance, case by case."""

import pytest

from nrt_cli.config import ObjectiveSection
from nrt_cli.objective.losses import balance_described, balance_doubt

STEP = {
    "share_trace": 0.5,
    "share_answer": 0.3,
    "share_format": 0.2,
    "token_signal": 0.25,
    "answer_tokens": 8.0,
    "answer_weight": 0.5,
}


def test_a_step_in_words():
    """Signals of 0.25 on average sum to 2 of 8 tokens."""
    said = balance_described(STEP)
    assert said.startswith("trace 50%, answer 30%, format 20%; an answer's token signals sum to 2 of 8 tokens")
    assert "pulls 0.5 times as hard" in said


@pytest.mark.parametrize(
    ("settings", "step", "advice"),
    [
        ({"token_signal": "fixed"}, {}, "objective.balance=auto"),
        ({"token_signal": "fixed"}, {"share_answer": 0.1}, ""),
        # Already balanced: a large share only says that no trace is rewarded yet.
        ({"token_signal": "fixed", "balance": "auto"}, {"share_answer": 0.9, "share_trace": 0.0}, ""),
        ({"token_signal": "derived"}, {"answer_weight": 1e-9}, "objective.token_signal=shared"),
        ({"token_signal": "derived"}, {}, ""),
        # The control has no trace term to drown, and a run may be meant not to learn y*.
        ({"token_signal": "fixed", "weights": {"trace": 0}}, {"share_trace": 0.0}, ""),
        ({"token_signal": "fixed", "weights": {"answer": 0}}, {"answer_weight": 0.0}, ""),
        # VeriFree's rewards are small: its first step on the digits, with the weight of 0.3 that suits normalised ones.
        ({"token_signal": "derived"}, {"share_format": 0.476, "share_trace": 0.491}, "objective.weights.format"),
        ({"weights": {"answer": 0}}, {"share_format": 0.509, "share_trace": 0.491}, "objective.weights.format"),
        ({}, {"share_format": 0.9, "share_trace": 0.0}, ""),
        # First steps of VeriFree on the digits, other weights: two whose traces shrank to nothing, two that learned.
        ({}, {"share_format": 0.35}, "objective.weights.format"),
        ({}, {"share_format": 0.62}, "objective.weights.format"),
        ({"weights": {"answer": 0}}, {"share_format": 0.28}, ""),
        ({"weights": {"answer": 0}}, {"share_format": 0.72, "share_trace": 0.0}, ""),
        # What does not shrink with the reward is advised where it does.
        ({"advantage": "rloo"}, {"share_format": 0.5}, "objective.advantage=std"),
    ],
)
def test_what_is_out_of_proportion_is_said_with_what_to_do(settings, step, advice):
    said = balance_doubt(STEP | step, ObjectiveSection(**settings))
    assert advice in said
    assert bool(said) == bool(advice)
