"""What the SFT tests have done in rank 0's process; here since a new process has to be able to import it."""

from typing import Any

from ranks_of_verl import Ranks

from nrt_cli.data.examples import load_examples
from nrt_cli.models.loading import load_tokenizer


def examples(config: Any) -> list[Any]:
    """The first six pairs: lengths differ, and a minibatch of four leaves a ragged rest for held-out scores."""
    pairs = load_examples(config.data.train, load_tokenizer(config.model.path), 4096, 4096)
    return [pairs[i] for i in range(7)]


def sft_steps(ranks: Ranks, config: Any) -> dict[str, Any]:
    """Held-out score, two steps of two minibatches, the score again."""

    from ranks_work import trainer_of

    run, pairs = trainer_of(ranks, config), examples(config)
    before = run.held_out(pairs).metrics
    updates = [run.train_step(pairs[:4], step)[0].metrics for step in (1, 2)]
    after = run.held_out(pairs).metrics
    return {"before": before, "updates": updates, "after": after, "weights": ranks.all("weights")[0]}
