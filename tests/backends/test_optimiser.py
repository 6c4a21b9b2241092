"""The optimiser against torch's AdamW on float32 copies, the schedules by hand, and what it leaves alone."""

import copy
import math

import pytest
import torch
from torch import nn

from nrt_cli.backends.local import optimiser as optimiser_room
from nrt_cli.backends.local.optimiser import Optimiser
from nrt_cli.config import OptimiserSection
from nrt_cli.training.trainer import rate_factor

SETTINGS = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "clip_norm": 0.5}


def network(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return net.to(dtype)


def loss(net, step, micro=0):
    generator = torch.Generator().manual_seed(100 * step + micro)
    dtype = next(net.parameters()).dtype
    inputs = torch.randn(6, 5, generator=generator).to(dtype)
    return net(inputs).square().sum()


def weights(net):
    return [weight.detach().clone() for weight in net.parameters()]


def reference(net, steps, dtype, rates=None):
    """AdamW on float32 copies; gradients come from the copies rounded to `dtype`, two backward passes a step."""
    masters = [nn.Parameter(weight.detach().float().clone()) for weight in net.parameters()]
    kwargs = {key: SETTINGS[key] for key in ("lr", "betas", "eps", "weight_decay")}
    adamw = torch.optim.AdamW(masters, **kwargs)
    norms = []
    for step in range(steps):
        rounded = copy.deepcopy(net).to(dtype)
        with torch.no_grad():
            for weight, master in zip(rounded.parameters(), masters, strict=True):
                weight.copy_(master)
        for master in masters:
            master.grad = torch.zeros_like(master)
        for micro in range(2):
            gradients = torch.autograd.grad(loss(rounded, step, micro), list(rounded.parameters()))
            for master, gradient in zip(masters, gradients, strict=True):
                master.grad += gradient.float()
        norms.append(float(nn.utils.clip_grad_norm_(masters, SETTINGS["clip_norm"])))
        adamw.param_groups[0]["lr"] = rates[step] if rates else SETTINGS["lr"]
        adamw.step()
    return [master.detach() for master in masters], norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rates", [[0.01] * 4, [0.005, 0.01, 0.01 * 2 / 3, 0.01 / 3]])
def test_updates_equal_adamw_on_float32_copies(rates, dtype):
    net = network(dtype)
    want, norms = reference(net, 4, dtype, rates)
    start = weights(net)
    optimiser = Optimiser(net, OptimiserSection(**SETTINGS))
    for step in range(4):
        for micro in range(2):
            loss(net, step, micro).backward()
        assert optimiser.step(rates[step]) == pytest.approx(norms[step], rel=1e-5)
    assert min(norms) > SETTINGS["clip_norm"], "the bound was at work"
    for weight, master, reference_weight, before in zip(
        net.parameters(), optimiser.masters.values(), want, start, strict=True
    ):
        torch.testing.assert_close(master.detach(), reference_weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(weight, master.to(dtype))
        assert not torch.equal(weight, before)


def test_float32_weights_are_their_own_masters():
    net = network()
    optimiser = Optimiser(net, OptimiserSection())
    assert all(master is weight for master, weight in zip(optimiser.masters.values(), net.parameters(), strict=True))


def test_a_rate_of_1e_5_is_not_rounded_away():
    """Below 1, bfloat16 numbers are 2**-8 apart. Adam moves a weight by its rate a step: half that takes 196 steps."""
    net = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(net.weight)
    plain = copy.deepcopy(net)
    optimiser = Optimiser(net, OptimiserSection(lr=1e-5, weight_decay=0.0, clip_norm=1e9))
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-5, weight_decay=0.0)
    moved_at = []
    for step in range(250):
        for module in (net, plain):
            module(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimiser.step(1e-5)
        adamw.step()
        adamw.zero_grad()
        if step == 0:
            assert optimiser.masters["weight"].item() == pytest.approx(1 - 1e-5, rel=1e-7)
        if net.weight.item() != 1:
            moved_at.append(step)
    assert plain.weight.item() == 1
    assert net.weight.item() == 1 - 2**-8
    assert 193 <= moved_at[0] <= 198


def test_many_small_gradients_add_up():
    """A bfloat16 sum of ones stops growing at 256."""
    net = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimiser = Optimiser(net, OptimiserSection())
    for _ in range(1000):
        net(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
    assert net.weight.grad is None, "gradients live in float32 only"
    assert optimiser.step(1e-5) == 1000
    assert optimiser.masters["weight"].grad is None


@pytest.mark.parametrize(
    ("settings", "updates", "factors"),
    [
        ({}, 3, [1, 1, 1]),
        ({"warmup": 0.2}, 10, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        # A share of 0.1 of 5 updates is half an update, which counts as one.
        ({"warmup": 0.1}, 5, [1 / 2, 1, 1, 1, 1]),
        ({"schedule": "linear"}, 4, [1, 3 / 4, 1 / 2, 1 / 4]),
        ({"schedule": "linear", "warmup": 0.5}, 4, [1 / 3, 2 / 3, 1, 1 / 2]),
        ({"schedule": "cosine"}, 4, [1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2]),
        ({"schedule": "cosine", "warmup": 0.25}, 4, [1 / 2, 1, 3 / 4, 1 / 4]),
        ({"schedule": "linear"}, 1, [1]),
    ],
)
def test_schedules_by_hand(settings, updates, factors):
    section = OptimiserSection(**settings)
    assert [rate_factor(section, update, updates) for update in range(updates)] == pytest.approx(factors)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_that_is_not_finite_changes_nothing(dtype, value):
    def run(poisoned):
        net = network(dtype)
        optimiser = Optimiser(net, OptimiserSection(**SETTINGS))
        loss(net, 0).backward()
        optimiser.step(0.01)
        if poisoned:
            before, masters = weights(net), [m.detach().clone() for m in optimiser.masters.values()]
            (loss(net, 7) + value * net[0].weight[0, 0]).backward()
            assert not math.isfinite(optimiser.step(0.01))
            assert all(map(torch.equal, before, weights(net)))
            assert all(map(torch.equal, masters, optimiser.masters.values()))
        loss(net, 1).backward()
        optimiser.step(0.008)
        return weights(net)

    assert all(map(torch.equal, run(poisoned=True), run(poisoned=False)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("done", [0, 3])
def test_a_restored_optimiser_goes_on_as_if_it_had_never_stopped(done, dtype):
    section = OptimiserSection(**SETTINGS)

    def advance(net, optimiser, steps):
        for step in steps:
            loss(net, step).backward()
            optimiser.step(0.01 / (step + 1))

    net = network(dtype)
    optimiser = Optimiser(net, section)
    advance(net, optimiser, range(done))
    saved = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    advance(net, optimiser, range(done, 6))

    other = network(dtype, seed=1)
    restored = Optimiser(other, section)
    restored.load_state(saved)
    advance(other, restored, range(done, 6))
    assert all(map(torch.equal, weights(net), weights(other)))
    final, again = optimiser.state(), restored.state()
    assert final.keys() == again.keys()
    assert all(torch.equal(final[name], again[name]) for name in final)


def test_tied_and_frozen_weights():
    """A tied weight is updated once, with the sum of its gradients; a frozen one is not in the optimiser."""
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False), "c": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    net["c"].requires_grad_(False)
    net.to(torch.bfloat16)
    optimiser = Optimiser(net, OptimiserSection())
    assert list(optimiser.masters) == ["a.weight"]
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    (net["a"](x).sum() + 2 * net["b"](x).sum() + net["c"](x).sum()).backward()
    # Each of four entries has gradient 1 + 2.
    assert optimiser.step(1e-5) == pytest.approx(6.0)


# --- states kept otherwise -------------------------------------------------------------------------------------------


def trained(states, steps=4):
    """A layer after four steps on fixed gradients, and its optimiser."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 64)  # bitsandbytes keeps tensors of less than 4096 numbers in float32
    optimiser = Optimiser(layer, OptimiserSection(lr=1e-2, states=states))
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        (layer.weight * torch.randn(64, 128, generator=generator)).sum().backward()
        layer.bias.sum().backward()
        optimiser.step(1e-2)
    return layer, optimiser


def test_states_kept_elsewhere_update_alike():
    want, got = trained("float32")[0], trained("cpu")[0]
    assert torch.equal(got.weight, want.weight)
    assert torch.equal(got.bias, want.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_go_to_the_cpu_once_a_step_and_weights_come_back(monkeypatch, dtype):
    """Without a GPU: weights that count as a GPU's, and each tensor that is pinned is counted."""
    net, moved = network(dtype), []
    want, norms = reference(net, 3, dtype)
    monkeypatch.setattr(Optimiser, "_apart", lambda self, weight: True)
    monkeypatch.setattr(optimiser_room, "pinned", lambda tensor: moved.append(tensor.dtype) or tensor.clone())
    optimiser = Optimiser(net, OptimiserSection(**SETTINGS, states="cpu"))
    for step in range(3):
        moved.clear()
        for micro in range(2):
            loss(net, step, micro).backward()
        assert not moved
        assert optimiser.step(SETTINGS["lr"]) == pytest.approx(norms[step], rel=1e-5)
        assert moved == [torch.float32] * len(want)
    for weight, master, expected in zip(net.parameters(), optimiser.masters.values(), want, strict=True):
        torch.testing.assert_close(master.detach(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(weight, master.to(dtype))
        assert weight.data_ptr() != master.data_ptr()


def test_states_in_8_bits_update_nearly_alike():
    """Four steps of up to 0.01 each; a moment is off by up to 1/256 of its block's largest, more for the smallest."""
    pytest.importorskip("bitsandbytes", reason="the lora extra is not installed")
    gap = (trained("8bit")[0].weight - trained("float32")[0].weight).abs()
    assert 0 < gap.mean() < 2e-4
    assert gap.max() < 1e-2


def test_states_are_paged_where_the_weights_are_on_a_gpu_not_where_there_is_one(monkeypatch):
    optim = pytest.importorskip("bitsandbytes", reason="the lora extra is not installed").optim
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert type(Optimiser(network(), OptimiserSection(states="8bit")).adamw) is optim.AdamW8bit


def test_8_bit_states_that_are_loaded_lie_where_the_optimiser_puts_them(monkeypatch):
    """Such as in memory that is paged: a plain tensor in its place would never leave a full GPU."""
    optim = pytest.importorskip("bitsandbytes", reason="the lora extra is not installed").optim
    saved, made = trained("8bit")[1], []
    placed = optim.AdamW8bit.get_state_buffer
    monkeypatch.setattr(
        optim.AdamW8bit, "get_state_buffer", lambda *given, **named: made.append(placed(*given, **named)) or made[-1]
    )
    _, fresh = trained("8bit", steps=0)
    fresh.load_state(saved.state())
    held = [value for state in fresh.adamw.state.values() for name, value in state.items() if name.startswith("state")]
    assert held
    assert all(any(value is buffer for buffer in made) for value in held)
    for name, value in saved.state().items():
        assert torch.equal(fresh.state()[name], value), name


def test_8_bit_states_take_8_bits():
    pytest.importorskip("bitsandbytes", reason="the lora extra is not installed")
    states = {name: value for name, value in trained("8bit")[1].state().items() if value.dtype == torch.uint8}
    assert {value.numel() for value in states.values()} == {64 * 128}
