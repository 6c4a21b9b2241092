"""`rlvr` and `mix`: answers sampled after traces, their verdicts, and the gradient of the whole completion."""

import itertools
import math

import pytest
import torch
from solvable import END, EOS, START, A, B, Judge, Solvable, rollout

from nrt_cli.config import resolve
from nrt_cli.records import Example, RolloutGroup, SampledAnswer, Verdict
from nrt_cli.training.trainer import Trainer

EXAMPLE, OTHER = Example(1, "made", (B, A), (A, A, EOS)), Example(2, "made", (B,), (B, EOS))
CAP, ANSWER_CAP = 2, 2


def config_of(method, *layers):
    rollout = {"max_trace_tokens": CAP, "max_answer_tokens": ANSWER_CAP, "group_size": 2}
    base = {"method": method, "rollout": rollout, "optimiser": {"lr": 0.3, "warmup": 0.0}}
    return resolve(base, {"train": {"batch_size": 2, "minibatch_size": 1}}, *layers)


def worth(ids):
    """A verdict as it may be: right, half right, and wrong."""
    return {(B, EOS): 1.0, (A, EOS): 0.5}.get(tuple(ids), 0.0)


def sequences(cap, ends):
    """All that can be sampled up to a cap, where some tokens end it."""
    words = [word for n in range(cap) for word in itertools.product((A, B), repeat=n)]
    return [(*word, last) for word in words for last in ends] + list(itertools.product((A, B), repeat=cap))


def of_prefix(table, prefix, ids, temperature):
    """log pi of tokens after a prefix, by a table of logits."""
    chosen = [(table.logits((*prefix, *ids[:i])) / temperature).log_softmax(-1)[token] for i, token in enumerate(ids)]
    return torch.stack(chosen).sum()


def completions(table, example, temperature):
    """Of every trace and answer: log pi of both, the verdict, and the two."""
    found = []
    for z in sequences(CAP, (END, EOS, START)):
        words = z[:-1] if z[-1] in (END, EOS, START) else z
        opening = (*example.prompt_ids, START)
        for y in sequences(ANSWER_CAP, (EOS, END, START)):
            log_pi = of_prefix(table, opening, z, temperature)
            log_pi = log_pi + of_prefix(table, (*opening, *words, END), y, temperature)
            found.append((log_pi, worth(y) if y[-1] == EOS else 0.0, z, y))
    return found


def group_of(table, example, parts, said):
    """A group of given traces and answers, whose sampler said `said` of each trace's first token and 0 of all else."""
    rollouts = []
    for z, y in parts:
        answer = SampledAnswer(y, (0.0,) * len(y), y[-1] == EOS, Verdict(worth(y) if y[-1] == EOS else 0.0))
        trace = rollout(z, (said, *(0.0,) * (len(z) - 1)), table.tokens)
        rollouts.append(type(trace)(trace.trace_ids, trace.sampler_logprobs, trace.stop, trace.ended_by, answer))
    return RolloutGroup(example, tuple(rollouts))


def gradient_of(trainer, groups):
    """What the last minibatch of an update moves the table by, by prefix."""
    kept, step = {}, trainer.backend.step
    trainer.backend.step = lambda rate: (kept.clear(), kept.update(trainer.backend.gradient()[0]), step(rate))[2]
    trainer.update(groups)
    return kept


def same(kept, fresh, loss):
    read = {p: w for p, w in fresh.table.items() if p[: len(EXAMPLE.prompt_ids)] == EXAMPLE.prompt_ids}
    wanted = torch.autograd.grad(loss, list(read.values()), allow_unused=True)
    zero, some = torch.zeros(5, dtype=torch.float64), False
    for prefix, want in zip(read, wanted, strict=True):
        want = zero if want is None else want
        torch.testing.assert_close(kept.get(prefix, zero), want, rtol=1e-9, atol=1e-12)
        some = some or bool(want.abs().max() > 1e-6)
    assert some
    assert all(not bool(grad.any()) for prefix, grad in kept.items() if prefix not in read)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_expected_gradient_is_that_of_the_expected_verdict(temperature):
    """d/dtheta sum_z sum_y pi(z|x) pi(y|x,z) v(y), both factors moving; a sampler draws all alike."""
    objective = {"baseline": "none", "advantage": "raw", "ratio": "sequence", "length_divisor": 1, "credit_eos": True}
    tempered = {"temperature": temperature, "max_trace_tokens": CAP, "max_answer_tokens": ANSWER_CAP}
    config = config_of("rlvr", {"objective": objective | {"weights": {"format": 0.0}}}, {"rollout": tempered})
    backend, fresh = Solvable(config), Solvable(config)
    every = completions(fresh, EXAMPLE, temperature)
    assert float(sum(log_pi.detach().exp() for log_pi, *_ in every)) == pytest.approx(1.0)
    first = group_of(backend, OTHER, [((A, END), (B, EOS))] * 2, 0.0)
    drawn = group_of(backend, EXAMPLE, [(z, y) for *_, z, y in every], -math.log(len(every)))
    kept = gradient_of(Trainer(config, backend, 2), [first, drawn])
    same(kept, fresh, -sum(log_pi.exp() * verdict for log_pi, verdict, *_ in every))


@pytest.mark.parametrize("preset", ["nrt", "paper", "as-run"])
def test_a_groups_gradient_is_grpos_over_the_whole_completion(preset):
    """A = (v - mean) / std, on every token that was sampled, of trace and answer; y* is trained under no preset."""
    config = config_of("rlvr", {"preset": preset, "objective": {"weights": {"format": 0.0}, "std_floor": 0.0}})
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"batch_size": 1, "minibatch_size": None})}
    )
    backend, fresh = Solvable(config), Solvable(config)
    parts = [((A, END), (B, EOS)), ((END,), (A, EOS)), ((A, B), (B, B)), ((B, END), (B, END))]
    kept = gradient_of(Trainer(config, backend, 1), [group_of(backend, EXAMPLE, parts, -1.0)])
    verdicts = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    advantages = (verdicts - verdicts.mean()) / verdicts.std(unbiased=False)
    log_pi = []
    for z, y in parts:
        words = z[:-1] if z[-1] == END else z
        opening = (*EXAMPLE.prompt_ids, START)
        log_pi.append(of_prefix(fresh, opening, z, 1.0) + of_prefix(fresh, (*opening, *words, END), y, 1.0))
    divisor = CAP if config.objective.length_divisor == "cap" else config.objective.length_divisor
    same(kept, fresh, -(advantages * torch.stack(log_pi)).sum() / (len(parts) * divisor))


@pytest.mark.parametrize("token_signal", ["shared", "fixed", "derived"])
def test_mix_is_the_likelihoods_method_where_no_verifier_is_and_rlvr_where_one_is(token_signal):
    settings = {"objective": {"token_signal": token_signal, "weights": {"format": 0.3}}}
    parts = [((A, END), (B, EOS)), ((END,), (A, EOS)), ((A, B), (B, B))]

    def moved(method, answered):
        config = config_of(method, settings, {"train": {"batch_size": 1, "minibatch_size": None}})
        backend = Solvable(config)
        group = group_of(backend, EXAMPLE, parts, -1.0)
        if not answered:
            group = RolloutGroup(EXAMPLE, tuple(type(r)(*list(vars(r).values())[:4]) for r in group.rollouts))
        return gradient_of(Trainer(config, backend, 1), [group])

    for other, answered in (("rlvr", True), ("ws-neg-log-p", False)):
        mixed, alone = moved("mix", answered), moved(other, answered)
        assert mixed.keys() == alone.keys()
        assert all(torch.equal(mixed[prefix], alone[prefix]) for prefix in mixed)


def test_verdicts_move_the_policy_towards_what_they_pay_for():
    config = config_of(
        "rlvr", {"rollout": {"group_size": 8}, "optimiser": {"lr": 3.0}, "train": {"minibatch_size": None}}
    )
    trainer = Trainer(config, Solvable(config), 40, verifier=Judge(worth))
    metrics = [trainer.train_step([EXAMPLE, OTHER], step)[0].metrics for step in range(1, 41)]
    assert sum(m["verified"] for m in metrics[-5:]) > 5 * max(0.6, metrics[0]["verified"])
    assert metrics[0]["verified_share"] == 1.0
    assert {m["verifier_failed"] for m in metrics} == {0.0}
    assert metrics[0]["share_answer"] == 0.0


def test_rows_without_a_verifier_have_no_answers_sampled():
    config = config_of("mix", {"train": {"minibatch_size": None}})
    trainer = Trainer(config, Solvable(config), 1, verifier=Judge(worth, only={1}))
    groups = trainer.answered(trainer.sample([EXAMPLE, OTHER], 1), 1)
    assert [all(rollout.answer for rollout in group.rollouts) for group in groups] == [True, False]
    assert trainer.train_step([EXAMPLE, OTHER], 1)[0].metrics["verified_share"] == 0.5
