"""The same weights in a wider type, and what that says of rounding."""

import pytest
import torch
from architectures import made
from torch import nn

from nrt_cli.backends.local.rounding import FLOOR, SPREAD, UNMEASURED, allowed_gap, widened

IDS = torch.tensor([[5, 9, 2, 7, 7, 1]])


def logprobs(model):
    return model(IDS, use_cache=False).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_a_widened_model_computes_what_its_weights_say_and_is_itself_again(tied):
    model = made("llama", tie_word_embeddings=tied).bfloat16()
    before, tensors = logprobs(model), {name: weight.data_ptr() for name, weight in model.named_parameters()}
    want = logprobs(made("llama", tie_word_embeddings=tied).bfloat16().float())
    with widened(model):
        torch.testing.assert_close(logprobs(model), want)
        with widened(model):
            assert model.dtype == torch.float64
            torch.testing.assert_close(logprobs(model), want)
        torch.testing.assert_close(logprobs(model), want)
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == tensors
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    assert torch.equal(logprobs(model), before)


@torch.no_grad()
def test_a_pass_that_fails_leaves_the_weights_as_they_were():
    model = made("llama").bfloat16()
    model.model.layers[1].mlp.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError), widened(model):
        model(IDS)
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.0])])
def test_what_is_allowed_is_a_multiple_of_the_measured_error(weights):
    """Rounding moves one of two numbers by 0.002: 0.001 on average, 0.002 where only that one counts."""
    model = made("llama").bfloat16()
    score = lambda: torch.tensor([0.502 if model.dtype == torch.bfloat16 else 0.5, 0.25])  # noqa: E731
    want = 0.001 if weights is None else 0.002
    assert allowed_gap(model, score, weights_N=weights) == pytest.approx(FLOOR + SPREAD * want, rel=1e-3)


@pytest.mark.parametrize("weights", [None, torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.5, 0.5]])])
def test_of_several_sets_the_one_that_rounding_moves_most_counts(weights):
    model = made("llama").bfloat16()
    errors = torch.tensor([[0.0, 0.0], [0.001, 0.003], [0.001, 0.002]])
    score = lambda: 0.5 + errors * (model.dtype == torch.bfloat16)  # noqa: E731
    want = 0.002 if weights is None else 0.003
    assert allowed_gap(model, score, weights_N=weights) == pytest.approx(FLOOR + SPREAD * want, rel=1e-3)


def test_a_gap_within_the_floor_asks_for_no_pass():
    passes = []
    score = lambda: passes.append(1) or torch.zeros(1)  # noqa: E731
    assert allowed_gap(made("llama"), score, gap=FLOOR) == FLOOR
    assert not passes
    for gap in (2 * FLOOR, float("nan")):
        allowed_gap(made("llama"), score, gap=gap)
    assert len(passes) == 4


def test_a_model_that_names_a_type_has_a_limit_all_the_same():
    class Stubborn(nn.Module):
        def forward(self, x):
            return x @ torch.eye(32)

    model = made("llama")
    model.model.layers[0].mlp = Stubborn()
    assert allowed_gap(model, lambda: logprobs(model)) == FLOOR + UNMEASURED[torch.float32]
