"""The verl engine's step against the local engine's and against Algorithm 1 in plain PyTorch, on traces that are given.

The ranks are verl's own (FSDP2 over gloo) in processes of their own; Ray and vLLM have no part in a step.
"""

from typing import Any

import algorithm_1
import needs_verl  # noqa: F401
import numpy as np
import pytest
import torch
from ranks_of_verl import in_ranks
from ranks_work import gradients_of_cases, slow_copy, weights_after_steps
from solvable import batch

from nrt_cli.models.prepare import prepare_model
from nrt_cli.records import Rollout
from nrt_cli.training.trainer import LocalTrainer

pytestmark = pytest.mark.slow

SCHEMES = ("logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p")
TOKENS = ("tokens.think_start=<|think_start|>", "tokens.think_end=<|think_end|>")
REFERENCE = ("preset=reference", "tokens.think_start=null", "tokens.think_end=<|think_end|>")
PRESETS = {"paper": ("preset=paper",), "reference": REFERENCE}
SLOW = {f"{preset}-{scheme}": (f"method={scheme}", *extra) for preset, extra in PRESETS.items() for scheme in SCHEMES}
CASES = SLOW | {
    # The default: shared token signals, balanced.
    "nrt": ("method=ws-neg-log-p",),
    # The second minibatch's gradient, where pi_old was scored before the first; each token at its own temperature.
    "nrt-minibatches": ("method=gm", "train.minibatch_size=2", "rollout.temperature=0.7", "objective.tis_cap=1.2"),
    # The starting model is the policy still, so that its KL is 0: what were not its log-probs would show.
    "nrt-kl": ("method=am", "objective.kl_weight=0.1"),
    # What methods of others need goes to the ranks with the groups: the starting model's log-probs, what is remembered.
    "latro": ("method=latro", "objective.reward_kl=0.5", "train.minibatch_size=2"),
    "rlpr": ("method=rlpr",),
    "guided": ("method=guided", "train.minibatch_size=2"),
    "jepo": ("method=jepo",),
    "nrt-entropy": ("method=am", "objective.entropy_weight=0.1", "objective.ratio=sequence"),
}


# --- tests -----------------------------------------------------------------------------------------------------------


def apart(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """The distance between two sets of tensors by name, relative to the largest number in each."""
    assert a.keys() == b.keys()
    return {name: float(np.abs(a[name] - b[name]).max() / max(np.abs(b[name]).max(), 1e-12)) for name in a}


@pytest.fixture(scope="module")
def opinionated(make_tiny_source, make_tiny_tokenizer, tmp_path_factory) -> str:
    """A tiny model whose traces matter: under small weights a group's rewards are alike, and their spread is noise.

    Its vocabulary is padded.
    """
    root = tmp_path_factory.mktemp("opinionated")
    source = make_tiny_source(root / "source", make_tiny_tokenizer(), spare_rows=7, initializer_range=0.2)
    prepare_model(str(source), root / "model", dtype="float32")
    return f"model.path={root / 'model'}"


@pytest.fixture(scope="module")
def cases(tiny_config, opinionated) -> dict[str, Any]:
    """A config for each scheme under each preset."""
    return {name: tiny_config(*settings, *ENGINE, opinionated) for name, settings in CASES.items()}


ENGINE = ("engine.name=verl", "data.max_prompt_tokens=64", "data.max_answer_tokens=32")


@pytest.fixture(scope="module")
def verl_gradients(cases):
    return in_ranks(1, next(iter(cases.values())), gradients_of_cases, cases)


def local_engine(config: Any) -> LocalTrainer:
    """The local engine of a config, which scores pi_old itself: these traces were sampled by nobody."""
    name = config.engine.model_copy(update={"name": "local"})
    engine = LocalTrainer(config.model_copy(update={"engine": name}), updates=4)
    engine.backend.exact_sampler = False
    return engine


def local_gradient(config: Any) -> tuple[dict[str, Any], dict[str, float]]:
    kept: dict[str, Any] = {}
    engine = local_engine(config)

    def keep(rate: float) -> float:
        kept.update({name: master.grad.numpy().copy() for name, master in engine.backend.optimiser.masters.items()})
        engine.backend.optimiser.forget()
        return 1.0

    engine.backend.optimiser.step = keep
    update = engine.update(batch(engine.backend.tokens, asks=engine.asks))
    return kept, update.metrics


@pytest.mark.parametrize("way", ["one", "two", "each"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_and_metrics_are_the_local_engines(case, way, cases, verl_gradients):
    """1e-5 relative, in float32; in one pass, in two where no group fits, and in one and two where some do."""
    gradients, metrics, _ = verl_gradients[case, way]
    want, want_metrics = local_gradient(cases[case])
    assert max(apart(gradients, want).values()) < 1e-5
    assert max(np.abs(gradient).max() for gradient in want.values()) > 1e-4
    for key, value in metrics.items():
        assert value == pytest.approx(want_metrics[key], rel=1e-5, abs=1e-6, nan_ok=True), key


@pytest.mark.parametrize("case", SLOW)
def test_gradients_are_algorithm_1s(case, cases, verl_gradients):
    engine = local_engine(cases[case])
    model, tokens = engine.backend.policy.model.double(), engine.backend.tokens
    policy = lambda ids: model(torch.tensor([ids])).logits[0]  # noqa: E731
    algorithm_1.loss(policy, policy, policy, batch(tokens), cases[case], tokens).backward()
    slow = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    gradients, _, _ = verl_gradients[case, "one"]
    assert max(apart(gradients, slow).values()) < 1e-4


@pytest.mark.full
def test_rows_without_padding_in_bfloat16_have_the_same_gradients_up_to_rounding(tiny_config, opinionated):
    """As on a GPU with flash-attn; numpy, in which ranks report what they scored, has no bfloat16."""
    unpadded = "verl.actor_rollout_ref.model.use_remove_padding=true"
    config = tiny_config(*CASES["nrt-minibatches"], *ENGINE, opinionated, "model.dtype=bfloat16", unpadded)
    found = in_ranks(1, config, gradients_of_cases, {"narrow": config})
    wide = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})})
    want, want_metrics = local_gradient(wide)
    for way in ("one", "two", "each"):
        gradients, metrics, _ = found["narrow", way]
        far = {name: np.linalg.norm(gradients[name] - want[name]) / np.linalg.norm(want[name]) for name in want}
        assert max(far.values()) < 0.1, far
        assert metrics["entropy"] == pytest.approx(want_metrics["entropy"], rel=0.01)


def test_a_trace_stops_where_it_should_and_goes_on_with_t_end_and_the_answer(verl_gradients):
    traces = verl_gradients["traces"]
    tokens = traces["tokens"]
    start, end, eos = tokens.start_id, tokens.end_id, tokens.eos_id
    asked, prompt, response, logprobs, extra = traces["end"]
    assert asked["request_id"] == "0-0-1-7"
    assert asked["prompt_ids"] == [11, 12, start]
    assert asked["sampling_params"] == {
        "temperature": 0.7,
        "max_tokens": 2,
        "stop_token_ids": [end, eos, start],
        "ignore_eos": True,
        "seed": 5,
        "logprobs": True,
    }
    assert (prompt, response) == ([11, 12], [start, 31, end, 21, eos])
    assert logprobs == [0.0, -0.5, -0.25, 0.0, 0.0]
    assert extra["rollout"] == Rollout((31,), (-0.5, -0.25), "end", end)
    # An eos is no part of the trace, and t_end takes its place; at the cap, t_end is appended: nobody sampled that.
    # So it is with a trace that would open another.
    for ended in ("eos", "start"):
        _, _, response, logprobs, extra = traces[ended]
        assert (response, logprobs) == ([start, 31, end, 21, eos], [0.0, -0.5, 0.0, 0.0, 0.0])
        assert extra["rollout"] == Rollout((31,), (-0.5, -0.25), "eos", {"eos": eos, "start": start}[ended])
    _, _, response, logprobs, extra = traces["cap"]
    assert (response, logprobs) == ([start, 31, 32, end, 21, eos], [0.0, -0.5, -0.25, 0.0, 0.0, 0.0])
    assert extra["rollout"] == Rollout((31, 32), (-0.5, -0.25), "cap")


def test_the_first_minibatch_needs_no_pass_before_its_update(verl_gradients):
    assert verl_gradients["paper-gm", "one"][2] == ["update"]
    assert verl_gradients["paper-gm", "two"][2] == ["score", "update"]
    # The first update keeps its gradient for the second's step.
    assert verl_gradients["paper-gm", "each"][2] == ["update", "score", "update"]


@pytest.mark.full
def test_two_ranks_take_the_step_of_one_and_go_on_from_what_they_saved(tiny_config, opinionated, tmp_path):
    config = tiny_config(
        "method=gm", "train.minibatch_size=2", "objective.tis_cap=1.5", "optimiser.warmup=0.5", *ENGINE, opinionated
    )
    one = in_ranks(1, config, weights_after_steps, str(tmp_path / "one"))
    two = in_ranks(2, config, weights_after_steps, str(tmp_path / "two"))
    assert max(apart(two["once"], one["once"]).values()) < 1e-4
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6, nan_ok=True)
    for a, b in zip(one["odd"], two["odd"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    local = local_engine(config)
    norms = []
    for _ in range(2):
        norms.append(local.update(batch(local.backend.tokens)).metrics["grad_norm"])
    assert norms[0] == pytest.approx(one["metrics"]["grad_norm"], rel=1e-5)
    weights = {name: weight.detach().numpy() for name, weight in local.backend.policy.model.named_parameters()}
    assert max(apart({name: one["once"][name] for name in weights}, weights).values()) < 1e-4
    for run in (one, two):  # the second step, taken again from the checkpoint, is the same to the last bit
        assert max(apart(run["again"], run["once"]).values()) == 0.0


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.full)])
def test_the_slow_copy_is_the_local_engines_and_is_saved(world, tiny_config, opinionated, tmp_path):
    """Each rank keeps its part of it; the policy is what it was after the copy was asked."""
    follow = (
        "method=nover",
        "objective.weights.format=0.3",
        "objective.follower_every=1",
        "objective.follower_keep=0.25",
        "optimiser.lr=1e-2",
    )
    config = tiny_config(*follow, *ENGINE, opinionated, f"parallel.gpus_per_node={world}")
    found = in_ranks(world, config, slow_copy, str(tmp_path / "ranks"))
    engine = local_engine(config)
    groups = batch(engine.backend.tokens)
    rows = [row for group in groups for row in engine.layout.answer_rows(group)]
    said = lambda whose: [logprobs.tolist() for logprobs, _ in engine.backend.score(rows, whose)]  # noqa: E731
    flat = lambda rows: np.concatenate(rows)  # noqa: E731
    assert np.allclose(flat(found["before"]), flat(said("policy")), atol=1e-4)
    assert found["before"] == found["start"]
    engine.update(groups)
    assert found["pending"] == 0.25
    assert np.allclose(flat(found["after"]), flat(said("follower")), atol=1e-3)
    assert np.abs(flat(found["after"]) - flat(found["before"])).max() > 0.05
    assert np.abs(flat(found["after"]) - flat(found["policy"])).max() > 0.01
    assert found["back"] == found["policy"]
    engine.update(groups)
    assert np.allclose(flat(found["last"]), flat(said("follower")), atol=2e-2)
    assert found["again"] == found["after"]
    assert found["last again"] == found["last"]
    assert all(np.array_equal(found["weights"][name], again) for name, again in found["weights again"].items())
