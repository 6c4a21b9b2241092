"""What happens when memory runs out: the same step in smaller passes, said once, with the same result."""

import pytest
import torch

from nrt_cli.backends.local.backend import LEAST_TOKENS, Budget, ran_out
from nrt_cli.records import Example
from nrt_cli.training.trainer import LocalTrainer

EXAMPLES = [Example(i, "made", tuple(range(5 + i, 105 + 2 * i)), (7, 8, 9, 1)) for i in range(4)]


def engine_of(tiny_config, *settings):
    return LocalTrainer(tiny_config("train.micro_batch_tokens=4096", *settings), updates=3)


def starve(engine, limit, error):
    """Let every pass above `limit` tokens run out of memory; returns the sizes of those that did not."""
    score, done = engine.backend.policy.score, []

    def starved(rows, *prefix):
        if engine.backend.policy.size(rows) > limit:
            raise error
        done.append(engine.backend.policy.size(rows))
        return score(rows, *prefix)

    engine.backend.policy.score = starved
    return done


@pytest.mark.parametrize("settings", [("method=sft",), ("method=am",), ("method=am", "train.minibatch_size=2")])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_passes(settings, error, tiny_config):
    plenty, little = (engine_of(tiny_config, *settings) for _ in range(2))
    sizes = starve(little, 280, error)
    said = []
    little.backend.tell(said.append)
    want, _ = plenty.train_step(EXAMPLES, 1)
    got, _ = little.train_step(EXAMPLES, 1)
    assert sizes
    assert max(sizes) <= 280
    assert little.backend.budget.tokens == LEAST_TOKENS
    assert len(said) == 1
    assert "memory ran out" in said[0]
    assert got.metrics["loss"] == pytest.approx(want.metrics["loss"], rel=1e-5)
    assert got.metrics["grad_norm"] == pytest.approx(want.metrics["grad_norm"], rel=1e-4)
    models = (trainer.backend.policy.model for trainer in (little, plenty))
    for fast, slow in zip(*(model.parameters() for model in models), strict=True):
        # Adam's first step is 1e-3 whatever the gradient; rounding moves those that are near zero.
        torch.testing.assert_close(fast, slow, rtol=0, atol=2e-4)


def test_what_does_not_fit_at_the_smallest_budget_is_an_error(tiny_config):
    engine = engine_of(tiny_config, "method=sft")
    starve(engine, 10, torch.OutOfMemoryError())
    with pytest.raises(MemoryError):
        engine.train_step(EXAMPLES, 1)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    budget = Budget(4096)
    with pytest.raises(RuntimeError, match="shapes"):
        budget.retrying(lambda: (_ for _ in ()).throw(RuntimeError("shapes differ")), undo=lambda: None)
    assert budget.tokens == 4096
    assert not ran_out(ValueError("memory"))
    assert ran_out(MemoryError())


def test_what_was_begun_is_undone_before_each_new_try():
    budget, tries, undone = Budget(1024), [], []

    def work():
        tries.append(budget.tokens)
        if len(tries) < 3:
            raise MemoryError
        return "done"

    assert budget.retrying(work, lambda: undone.append(budget.tokens)) == "done"
    assert tries == [1024, 512, 256]
    assert undone == [1024, 512]


def test_a_resumed_run_goes_on_with_the_budget_that_fitted(tiny_config, tmp_path):
    """So that gradients are summed in the same parts, and a run that was killed ends as one that was not."""
    first, second = (
        LocalTrainer(tiny_config("method=sft", "train.micro_batch_tokens=4096"), updates=3) for _ in range(2)
    )
    starve(first, 280, torch.OutOfMemoryError())
    first.train_step(EXAMPLES, 1)
    second.load(tmp_path, first.state(), first.backend.save())
    assert second.backend.budget.tokens == first.backend.budget.tokens == LEAST_TOKENS
