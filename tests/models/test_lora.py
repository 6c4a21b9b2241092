"""LoRA: what is trained, that nothing changes at first, and that the exported model is the one that was trained."""

import weakref
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers.core_model_loading import revert_weight_conversion

from nrt_cli.backends.local.policy import Policy
from nrt_cli.backends.vllm_engine import weights_of
from nrt_cli.config import ModelSection
from nrt_cli.models import lora
from nrt_cli.models.export import export_checkpoint
from nrt_cli.models.loading import load_model
from nrt_cli.models.lora import merged_weights
from nrt_cli.models.prepare import prepare_model
from nrt_cli.objective.rows import Row
from nrt_cli.records import Example
from nrt_cli.training.trainer import LocalTrainer

pytest.importorskip("peft", reason="the lora extra is not installed")

EXAMPLES = [Example(i, "made", tuple(range(5 + i, 25 + 2 * i)), (7, 8, 9, 1)) for i in range(4)]
ROWS = [Row((5, 6, 7, 8, 9, 10), 3), Row((5, 6, 7, 20, 21), 3)]
LORA = ("method=am", "model.lora.rank=4", "model.lora.alpha=8", "optimiser.lr=0.01")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory, make_tiny_tokenizer, make_tiny_source):
    root = tmp_path_factory.mktemp("lora")
    source = make_tiny_source(root / "source", make_tiny_tokenizer(), tied=request.param)
    prepare_model(str(source), root / "prepared", dtype="float32")
    return root / "prepared"


@pytest.fixture
def config(folder, tiny_config):
    return lambda *more: tiny_config(*LORA, f"model.path={folder}", *more)


def load(path):
    return load_model(ModelSection(path=str(path), dtype="float32", device="cpu"))


@torch.no_grad()
def logits(model):
    return model(torch.arange(3, 30)[None], use_cache=False).logits


def test_nothing_changes_before_the_first_step(config, folder):
    torch.testing.assert_close(logits(LocalTrainer(config(), 3).backend.policy.model), logits(load(folder)))


@pytest.mark.parametrize("shape", [(7,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapted_layer_is_no_further_from_the_formula_than_pefts_own_with_gradients(config, dtype, shape):
    """W x + b + s B A x in float64. In bfloat16 peft's are rounded less often, in float32 alike."""
    torch.manual_seed(0)
    model = LocalTrainer(config(f"model.dtype={dtype}"), 3).backend.policy.model
    for i, layer in enumerate(filter(lora.is_low_rank, model.modules())):
        base, low, high = layer.base_layer, layer.lora_A[lora.ADAPTER].weight, layer.lora_B[lora.ADAPTER].weight
        if i % 2:
            bias_O = torch.randn(base.out_features, dtype=base.weight.dtype)
            base.bias = torch.nn.Parameter(bias_O, requires_grad=False)
        torch.nn.init.normal_(high, std=0.1)
        x = torch.randn(*shape, base.in_features, dtype=base.weight.dtype, requires_grad=True)
        push = torch.randn(*shape, base.out_features, dtype=base.weight.dtype)

        def found(forward, x=x, low=low, high=high, push=push):
            out = forward(x)
            return [out.detach(), *torch.autograd.grad((out * push.to(out.dtype)).sum(), (x, low, high))]

        def exact(x, base=base, low=low, high=high):
            bias = base.bias.double() if base.bias is not None else 0.0
            return x.double() @ base.weight.double().T + bias + 2.0 * x.double() @ low.double().T @ high.double().T

        want = found(exact)
        for mine, pefts, true in zip(found(layer), found(partial(type(layer).forward, layer)), want, strict=True):
            assert mine.dtype == pefts.dtype
            size = true.double().abs().max()
            gap, its = ((each.double() - true.double()).abs().max() / size for each in (mine, pefts))
            assert gap <= max(2 * its, 1e-6 if dtype == "float32" else 0.01)


def test_low_rank_updates_and_the_rows_of_new_tokens_are_trained(config, folder):
    engine = LocalTrainer(config(), 3)
    trained = {name for name, weight in engine.backend.policy.model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "trainable_tokens" in name for name in trained)
    base = dict(load(folder).named_parameters())
    engine.train_step(EXAMPLES, 1)
    after = dict(merged_weights(engine.backend.policy.model))
    assert set(after) == set(base)
    new = {engine.backend.tokens.start_id, engine.backend.tokens.end_id}
    moved = {name for name in base if not torch.equal(base[name], after[name])}
    # In the first step only B moves, and with it every linear layer.
    assert {name for name in moved if "proj" in name} == {name for name in base if "proj" in name}
    tables = {name for name in base if "embed" in name or "lm_head" in name}
    assert moved >= tables
    assert not any("norm" in name for name in moved)
    for name in tables:
        rows = (base[name] != after[name]).any(-1).nonzero()[:, 0].tolist()
        assert set(rows) == new


def test_packed_equals_padded_with_gradients(config):
    found = []
    for packing in ("auto", "off"):
        engine = LocalTrainer(config(f"engine.packing={packing}"), 3)
        engine.train_step(EXAMPLES, 1)
        logprobs_N, entropies_N = engine.backend.policy.score(ROWS)
        (logprobs_N.sum() + entropies_N.sum()).backward()
        grads = {n: w.grad for n, w in engine.backend.policy.model.named_parameters() if w.requires_grad}
        assert all(grad.any() for name, grad in grads.items() if "lora_B" in name)
        found.append((logprobs_N, grads))
    (packed, packed_grads), (padded, padded_grads) = found
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    for name in packed_grads:
        torch.testing.assert_close(packed_grads[name], padded_grads[name], rtol=1e-4, atol=1e-5)


def test_the_export_is_what_was_trained_and_so_is_its_checkpoint(config, folder, tmp_path):
    engine = LocalTrainer(config(), 3)
    groups = engine.train_step(EXAMPLES, 1)[1]
    engine.backend.export(tmp_path / "export", tmp_path)
    export_checkpoint(engine.backend.optimiser.state(), config(), folder, tmp_path / "checkpoint")
    want = logits(engine.backend.policy.model)
    assert not torch.allclose(want, logits(load(folder)), atol=1e-4)
    for made in ("export", "checkpoint"):
        model = load(tmp_path / made)
        assert not any("lora" in name for name in model.state_dict())
        torch.testing.assert_close(logits(model), want, rtol=1e-4, atol=1e-5)
    # What the sampler computed, prepacked layers and all, is what the policy says.
    assert groups
    rows = engine.layout.rows(groups[0])
    plain, _ = Policy(load(tmp_path / "export"), 0).score(rows)
    torch.testing.assert_close(plain, engine.backend.policy.score(rows)[0], rtol=1e-4, atol=1e-5)


def test_in_bfloat16_updates_stay_float32_and_what_is_merged_has_the_type_of_the_model(config, tmp_path):
    # Rollouts multiply with merged weights, where the processor can in oneDNN's layout, which takes no second type.
    engine = LocalTrainer(config("model.dtype=bfloat16"), 3)
    assert {w.dtype for w in engine.backend.policy.model.parameters() if w.requires_grad} == {torch.float32}
    groups = [group for step in (1, 2) for group in engine.train_step(EXAMPLES, step)[1]]
    assert {weight.dtype for _, weight in merged_weights(engine.backend.policy.model)} == {torch.bfloat16}
    engine.backend.export(tmp_path / "export", tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "export" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    rows = engine.layout.rows(groups[-1])
    plain, _ = Policy(load(tmp_path / "export"), 0).score(rows)
    torch.testing.assert_close(plain, engine.backend.policy.score(rows)[0].float(), rtol=0.05, atol=0.05)


def test_a_sampler_gets_merged_weights_a_layer_at_a_time(config, monkeypatch):
    """All at once are a second model; transformers joins and splits weights within a layer."""
    engine = LocalTrainer(config("model.dtype=bfloat16"), 3)
    engine.train_step(EXAMPLES, 1)
    model = engine.backend.policy.model
    want = revert_weight_conversion(model, dict(merged_weights(model)))
    made, merge, most = [], lora.merged, 0

    def watched(layer):
        weight = merge(layer)
        made.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(lora, "merged", watched)
    for name, weight in weights_of(model):
        assert torch.equal(weight, want.pop(name))
        most = max(most, sum(each() is not None for each in made))
        del weight
    assert not want
    in_layer = sum("layers.0." in name and hasattr(each, "base_layer") for name, each in model.named_modules())
    assert most <= in_layer < len(made)


def test_states_are_restored(config, tmp_path):
    one, two = LocalTrainer(config(), 3), LocalTrainer(config(), 3)
    one.train_step(EXAMPLES, 1)
    two.load(tmp_path, one.state(), {name: value.clone() for name, value in one.backend.save().items()})
    for engine in (one, two):
        engine.train_step(EXAMPLES, 2)
    for name, value in one.backend.save().items():
        assert torch.equal(value, two.backend.save()[name]), name
