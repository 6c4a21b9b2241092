"""`guided`: traces sampled with the answer in view, corrected to the policy that does not see it; all enumerated."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from solvable import END, EOS, START, A, B, Solvable, rollout

from nrt_cli.config import ObjectiveSection, resolve
from nrt_cli.errors import ConfigError
from nrt_cli.methods import METHODS, Group, Signals
from nrt_cli.objective.losses import group_advantage
from nrt_cli.records import Example, RolloutGroup
from nrt_cli.training.trainer import Trainer, guided_traces

EXAMPLE = Example(1, "made", (B, A), (A, EOS))
CAP = 2
OPENING = (*EXAMPLE.prompt_ids, START)
SEEING = (*EXAMPLE.prompt_ids, *EXAMPLE.answer_ids, *EXAMPLE.prompt_ids, START)
ENDS = (END, EOS, START)
WORDS = [word for n in range(CAP) for word in itertools.product((A, B), repeat=n)]
EVERY = [(*word, last) for word in WORDS for last in ENDS] + list(itertools.product((A, B), repeat=CAP))


def config_of(method="guided", **objective):
    settings = {"weights": {"format": 0.0, "answer": 0.0}, "length_divisor": 1, "credit_eos": True, **objective}
    return resolve(
        {"method": method, "objective": settings, "optimiser": {"lr": 0.3, "warmup": 0.0}},
        {"rollout": {"max_trace_tokens": CAP, "group_size": 2}, "train": {"batch_size": 1, "minibatch_size": None}},
    )


def log_path(table, prefix, ids):
    return torch.stack([table.logits((*prefix, *ids[:i])).log_softmax(-1)[token] for i, token in enumerate(ids)]).sum()


def gain_of(table, z):
    """log P(y*|x,z), and by how much that is above the null trace's."""
    words = z[:-1] if z[-1] in ENDS else z
    with_z = log_path(table, (*OPENING, *words, END), EXAMPLE.answer_ids).detach()
    return with_z, with_z - log_path(table, (*OPENING, END), EXAMPLE.answer_ids).detach()


def group_of(table, traces, guided):
    made = [rollout(z, (-1.0,) * len(z), table.tokens) for z in traces]
    parts = [
        type(r)(r.trace_ids, r.sampler_logprobs, r.stop, r.ended_by, None, g) for r, g in zip(made, guided, strict=True)
    ]
    return RolloutGroup(EXAMPLE, tuple(parts))


def gradient_of(config, table, group):
    trainer, kept = Trainer(config, table, 1), {}
    step = table.step
    table.step = lambda rate: (kept.update(table.gradient()[0]), (0.0, table.gradient()[1]))[1]
    trainer.update([group])
    table.step = step
    return {prefix: grad.clone() for prefix, grad in kept.items()}


@pytest.mark.parametrize("seed", [0, 3])
def test_over_all_that_can_be_sampled_the_estimator_is_the_policys_own_gradient(seed):
    """sum over z1 ~ pi and z2 ~ q of pi(z1) q(z2) g(z1, z2) is d/dtheta sum_z pi(z) m(z) R(z), R and m held.

    m is 0 for what is smuggled: what log q - log pi pays for half of the gain or more.
    """
    config = config_of(advantage="raw")
    table = Solvable(config, seed=seed, scale=1.5)
    log_pi = {z: log_path(table, OPENING, z) for z in EVERY}
    log_q = {z: log_path(table, SEEING, z).detach() for z in EVERY}
    assert sum(float(each.detach().exp()) for each in log_pi.values()) == pytest.approx(1)
    assert sum(float(each.exp()) for each in log_q.values()) == pytest.approx(1)
    want, smuggled = torch.zeros((), dtype=torch.float64), 0
    for z in EVERY:
        reward, gain = gain_of(table, z)
        paid = max(0.0, float(log_q[z] - log_pi[z].detach()))
        counts = not (gain > 0 and min(paid, float(gain)) >= 0.5 * gain)
        smuggled += not counts
        want = want - log_pi[z].exp() * reward * counts
    assert 0 < smuggled < len(EVERY)
    wanted = dict(
        zip(table.table, torch.autograd.grad(want, list(table.table.values()), allow_unused=True), strict=True)
    )
    found = {}
    for one, two in itertools.product(EVERY, repeat=2):
        share = float((log_pi[one].detach() + log_q[two]).exp())
        for prefix, grad in gradient_of(config, table, group_of(table, (one, two), (False, True))).items():
            found[prefix] = found.get(prefix, 0.0) + share * grad
    for prefix, grad in wanted.items():
        torch.testing.assert_close(
            found.get(prefix, torch.zeros(5, dtype=torch.float64)),
            torch.zeros(5, dtype=torch.float64) if grad is None else grad,
            rtol=1e-9,
            atol=1e-12,
        )
    assert max(float(grad.abs().max()) for grad in wanted.values() if grad is not None) > 1e-2


@given(st.lists(st.tuples(st.floats(-900, 900), st.booleans()), min_size=2, max_size=8), st.floats(-3, 3))
def test_no_weight_is_above_k_over_the_traces_that_see_nothing(traces, shift):
    """So nothing has to be cut off, and what is far likelier with the answer in view weighs next to nothing."""
    gaps, guided = zip(*traces, strict=True)
    if all(guided):
        guided = (False, *guided[1:])
    logprobs_KT = torch.linspace(-4, -1, len(gaps), dtype=torch.float64)[:, None]
    made = {"guided_K": torch.tensor(guided), "guide_gap_K": torch.tensor(gaps, dtype=torch.float64)}
    group = Group(logprobs_KT, torch.tensor([shift], dtype=torch.float64), ObjectiveSection(), **made)
    weight_K = METHODS["guided"].signals(group).weight_K
    assert bool(weight_K.isfinite().all())
    assert float(weight_K.max()) <= len(gaps) / (len(gaps) - sum(guided)) * (1 + 1e-12)


def test_what_is_smuggled_counts_for_nothing_and_what_is_computed_for_all():
    """Gains of 4 nats: a trace that was surprising by all of it, one by a quarter, one by nothing; and no gain."""
    logprobs_KT, null_T = torch.tensor([[-1.0], [-1.0], [-1.0], [-6.0]]).double(), torch.tensor([-5.0]).double()
    gap_K, guided_K = torch.tensor([4.0, 1.0, -0.5, 3.0]).double(), torch.tensor([True, True, False, False])
    group = Group(logprobs_KT, null_T, ObjectiveSection(), guided_K=guided_K, guide_gap_K=gap_K)
    weights = METHODS["guided"].signals(group).weight_K.tolist()
    assert weights == pytest.approx([0, *(1 / (0.5 + 0.5 * math.exp(gap)) for gap in (1.0, -0.5, 3.0))])


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=8),
    st.sampled_from(["std", "unbiased-std", "mean", "raw", "scaled", "rloo"]),
    st.sampled_from(["clip", "none"]),
)
def test_weights_of_one_change_nothing(rewards, how, baseline):
    reward_K = torch.tensor(rewards, dtype=torch.float64)
    plain = Signals.of(reward_K, torch.tensor(0.1).double(), torch.zeros(len(rewards), 1))
    weighed = Signals(*list(vars(plain).values())[:5], weight_K=torch.ones_like(reward_K))
    one, other = (group_advantage(each, baseline, how, 1e-3) for each in (plain, weighed))
    torch.testing.assert_close(one.advantage_K, other.advantage_K, rtol=1e-6, atol=1e-9)


def test_a_group_that_is_dead_gets_a_signal():
    """Four traces that see nothing are alike, and no better than the null trace; two that see y* work it out.

    These are as likely without y*, once their first word is written: they gain 6 nats and are surprised by 2.
    """
    alike, worked = torch.full((4, 1), -7.0).double(), torch.full((2, 1), -1.0).double()
    null_T, gap_K = torch.tensor([-7.0]).double(), torch.tensor([0.0] * 4 + [2.0] * 2).double()
    for name in ("logp", "p", "gm"):
        dead = METHODS[name].signals(Group(alike, null_T, ObjectiveSection()))
        assert group_advantage(dead).dead
    guided_K = torch.tensor([False] * 4 + [True] * 2)
    group = Group(torch.cat([alike, worked]), null_T, ObjectiveSection(), guided_K=guided_K, guide_gap_K=gap_K)
    advantage = group_advantage(METHODS["guided"].signals(group), "none")
    assert not advantage.dead
    assert advantage.advantage_K[4:].min() > 0 > advantage.advantage_K[:4].max()
    assert float(advantage.advantage_K.sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("minibatch", [None, 1])
def test_a_step_samples_scores_and_weighs(minibatch):
    """Later minibatches weigh by the policy that sampled; the sampler's gap is of traces that see nothing."""
    config = config_of(weights={"format": 0.3, "answer": 1.0})
    train = config.train.model_copy(update={"batch_size": 2, "minibatch_size": minibatch})
    rollout = config.rollout.model_copy(update={"group_size": 4})
    config = config.model_copy(update={"train": train, "rollout": rollout})
    table, examples = Solvable(config), [EXAMPLE, Example(0, "made", EXAMPLE.prompt_ids, (B, EOS))]
    table.exact_sampler = False
    update, groups = Trainer(config, table, 2).train_step(examples, 1)
    assert [[r.guided for r in group.rollouts] for group in groups] == [[False, False, True, True]] * 2
    fresh = Solvable(config)
    for group, score in zip(groups, update.scores, strict=True):
        opening, example = (*group.example.prompt_ids, START), group.example
        seeing = (*example.prompt_ids, *example.answer_ids, *example.prompt_ids, START)
        weights = score.loss.reward.weight_K
        for k, r in enumerate(group.rollouts):
            ids = (*r.trace_ids, *(() if r.ended_by is None else (r.ended_by,)))
            gap = float((log_path(fresh, seeing, ids) - log_path(fresh, opening, ids)).detach())
            assert float(weights[k]) in (0.0, pytest.approx(1 / (0.5 + 0.5 * math.exp(gap))))
    assert update.metrics["sampler_gap"] < 1e-9
    assert 0 < update.metrics["effective_traces"] <= 4


def test_how_many_see_the_answer():
    assert [guided_traces(8, share) for share in (0.01, 0.25, 0.5, 0.99)] == [1, 2, 4, 7]
    with pytest.raises(ConfigError, match="group_size=1"):
        resolve({"method": "guided", "rollout": {"group_size": 1}, "objective": {"advantage": "raw"}})
