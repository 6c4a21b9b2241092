"""The sampler against plain forwards, the softmax it should follow, and transformers' own greedy decoding.

Shapes: R rows, C trace cap, V vocabulary.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampling_checks import (
    EXAMPLES,
    PROMPTS,
    first_tokens_follow_the_softmax,
    plain_logprobs,
    reports_plain_logprobs,
    sampled_ids,
    sharpen,
)

from nrt_cli.backends.local import attention, decoding
from nrt_cli.backends.local.decoding import Batch, SharedBatch, pick, sample_groups
from nrt_cli.config import ModelSection, RolloutSection
from nrt_cli.models.loading import load_model, load_tokenizer
from nrt_cli.objective import logprobs
from nrt_cli.objective.rows import trace_prompt
from nrt_cli.records import Example
from nrt_cli.text.tokens import think_tokens


def sharpened(path, checkpointing=False):
    """The tiny model with a larger head, so that its distributions are far from uniform and depend on the prompt."""
    section = ModelSection(path=str(path), dtype="float32", device="cpu", gradient_checkpointing=checkpointing)
    return sharpen(load_model(section))


@pytest.fixture(params=["shared", "padded"])
def model(request, tiny_model_dir):
    """With one copy of each prompt, and with transformers' own cache."""
    model = sharpened(tiny_model_dir)
    if request.param == "shared":
        assert attention.enable(model) is None
    return model


@pytest.fixture(scope="module")
def tokens(tiny_model_dir):
    return think_tokens(load_tokenizer(tiny_model_dir), "<|think_start|>", "<|think_end|>")


def settings_of(**values):
    return RolloutSection(**{"max_trace_tokens": 8, **values})


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_tokens_follow_the_softmax(temperature, model, tokens):
    rows = settings_of(max_trace_tokens=1, batch_rows=4000, temperature=temperature)
    (group,) = sample_groups(model, EXAMPLES[:1], tokens, rows, 4000, (0, 0))
    first_tokens_follow_the_softmax(group, model, tokens, temperature)


def test_the_cumulative_distribution_is_inverted_at_its_boundaries():
    """p = (0, 1/4, 0, 1/2, 1/4, 0): token 1 below 0.25, token 3 below 0.75, token 4 below 1, never a zero one."""
    probs = [0, 0.25, 0, 0.5, 0.25, 0]
    logits_RV = torch.tensor(probs, dtype=torch.float64).log().expand(7, -1)
    uniforms_R = torch.tensor([0, 0.25 - 1e-9, 0.25 + 1e-9, 0.5, 0.75 - 1e-9, 0.75 + 1e-9, np.nextafter(1, 0)])
    picked_R, logprobs_R = pick(logits_RV, uniforms_R.double())
    assert picked_R.tolist() == [1, 1, 3, 3, 3, 4, 4]
    assert logprobs_R.tolist() == pytest.approx([math.log(probs[token]) for token in picked_R])


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), vocabulary=st.sampled_from([2, 7, 50_000]), spread=st.sampled_from([0.1, 3, 60]))
def test_a_token_of_probability_zero_is_never_picked(seed, vocabulary, spread):
    """Half of the tokens are masked out, and float32 rounds others to zero where logits are far apart."""
    generator = torch.Generator().manual_seed(seed)
    logits_V = spread * torch.randn(vocabulary, generator=generator)
    logits_V[torch.randperm(vocabulary, generator=generator)[: vocabulary // 2]] = -math.inf
    random = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
    uniforms_R = torch.tensor([0.0, 5e-324, 2**-53, *random, 1 - 2**-53], dtype=torch.float64)
    picked_R, logprobs_R = pick(logits_V.expand(len(uniforms_R), -1), uniforms_R)
    assert logits_V.log_softmax(-1)[picked_R].double().exp().gt(0).all()
    torch.testing.assert_close(logprobs_R, logits_V.log_softmax(-1)[picked_R])
    assert picked_R.diff()[:2].ge(0).all()
    assert picked_R.max() == picked_R[-1], "a larger uniform never picks an earlier token"


def test_a_grid_of_uniforms_picks_each_token_in_proportion(monkeypatch):
    logits_V = 2 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    grid_R = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    picked_R, logprobs_R = pick(logits_V.expand(10_000, -1), grid_R)
    monkeypatch.setattr(logprobs, "BLOCK_ELEMENTS", 999 * 30)
    in_blocks_R, their_logprobs_R = pick(logits_V.expand(10_000, -1), grid_R)
    assert torch.equal(in_blocks_R, picked_R)
    assert torch.equal(their_logprobs_R, logprobs_R)
    expected_V = 10_000 * logits_V.double().softmax(-1)
    assert (picked_R.bincount(minlength=30) - expected_V).abs().max() < 1.01


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reported_logprobs_are_those_of_a_plain_forward(temperature, model, tokens):
    groups = sample_groups(model, EXAMPLES, tokens, settings_of(temperature=temperature), 3, (7, 1))
    reports_plain_logprobs(groups, model, tokens, temperature, 2e-5)


def test_a_trace_does_not_depend_on_the_company_it_keeps(model, tokens):
    sample = lambda examples, rows: sample_groups(model, examples, tokens, settings_of(batch_rows=rows), 3, (7, 1))  # noqa: E731
    together = sample(EXAMPLES, 64)
    for others in (
        sample(EXAMPLES, 4),
        sample(EXAMPLES, 2),  # fewer than a group
        [sample([example], 64)[0] for example in EXAMPLES],
        sample(EXAMPLES[::-1], 7)[::-1],
    ):
        for group, other in zip(together, others, strict=True):
            for rollout, twin in zip(group.rollouts, other.rollouts, strict=True):
                assert (rollout.trace_ids, rollout.stop) == (twin.trace_ids, twin.stop)
                assert rollout.sampler_logprobs == pytest.approx(twin.sampler_logprobs, abs=2e-5)


@pytest.mark.parametrize(("rows", "batches"), [(7, [6, 3]), (3, [3, 3, 3]), (2, [2, 2, 2, 2, 1])])
def test_no_more_rows_at_a_time_than_asked_for_and_whole_groups_if_one_fits(rows, batches, model, tokens, monkeypatch):
    added = []
    for kind in (Batch, SharedBatch):
        add = kind.add
        monkeypatch.setattr(
            kind, "add", lambda self, prompts, add=add: added.append(len(prompts)) or add(self, prompts)
        )
    sample_groups(model, EXAMPLES[:3], tokens, settings_of(batch_rows=rows), 3, (7, 1))
    assert added == batches


def test_every_trace_has_a_random_stream_of_its_own(model, tokens):
    twice = [EXAMPLES[0], Example(99, "made", PROMPTS[0], (3, 1))]
    sample = lambda *key: sample_groups(model, twice, tokens, settings_of(), 4, key)  # noqa: E731
    ids = lambda groups: [rollout.trace_ids for group in groups for rollout in group.rollouts]  # noqa: E731
    one = ids(sample(0, 1))
    assert len(set(one)) == 8, "four traces of each of two examples with the same prompt"
    assert not set(one) & set(ids(sample(0, 2)))
    assert not set(one) & set(ids(sample(1, 1)))
    assert one == ids(sample(0, 1))


@pytest.fixture
def scripted(monkeypatch):
    """Makes the sampler choose given tokens: `script[example][k]`, then token 2 for ever."""

    def install(script):
        def stream(length, *key):
            *_, example, k = key
            return np.array([*script[example][k], *[2] * length][:length], dtype=float)

        def choose(logits_RV, uniforms_R, temperature):
            ids_R = uniforms_R.long()
            return ids_R, logits_RV.log_softmax(-1).gather(-1, ids_R[:, None])[:, 0]

        monkeypatch.setattr(decoding, "random_stream", stream)
        monkeypatch.setattr(decoding, "pick", choose)

    return install


def test_a_trace_ends_at_t_end_at_eos_or_at_the_cap(scripted, model, tokens):
    """Rows finish at different times, so the cache is thinned on the way; those left must not notice."""
    end, eos, start = tokens.end_id, tokens.eos_id, tokens.start_id
    script = [
        [(5, 6, end), (end,), (7, 8, 9, 10, 11), (5, eos)],
        [(start,), (12, 13, 14, 15, end), (16, 17, 18, 19, 20, 21), (22, 23, 24, end, 25)],
    ]
    scripted(script)
    groups = sample_groups(model, EXAMPLES[:2], tokens, settings_of(max_trace_tokens=5), 4, (0, 0))
    found = [[(r.trace_ids, r.stop, r.forced) for r in group.rollouts] for group in groups]
    assert found == [
        [
            ((5, 6), "end", False),
            ((), "end", False),
            ((7, 8, 9, 10, 11), "cap", True),
            ((5,), "eos", True),
        ],
        [
            ((), "eos", True),
            ((12, 13, 14, 15), "end", False),
            ((16, 17, 18, 19, 20), "cap", True),
            ((22, 23, 24), "end", False),
        ],
    ]
    for group in groups:
        prompt = trace_prompt(group.example, tokens)
        for rollout in group.rollouts:
            want = plain_logprobs(model, prompt, sampled_ids(rollout, tokens))
            # One number per token, and one for what ended the trace.
            assert len(rollout.sampler_logprobs) == len(rollout.trace_ids) + (rollout.stop != "cap")
            assert rollout.sampler_logprobs == pytest.approx(want, abs=2e-5)


def test_a_trace_gets_what_its_answer_leaves_of_a_response(model, tokens):
    """Of 8 tokens, t_end takes one and y* its own; a bounded trace begins as an unbounded one does."""
    answers = [(3, 1), (3, 3, 3, 3, 3, 1), (3, 3, 3, 3, 3, 3, 1)]
    examples = [replace(example, answer_ids=ids) for example, ids in zip(EXAMPLES[:3], answers, strict=True)]
    free = sample_groups(model, examples, tokens, settings_of(), 4, (0,))
    bounded = sample_groups(model, examples, tokens, settings_of(max_response_tokens=8), 4, (0,))
    for group, whole, cap in zip(bounded, free, (5, 1, 1), strict=True):
        assert max(len(rollout.trace_ids) for rollout in group.rollouts) == cap
        for rollout, other in zip(group.rollouts, whole.rollouts, strict=True):
            assert rollout.trace_ids == other.trace_ids[:cap]
            assert rollout.stop == (other.stop if len(sampled_ids(other, tokens)) <= cap else "cap")
            assert len(rollout.sampler_logprobs) == len(rollout.trace_ids) + (rollout.stop != "cap")


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stop_ids=st.sets(st.integers(3, 60), max_size=25),
    seed=st.integers(0, 99),
    batch_rows=st.sampled_from([1, 3, 8]),
)
def test_no_trace_holds_what_may_not_stand_in_one(stop_ids, seed, batch_rows, model, tokens):
    """Whatever ends the model's answers; nor does a trace depend on its batch, whose rows end at different times."""
    several = replace(tokens, stop_ids=tuple(stop_ids))
    alone = settings_of(max_trace_tokens=12, batch_rows=1)
    together = settings_of(max_trace_tokens=12, batch_rows=batch_rows)
    found, same = (sample_groups(model, EXAMPLES[:2], several, rows, 4, (seed,)) for rows in (together, alone))
    assert [[r.trace_ids for r in g.rollouts] for g in found] == [[r.trace_ids for r in g.rollouts] for g in same]
    for rollout in (rollout for group in found for rollout in group.rollouts):
        assert not {*rollout.trace_ids} & {tokens.start_id, tokens.end_id, tokens.eos_id, *stop_ids}
        assert (rollout.stop == "cap") == (len(rollout.trace_ids) == 12 and rollout.stop not in ("end", "eos"))


@pytest.fixture
def read(monkeypatch):
    """What the rows in flight are told, step by step."""
    told = []
    for kind in (Batch, SharedBatch):
        step = kind.step
        monkeypatch.setattr(kind, "step", lambda self, ids, live, step=step: told.append(ids) or step(self, ids, live))
    return told


def test_a_row_that_ends_makes_room_for_one_that_waits(scripted, model, tokens, read):
    scripted([[[tokens.end_id]], [[5, 6, 7, tokens.end_id]], [[8, tokens.end_id]]])
    groups = sample_groups(model, EXAMPLES[:3], tokens, settings_of(batch_rows=2), 1, (0,))
    assert [group.rollouts[0].trace_ids for group in groups] == [(), (5, 6, 7), (8,)]
    assert read == [[5], [6, 8], [7]]


def test_decoding_stops_when_every_row_has(scripted, model, tokens, read):
    scripted([[[5, tokens.end_id]], [[tokens.end_id]]])
    groups = sample_groups(model, EXAMPLES[:2], tokens, settings_of(), 1, (0,))
    assert [group.rollouts[0].trace_ids for group in groups] == [(5,), ()]
    assert read == [[5]], "the second row has left, and nothing is read once the first has ended too"


def test_the_coldest_traces_are_those_of_greedy_decoding_by_transformers(model, tokens):
    rows = settings_of(max_trace_tokens=12, temperature=1e-5)
    for group in sample_groups(model, EXAMPLES, tokens, rows, 1, (0,)):
        prompt = list(trace_prompt(group.example, tokens))
        want = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(tokens.trace_ends),
            pad_token_id=tokens.pad_id,
        )[0, len(prompt) :].tolist()
        assert sampled_ids(group.rollouts[0], tokens) == tuple(want)
        assert len(set(want)) > 1, "the model says more than one thing"


def test_gradient_checkpointing_does_not_change_what_is_sampled(tiny_model_dir, model, tokens):
    """transformers drops the cache of a model in training mode that checkpoints, with a warning and no error."""
    checkpointing = sharpened(tiny_model_dir, checkpointing=True)
    plain = sample_groups(model, EXAMPLES, tokens, settings_of(), 3, (0, 0))
    other = sample_groups(checkpointing, EXAMPLES, tokens, settings_of(), 3, (0, 0))
    for group, twin in zip(plain, other, strict=True):
        assert [r.trace_ids for r in group.rollouts] == [r.trace_ids for r in twin.rollouts]
        assert group.rollouts[0].sampler_logprobs == pytest.approx(twin.rollouts[0].sampler_logprobs, abs=2e-5)
    assert checkpointing.training, "the update that follows still checkpoints"
