"""The real trainer on a policy that can be solved, against Algorithm 1 and against exact gradients of the objective."""

import itertools
import math
from dataclasses import replace

import algorithm_1
import pytest
import torch
from solvable import END, EOS, START, A, B, Judge, Solvable, rollout

from nrt_cli import methods
from nrt_cli.config import resolve
from nrt_cli.errors import TrainingError
from nrt_cli.methods import METHODS, Group, slopes
from nrt_cli.records import Example, Rollout, RolloutGroup
from nrt_cli.training.trainer import Trainer

SAMPLING = [name for name, method in METHODS.items() if method.samples]
EXAMPLES = [
    Example(0, "made", (A,), (B, EOS)),
    Example(1, "made", (B, A), (A, A, EOS)),
    Example(2, "made", (B,), (EOS,)),
]
CAP = 3


def config_of(method, *layers, **settings):
    rate = 20.0 if {"preset": "reference"} in layers else 0.3  # whose divisor is 512
    rollout = {"max_trace_tokens": CAP, "group_size": 4}
    base = {"method": method, "rollout": rollout, "optimiser": {"lr": rate, "warmup": 0.0}}
    return resolve(base, {"train": {"batch_size": 3, "minibatch_size": 1}}, *layers, settings)


def groups_of(backend, tokens):
    """Traces that are ragged, empty, ended by t_end, by eos and by the cap, with what the policy says of each."""
    shapes = [
        [(A, END), (END,), (A, B, A), (B, EOS)],
        [(B, B, B), (A, A, END), (EOS,), (A, A, END)],
        [(A, A, B), (A, END)],
    ]
    groups = []
    for example, shape in zip(EXAMPLES, shapes, strict=True):
        opening = (*example.prompt_ids, *(() if tokens.start_id is None else (START,)))
        rollouts = []
        for ids in shape:
            tau = backend.config.rollout.temperature
            said = [
                float((backend.logits((*opening, *ids[:i])).detach() / tau).log_softmax(-1)[token])
                for i, token in enumerate(ids)
            ]
            rollouts.append(rollout(ids, tuple(said), tokens))
        groups.append(RolloutGroup(example, tuple(rollouts)))
    return groups


SETTINGS = {
    "as it is": {},
    "tempered": {"rollout": {"temperature": 0.7, "max_trace_tokens": CAP, "group_size": 4}},
    "whole batch": {"train": {"batch_size": 3, "minibatch_size": None}},
    "entropy and kl": {"objective": {"entropy_weight": 0.3, "kl_weight": 0.2}, "rollout": {"temperature": 1.3}},
    "forced ends": {"objective": {"credit_forced_end": True, "credit_eos": False}},
    "eos": {"objective": {"credit_eos": True}, "rollout": {"temperature": 0.6}},
    "sequence": {"objective": {"ratio": "sequence"}},
    "unbalanced": {"objective": {"balance": "off"}},
    "cispo": {"objective": {"ratio": "cispo", "clip_low": 0.01, "clip_high": 0.01}},
    "clipped": {"objective": {"ratio": "ppo", "clip_low": 0.01, "clip_high": 0.01, "tis_cap": 0.9}},
    "raw, bare": {"objective": {"advantage": "raw", "baseline": "none", "null_trace": "bare"}},
    "capped mean": {"objective": {"weight_cap": 1.5, "weighted_sum": "mean", "advantage": "rloo"}},
}
CASES = [(method, preset, "as it is") for method in SAMPLING for preset in ("nrt", "paper", "as-run", "reference")]
CASES += [("ws-neg-log-p", preset, name) for name in SETTINGS if name != "as it is" for preset in ("nrt", "paper")]
CASES += [("gm", preset, name) for name in list(SETTINGS)[1:6] for preset in ("paper", "reference")]
WRITTEN = [case for case in CASES if case[0] in ("logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p", "control")]


@pytest.mark.parametrize(("method", "preset", "name"), WRITTEN)
def test_three_steps_are_algorithm_1s(method, preset, name):
    """A step per minibatch, the later ones under a policy that the earlier ones have moved; then all of it again."""
    if "weight_cap" in SETTINGS[name].get("objective", {}) and "weight_cap" not in METHODS[method].reads:
        pytest.skip("no weights to cap")
    config = config_of(method, {"preset": preset}, SETTINGS[name])
    backend = Solvable(config)
    trainer, tokens = Trainer(config, backend, updates=6), backend.tokens
    slow = Solvable(config)
    for _ in range(2):
        groups = groups_of(slow, tokens)
        pi_old = {prefix: weight.detach().clone() for prefix, weight in slow.table.items()}
        old = lambda ids: rows(slow, ids, pi_old)  # noqa: B023, E731
        size = config.train.minibatch_size or len(groups)
        for start in range(0, len(groups), size):
            models = (lambda ids: rows(slow, ids)), old, (lambda ids: rows(slow, ids, {}))
            want = algorithm_1.loss(*models, groups[start : start + size], config, tokens)
            for weight in slow.table.values():
                weight.grad = None
            want.backward()
            with torch.no_grad():
                for weight in slow.table.values():
                    if weight.grad is not None:
                        weight -= config.optimiser.lr * weight.grad
        trainer.update(groups_of(backend, tokens))
        for prefix, weight in backend.table.items():
            torch.testing.assert_close(weight, slow.logits(prefix), rtol=1e-9, atol=1e-11)
    moves = [(weight - backend.logits(p, "reference")).abs().max() for p, weight in backend.table.items()]
    assert max(moves) > 1e-3


def rows(backend, ids, instead=None):
    """Logits after each prefix of `ids`; with `instead`, of a table as it was (what is not in it: as it was made)."""
    prefixes = [tuple(ids[: i + 1]) for i in range(len(ids))]
    if instead is None:
        return torch.stack([backend.logits(prefix) for prefix in prefixes])
    return torch.stack([instead.get(prefix, backend.logits(prefix, "reference")) for prefix in prefixes])


# --- exact gradients of the objective --------------------------------------------------------------------------------


def every_trace():
    """All that can be sampled: shorter ones end by t_end or eos or t_start, those of the cap by nothing."""
    words = [word for n in range(CAP) for word in itertools.product((A, B), repeat=n)]
    return [(*word, last) for word in words for last in (END, EOS, START)] + list(itertools.product((A, B), repeat=CAP))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("method", [name for name in SAMPLING if METHODS[name].policy_gradient])
def test_the_expected_gradient_is_that_of_the_objective(method, temperature):
    """Eq. 22 against d/dtheta sum_z pi(z|x) f(c(z)), whatever the method: it is enough to be one of the table.

    A sampler that draws each of all traces twice, as likely as any other, makes a group's loss their sum weighed by
    pi(z|x): the ratio pi / pi_old multiplies both terms (Eq. 8). The first minibatch is another question's, so
    that what the sampler says counts as pi_old; what traces share, or else all others, is held, as `prove` has it.
    """
    objective = {"baseline": "none", "advantage": "raw", "ratio": "sequence", "length_divisor": 1, "credit_eos": True}
    objective |= {"token_signal": "derived", "balance": "off", "weights": {"answer": 1.0, "format": 0.0}}
    settings = {"objective": objective}
    if "token signals" in METHODS[method].free:
        pytest.skip("whose token signals are on purpose of no objective")
    if "guide" in METHODS[method].asks:
        pytest.skip("whose mixture test_guided.py enumerates")
    tempered = {"rollout": {"temperature": temperature, "max_trace_tokens": CAP, "group_size": 2}}
    config = config_of(method, settings, tempered, {"train": {"batch_size": 2, "minibatch_size": 1}})
    backend, example = Solvable(config), EXAMPLES[1]
    traces = every_trace() * 2
    share = -math.log(len(traces))
    drawn = [rollout(ids, (share, *(0.0,) * (len(ids) - 1)), backend.tokens) for ids in traces]
    kept = {}
    step = backend.step
    backend.step = lambda rate: (kept.update(backend.gradient()[0]), step(rate))[1]
    Trainer(config, backend, 2).update([groups_of(backend, backend.tokens)[2], RolloutGroup(example, tuple(drawn))])

    fresh, opening = Solvable(config), (*example.prompt_ids, START)
    policy = lambda ids: rows(fresh, ids)  # noqa: E731
    log_pi, answers = [], []
    for ids in traces:
        z = ids[:-1] if ids[-1] in backend.tokens.trace_ends else ids
        chosen = [(fresh.logits((*opening, *ids[:i])) / temperature).log_softmax(-1)[t] for i, t in enumerate(ids)]
        log_pi.append(torch.stack(chosen).sum())
        before = (*opening, *z, END)
        answers.append(torch.stack(algorithm_1.logprobs(policy, [*before, *example.answer_ids], len(before))))
    log_pi, answers = torch.stack(log_pi), torch.stack(answers)
    assert float(log_pi.exp().sum().detach()) == pytest.approx(2.0)
    null = torch.stack(algorithm_1.logprobs(policy, [*opening, END, *example.answer_ids], len(opening) + 1))
    asked = {}
    if METHODS[method].asks:
        # A trace is its one token here: what its log pi is made of does not matter.
        policy, start = (path_logprobs(fresh, opening, traces, temperature, whose) for whose in ("policy", "reference"))
        asked = {"trace_logprobs_KZ": policy[:, None], "reference_trace_KZ": start[:, None]}
    group, half = Group.of(answers, null, config.objective, **asked), len(traces) // 2
    reward_K, held = METHODS[method].signals(group).reward_K[:half], slopes(METHODS[method], group)
    read = {prefix: weight for prefix, weight in fresh.table.items() if prefix[: len(opening)] == opening}
    matches = []
    for slope_KT in held.values():
        # By the product rule: pi(z) moves with the reward as it is, and the reward as it is; each is there twice.
        pi_K, moved_K = 2 * log_pi[:half].exp(), (slope_KT * answers[:half]).sum(-1)
        objective = (pi_K * reward_K + pi_K.detach() * moved_K).sum()
        want = torch.autograd.grad(objective, list(read.values()), allow_unused=True, retain_graph=True)
        zero = torch.zeros(5, dtype=torch.float64)
        pairs = [(-kept.get(p, zero), zero if grad is None else grad) for p, grad in zip(read, want, strict=True)]
        matches.append(all(torch.allclose(*pair, rtol=1e-9, atol=1e-12) for pair in pairs))
    assert any(matches)


def path_logprobs(backend, opening, traces, temperature, whose):
    """log pi(z | x) of each trace, without gradient."""
    step = lambda ids, i: (backend.logits((*opening, *ids[:i]), whose) / temperature).log_softmax(-1)[ids[i]]  # noqa: E731
    return torch.stack([sum(step(ids, i).detach() for i in range(len(ids))) for ids in traces])


# --- the trainer's own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(method, tmp_path):
    config = config_of(method, {"optimiser": {"schedule": "cosine", "warmup": 0.2, "lr": 0.5}})
    only = {0, 2} if method == "mix" else None
    made = lambda: Trainer(config, Solvable(config), 12, verifier=Judge(lambda ids: float(ids[0] == B), only))  # noqa: E731
    straight = made()
    records = [straight.train_step(EXAMPLES, step)[0].metrics for step in range(1, 5)]
    first, second = made(), made()
    for step in (1, 2):
        first.train_step(EXAMPLES, step)
    second.load(tmp_path, first.state(), first.backend.save())
    again = [second.train_step(EXAMPLES, step)[0].metrics for step in (3, 4)]
    assert first.updated == 6
    assert second.updated == straight.updated == 12
    for one, other in zip(records[2:], again, strict=True):
        timed = [key for key in one if "second" in key or key == "mfu"]
        assert {k: v for k, v in one.items() if k not in timed} == pytest.approx(
            {k: v for k, v in other.items() if k not in timed}, rel=0, abs=0, nan_ok=True
        )
    want, got = straight.backend.save(), second.backend.save()
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_each_update_has_its_own_rate():
    config = config_of("am", {"optimiser": {"schedule": "linear", "warmup": 0.25, "lr": 0.6}})
    trainer, rates = Trainer(config, Solvable(config), updates=4), []
    step = trainer.backend.step
    trainer.backend.step = lambda rate: (rates.append(rate), step(rate))[1]
    report = trainer.update(groups_of(trainer.backend, trainer.backend.tokens)).metrics
    trainer.update(groups_of(trainer.backend, trainer.backend.tokens)[:1])
    # Of four updates one warms up, to half the rate; then 1 - progress over the other three.
    assert rates == pytest.approx([0.3, 0.6, 0.4, 0.2])
    assert report["lr"] == pytest.approx((0.3 + 0.6 + 0.4) / 3)


def test_only_what_has_to_be_is_scored_before_a_step():
    """The first minibatch's null trace rides along; later ones' are scored, and traces if the sampler is another's."""
    config = config_of("am")
    for exact, scored in ((True, 2), (False, 2 * 5)):
        backend = Solvable(config)
        backend.exact_sampler = exact
        seen, score = [], backend.score
        backend.score = lambda rows, whose="policy", seen=seen, score=score: (
            seen.extend(rows),
            score(rows, whose),
        )[1]
        groups = [RolloutGroup(e, tuple(Rollout((A,), (-1.0, -1.0), "end", END) for _ in range(4))) for e in EXAMPLES]
        Trainer(config, backend, 3).update(groups)
        assert len(seen) == scored
        assert backend.calls == ["score", "step", "step", "step"]


@pytest.mark.parametrize(
    ("engine", "remedy"), [("verl", "free_cache_engine=false"), ("local", "rollout.engine=native")]
)
@pytest.mark.parametrize(("dtype", "off", "explained"), [("float32", 0.01, "0.006"), ("bfloat16", 0.3, "0.2")])
def test_a_sampler_of_other_weights_stops_the_run(engine, remedy, dtype, off, explained):
    config = config_of("am", {"model": {"dtype": dtype}, "engine": {"name": engine}})
    trainer = Trainer(config, backend := Solvable(config), updates=4)
    backend.exact_sampler = False
    trainer.require_own_samples(trainer.train_step(EXAMPLES, 1)[0])
    sample = backend.sample

    def garbled(*asked):
        other = lambda r: replace(r, sampler_logprobs=tuple(each + off for each in r.sampler_logprobs))  # noqa: E731
        return [replace(group, rollouts=tuple(map(other, group.rollouts))) for group in sample(*asked)]

    backend.sample = garbled
    with pytest.raises(
        TrainingError, match=rf"{off} nats on average \(rounding in {dtype} explains {explained}"
    ) as told:
        trainer.require_own_samples(trainer.train_step(EXAMPLES, 2)[0])
    assert remedy in told.value.remedy


def test_methods_of_the_table_are_all_reached():
    assert set(SAMPLING) == {name for name, _, _ in CASES}
    assert methods.CONTROL.name in SAMPLING
