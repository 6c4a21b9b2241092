"""Methods that others published: the real trainer's gradient, on a policy that can be solved, against autograd of the
objective typed from the paper, and rewards against lines of their public code (`published.py`)."""

import math
import re
from dataclasses import replace
from pathlib import Path

import published
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solvable import END, EOS, START, A, B, Solvable, rollout

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection, departures, resolve
from nrt_cli.methods import FORMULAS, METHODS, PAPER, SCHEMES, Group, Signals
from nrt_cli.objective.losses import group_advantage
from nrt_cli.records import Example, RolloutGroup, SampledAnswer
from nrt_cli.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
EXAMPLE = Example(0, "made", (B, A), (A, B, EOS))
TRACES = ((A, END), (END,), (A, B, A), (B, EOS), (A, A, END), (B, A, END))
"""Ended by t_end, empty, by the cap and by eos."""
OPENING = (*EXAMPLE.prompt_ids, START)
ANSWERS = (((A, B, EOS), True), ((B, A), False), ((EOS,), True), ((A, EOS), True), ((B, B), False), ((B, EOS), True))
"""Sampled after them, where a method asks for answers, and whether they end."""


def config_of(method, **objective):
    settings = {"weights": {"format": 0.0, **objective.pop("weights", {})}, "length_divisor": 1, **objective}
    train = {"batch_size": 1, "minibatch_size": 1}
    rollout = {"max_trace_tokens": 3, "group_size": len(TRACES)}
    return resolve({"method": method, "objective": settings, "train": train, "rollout": rollout})


def moved(config):
    """A policy that has left its start, a slow copy behind it, and a group that it sampled."""
    backend = Solvable(config)
    generator = torch.Generator().manual_seed(5)
    for table, size in ((backend.table, 0.7), (backend.slow, 0.4)):
        for k in range(len(TRACES)):
            ids = (*OPENING, *TRACES[k])
            for i in range(len(ids) + 4):
                prefix = (*ids, END, A, B)[:i]
                made = backend.logits(prefix, "reference")
                table.setdefault(prefix, made + size * torch.randn(5, dtype=torch.float64, generator=generator))
    backend.table = {prefix: weight.requires_grad_() for prefix, weight in backend.table.items()}
    drawn = [rollout(ids, (-1.0,) * len(ids), backend.tokens) for ids in TRACES]
    if "answers" in config.asks:
        said = [SampledAnswer(ids, (-1.0,) * len(ids), finished) for ids, finished in ANSWERS]
        drawn = [replace(each, answer=answer) for each, answer in zip(drawn, said, strict=True)]
    return backend, RolloutGroup(EXAMPLE, tuple(drawn))


def as_published(backend, whose="policy"):
    """What a paper's formulas take: what the policy chose, the trace, and whether it closed it."""
    logprob = lambda prefix, token: backend.logits(prefix, whose).log_softmax(-1)[token]  # noqa: E731
    credited = backend.config.objective.credit_eos
    traces = []
    for ids in TRACES:
        z = ids[:-1] if ids[-1] in (END, EOS) else ids
        chosen = ids if ids[-1] == END or (ids[-1] == EOS and credited) else z
        traces.append((chosen, z, ids[-1] == END))
    sampled = ANSWERS if "answers" in backend.config.asks else ()
    return published.Group(logprob, OPENING, END, EXAMPLE.answer_ids, traces, sampled)


CASES = {
    "verifree": ({}, lambda b: published.loss_verifree(as_published(b))),
    "rlpr": ({}, lambda b: published.loss_rlpr(as_published(b))),
    "jepo": ({}, lambda b: published.loss_jepo_scaled(as_published(b))),
    "jepo, Eq. 7": ({"advantage": "raw"}, lambda b: published.loss_jepo(as_published(b))),
    "logp-mean": (
        {"token_signal": "derived", "balance": "off"},
        lambda b: published.loss_logp_mean(as_published(b)),
    ),
    "r3": ({}, lambda b: published.loss_r3(as_published(b))),
    "latro": ({}, lambda b: published.loss_latro(as_published(b), as_published(b, "reference"))),
    "latro, beta 1": (
        {"reward_kl": 1.0},
        lambda b: published.loss_latro(as_published(b), as_published(b, "reference"), 1.0),
    ),
    "rlp": ({}, lambda b: published.loss_rlp(as_published(b))),
    "nover": ({}, lambda b: published.loss_nover(as_published(b), as_published(b, "follower"))),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_papers_objective(case):
    """On policy, so that no ratio matters; the loss on think tokens, which is the paper's, off for `logp-mean` too."""
    objective, written = CASES[case]
    config = config_of(case.partition(",")[0], **objective)
    backend, group = moved(config)
    kept = {}
    step = backend.step
    backend.step = lambda rate: (kept.update(backend.gradient()[0]), step(rate))[1]
    slow = dict(backend.slow)
    Trainer(config, backend, 1).update([group])
    backend.slow = slow
    fresh, _ = moved(config)
    table = fresh.table
    want = torch.autograd.grad(written(fresh), list(table.values()), allow_unused=True)
    largest = 0.0
    for (prefix, weight), grad in zip(table.items(), want, strict=True):
        zero = torch.zeros_like(weight)
        torch.testing.assert_close(
            kept.get(prefix, zero), zero if grad is None else grad, rtol=1e-9, atol=1e-12, msg=f"after {prefix}"
        )
        largest = max(largest, float(kept.get(prefix, zero).abs().max()))
    assert largest > 1e-3


def shown(backend, method, memory=None):
    """The group as a method is shown it, by slow arithmetic."""
    policy, start, slow = (as_published(backend, whose) for whose in ("policy", "reference", "follower"))
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence([row.detach() for row in rows], batch_first=True)  # noqa: E731
    asked = {
        "traces": {
            "trace_logprobs_KZ": pad(policy.traces),
            "trace_mask_KZ": pad([torch.ones_like(row) for row in policy.traces]).bool(),
            "lengths_K": torch.tensor(policy.lengths),
            "closed_K": torch.tensor(policy.closed),
        },
        "reference": {"reference_logprobs_KT": start.answers, "reference_trace_KZ": pad(start.traces)},
        "answers": {"finished_K": torch.tensor([finished for _, finished in ANSWERS])},
        "follower": {"follower_logprobs_KT": slow.answers},
    }
    fields = {name: each for what in METHODS[method].asks for name, each in asked[what].items()}
    return Group.of(policy.answers, policy.null, backend.config.objective, memory=memory or {}, **fields)


def test_verifree_is_its_public_code():
    config = config_of("verifree")
    backend, _ = moved(config)
    group = as_published(backend)
    want = published.verifree_code(group.answers.sum(-1), group.traces, group.answers, len(TRACES))
    one, other = (
        torch.autograd.grad(loss, list(backend.table.values()), allow_unused=True, retain_graph=True)
        for loss in (want, published.loss_verifree(group))
    )
    assert all(
        (a is None) == (b is None) and (a is None or torch.allclose(a, b)) for a, b in zip(one, other, strict=True)
    )
    signals = METHODS["verifree"].signals(shown(backend, "verifree"))
    probabilities = group.answers.sum(-1).exp().detach()
    torch.testing.assert_close(signals.reward_K, probabilities)
    torch.testing.assert_close(signals.token_KT, probabilities[:, None].expand(-1, 3))


def test_rlpr_is_its_public_code():
    config = config_of("rlpr")
    backend, _ = moved(config)
    group = as_published(backend)
    score_b, score_a = group.answers.detach().exp().mean(-1).tolist(), float(group.null.detach().exp().mean())
    scores, advantages = published.rlpr_code(score_b, score_a, group.formed)
    signals = METHODS["rlpr"].signals(shown(backend, "rlpr"))
    torch.testing.assert_close(signals.reward_K, scores)
    torch.testing.assert_close(group_advantage(signals, "none", "unbiased-std").advantage_K, advantages)
    assert min(score_b) < score_a < max(score_b)


def test_latro_is_its_public_code():
    """But for the gradient by y*, which the paper has and the code multiplies with sft_penalty, 0 by default."""
    config = config_of("latro", weights={"answer": 0.0})
    backend, _ = moved(config)
    group, start = as_published(backend), as_published(backend, "reference")
    total = lambda rows: torch.stack([row.sum() for row in rows])  # noqa: E731
    logprobs = total(group.traces)
    want = published.latro_code(
        group.answers.sum(-1).detach(), logprobs.detach(), total(start.traces), logprobs, config.objective.reward_kl
    )
    signals = METHODS["latro"].signals(shown(backend, "latro"))
    advantage_K = group_advantage(signals, "none", "rloo").advantage_K
    assert float(-(advantage_K * logprobs.detach()).mean()) == pytest.approx(float(want.detach()))


@given(seed=st.integers(0, 10_000), size=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_nover_is_its_public_code(seed, size):
    generator = torch.Generator().manual_seed(seed)
    slow_KT = -3 * torch.rand(size, 4, generator=generator, dtype=torch.float64)
    lengths_K = torch.randint(1, 5, (size,), generator=generator)
    closed_K, finished_K = (torch.rand(size, generator=generator) < 0.8 for _ in range(2))
    asked = {"follower_logprobs_KT": slow_KT, "lengths_K": lengths_K, "closed_K": closed_K, "finished_K": finished_K}
    group = Group.of(slow_KT, slow_KT[0], ObjectiveSection(), **asked)
    want = published.nover_code((-slow_KT.mean(-1)).tolist(), lengths_K.tolist(), (closed_K & finished_K).tolist())
    assert METHODS["nover"].signals(group).reward_K.tolist() == pytest.approx(want)


def test_rlprs_filter_follows_the_mean_deviation_as_its_code_does():
    generator = torch.Generator().manual_seed(0)
    method, memory, steps = METHODS["rlpr"], {}, []
    for _ in range(30):
        steps.append((0.02 + 0.2 * torch.rand(4, generator=generator)).tolist())
    bounds = published.rlpr_bounds(steps)
    for deviations, bound in zip(steps, bounds, strict=True):
        kept = []
        for spread in (*deviations, *([] if bound is None else [0.999 * bound, 1.001 * bound])):
            # Two traces whose rewards differ by sqrt(2) spread have that sample deviation.
            c = torch.tensor([[0.1], [0.1 + math.sqrt(2) * spread / 0.9]], dtype=torch.float64)
            ended = torch.tensor([True, True])
            asked = {"closed_K": ended, "finished_K": ended, "memory": memory}
            signals = method.signals(Group.of(c.log(), c[0].log(), ObjectiveSection(), **asked))
            assert signals.noted["deviation"] == pytest.approx(spread)
            kept.append(signals)
        if bound is None:
            assert all(each.kept for each in kept)
        else:
            assert [each.kept for each in kept] == [each.noted["deviation"] >= bound for each in kept]
            assert [each.kept for each in kept[-2:]] == [False, True]
        memory = method.remember(memory, kept[: len(deviations)])
    assert [bound is None for bound in bounds] == [True] * 10 + [False] * 20


def test_r3_leaves_out_groups_with_the_least_telling_tokens():
    backend, _ = moved(config_of("r3"))
    method = METHODS["r3"]
    signals = method.signals(shown(backend, "r3"))
    rewards, sigma = published.rewards_r3(as_published(backend))
    torch.testing.assert_close(signals.reward_K, rewards)
    assert signals.noted["most"] == pytest.approx(max(sigma))
    noted = [Signals(**vars(signals) | {"noted": {"most": each}}) for each in (0.3, 0.1, 0.9, *[0.5] * 17)]
    least = method.remember({}, noted)["least"]
    assert least == 0.5  # of 20 the lowest tenth are 0.1 and 0.3
    for memory, kept in (({}, True), ({"least": max(sigma)}, True), ({"least": 1.01 * max(sigma)}, False)):
        assert method.signals(shown(backend, "r3", memory)).kept is kept


def test_jepo_in_logs_where_probabilities_are_none():
    """Answers of -4000 nats and less: R_k = log((e^0 + e^-1 + e^-3) / 3) less the log of half the others' sum."""
    logprobs_KT = torch.tensor([[-4000.0], [-4001.0], [-4003.0]], dtype=torch.float64)
    signals = METHODS["jepo"].signals(Group.of(logprobs_KT, logprobs_KT[1], ObjectiveSection()))
    p = [1, math.exp(-1), math.exp(-3)]
    want = [math.log(sum(p) / 3) - math.log((sum(p) - each) / 2) for each in p]
    assert signals.reward_K.tolist() == pytest.approx(want)
    assert float(signals.base) == pytest.approx(math.log((sum(p) + p[1]) / 4) - math.log(sum(p) / 3))
    assert signals.token_KT[:, 0].tolist() == pytest.approx([each / sum(p) for each in p])
    one = METHODS["jepo"].signals(Group.of(logprobs_KT[:1], logprobs_KT[0], ObjectiveSection()))
    assert one.reward_K.tolist() == [-4000.0]


def test_advantages_of_log_p_per_token_are_those_of_log_p():
    backend, _ = moved(config_of("logp-mean"))
    group = shown(backend, "logp")
    mean, whole = (METHODS[name].signals(group) for name in ("logp-mean", "logp"))
    for how in ("std", "unbiased-std"):
        one, other = (group_advantage(each, "clip", how).advantage_K for each in (mean, whole))
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(mean.token_KT, whole.token_KT / 3)


def test_advantages_that_are_scaled_by_hand():
    """R of 0, 1 and 5: mean 2, deviation sqrt(14/3) = 2.16."""
    found = Signals.of(torch.tensor([0.0, 1.0, 5.0]), torch.tensor(0.0), torch.zeros(3, 1))
    advantage = group_advantage(found, "none", "scaled")
    assert advantage.advantage_K.tolist() == pytest.approx([0, 1 / math.sqrt(14 / 3), 1])
    alike = Signals.of(torch.tensor([2.0, 2.0]), torch.tensor(0.0), torch.zeros(2, 1))
    assert group_advantage(alike, "none", "scaled").dead


def test_the_published_ones_are_what_their_names_alone_train():
    verifree, rlpr = resolve({"method": "VeriFree"}), resolve({"method": "RLPR"})
    assert (verifree.method, rlpr.method) == ("verifree", "rlpr")
    objective = verifree.objective
    assert (objective.advantage, objective.baseline, objective.token_signal) == ("rloo", "none", "derived")
    objective = rlpr.objective
    assert (objective.advantage, objective.clip_low, objective.clip_high) == ("unbiased-std", 0.2, 0.27)
    assert objective.weights.answer == 0
    for name, method in METHODS.items():
        assert departures(resolve({"method": name})) == []
        assert method.paper == (name in PAPER)
        assert name not in SCHEMES or name in FORMULAS, f"{name} has no `formulas`, its row in Table 1"
    assert PAPER == ("logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p")


def test_where_paper_and_code_differ_stands_in_the_decisions():
    """A row for each method of this file, and the rows that settings' descriptions name."""
    _, _, text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("### Methods that others published")
    named = {int(n): row for n, row in re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)}
    for name in ("verifree", "rlpr", "jepo", "r3", "latro", "nover"):
        assert METHODS[name].defaults
        assert any(f"`{name}`" in row.partition("|")[0] for row in named.values()), name
    assert "latro" in named[36]  # as objective.reward_kl says
    assert "jepo" in named[34]  # and objective.advantage


def test_the_papers_versions_are_what_they_were():
    for name, old in (("p", "VeriFree (paper's version)"), ("am", "RLPR (paper's version)")):
        assert METHODS[name].title == old
        assert methods.own_name(old) == name
        assert METHODS[name].asks == frozenset()
        assert METHODS[name].defaults == {}
