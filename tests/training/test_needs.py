"""What methods need besides, with a real model: what a slow copy is, what is saved of it, and what a resumed run is."""

import math

import pytest
import torch
from safetensors.torch import load_file

from nrt_cli.checks.estimate import plan_for
from nrt_cli.checks.preflight import Candidate, memory
from nrt_cli.errors import ConfigError
from nrt_cli.models.loading import load_model
from nrt_cli.progress import Progress
from nrt_cli.training.start import load_inputs
from nrt_cli.training.trainer import LocalTrainer
from nrt_cli.workflows.train import train

NEEDS = {
    "slow copy": ("method=nover", "objective.follower_every=1", "objective.follower_keep=0.5"),
    "slow copy of LoRA's update": ("method=nover", "objective.follower_every=1", "model.lora.rank=2"),
    "slow copy in bfloat16": ("method=nover", "objective.follower_every=2", "model.dtype=bfloat16"),
    "starting model": ("method=latro", "train.minibatch_size=2"),
    "memory of deviations": ("method=rlpr", "train.steps=13"),
    "memory of ranks": ("method=r3", "rollout.temperature=1.2"),
    "logs": ("method=jepo",),
    "own settings": ("method=verifree",),
}


@pytest.mark.parametrize("need", NEEDS)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(need, train_run, untimed, tmp_path):
    """Two runs that differ in where they were stopped: every record and every tensor of the last checkpoint alike."""
    steps = 13 if need == "memory of deviations" else 4
    straight = train_run(*NEEDS[need], f"train.steps={steps}")
    stopped = train_run(*NEEDS[need], f"train.steps={steps - 2}")
    train(stopped.path, None, True, Progress, [{"train": {"steps": steps}}])
    assert untimed(stopped, "train") == untimed(straight, "train")
    one, other = (run.load_checkpoint(steps) for run in (straight, stopped))
    assert one.tensors.keys() == other.tensors.keys()
    assert not [name for name in one.tensors if not torch.equal(one.tensors[name], other.tensors[name])]
    assert one.state == other.state
    weights = (load_file(run.export_path / "model.safetensors") for run in (straight, stopped))
    one, other = weights
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("lora", [False, True])
def test_the_slow_copy_is_the_model_that_its_numbers_make(lora, tiny_config):
    """Scored in place, against a second model whose weights are put there; the policy comes back untouched."""
    more = ["model.lora.rank=2"] * lora
    config = tiny_config(
        "method=nover",
        "objective.weights.format=0.3",
        "objective.follower_every=1",
        "objective.follower_keep=0.25",
        *more,
    )
    trainer = LocalTrainer(config, 4)
    backend = trainer.backend
    inputs = load_inputs(config)
    groups = trainer.sample([inputs.train[i] for i in range(4)], 1)
    rows = trainer.layout.answer_rows(groups[0])
    before = {name: master.detach().clone() for name, master in backend.optimiser.masters.items()}
    start = backend.score(rows)
    trainer.update(groups)
    after = {name: master.detach().clone() for name, master in backend.optimiser.masters.items()}
    moved = backend.score(rows)
    slow = backend.score(rows, "follower")
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(backend.score(rows), moved, strict=True))
    for name, master in backend.optimiser.masters.items():
        assert torch.equal(master, after[name])
        torch.testing.assert_close(backend.follower.copies[name], 0.25 * before[name] + 0.75 * after[name])
    # The same numbers, put into the policy itself.
    with torch.no_grad():
        for name, weight in backend.optimiser.weights.items():
            weight.copy_(backend.follower.copies[name])
    want = backend.score(rows)
    for (got, _), (by_hand, _), (first, _), (last, _) in zip(slow, want, start, moved, strict=True):
        torch.testing.assert_close(got, by_hand)
        assert not torch.equal(got, first)
        assert not torch.equal(got, last)


def test_what_the_starting_model_says_is_what_it_is(tiny_config):
    config = tiny_config("method=latro")
    trainer = LocalTrainer(config, 4)
    inputs = load_inputs(config)
    groups = trainer.sample([inputs.train[i] for i in range(4)], 1)
    trainer.update(groups)
    ((asked, _), *_) = trainer.asked(groups)
    fresh = load_model(config.model)
    rollout, example = groups[0].rollouts[0], groups[0].example
    ids = [*example.prompt_ids, trainer.backend.tokens.start_id, *rollout.trace_ids, trainer.backend.tokens.end_id]
    ids += example.answer_ids
    with torch.no_grad():
        logits = fresh(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    said = logits.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    answer = len(example.answer_ids)
    torch.testing.assert_close(asked["reference_logprobs_KT"][0], said[-answer:], atol=1e-4, rtol=1e-4)
    length, first = len(rollout.trace_ids), len(example.prompt_ids)
    torch.testing.assert_close(
        asked["reference_trace_KZ"][0, :length], said[first : first + length], atol=1e-4, rtol=1e-4
    )


def test_a_model_too_large_for_a_second_one_is_refused(tiny_config, monkeypatch):
    """Before anything starts, with what would help; the same memory does for a method that needs no second one."""
    planned = {method: dict(plan_for(tiny_config(f"method={method}")).memory) for method in ("am", "latro", "nover")}
    weights = planned["am"]["float32 weights"]
    assert planned["latro"]["starting model"] == pytest.approx(weights)
    assert planned["nover"]["slow copy"] == pytest.approx(weights)
    assert not planned["am"]["starting model"] + planned["am"]["slow copy"]
    room = sum(size for what, size in planned["latro"].items() if what not in ("activations", "logits", "reserve"))
    gpu = plan_for(tiny_config("method=am")).gpu
    tight = type(gpu)(**vars(gpu) | {"memory": room - 1})
    monkeypatch.setattr("nrt_cli.checks.estimate.device", lambda _: tight)
    with pytest.raises(ConfigError, match="of it the starting model that method 'latro' needs"):
        memory(Candidate(tiny_config("method=latro")))
    memory(Candidate(tiny_config("method=am")))


def test_a_departure_is_said_and_kept(train_run, capsys):
    run = train_run("method=verifree", "objective.advantage=mean", "train.steps=1")
    said = "method 'verifree' is not under its own settings: objective.advantage='mean' and not 'rloo'"
    assert run.manifest()["departs"] == said
    assert said in " ".join(capsys.readouterr().err.split())
    assert "departs" not in train_run("method=verifree", "train.steps=1").manifest()
    assert math.isfinite(run.metrics()[-1]["loss"])
