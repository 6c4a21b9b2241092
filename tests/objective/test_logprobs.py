"""Fused log-probs and entropies against plain ones: whole logits, `log_softmax`, autograd.

Shapes: N positions, V vocabulary, D hidden size.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from nrt_cli.objective import logprobs as module
from nrt_cli.objective.logprobs import _chunks, selected_logprobs

N, V, D = 10, 7, 4


def plain(hidden_ND, head_VD, targets_N, temperature_N=None, softcap=None):
    logits_NV = hidden_ND @ head_VD.T
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    if temperature_N is not None:
        logits_NV = logits_NV / temperature_N[:, None]
    table_NV = logits_NV.log_softmax(-1)
    return table_NV[torch.arange(len(targets_N)), targets_N], -(table_NV.exp() * table_NV).sum(-1)


def inputs(positions=N, dtype=torch.float64, seed=0, vocabulary=V):
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(positions, D, dtype=torch.float64, generator=generator)
    head_VD = torch.randn(vocabulary, D, dtype=torch.float64, generator=generator)
    targets_N = torch.randint(vocabulary, (positions,), generator=generator)
    temperature_N = torch.rand(positions, dtype=torch.float64, generator=generator) + 0.5
    return hidden_ND.to(dtype).requires_grad_(), head_VD.to(dtype).requires_grad_(), targets_N, temperature_N.to(dtype)


def gradients(function, hidden_ND, head_VD, weights, *rest):
    """Gradients of a weighted sum of log-probs and entropies; a None weight leaves that output out of the sum."""
    outputs = function(hidden_ND, head_VD, *rest)
    total = sum((w * out).sum() for w, out in zip(weights, outputs, strict=True) if w is not None)
    return torch.autograd.grad(total, (hidden_ND, head_VD))


def output_weights(which, positions):
    first = torch.linspace(-1, 2, positions, dtype=torch.float64)
    second = torch.linspace(3, -2, positions, dtype=torch.float64)
    some = first.clone()
    some[2:7], some[8:9] = 0.0, 0.0  # a whole chunk of three, and part of two others
    return {"both": (first, second), "logprobs": (first, None), "entropies": (None, second), "some": (some, None)}[
        which
    ]


# Elements held at once: all positions, 3 of 10 (so the last chunk has 1), or fewer than a single position needs.
@pytest.mark.parametrize(("elements", "block"), [(10**6, 10**6), (10**6, 2 * V), (3 * V + 2, 2 * V), (1, 1)])
@pytest.mark.parametrize("kept", [10**6, 7 * V, 0])
@pytest.mark.parametrize("positions", [1, N])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("tempered", [False, True])
def test_values_and_gradients_equal_plain_ones(tempered, softcap, positions, kept, elements, block, monkeypatch):
    """Logits of all positions are kept for the backward pass, of 6 or 7 of 10, or of none."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(module, "KEPT_ELEMENTS", kept)
    hidden, head, targets, temperature = inputs(positions)
    rest = (targets, temperature if tempered else None, softcap)
    for got, want in zip(selected_logprobs(hidden, head, *rest), plain(hidden, head, *rest), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for which in ("both", "logprobs", "entropies", *(["some"] if positions == N else [])):
        weights = output_weights(which, positions)
        got = gradients(selected_logprobs, hidden, head, weights, *rest)
        want = gradients(plain, hidden, head, weights, *rest)
        assert all(gradient.any() for gradient in want)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_positions_without_a_gradient_make_no_logits(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * V)
    monkeypatch.setattr(module, "KEPT_ELEMENTS", 0)
    hidden, head, targets, _ = inputs()
    logprobs, _ = selected_logprobs(hidden, head, targets)
    made = []
    logits = module._logits
    monkeypatch.setattr(module, "_logits", lambda raw, *rest: made.append(len(raw)) or logits(raw, *rest))
    torch.autograd.grad(logprobs, hidden, output_weights("some", N)[0])
    assert made == [2, 1, 1]


def test_chunks_are_larger_on_a_gpu():
    rows = {on_gpu: _chunks(3000, SimpleNamespace(is_cuda=on_gpu, shape=(131072, 4)), 0)[0].stop for on_gpu in (0, 1)}
    assert rows == {0: 128, 1: 1024}


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_agree_with_finite_differences(softcap, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * V)
    hidden, head, targets, temperature = inputs(5)
    # Products of kept logits and of those made anew for fewer rows round differently.
    function = lambda h, w: selected_logprobs(h, w, targets, temperature, softcap)  # noqa: E731
    torch.autograd.gradcheck(function, (hidden, head), nondet_tol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_trained_rows_of_a_frozen_head_get_what_they_get_of_a_trained_one(softcap, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 2 * V)
    hidden, head, targets, temperature = inputs(5)
    trained = torch.tensor([0, V - 1])
    weights = output_weights("both", 5)

    def rows_of_a_frozen_head(h, w, *rest):
        """The rows put into a copy of the head that autograd knows nothing of, as `lora.table_of` does."""
        return selected_logprobs(h, w.detach(), *rest, trained, w[trained])

    rest = (targets, temperature, softcap)
    got, want = (gradients(of, hidden, head, weights, *rest) for of in (rows_of_a_frozen_head, plain))
    torch.testing.assert_close(got[0], want[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(got[1][trained], want[1][trained], rtol=1e-11, atol=1e-12)
    assert not got[1][1 : V - 1].any()


def test_two_tokens_by_hand():
    """Logits 0 and log 3 are p = 1/4 and 3/4; at temperature 1/2 they are 0 and log 9, so p = 1/10 and 9/10."""
    head = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    hidden, targets = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0, 1])
    logprobs, entropies = selected_logprobs(hidden, head, targets, torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert logprobs.tolist() == pytest.approx([math.log(1 / 4), math.log(9 / 10)])
    cold = 0.1 * math.log(10) + 0.9 * math.log(10 / 9)
    assert entropies.tolist() == pytest.approx([math.log(4) - 0.75 * math.log(3), cold])


def test_a_certain_token_has_no_entropy_and_finite_gradients():
    head = torch.tensor([[1e4], [-1e4]], dtype=torch.float64, requires_grad=True)
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    logprobs, entropies = selected_logprobs(hidden, head, torch.tensor([1]))
    assert (logprobs.item(), entropies.item()) == (-2e4, 0.0)
    grads = torch.autograd.grad((logprobs + entropies).sum(), (hidden, head))
    # d log p_1 / d hidden = w_1 - w_0, and / d head = (-1, 1) * hidden.
    assert [g.flatten().tolist() for g in grads] == [[-2e4], [-1.0, 1.0]]


def test_a_head_that_is_not_trained_gets_no_gradient_and_changes_no_other(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * V)
    hidden, head, targets, temperature = inputs()
    (want, _) = gradients(plain, hidden, head, output_weights("both", N), targets, temperature)
    frozen = head.detach()
    logprobs, entropies = selected_logprobs(hidden, frozen, targets, temperature)
    first, second = output_weights("both", N)
    ((first * logprobs).sum() + (second * entropies).sum()).backward()
    torch.testing.assert_close(hidden.grad, want, rtol=1e-11, atol=1e-12)
    assert frozen.grad is None


def test_bfloat16_is_close_to_float32(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 64 * 300)
    hidden, head, targets, temperature = inputs(500, torch.bfloat16, vocabulary=300)
    wide = [t.detach().float().requires_grad_() for t in (hidden, head)]
    got = selected_logprobs(hidden, head, targets, temperature.float())
    want = plain(*wide, targets, temperature.float())
    assert [out.dtype for out in got] == [torch.float32, torch.float32]
    # A bfloat16 logit of size up to 16 is off by up to 2**-5.
    torch.testing.assert_close(got, want, rtol=0, atol=0.06)
    narrow_grads = torch.autograd.grad(got[0].sum() + got[1].sum(), (hidden, head))
    wide_grads = torch.autograd.grad(want[0].sum() + want[1].sum(), wide)
    for narrow, reference in zip(narrow_grads, wide_grads, strict=True):
        assert narrow.dtype == torch.bfloat16
        assert (narrow.float() - reference).norm() < 0.02 * reference.norm()


def test_many_small_bfloat16_chunks_add_up(monkeypatch):
    """2048 equal chunks: a bfloat16 sum would stop growing at 256 of them."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", V)
    hidden, head, targets, _ = inputs(1, torch.bfloat16)
    many = hidden.detach().expand(2048, -1)
    (one,) = torch.autograd.grad(selected_logprobs(hidden.detach(), head, targets)[0].sum(), head)
    (total,) = torch.autograd.grad(selected_logprobs(many, head, targets.expand(2048))[0].sum(), head)
    torch.testing.assert_close(total.float(), 2048 * one.float(), rtol=0.01, atol=0)


def test_logits_held_at_once_stay_within_the_bound(monkeypatch):
    held = []
    logits = module._logits

    def spy(*args):
        held.append(logits(*args)[0].numel())
        return logits(*args)

    monkeypatch.setattr(module, "_logits", spy)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * V + 2)
    monkeypatch.setattr(module, "KEPT_ELEMENTS", 0)
    hidden, head, targets, _ = inputs()
    selected_logprobs(hidden, head, targets)[0].sum().backward()
    assert held == [3 * V, 3 * V, 3 * V, V] * 2, "forward and backward, each in chunks of 3, 3, 3 and 1 positions"
    held.clear()
    monkeypatch.setattr(module, "KEPT_ELEMENTS", 7 * V)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 2 * V)
    selected_logprobs(hidden, head, targets)[0].sum().backward()
    assert held == [2 * V, 2 * V, 2 * V, V, 2 * V, V] * 2, "of 7 that are kept, then 3, as many at once as a block has"


@pytest.mark.parametrize(
    ("room", "products"),
    [(10**6, 1), (6 * V, 3 + 2), (3 * V - 1, 4 + 3), (V - 1, 4 + 4)],
    ids=["all", "6", "2", "none"],
)
def test_logits_are_kept_as_far_as_the_bound_goes(room, products, monkeypatch):
    """The first of 10 positions, made at once; then chunks of 3, which the backward pass makes again."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * V)
    monkeypatch.setattr(module, "KEPT_ELEMENTS", room)
    hidden, head, targets, _ = inputs()
    counted = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            # Logits are positions by vocabulary; the gradients' products have another shape.
            if function is torch.ops.aten.mm.default and out.shape[-1] == V and hidden.shape[-1] != V:
                counted.append(out.shape)
            return out

    with Counting():
        selected_logprobs(hidden, head, targets)[0].sum().backward()
    assert len(counted) == products
