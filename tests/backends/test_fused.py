"""Fused norms and feed-forwards against transformers' own, gradients included, and what they save."""

import contextlib
import copy
import weakref

import architectures
import pytest
import torch
from torch import nn

from nrt_cli.backends.local.fused import fuse, sparing

FUSED = {"llama": 2 * 3 + 1, "mistral": 2 * 3 + 1, "qwen3": 2 * 5 + 1, "gemma": 0}
"""Of each of two layers: two norms, two more of queries and keys for Qwen 3, the feed-forward; and the last norm."""


def make(family: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A model with norm weights that are not all 1, and the same fused."""
    plain = architectures.made(family)
    for name, weight in plain.named_parameters():
        if "norm" in name:
            nn.init.uniform_(weight, 0.5, 1.5)
    plain = plain.to(dtype)
    fused = copy.deepcopy(plain)
    assert fuse(fused) == FUSED[family]
    return plain, fused


def gradients(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    logits = model(input_ids=ids, use_cache=False).logits
    (logits.float().log_softmax(-1)[..., :7].sin().sum()).backward()
    return {"logits": logits.detach()} | {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("family", FUSED)
def test_fused_is_plain_with_gradients(family):
    plain, fused = make(family, torch.float32)
    ids = torch.randint(0, 61, (3, 11))
    want, got = gradients(plain, ids), gradients(fused, ids)
    assert want.keys() == got.keys()
    for name, tensor in want.items():
        assert torch.allclose(got[name], tensor, rtol=1e-5, atol=1e-5 * float(tensor.abs().max())), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FUSED)
def test_without_a_gradient_it_is_plain_to_the_last_bit(family, dtype):
    plain, fused = make(family, dtype)
    ids = torch.randint(0, 61, (3, 11))
    with torch.no_grad():
        assert torch.equal(fused(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_bfloat16_is_as_near_to_float32_as_transformers_own_is():
    plain, fused = make("llama", torch.bfloat16)
    exact = copy.deepcopy(plain).float()
    ids = torch.randint(0, 61, (3, 11))
    truth, theirs, ours = (gradients(model, ids) for model in (exact, plain, fused))
    assert torch.equal(theirs["logits"], ours["logits"])
    for name, tensor in truth.items():
        assert (ours[name] - tensor).norm() <= 1.2 * (theirs[name] - tensor).norm() + 1e-6, name


def test_gradients_of_each_operation_by_finite_differences():
    from nrt_cli.backends.local.fused import _Gated, _GatedDown, _RMSNorm

    torch.manual_seed(0)
    gate, up, x = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Gated.apply, (gate, up))
    down = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_GatedDown.apply, (gate, up, down))
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-3), (x, weight))


def test_a_feed_forward_with_another_activation_stays_as_it_is():
    model = architectures.made("llama", hidden_act="gelu")
    norms_alone = 2 * 2 + 1
    assert fuse(model) == norms_alone


def test_a_layer_keeps_a_third_less():
    def kept(model: nn.Module) -> int:
        storages: dict[int, torch.Tensor] = {}
        weights = {w.untyped_storage().data_ptr() for w in model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if (at := tensor.untyped_storage().data_ptr()) not in weights:
                storages[at] = tensor  # held, so that no other takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = model.model(input_ids=torch.randint(0, 61, (1, 64)), use_cache=False).last_hidden_state
        del hidden
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    plain, fused = make("llama", torch.float32)
    assert kept(fused) < 0.67 * kept(plain)


def test_a_feed_forward_with_a_multiplier_stays_as_it_is():
    """By its parts' names it is like any other, as Falcon H1's is; what it computes is not."""
    model = architectures.made("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: 2 * mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
    assert fuse(model) == FUSED["llama"] - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FUSED)
def test_a_pass_recorded_sparingly_has_the_same_gradients_to_the_last_bit(family, dtype):
    _, fused = make(family, dtype)
    ids = torch.randint(0, 61, (3, 11))
    want = gradients(copy.deepcopy(fused), ids)
    with sparing():
        logits = fused(input_ids=ids, use_cache=False).logits
    loss = logits.float().log_softmax(-1)[..., :7].sin().sum()
    loss.backward(retain_graph=True)
    got = {"logits": logits.detach()} | {name: w.grad for name, w in fused.named_parameters() if w.grad is not None}
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    # A second time, what was made for the first is made again.
    loss.backward()
    assert all(torch.allclose(got[name], 2 * want[name], rtol=1e-2) for name in want.keys() - {"logits"})


def test_recorded_sparingly_no_output_of_a_norm_is_kept():
    _, fused = make("llama", torch.float32)
    outputs: list[torch.Tensor] = []
    for name, module in fused.named_modules():
        if name.endswith("layernorm"):
            module.register_forward_hook(lambda module, given, normed: outputs.append(weakref.ref(normed)))
    for recorded, alive in ((contextlib.nullcontext(), True), (sparing(), False)):
        outputs.clear()
        with recorded:
            hidden = fused.model(input_ids=torch.randint(0, 61, (1, 64)), use_cache=False).last_hidden_state
        assert [output() is not None for output in outputs] == [alive] * 4
        del hidden


def test_what_was_changed_since_the_norm_is_kept_as_it_is():
    """Made anew, it would not be what was multiplied."""
    _, fused = make("llama", torch.float32)
    norm = fused.model.norm
    x = torch.randn(5, norm.weight.shape[0])
    layer = nn.Linear(x.shape[1], 4, bias=False)
    with sparing():
        layer(norm(x).mul_(2)).sum().backward()
    assert torch.allclose(layer.weight.grad, 2 * norm(x).detach().sum(0).expand(4, -1))
