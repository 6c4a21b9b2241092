"""SFT on verl's workers against the local engine's: the same batches give the same losses, rates and weights."""

from collections.abc import Callable
from typing import Any

import needs_verl  # noqa: F401
import numpy as np
import pytest
from ranks_of_verl import in_ranks
from sft_work import examples, sft_steps

from nrt_cli.training.trainer import LocalTrainer

pytestmark = pytest.mark.slow

SETTINGS = (
    "method=sft",
    "train.minibatch_size=2",
    "optimiser.warmup=0.3",
    "optimiser.schedule=linear",
    "optimiser.weight_decay=0.1",
    "optimiser.clip_norm=0.5",
    "train.micro_batch_tokens=64",
)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.full)])
def test_two_steps_are_those_of_the_local_engine(tiny_config: Callable[..., Any], world: int) -> None:
    local_config = tiny_config(*SETTINGS)
    config = tiny_config(*SETTINGS, "engine.name=verl", f"parallel.gpus_per_node={world}")
    told = in_ranks(world, config, sft_steps)

    local, pairs = LocalTrainer(local_config, 4), examples(local_config)
    assert told["before"]["answer_logprob"] == pytest.approx(local.held_out(pairs).metrics["answer_logprob"], rel=1e-5)
    for step, metrics in enumerate(told["updates"], start=1):
        expected = local.train_step(pairs[:4], step)[0].metrics
        for key in ("loss", "answer_logprob_per_token", "grad_norm", "lr", "tokens"):
            assert metrics[key] == pytest.approx(expected[key], rel=1e-5), (step, key)
    assert told["after"]["answer_logprob"] == pytest.approx(local.held_out(pairs).metrics["answer_logprob"], rel=1e-5)
    assert told["after"] != told["before"]
    for name, weight in local.backend.policy.model.state_dict().items():
        np.testing.assert_allclose(told["weights"][name], weight.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
