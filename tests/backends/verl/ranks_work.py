"""What tests have done in rank 0's process; here since a new process has to be able to import it."""

from typing import Any

from ranks_of_verl import Ranks
from solvable import batch

from nrt_cli.records import Example


def trainer_of(ranks: Ranks, config: Any, updates: int = 4) -> Any:
    from nrt_cli.backends.verl.backend import VerlBackend
    from nrt_cli.training.trainer import Trainer

    ranks.calls.clear()
    return Trainer(config, VerlBackend(config, ranks), updates)


def gradients_of_cases(ranks: Ranks, _: Any, configs: dict[str, Any]) -> dict[str, Any]:
    """Of each case the gradient and metrics in one pass, in two and as each group fits, with the calls; and traces."""
    results: dict[Any, Any] = {"traces": looped(next(iter(configs.values())))}
    ranks.everywhere("hold", True)
    for name, config in configs.items():
        for way in ("one", "two", "each"):
            trainer = trainer_of(ranks, config)
            groups = batch(trainer.backend.tokens, asks=trainer.asks)
            sizes = sorted(sum(len(row.ids) for row in trainer.layout.rows_with_null(group)) for group in groups)
            trainer.backend.budget = {"one": trainer.backend.budget, "two": 1, "each": sizes[1]}[way]
            metrics = trainer.update(groups).metrics
            told = {key: value for key, value in metrics.items() if key not in ("grad_norm", "lr", "tokens")}
            results[name, way] = ranks.own.gradients, told, list(ranks.calls)
    return results


def looped(config: Any) -> dict[str, Any]:
    """What verl's agent loop makes of a server that ends a trace by t_end, by eos and by the cap, in its own words."""
    import asyncio
    from types import SimpleNamespace

    from nrt_cli.backends.verl.agent_loop import NativeReasoning
    from nrt_cli.models.loading import load_tokenizer
    from nrt_cli.objective.rows import trace_prompt
    from nrt_cli.text.tokens import think_tokens

    tokens = think_tokens(load_tokenizer(config.model.path), "<|think_start|>", "<|think_end|>")
    example = Example(7, "made", (11, 12), (21, tokens.eos_id))
    results = {}
    last = {"end": tokens.end_id, "eos": tokens.eos_id, "start": tokens.start_id, "cap": 32}
    for stop, ids in ((stop, [31, token]) for stop, token in last.items()):
        asked: dict[str, Any] = {}

        async def generate(ids: list[int] = ids, asked: dict[str, Any] = asked, **request: Any) -> Any:
            asked.update(request)
            return SimpleNamespace(token_ids=ids, log_probs=[-0.5, -0.25])

        loop = object.__new__(NativeReasoning)
        loop.server_manager = SimpleNamespace(generate=generate)
        request = {"group": "0-0-1-7", "example": example, "tokens": tokens, "max_trace_tokens": 2, "seed": 5}
        request["opening"] = trace_prompt(example, tokens)
        output = asyncio.run(loop.run({"temperature": 0.7}, **request))
        results[stop] = (asked, output.prompt_ids, output.response_ids, output.response_logprobs, output.extra_fields)
    return {"tokens": tokens, **results}


def weights_after_steps(ranks: Ranks, config: Any, path: str) -> dict[str, Any]:
    """Two steps of two minibatches each; saved after the first, and taken again from there."""
    trainer = trainer_of(ranks, config)
    groups = batch(trainer.backend.tokens)
    metrics = trainer.update(groups).metrics
    ranks.everywhere("save", path)
    first = trainer.updated
    trainer.update(groups)
    once = ranks.all("weights")[0]
    ranks.everywhere("load", path)
    trainer.updated = first
    trainer.update(groups)
    odd = trainer.backend.score(trainer.layout.rows(groups[0])[:3])  # no whole number of rows for each rank
    return {
        "metrics": metrics,
        "once": once,
        "again": ranks.all("weights")[0],
        "odd": [logprobs.numpy() for logprobs, _ in odd],
    }


def slow_copy(ranks: Ranks, config: Any, path: str) -> dict[str, Any]:
    """What the slow copy says before a step, after one and after two; saved after the first, and taken again."""
    trainer = trainer_of(ranks, config)
    backend = trainer.backend
    groups = batch(backend.tokens)
    rows = [row for group in groups for row in trainer.layout.answer_rows(group)]
    said = lambda whose: [logprobs.tolist() for logprobs, _ in backend.score(rows, whose)]  # noqa: E731
    found: dict[str, Any] = {"before": said("follower"), "start": said("policy")}
    first = trainer.update(groups).metrics
    state = backend.following
    ranks.everywhere("save", path)
    found |= {"pending": state, "policy": said("policy"), "after": said("follower"), "back": said("policy")}
    trainer.update(groups)
    found |= {"metrics": first, "last": said("follower"), "weights": ranks.all("weights")[0]}
    ranks.everywhere("load", path)
    backend.following, trainer.updated = state, 1
    found["again"] = said("follower")
    trainer.update(groups)
    return found | {"last again": said("follower"), "weights again": ranks.all("weights")[0]}
