"""What a method may ask for besides log c, its own settings, its filter and its memory: a class over the trainer."""

import json
import sys
import types
from typing import ClassVar

import pytest
import torch
from algorithm_1 import logprobs
from solvable import END, EOS, START, A, B, Solvable, rollout

from nrt_cli import methods
from nrt_cli.config import ObjectiveSection, departures, resolve
from nrt_cli.errors import ConfigError
from nrt_cli.methods import Method, Signals
from nrt_cli.objective.losses import group_advantage
from nrt_cli.records import Example, RolloutGroup
from nrt_cli.training.trainer import Trainer

EXAMPLE = Example(0, "made", (A,), (B, EOS))
SEEN = []


class Everything(Method):
    """Keeps what it was shown; from the second step on drops the groups whose best reward is below the mean so far."""

    asks: ClassVar = frozenset({"traces", "reference", "follower"})
    free: ClassVar = ("baseline", "token signals")
    defaults: ClassVar = {
        "objective": {"advantage": "rloo", "baseline": "none", "weights": {"format": 0.1}},
        "rollout": {"temperature": 0.8},
    }

    def signals(self, group):
        SEEN.append(group)
        reward_K = group.logprobs_KT.sum(-1) - 0.1 * group.lengths_K
        signals = Signals.of(reward_K, group.base_logprobs_T.sum(), torch.ones_like(group.logprobs_KT))
        return Signals(**vars(signals) | {"kept": float(reward_K.max()) >= group.memory.get("mean", -99.0)})

    def remember(self, memory, signals):
        mean = float(torch.stack([each.reward_K.max() for each in signals]).mean())
        return {"steps": memory.get("steps", 0) + 1, "mean": mean}


class Asking(Everything):
    asks: ClassVar = frozenset({"weather"})


@pytest.fixture(autouse=True)
def module(monkeypatch):
    made = types.ModuleType("mine_that_asks")
    made.Everything, made.Asking = Everything, Asking
    monkeypatch.setitem(sys.modules, "mine_that_asks", made)
    SEEN.clear()


def config_of(*layers, **objective):
    base = {"method": "mine_that_asks:Everything", "rollout": {"max_trace_tokens": 3, "group_size": 4}}
    base["objective"] = {"follower_every": 2, "follower_keep": 0.75, **objective}
    return resolve(base, {"train": {"batch_size": 2, "minibatch_size": 1}, "optimiser": {"lr": 0.4}}, *layers)


def group_on(backend, *traces):
    made = [rollout(ids, (-1.0,) * len(ids), backend.tokens) for ids in traces]
    return RolloutGroup(EXAMPLE, tuple(made))


def test_a_group_has_what_was_asked_for_by_slow_arithmetic():
    config = config_of()
    backend = Solvable(config)
    tau = config.rollout.temperature
    group = group_on(backend, (A, END), (A, B, A), (B, EOS), (END,))
    trainer = Trainer(config, backend, updates=8)
    for step in range(2):
        SEEN.clear()
        slow = {prefix: weight.clone() for prefix, weight in backend.slow.items()}
        now = {prefix: weight.detach().clone() for prefix, weight in backend.table.items()}
        trainer.update([group, group])
        seen = SEEN[-2]  # it was proved first
        tables = {
            "policy": lambda ids: [now.get(tuple(ids[: i + 1]), backend.logits(ids[: i + 1], "reference"))  # noqa: B023
                                   for i in range(len(ids))],
            "reference": lambda ids: [backend.logits(ids[: i + 1], "reference") for i in range(len(ids))],
            "follower": lambda ids: [slow.get(tuple(ids[: i + 1]), backend.logits(ids[: i + 1], "reference"))  # noqa: B023
                                     for i in range(len(ids))],
        }  # fmt: skip
        models = {name: (lambda ids, rows=rows: torch.stack(rows(ids)).detach()) for name, rows in tables.items()}
        for k, made in enumerate(group.rollouts):
            ids = [A, START, *made.trace_ids, END]
            full = [*ids, B, EOS]
            said = {name: logprobs(model, full, len(ids)) for name, model in models.items()}
            assert seen.logprobs_KT[k].tolist() == pytest.approx([float(x) for x in said["policy"]])
            assert seen.reference_logprobs_KT[k].tolist() == pytest.approx([float(x) for x in said["reference"]])
            assert seen.follower_logprobs_KT[k].tolist() == pytest.approx([float(x) for x in said["follower"]])
            # What the policy chose: an eos that ended the trace, a t_end that it sampled, but none that was appended.
            chosen = [*made.trace_ids, *([] if made.ended_by is None else [made.ended_by])]
            for name, got in (("policy", seen.trace_logprobs_KZ), ("reference", seen.reference_trace_KZ)):
                want = logprobs(models[name], [A, START, *chosen], 2, tau)
                assert got[k, : len(chosen)].tolist() == pytest.approx([float(x) for x in want])
                assert not got[k, len(chosen) :].any()
            assert seen.trace_mask_KZ[k].tolist() == [i < len(chosen) for i in range(seen.trace_mask_KZ.shape[1])]
        assert seen.lengths_K.tolist() == [1, 3, 1, 0]
        assert seen.memory.get("steps", 0) == step


def test_the_slow_copy_keeps_its_share_of_itself():
    config = config_of()
    backend = Solvable(config)
    before = {prefix: backend.logits(prefix).detach().clone() for prefix in [(A,), (A, START), (A, START, END)]}
    trainer = Trainer(config, backend, updates=4)
    trainer.update([group_on(backend, (A, END), (B, END))])
    assert not backend.slow
    trainer.update([group_on(backend, (A, END), (B, END))])
    for prefix, weight in before.items():
        torch.testing.assert_close(backend.slow[prefix], 0.75 * weight + 0.25 * backend.table[prefix].detach())


def test_a_group_that_is_filtered_trains_no_trace_and_is_counted():
    """Weights of the other two terms are 0: nothing moves."""
    config = config_of(weights={"answer": 0.0, "format": 0.0})
    backend = Solvable(config)
    trainer = Trainer(config, backend, updates=8)
    trainer.memory = {"mean": 1.0}
    group = group_on(backend, (A, END), (A, B, A), (B, EOS), (END,))
    update = trainer.update([group, group])
    assert update.metrics["filtered_groups"] == update.metrics["dead_groups"] == 1
    assert update.metrics["grad_norm"] == 0
    assert trainer.memory["mean"] < 1
    again = trainer.update([group, group])
    assert again.metrics["filtered_groups"] == 0
    assert again.metrics["grad_norm"] > 0


def test_a_resumed_run_remembers(tmp_path):
    config = config_of()
    straight = Trainer(config, Solvable(config), updates=12)
    records = [straight.train_step([EXAMPLE, EXAMPLE], step)[0].metrics for step in range(1, 6)]
    first, second = (Trainer(config, Solvable(config), updates=12) for _ in range(2))
    for step in (1, 2, 3):
        first.train_step([EXAMPLE, EXAMPLE], step)
    # As a checkpoint's file has it.
    second.load(tmp_path, json.loads(json.dumps(first.state())), first.backend.save())
    again = [second.train_step([EXAMPLE, EXAMPLE], step)[0].metrics for step in (4, 5)]
    for one, other in zip(records[3:], again, strict=True):
        kept = [key for key in one if "second" not in key and key != "mfu"]
        assert [one[key] for key in kept] == pytest.approx([other[key] for key in kept], rel=0, abs=0, nan_ok=True)
    assert straight.memory == second.memory
    assert straight.memory["steps"] == 5
    want, got = straight.backend.save(), second.backend.save()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_a_methods_own_settings_are_over_the_presets_and_below_the_users():
    config = config_of({"preset": "as-run"})
    objective = config.objective
    assert (objective.advantage, objective.baseline, objective.token_signal) == ("rloo", "none", "fixed")
    assert (objective.weights.format, objective.weights.answer, config.rollout.temperature) == (0.1, 1.0, 0.8)
    assert departures(config) == []
    changed = config_of(advantage="std", weights={"format": 0.3})
    assert changed.rollout.temperature == 0.8
    assert departures(changed) == [("objective.advantage", "rloo", "std"), ("objective.weights.format", 0.1, 0.3)]
    assert departures(resolve({"method": "gm"})) == []
    assert resolve({"method": "nowhere:Class"}).rollout.temperature == 1.0


def test_what_nobody_computes_is_not_asked_for():
    with pytest.raises(ConfigError, match="asks for 'weather'; a method may ask for traces, reference, follower"):
        methods.get("mine_that_asks:Asking")
    with pytest.raises(ConfigError, match="needs more than log-probs of answers: log-probs and lengths of the traces"):
        methods.of_answers("mine_that_asks:Everything")


def test_advantages_of_a_filtered_group_are_none():
    found = Signals.of(torch.tensor([1.0, 2.0]), torch.tensor(0.0), torch.ones(2, 1))
    assert group_advantage(found).advantage_K.tolist() == pytest.approx([-1, 1])
    dropped = group_advantage(Signals(**vars(found) | {"kept": False}))
    assert dropped.dead
    assert dropped.advantage_K.tolist() == [0, 0]


def test_a_method_that_asks_is_proved_too():
    methods.get("mine_that_asks:Everything", ObjectiveSection())
    assert SEEN
    assert all(group.follower_logprobs_KT is not None for group in SEEN)
