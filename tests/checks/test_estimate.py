"""The plan of a run: hand arithmetic on a small shape, and what must hold for every shape."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_cli.backends.machine import ASSUMED
from nrt_cli.checks.estimate import PAUSE, RESERVE, describe, plan
from nrt_cli.config import resolve
from nrt_cli.models.shapes import model_shape
from nrt_cli.records import Gpu, Lengths, ModelShape, Plan

# A layer has 8 * 4 * (2 * 2 + 2 * 1) = 192 parameters in attention and 3 * 8 * 16 = 384 in its MLP.
SHAPE = ModelShape("small", 1_000, 2, 8, 16, 2, 1, 4, 10, tied=True)
GPU = Gpu("made up", 1e9, flops=1e6, bandwidth=1e6)
LENGTHS = Lengths(3, 2, 4, "made up")


def config(**sections: Any) -> Any:
    base = {
        "method": "am",
        "model": {"dtype": "bfloat16"},
        "data": {"max_prompt_tokens": 6, "max_answer_tokens": 4},
        "rollout": {"group_size": 2, "max_trace_tokens": 8, "engine": "native"},
        "train": {"batch_size": 8, "minibatch_size": 4, "micro_batch_tokens": 1},
    }
    return resolve(base, sections)


def verl(**sections: Any) -> Any:
    spread = {"parallel": {"gpus_per_node": 4}} | sections
    return config(engine={"name": "verl"}, rollout={"engine": "auto"}, **spread)


def parts(planned: Plan) -> dict[str, float]:
    return dict(planned.memory)


def test_steps_and_tokens() -> None:
    planned = plan(verl(), SHAPE, 100, LENGTHS, GPU)
    assert (planned.steps, planned.updates) == (12, 24)  # 100 // 8 batches, two minibatches each
    assert planned.sequences == 16
    assert planned.tokens == 16 * (3 + 1 + 4 + 1 + 2)
    assert planned.tokens_most == 16 * (6 + 1 + 8 + 1 + 4)
    assert (planned.nodes, planned.gpus) == (1, 4)
    assert plan(verl(train={"steps": 5}), SHAPE, 100, LENGTHS, GPU).steps == 5


def test_sft_has_neither_traces_nor_rollouts() -> None:
    planned = plan(verl(method="sft"), SHAPE, 100, LENGTHS, GPU)
    assert planned.tokens == 8 * (3 + 2)
    assert planned.memory_rollout == 0
    # Forward, and twice that backward: 2 products with each of 1000 weights, and attention to 2.5 tokens on average in
    # 2 layers of 2 heads of 4: q k and p v.
    work = 3 * 2 * 40 * (1000 + 2 * 2 * 2 * 4 * 2.5)
    assert planned.seconds == pytest.approx(work / (4 * 1e6 * 0.2))
    assert planned.gpu_hours == pytest.approx(planned.seconds * 12 * 4 / 3600)


def test_memory_of_an_update_on_four_ranks() -> None:
    memory = parts(plan(verl(), SHAPE, 100, LENGTHS, GPU))
    assert memory["float32 weights"] == 4 * 1000 / 4
    assert memory["gradients"] == 4 * 1000 / 4
    assert memory["moments"] == 8 * 1000 / 4
    # Three layers of 576, and the table that is embedding and head.
    assert memory["weights as they are multiplied"] == 2 * (3 * 576 + 10 * 8)
    # The longest row, since the budget of one token is less: 6 + 1 + 8 + 1 + 4 tokens, in each of 2 layers
    # 8 x 8 + 2 x 1 x 4 + 4 x 16 numbers of 2 bytes.
    assert memory["activations"] == 20 * 2 * 2 * (64 + 8 + 64)
    assert memory["logits"] == 20 * 10 * 10
    assert memory["reserve"] == RESERVE


def test_rollouts_take_their_share_beside_what_is_kept() -> None:
    kept = (4 * 1000 + 8 * 1000) / 4
    assert plan(verl(), SHAPE, 100, LENGTHS, GPU).memory_rollout == pytest.approx(0.6 * 1e9 + kept)
    offloaded = verl(parallel={"gpus_per_node": 4, "offload": True})
    assert plan(offloaded, SHAPE, 100, LENGTHS, GPU).memory_rollout == pytest.approx(0.6 * 1e9)
    share = {"actor_rollout_ref": {"rollout": {"gpu_memory_utilization": 0.3}}}
    assert plan(verl(verl=share), SHAPE, 100, LENGTHS, GPU).memory_rollout == pytest.approx(0.3 * 1e9 + kept)


def test_seconds_of_a_step_with_rollouts() -> None:
    planned = plan(verl(), SHAPE, 100, LENGTHS, GPU)
    attention = 2 * 2 * 2 * 4
    trained = 3 * 2 * 16 * 11 * (1000 + attention * 5.5)
    # Half of the minibatches come after the first, and every prompt has a null trace of 3 + 1 + 1 + 2 tokens.
    scored = 2 * (16 * 11 / 2 + 8 * 7) * (1000 + attention * 5.5)
    # A group's 2 rows of 11 and its null trace are more than the 20 tokens of a pass: they take two.
    twice = 2 * 16 * 11 * (1000 + attention * 5.5)
    # Four servers of four sequences: each token of one reads 2000 bytes of weights and, for each sequence, keys and
    # values (2 layers x 2 x 4 numbers of 2 bytes) of 3 prompt and on average 2 trace tokens. The longest goes on for 4.
    read = (2 * 1000 + 4 * 32 * 5) / (0.6 * 1e6)
    computed = 2 * 4 * (1000 + attention * 5) / (0.2 * 1e6)
    rollout = 4 * 4 / 4 * max(read, computed) + 4 * 2000 / (0.6 * 1e6)
    assert planned.seconds == pytest.approx((trained + scored + twice) / (4 * 1e6 * 0.2) + rollout + PAUSE)
    roomy = verl(train={"batch_size": 8, "minibatch_size": 4, "micro_batch_tokens": 29})
    assert plan(roomy, SHAPE, 100, LENGTHS, GPU).seconds == pytest.approx(
        (trained + scored) / (4 * 1e6 * 0.2) + rollout + PAUSE
    )
    reference = verl(objective={"kl_weight": 0.1})
    assert plan(reference, SHAPE, 100, LENGTHS, GPU).seconds == pytest.approx(
        (trained + scored + 2 * twice) / (4 * 1e6 * 0.2) + rollout + PAUSE
    )


def test_a_published_step_is_predicted_within_a_tenth() -> None:
    """NeMo RL 0.4, docs/about/performance-summary.md: Llama-3.1-8B on policy, with a reference model; 97.7 s."""
    published = config(
        engine={"name": "verl"},
        objective={"kl_weight": 0.01},
        data={"max_prompt_tokens": 1024, "max_answer_tokens": 8},
        parallel={"nodes": 2, "gpus_per_node": 8},
        rollout={"engine": "auto", "group_size": 32, "max_trace_tokens": 3072},
        train={"batch_size": 64, "minibatch_size": 16, "micro_batch_tokens": 65536},
    )
    # 1,060 tokens a sequence, whose prompts, of OpenMathInstruct-2 in a template, are taken for 150.
    told = plan(published, model_shape("llama-3.1-8b"), 10_000, Lengths(150, 0, 910, "published"), ASSUMED)
    assert told.tokens == 2048 * (1060 + 2)
    assert told.seconds == pytest.approx(97.7, rel=0.1)


def test_no_time_without_rates() -> None:
    planned = plan(verl(), SHAPE, 100, LENGTHS, Gpu("unheard of", 1e9))
    assert math.isnan(planned.seconds)
    assert math.isnan(planned.gpu_hours)
    assert "rates of unheard of are not known" in " ".join(planned.assumptions)
    assert planned.memory_update > 0


def test_seconds_on_a_cpu_whose_matmul_rate_was_measured() -> None:
    cpu = Gpu("this CPU", 1e9, flops=1e6)
    held_out = {"data": {"max_prompt_tokens": 6, "max_answer_tokens": 4, "validation": "held-out.parquet"}}
    scored = config(**held_out, train={"batch_size": 8, "minibatch_size": None, "validate_every": 5})
    planned = plan(scored, SHAPE, 100, LENGTHS, cpu)
    attention = 2 * 2 * 2 * 4
    # A group's prompt once, two traces of 4 with their ends and answers, and the null trace with its own.
    tokens = 8 * (3 + 2 * (1 + 4 + 1 + 2) + 2 + 2)
    update = 3 * 2 * tokens * (1000 + attention * 5.5) / (0.55 * 1e6)
    sampled = 2 * 8 * (3 + 2 * 4) * (1000 + attention * 5.5) / (0.5 * 1e6)
    assert planned.seconds == pytest.approx(update + sampled)
    # Steps 0, 5, 10 and 12: a sampled trace, a greedy one and 4 tokens of answer; twice 8 without a trace, and 4 after
    # another row's.
    answers = 64 * (4 * (3 + 4 + 4 + 4) + 2 * (8 + 8 + 4))
    assert planned.scoring == pytest.approx(2 * answers * (1000 + attention * 7) / (0.5 * 1e6))
    low = plan(config(model={"lora": {"rank": 1}}, train={"minibatch_size": None}), SHAPE, 100, LENGTHS, cpu)
    assert low.seconds == pytest.approx(update * 2 / 3 + sampled)
    assert low.scoring == 0  # nothing is held out
    assert "measured now" in low.assumptions[-1]
    assert math.isnan(plan(scored, SHAPE, 100, LENGTHS, GPU).scoring)


def test_what_takes_less_than_an_hour_is_told_in_minutes() -> None:
    planned = plan(config(train={"minibatch_size": None}), SHAPE, 100, LENGTHS, Gpu("this CPU", 1e9, flops=1e6))
    made = dataclasses.replace(planned, seconds=12.0, gpu_hours=0.2, gpu_hours_most=1.5, scoring=900.0)
    told = dict(describe(made))
    assert told["time"] == "12 s a step, 12.0 minutes"
    assert (told["  at the caps"], told["  held-out scores"]) == ("1.5 hours", "15.0 minutes at most")


def local(**sections: Any) -> Plan:
    return plan(config(**sections), SHAPE, 100, LENGTHS, GPU)


def test_lora_keeps_copies_moments_and_gradients_of_what_it_trains() -> None:
    low = local(model={"lora": {"rank": 1}})
    # Rank 1, 2 layers: q and o 2 x (8 + 8), k and v 2 x (8 + 4), gate, up and down 3 x (8 + 16).
    trained = 2 * (32 + 24 + 72)
    assert parts(low)["moments"] == 8 * trained
    assert parts(low)["gradients"] == parts(low)["float32 weights"] == 4 * trained
    assert parts(low)["weights as they are multiplied"] == 2 * SHAPE.parameters


def test_states_on_the_cpu_leave_narrow_weights_and_the_gradients_sums_on_the_device() -> None:
    away = parts(local(optimiser={"states": "cpu"}))
    assert away["moments"] == away["float32 weights"] == 0
    assert away["gradients"] == 4 * SHAPE.parameters
    # Float32 weights, their gradients and two moments; on a CPU they are where they always were.
    cpu = dataclasses.replace(GPU, bandwidth=math.nan)
    here = plan(config(optimiser={"states": "cpu"}), SHAPE, 100, LENGTHS, cpu)
    assert local(optimiser={"states": "cpu"}).memory_host == 16 * SHAPE.parameters
    assert here.memory_host == 0
    assert parts(here)["moments"] == 8 * SHAPE.parameters
    assert away["weights as they are multiplied"] == 2 * SHAPE.parameters
    assert parts(local())["float32 weights"] == 4 * SHAPE.parameters


def test_disk_holds_checkpoints_export_and_traces() -> None:
    runs = [
        plan(verl(train={"keep_checkpoints": n, "trace_groups": t}), SHAPE, 10_000, LENGTHS, GPU)
        for n, t in ((1, 0), (2, 0), (2, 4))
    ]
    # A checkpoint: float32 weights for the ranks and as a folder, and two moments. One more while it is written.
    assert runs[1].disk - runs[0].disk == 1000 * (4 + 8 + 4)
    assert runs[0].disk == 2 * 1000 * 16 + 4 * 1000
    assert runs[0].disk_kept == 1000 * 16 + 4 * 1000
    assert runs[2].disk > runs[1].disk


FLOAT32, HELD_OUT = {"model": {"dtype": "float32"}}, {"validation": "held-out.parquet"}


@pytest.mark.parametrize(
    ("sections", "train", "most", "kept"),
    [
        # Weights and moments, 12 bytes each parameter; in float32 the model is the last checkpoint's weights.
        ({"model": {"dtype": "float32"}}, {"steps": 150}, 3 * 12, 2 * 12),
        ({"model": {"dtype": "bfloat16"}}, {"steps": 150}, 3 * 12 + 2, 2 * 12 + 2),
        ({"optimiser": {"states": "8bit"}}, {"steps": 150}, 3 * 6 + 2, 2 * 6 + 2),
        # There are no more checkpoints than are saved: at steps 40 and 50.
        ({"model": {"dtype": "float32"}}, {"steps": 50, "checkpoint_every": 40}, 2 * 12, 2 * 12),
        # The best stays beside the newest; without scores in between, or without held-out pairs, it is the newest.
        ({**FLOAT32, "data": HELD_OUT}, {"steps": 500, "validate_every": 50}, 4 * 12, 3 * 12),
        ({**FLOAT32, "data": HELD_OUT}, {"steps": 100, "validate_every": 50}, 2 * 12, 2 * 12),
        ({**FLOAT32, "data": HELD_OUT}, {"steps": 500}, 3 * 12, 2 * 12),
        (FLOAT32, {"steps": 500, "validate_every": 50}, 3 * 12, 2 * 12),
    ],
)
def test_disk_of_the_local_engine_by_hand(
    sections: dict[str, Any], train: dict[str, Any], most: float, kept: float
) -> None:
    predicted = local(train={"batch_size": 8, "trace_groups": 0, **train}, **sections)
    assert (predicted.disk, predicted.disk_kept) == (most * SHAPE.parameters, kept * SHAPE.parameters)


@settings(max_examples=25)  # each reads presets
@given(
    ranks=st.sampled_from([1, 2]),
    checkpointing=st.booleans(),
    layers=st.integers(1, 80),
    hidden=st.integers(1, 512).map(lambda n: 64 * n),
    prompt=st.floats(1, 9),  # up to more than the caps, which then hold
    trace=st.floats(0, 12),
)
def test_what_holds_for_every_plan(
    ranks: int, checkpointing: bool, layers: int, hidden: int, prompt: float, trace: float
) -> None:
    shape = dataclasses.replace(SHAPE, layers=layers, hidden=hidden, parameters=layers * hidden * hidden)
    model = {"dtype": "bfloat16", "gradient_checkpointing": checkpointing}
    lengths = Lengths(prompt, 2, trace, "made up")
    one, more = (
        plan(verl(parallel={"gpus_per_node": n}, model=model), shape, 100, lengths, GPU) for n in (ranks, 2 * ranks)
    )
    assert one.tokens <= one.tokens_most
    assert one.gpu_hours <= one.gpu_hours_most
    assert more.seconds < one.seconds
    assert more.memory_update <= one.memory_update
    assert parts(more)["moments"] == pytest.approx(parts(one)["moments"] / 2)
    assert one.memory_peak == max(one.memory_update, one.memory_rollout)
    assert one.fits == (one.memory_peak <= GPU.memory)
    recomputed = plan(
        verl(parallel={"gpus_per_node": ranks}, model=model | {"gradient_checkpointing": True}),
        shape,
        100,
        lengths,
        GPU,
    )
    assert recomputed.seconds >= one.seconds
    if layers > 1:
        assert parts(recomputed)["activations"] <= parts(one)["activations"]
