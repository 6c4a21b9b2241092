"""One optimiser step of the local backend against Algorithm 1, followed line by line in plain PyTorch.

The reference (`algorithm_1.py`) uses nothing of `nrt_cli`: one trace at a time, no padding, whole logits, and
`torch.optim.AdamW`.
"""

import copy
import math
from dataclasses import replace

import algorithm_1
import pytest
import torch
from solvable import batch

from nrt_cli.errors import TrainingError
from nrt_cli.training.trainer import LocalTrainer

SCHEMES = ["logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p"]


def groups_of(engine):
    """Three prompts of four traces each."""
    return batch(engine.backend.tokens)[:3]


def logprobs(model, before, after):
    """log pi of each token of `after`, from whole logits."""
    policy = lambda ids: model(torch.tensor([ids])).logits[0]  # noqa: E731
    return torch.stack(algorithm_1.logprobs(policy, [*before, *after], len(before)))


def double_engine(config):
    """An engine in float64, since Adam turns rounding noise in a near-zero gradient into a whole step."""
    engine = LocalTrainer(config, updates=3)
    engine.backend.policy.model.double()
    return engine


TEMPERED = ("rollout.temperature=0.7", "objective.entropy_weight=0.1")


@pytest.mark.parametrize("extra", [(), ("objective.credit_eos=true", "rollout.temperature=0.7"), TEMPERED])
@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_paper_step_equals_algorithm_1(scheme, packing, extra, tiny_config):
    config = tiny_config("preset=paper", f"method={scheme}", f"engine.packing={packing}", *extra)
    engine = double_engine(config)
    slow = copy.deepcopy(engine.backend.policy.model)
    groups = groups_of(engine)
    policy = lambda ids: slow(torch.tensor([ids])).logits[0]  # noqa: E731
    algorithm_1.loss(policy, policy, policy, groups, config, engine.backend.tokens).backward()
    torch.nn.utils.clip_grad_norm_(slow.parameters(), 1.0)
    torch.optim.AdamW(slow.parameters(), lr=1e-3, weight_decay=0.01).step()

    engine.update(groups)
    # A thousandth of Adam's step of 1e-3: transformers' norms round to float32 inside, whatever the model's dtype.
    for (name, fast), reference in zip(engine.backend.policy.model.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def gradients(engine, batch):
    """Of a step that is not taken; and its metrics."""
    kept = {}
    engine.backend.optimiser.step = lambda rate: (
        kept.update({n: m.grad.clone() for n, m in engine.backend.optimiser.masters.items()}) or 1.0
    )
    return kept, engine.update(batch).metrics


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("scheme", ["gm", "ws-neg-log-p"])
@pytest.mark.parametrize(
    "extra", [(), ("objective.entropy_weight=0.1", "rollout.temperature=0.7"), ("preset=reference",)]
)
def test_results_do_not_depend_on_the_micro_batch_or_on_padding(scheme, extra, packing, tiny_config):
    """10000 tokens hold the batch, 80 a packed group, 40 none: those are scored first and redone in parts."""
    tokens = ("tokens.think_start=<|think_start|>", "tokens.think_end=<|think_end|>")
    settings = (f"method={scheme}", f"engine.packing={packing}", *extra, *tokens)
    found = {}
    for budget in (10000, 80, 40):
        engine = double_engine(tiny_config(*settings, f"train.micro_batch_tokens={budget}"))
        found[budget] = gradients(engine, groups_of(engine))
    whole, metrics = found.pop(10000)
    assert any(gradient.any() for gradient in whole.values())
    for parts, cut_metrics in found.values():
        assert metrics["loss"] == pytest.approx(cut_metrics["loss"], rel=1e-6)
        for name in whole:
            torch.testing.assert_close(whole[name], parts[name], rtol=1e-5, atol=3e-8)


def with_traces(engine):
    """Three examples, of which the second has no reference trace."""
    first, second, third = [group.example for group in groups_of(engine)]
    return [replace(first, trace_ids=(9, 8, 7, 9)), second, replace(third, trace_ids=(5,))]


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.traces=true",),
        ("data.traces=true", "engine.packing=off"),
        ("data.traces=true", "train.micro_batch_tokens=1"),
        ("data.traces=true", "train.micro_batch_tokens=1", "engine.packing=off"),
    ],
)
def test_sft_is_cross_entropy_on_trace_and_answer(tiny_config, settings):
    """Eq. 1, one sequence at a time: all that follows x, both think tokens included; x y* where there is no trace."""
    engine = double_engine(tiny_config("method=sft", *settings))
    slow = copy.deepcopy(engine.backend.policy.model)
    start, end = engine.backend.tokens.start_id, engine.backend.tokens.end_id
    examples = with_traces(engine) if settings else [group.example for group in groups_of(engine)]
    loss, answers, count = 0.0, [], 0
    for e in examples:
        output = [*([start, *e.trace_ids, end] if e.trace_ids else []), *e.answer_ids]
        scored = logprobs(slow, e.prompt_ids, output)
        loss, count = loss - scored.sum(), count + len(output)
        answers += scored[-len(e.answer_ids) :].tolist()
    (loss / count).backward()
    kept, report = gradients(engine, examples)
    assert count == sum(len(e.answer_ids) for e in examples) + (4 + 2 + 1 + 2 if settings else 0)
    assert report["tokens"] == count + sum(len(e.prompt_ids) for e in examples)
    assert report["loss"] == pytest.approx(float(loss.detach()) / count, rel=1e-5)
    assert report["answer_logprob_per_token"] == pytest.approx(sum(answers) / len(answers), rel=1e-5)
    for name, reference in slow.named_parameters():
        torch.testing.assert_close(kept[name], reference.grad, rtol=1e-5, atol=3e-8)


def test_sft_on_traces_is_scored_with_traces_of_its_own(tiny_config):
    """Held-out pairs say log P(y*) after a sampled and after the null trace, whatever reference traces they have."""
    engine = double_engine(tiny_config("method=sft", "data.traces=true"))
    examples = with_traces(engine)
    scores = engine.held_out(examples)
    assert scores.groups
    assert scores.null_logprobs
    as_if_none = engine.held_out([replace(e, trace_ids=()) for e in examples])
    assert scores.answer_logprobs == as_if_none.answer_logprobs


def test_held_out_scores_are_means_of_whole_forward_passes(tiny_config):
    engine = double_engine(tiny_config("method=am"))
    examples = [group.example for group in groups_of(engine)]
    scores = engine.held_out(examples)
    groups = scores.groups
    tokens, model = engine.backend.tokens, engine.backend.policy.model
    totals = []
    for group in groups:
        x, y, z = group.example.prompt_ids, group.example.answer_ids, group.rollouts[0].trace_ids
        openings = ([*x, tokens.start_id, *z, tokens.end_id], [*x, tokens.start_id, tokens.end_id])
        by_token = [logprobs(model, opening, y).detach() for opening in openings]
        totals.append([float(logprobs.sum()) for logprobs in by_token])
        i = len(totals) - 1
        assert scores.answer_logprobs[i] == pytest.approx(by_token[0].tolist(), rel=1e-6)
        assert scores.null_logprobs[i] == pytest.approx(by_token[1].tolist(), rel=1e-6)
    with_trace, with_null = (sum(column) / 3 for column in zip(*totals, strict=True))
    lengths = [len(group.rollouts[0].trace_ids) for group in groups]
    answer_tokens = sum(len(group.example.answer_ids) for group in groups)
    assert scores.metrics == pytest.approx(
        {
            "answer_logprob": with_trace,
            "null_logprob": with_null,
            "gain": with_trace - with_null,
            "perplexity": math.exp(-3 * with_trace / answer_tokens),
            "null_perplexity": math.exp(-3 * with_null / answer_tokens),
            "trace_length": sum(lengths) / 3,
            "forced_share": sum(group.rollouts[0].stop != "end" for group in groups) / 3,
        },
        rel=1e-6,
    )


def test_the_first_batch_is_scored_packed_and_padded_before_anything_is_learned(tiny_config, monkeypatch):
    """Where packing is wrong, the run goes on padded, says so, and learns what one without packing does."""
    padded = LocalTrainer(tiny_config("method=am", "engine.packing=off"), updates=3)
    groups = groups_of(padded)
    padded.update(groups)
    engine, said = LocalTrainer(tiny_config("method=am"), updates=3), []
    engine.backend.tell(said.append)
    assert not said
    # Tails to their prefix and no further: nothing in the shapes would tell.
    monkeypatch.setattr("nrt_cli.backends.local.attention.join", lambda out, sums, part, part_sums: (out, sums))
    engine.update(groups)
    assert not engine.backend.policy.packing
    assert [text for text in said if "nothing is packed, since packed and padded log-probabilities of Llama" in text]
    models = (trainer.backend.policy.model for trainer in (engine, padded))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)


def test_sampling_from_weights_that_are_not_the_policys_is_refused(tiny_config):
    engine = LocalTrainer(tiny_config("method=am"), updates=3)
    examples = [group.example for group in groups_of(engine)]
    engine.sample(examples, 1)
    layer = engine.backend.policy.model.get_output_embeddings()
    stale = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    layer.forward = stale.forward  # what a copy that nobody updates would do
    sampled = engine.backend.sampler._next_logprobs()
    del layer.forward
    engine.backend.sampler._next_logprobs = lambda: sampled
    with pytest.raises(TrainingError, match="native sampler does not run the trainer's weights"):
        engine.sample(examples, 2)
