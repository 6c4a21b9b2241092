"""Work counted by hand, phases that add up, and rates that are amounts over seconds."""

import pytest
import torch

from nrt_cli.backends.local import throughput
from nrt_cli.backends.local.attention import packed_amounts
from nrt_cli.backends.local.policy import Policy
from nrt_cli.backends.local.throughput import Work
from nrt_cli.config import ModelSection
from nrt_cli.models.loading import load_model
from nrt_cli.objective.rows import Row, Unit
from nrt_cli.records import Example
from nrt_cli.training.trainer import LocalTrainer
from nrt_cli.workflows.train import throughput as totals

EXAMPLES = [Example(i, "made", tuple(range(5, 25 + i)), (7, 8, 9, 1)) for i in range(4)]


@pytest.fixture
def model(tiny_model_dir):
    return load_model(ModelSection(path=str(tiny_model_dir), dtype="float32", device="cpu"))


def test_the_work_of_a_forward_pass_by_hand(model):
    """2 layers, hidden 32, feed-forward 64, 4 query and 2 key-value heads of 8 channels."""
    work = Work(model)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    assert work.per_token == 2 * 2 * (attention + 3 * 32 * 64)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    assert work.per_scored == 2 * 32 * vocabulary
    # A pair meets twice (key, then value) in each of 4 heads of 8 channels, in 2 layers.
    assert work.per_pair == 2 * 2 * 2 * 4 * 8
    assert work.forward(10, 3, 55) == 10 * work.per_token + 3 * work.per_scored + 55 * work.per_pair


def test_the_way_back_is_twice_the_work_where_all_is_trained_and_once_where_weights_are_frozen(model):
    work = Work(model)
    assert work.backward(10, 3, 55) == 2 * work.forward(10, 3, 55)
    frozen = Work(model.requires_grad_(False))
    assert frozen.backward(10, 3, 55) == work.forward(10, 3, 2 * 55), "attention has no weights"


def test_torch_counts_the_same_work(model):
    from torch.utils.flop_counter import FlopCounterMode

    model.set_attn_implementation("eager")  # whose products of queries and keys are all pairs, masked or not
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(12)[None], use_cache=False)
    # Rotary frequencies by positions are a product in some versions of transformers, and not of the model's work.
    with FlopCounterMode(display=False) as rotary:
        model.model.rotary_emb(torch.zeros(1, 12, 32), torch.arange(12)[None])
    assert counter.get_total_flops() - rotary.get_total_flops() == Work(model).forward(12, 12, 12 * 12)


def test_pairs_that_see_each_other():
    """A prefix of 2 and tails of 1 and 3: 1 + 2, then 3, then 3 + 4 + 5."""
    assert packed_amounts([(1, 2, 3), (1, 2, 4, 5, 6)])[1] == 3 + 3 + 12
    assert packed_amounts([(1, 2, 3)])[1] == 6


def test_packing_shares_work_and_padding_is_none(model):
    rows = [Row((*range(5, 25), 30, 31), 20), Row((*range(5, 25), 40), 20)]
    packed, padded = Policy(model, 0, packing=True), Policy(model, 0)
    # The last token of a row predicts nothing, and without it the second row is the first one's beginning.
    assert packed.work(rows) == Work(model).forward(21, 3, 210 + 21)
    assert padded.work(rows) == Work(model).forward(22 + 21, 3, 253 + 231)


def test_unknown_where_a_token_meets_some_weights_only(model):
    model.experts = torch.nn.Parameter(torch.zeros(2, 3, 4))
    assert Work(model).forward(1, 1, 1) != Work(model).forward(1, 1, 1), "NaN"


@pytest.mark.parametrize("method", ["sft", "am"])
def test_phases_add_up_and_rates_follow_from_them(method, tiny_config, monkeypatch):
    """A clock that goes on by one second at each look; the ceiling is 1e9 operations a second."""
    now = iter(range(10_000))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(next(now)))
    engine = LocalTrainer(tiny_config(f"method={method}"), updates=3)
    engine.backend.ceiling = 1e9
    update, groups = engine.train_step(EXAMPLES, 1)
    got = update.metrics
    assert got["seconds"] == got["seconds_update"] + got.get("seconds_rollout", 0.0)
    assert got["seconds_gradient"] == got["seconds_optimiser"] == 1
    assert got["tokens_per_second"] == got["tokens"] / got["seconds"]
    if method == "sft":
        rows = [engine.layout.direct_row(example) for example in EXAMPLES]
    else:
        rows = [row for group in groups for row in engine.layout.rows_with_null(group)]
        sampled = sum(len(rollout.sampler_logprobs) for group in groups for rollout in group.rollouts)
        assert got["rollout_tokens_per_second"] == sampled / got["seconds_rollout"]
    # Forward once and backward twice: every product has a gradient for each of its two factors.
    assert got["mfu"] == pytest.approx(3 * engine.backend.policy.work(rows) / got["seconds_update"] / 1e9)


@pytest.mark.parametrize("method", ["sft", "am"])
def test_what_held_out_scores_took_is_no_part_of_a_step(method, tiny_config):
    plain, scored = (LocalTrainer(tiny_config(f"method={method}"), updates=3) for _ in range(2))
    scored.held_out(EXAMPLES)
    done = []
    for engine in (plain, scored):
        engine.train_step(EXAMPLES, 1)
        done.append(engine.backend.work)
    assert done[0] == done[1] > 0


def test_a_ceiling_that_a_step_exceeds_is_measured_again(tiny_config, monkeypatch):
    """As where the machine was busy with something else at the start; every product now takes a second."""
    engine = LocalTrainer(tiny_config("method=sft"), updates=3)
    monkeypatch.setitem(throughput.CEILING_SIDE, "cpu", 64)
    now = iter(range(10_000))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(next(now)))
    engine.backend.ceiling = 1.0
    engine.train_step(EXAMPLES, 1)
    assert engine.backend.ceiling == 2 * 64**3


def test_totals_of_a_run_weigh_rates_by_their_seconds():
    steps = [
        {"seconds": 1.0, "seconds_update": 1.0, "tokens_per_second": 10.0, "mfu": 0.5},
        {"seconds": 3.0, "seconds_update": 3.0, "tokens_per_second": 30.0, "mfu": 0.1},
    ]
    assert totals(steps) == pytest.approx(
        {"seconds": 4.0, "seconds_update": 4.0, "tokens_per_second": 25.0, "mfu": 0.2}
    )


def test_the_ceiling_is_the_best_of_some_products(monkeypatch):
    """Looks at the clock before and after each of three products, which take 4, 2 and 3 seconds."""
    looks = iter([0, 4, 10, 12, 20, 23])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: float(next(looks)))
    monkeypatch.setitem(throughput.CEILING_SIDE, "cpu", 10)
    measure = throughput.matmul_ceiling.__wrapped__
    assert measure(torch.device("cpu"), torch.float32, 1, repeats=3) == 2 * 10**3 / 2


def test_the_ceiling_is_measured_once_for_a_number_of_threads():
    ask = lambda threads: throughput.matmul_ceiling(torch.device("cpu"), torch.float32, threads)  # noqa: E731
    assert ask(1) == ask(1), "a second measurement would differ in its last digits"
    assert 1e8 < ask(1) < 1e15


def test_gradients_of_tiny_losses_are_never_subnormal(tiny_config):
    """Some CPUs compute with subnormal numbers far longer (`tests/bench/cpu_kernels.py`); the process keeps its own."""
    trainer = LocalTrainer(tiny_config(), updates=1)
    row = trainer.layout.direct_row(EXAMPLES[0])
    backend, smallest = trainer.backend, torch.finfo(torch.float32).tiny
    backend.forward_backward([Unit((row,), lambda logprobs_N, entropies_N: (-1e-37 * logprobs_N.sum(), None))])
    gradients = torch.cat([weight.grad.flatten() for weight in backend.optimiser.masters.values()])
    assert gradients.any()
    assert gradients[gradients != 0].abs().min() >= smallest
    assert float(torch.tensor(smallest) / 2) > 0
