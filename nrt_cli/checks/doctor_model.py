"""`nrt doctor`, second part: the model on a few real rows, through the trainer's own engine. Nothing is saved.

Shapes: K traces of a group, T answer tokens, N scored tokens of a group's rows, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nrt_cli.backends.canary import Canary, next_logprobs
from nrt_cli.backends.local.rounding import allowed_gap
from nrt_cli.checks.findings import Finding
from nrt_cli.checks.memory import Peak, peak_memory
from nrt_cli.config import RunConfig, Weights
from nrt_cli.data.examples import ExampleSet
from nrt_cli.errors import TrainingError
from nrt_cli.objective import balance
from nrt_cli.objective.losses import Known, group_loss
from nrt_cli.objective.metrics import GroupScore
from nrt_cli.objective.rows import Row
from nrt_cli.records import Example, RolloutGroup
from nrt_cli.text.pieces import pieces
from nrt_cli.training.local import LocalTrainer
from nrt_cli.training.trainer import Update

QUESTIONS, GROUP, TRACE = 2, 4, 64
"""How much is tried at most: questions, traces of each, tokens of a trace."""

SAMPLER_FLOOR = 1e-3
"""Mean difference of log-probabilities, in nats, that two engines may have where nothing is rounded."""

STRETCH = 1.05
"""What all weights are multiplied by, to see whether the sampler notices."""

EXPLODING = 1e3
"""Token signals above this leave nothing but one token's gradient."""


@dataclass(frozen=True)
class Pass:
    """One step of training: its groups and update, tokens of its largest forward pass, and the memory it took."""

    groups: list[RolloutGroup]
    update: Update
    tokens: int
    memory: Peak


@dataclass
class Trial:
    """An engine on a few questions, and what came of trying it."""

    config: RunConfig
    engine: LocalTrainer
    examples: Sequence[Example]
    passes: list["Pass"] = field(default_factory=list)

    @property
    def groups(self) -> list[RolloutGroup]:
        """The groups of the last step; none for SFT."""
        return self.passes[-1].groups

    @property
    def update(self) -> Update:
        """What the last step said of them, before it changed the weights."""
        return self.passes[-1].update


def tried(config: RunConfig, engine: LocalTrainer, train: ExampleSet) -> Trial:
    """A small step of a run's own engine on its first questions. Nothing is saved."""
    config = small(config)
    engine.config = config
    if engine.backend.sampler is not None:
        engine.backend.sampler.settings = config.rollout
    trial = Trial(config, engine, [train[i] for i in range(min(QUESTIONS, len(train)))])
    trial.engine.backend.tell(lambda _: None)
    attempt(trial)
    return trial


def small(config: RunConfig) -> RunConfig:
    """The config of a trial: everything as asked, but few questions, few traces and short ones."""
    rollout, train = config.rollout, config.train
    less = {
        "group_size": min(rollout.group_size, GROUP),
        "max_trace_tokens": min(rollout.max_trace_tokens, TRACE),
    }
    return config.model_copy(
        update={
            "rollout": rollout.model_copy(update=less),
            "train": train.model_copy(update={"batch_size": QUESTIONS, "minibatch_size": None}),
        }
    )


# --- where everything stands -----------------------------------------------------------------------------------------


def positions(trial: Trial) -> Finding:
    """One example's rows, token by token, with the loss terms that reach each: read off the loss's own gradient."""
    engine, group = trial.engine, trial.groups[0]
    rows = engine.layout.rows_with_null(group)
    scores = engine.backend.score(rows)
    terms = _terms(trial, group, scores)
    shown = [
        {"row": "a trace", "tokens": _tokens(engine, rows[0], terms[0])},
        {"row": "the null trace", "tokens": _tokens(engine, rows[-1], [["baseline"]] * rows[-1].scored)},
    ]
    problems = list(_misplaced(trial, rows, terms))
    found = f"example {group.example.index}: {_counts(terms[0])}; null trace: {rows[-1].scored} answer tokens"
    details = {"example": group.example.index, "rows": shown}
    if problems:
        do = "do not train: report it with the output of `nrt doctor --json`."
        return Finding("positions", "problem", f"{found}; {'; '.join(problems)}", do, details)
    return Finding(
        "positions", "ok", found, "look at the rows below: is this where your answers begin and end?", details
    )


def _terms(trial: Trial, group: RolloutGroup, scores: Sequence[tuple[Tensor, Tensor]]) -> list[list[list[str]]]:
    """For each trace's row, for each scored token, the loss terms with a gradient there."""
    engine, objective = trial.engine, trial.config.objective
    # As if every trace were better than none, and every answer token alike, so that no position is silent by chance.
    objective = objective.model_copy(update={"advantage": "raw", "baseline": "none", "token_signal": "fixed"})
    flat, entropies = (torch.cat(parts).double() for parts in zip(*scores, strict=True))
    context = engine.layout.context(group, Known(), scores[-1][0].double())
    sizes = [row.scored for row in engine.layout.rows(group)]
    found: list[list[list[str]]] = [[[] for _ in range(size)] for size in sizes]
    for term in ("trace", "answer", "format"):
        only = Weights(**dict.fromkeys(("trace", "answer", "format"), 0.0) | {term: 1.0})
        leaf_N = flat.clone().requires_grad_()
        logprobs = engine.layout.assemble(group, leaf_N, entropies)
        loss = group_loss(
            engine.objective.method, logprobs, context, objective.model_copy(update={"weights": only}), 1, 1
        )
        if not loss.total.requires_grad:
            continue
        (grad_N,) = torch.autograd.grad(loss.total, leaf_N, allow_unused=True)
        for row, grads in zip(found, grad_N[: sum(sizes)].split(sizes), strict=True):
            for at in grads.nonzero()[:, 0].tolist():
                row[at].append(term)
    return found


def _tokens(engine: LocalTrainer, row: Row, terms: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    texts = pieces(engine.backend.tokenizer, row.ids)
    reached: list[list[str]] = [[] for _ in range(row.scored_from)] + [list(names) for names in terms]
    return [
        {"position": i, "id": token, "token": text, "terms": names}
        for i, (token, text, names) in enumerate(zip(row.ids, texts, reached, strict=True))
    ]


def _counts(terms: Sequence[Sequence[str]]) -> str:
    """How many tokens each term reaches."""
    counts = {name: sum(name in names for names in terms) for name in ("format", "trace", "answer")}
    return ", ".join(f"{name} term on {count} tokens" for name, count in counts.items())


def _misplaced(trial: Trial, rows: Sequence[Row], terms: Sequence[Sequence[Sequence[str]]]) -> Iterator[str]:
    """Where a term reaches another token than it is meant for."""
    engine, group = trial.engine, trial.groups[0]
    answer, think = group.example.answer_ids, {engine.backend.tokens.start_id, engine.backend.tokens.end_id}
    for k, (row, names) in enumerate(zip(rows[:-1], terms, strict=True)):
        scored = row.ids[row.scored_from :]
        with_term = {term: [i for i, on in enumerate(names) if term in on] for term in ("trace", "answer", "format")}
        if tuple(scored[i] for i in with_term["answer"]) != answer:
            yield f"trace {k}: the answer term is not on y* and its eos"
        if any(scored[i] not in think for i in with_term["format"]):
            yield f"trace {k}: the format term is on other tokens than t_start and t_end"
        if any(i >= len(scored) - len(answer) for i in with_term["trace"]):
            yield f"trace {k}: the trace term reaches y*"
    null = rows[-1]
    if null.ids[null.scored_from :] != answer or null.ids[null.scored_from - 1] != engine.backend.tokens.end_id:
        yield "the null trace's row is not t_end and then y*"


# --- log-probabilities -----------------------------------------------------------------------------------------------


@torch.no_grad()
def fused(trial: Trial) -> Finding:
    """The trainer's log-probs (packed rows, chunked head) against a plain forward pass and log-softmax, row by row."""
    engine = trial.engine
    if trial.groups:
        rows = engine.layout.rows_with_null(trial.groups[0])[-2:]
    else:
        rows = [engine.layout.direct_row(example) for example in trial.examples]
    fast = lambda: torch.cat([n for n, _ in engine.backend.score(rows)])  # noqa: E731
    plain = lambda: torch.cat([_plain(engine, row) for row in rows])  # noqa: E731
    gaps = (fast().double() - plain()).abs()
    allowed = allowed_gap(engine.backend.policy.model, plain, fast)
    mean, most = float(gaps.mean()), float(gaps.max())
    found = f"{len(gaps)} tokens: mean difference {mean:.1e}, largest {most:.1e} nats"
    details = {
        "tokens": len(gaps),
        "mean": mean,
        "max": most,
        "allowed": allowed,
        "packed": engine.backend.policy.packing,
    }
    if not mean <= allowed:
        do = (
            "set engine.packing=off; if it stays, this architecture is not supported (Llama, Mistral, Qwen, Gemma are)."
        )
        return Finding(
            "fused against plain log-probs", "problem", f"{found} (rounding explains {allowed:.1e})", do, details
        )
    return Finding("fused against plain log-probs", "ok", found, details=details)


def _plain(engine: LocalTrainer, row: Row) -> Tensor:
    """log p of a row's scored tokens by the textbook: whole logits, softmax, one row at a time, temperatures apart."""
    ids = torch.tensor([row.ids], device=engine.backend.policy.device)
    logits_TV = engine.backend.policy.model(ids, use_cache=False).logits[0, row.scored_from - 1 : -1].double()
    first, last = (edge - row.scored_from for edge in row.tempered)
    if last > 0:
        logits_TV[max(first, 0) : last] /= engine.backend.policy.temperature
    return logits_TV.log_softmax(-1).gather(-1, ids[0, row.scored_from :, None])[:, 0]


def rollouts(trial: Trial) -> Finding:
    """What the sampler said of its own tokens against what the trainer says of them."""
    metrics = trial.update.metrics
    mean, most = metrics["sampler_gap"], metrics["sampler_gap_max"]
    found = f"{trial.engine.backend.sampler.name} sampler: mean difference {mean:.1e}, largest {most:.1e} nats"  # type: ignore[union-attr]
    return _gap_finding("rollout against trainer log-probs", trial, mean, found, {"mean": mean, "max": most})


def _gap_finding(check: str, trial: Trial, gap: float, found: str, details: Mapping[str, Any]) -> Finding:
    if math.isnan(gap):
        return Finding(
            check, "skipped", "no trace has a token", "raise rollout.max_trace_tokens and look again.", details
        )
    engine = trial.engine
    rows = [row for group in trial.groups for row in engine.layout.rows(group)]
    score = lambda: torch.cat([n for n, _ in engine.backend.score(rows)])  # noqa: E731
    allowed = allowed_gap(engine.backend.policy.model, score, floor=SAMPLER_FLOOR)
    if not gap <= allowed:
        do = "set rollout.engine=native or model.dtype=float32; objective.tis_cap=2 bounds what is left of the gap."
        return Finding(check, "problem", f"{found} (rounding explains {allowed:.1e})", do, details)
    return Finding(check, "ok", found, details=details)


def stale(trial: Trial) -> Finding:
    """Whether new weights reach the sampler, and whether the canary would notice if they did not."""
    check, engine = "stale-weight canary", trial.engine
    assert engine.backend.sampler is not None
    canary = Canary(engine.backend.tokenizer, trial.config.rollout.temperature)
    before_V = next_logprobs(engine.backend.policy.model, canary.prompt_ids, canary.temperature)
    with torch.no_grad():
        for weight in engine.backend.policy.model.parameters():
            weight.mul_(STRETCH)
    engine.backend.sampler.update()
    (group,) = engine.sample(trial.examples[:1], 2)  # compares by itself, and raises where the sampler lags behind
    gap = _sampler_gap(engine, group)
    moved_V = next_logprobs(engine.backend.policy.model, canary.prompt_ids, canary.temperature) - before_V
    moved = float((moved_V.abs() * before_V.exp()).sum())
    details = {"moved": moved, "gap": gap}
    try:
        values, ids = before_V.topk(20)
        canary.check(dict(zip(ids.tolist(), values.tolist(), strict=True)), engine.backend.policy.model, "old")
    except TrainingError:
        found = f"weights changed by {STRETCH - 1:.0%}: log-probs moved by {moved:.2g} nats, the sampler's along"
        return _gap_finding(check, trial, gap, f"{found}; old ones are noticed; mean difference {gap:.1e}", details)
    do = "do not trust the canary with this model: compare metrics.jsonl's sampler_gap from step to step."
    return Finding(check, "warning", f"a change of {moved:.2g} nats was too small for the canary to tell", do, details)


def _sampler_gap(engine: LocalTrainer, group: RolloutGroup) -> float:
    """Mean absolute difference over a group's sampled tokens; NaN where there are none."""
    scores = engine.backend.score(engine.layout.rows(group))
    trainer_KZ = engine.layout.trace_logprobs(group, scores)
    context = engine.layout.context(group, Known(), torch.zeros(1))
    gaps = (trainer_KZ - engine.layout.sampler_logprobs(group))[context.sampled_mask_KZ].abs()
    return float(gaps.mean()) if len(gaps) else math.nan


# --- the scheme ------------------------------------------------------------------------------------------------------


def underflow(trial: Trial) -> Finding:
    """The scheme's rewards, advantages and token signals on real rows, and what naive float32 would make of them."""
    scores, method, objective = trial.update.scores, trial.config.method, trial.config.objective
    numbers = _scheme_numbers(scores)
    found = (
        f"{method}: log P(y*) from {numbers['logprob_min']:.0f} to {numbers['logprob_max']:.0f} nats, of whose "
        f"probabilities float32 would make {numbers['naive_zeros']:.0%} 0; token signals average "
        f"{numbers['token_signal']:.2g}; {numbers['dead_groups']:.0%} of {len(scores)} groups have no advantage"
    )
    if not numbers["finite"]:
        do = "set objective.weight_cap=100, or choose another method."
        return Finding("underflow", "problem", f"{found}; rewards are not finite", do, numbers)
    if objective.token_signal == "derived" and numbers["token_signal_max"] > EXPLODING:
        do = f"single tokens weigh up to {numbers['token_signal_max']:.2g}: set objective.weight_cap, for example 100."
        return Finding("underflow", "warning", found, do, numbers)
    if numbers["dead_groups"] == 1:
        do = (
            "no trace beats the null trace here, so the policy gradient starts from nothing: fine if it changes within "
            "some steps; else a larger rollout.group_size, another method, or objective.baseline=none."
        )
        return Finding("underflow", "warning", found, do, numbers)
    return Finding("underflow", "ok", found, details=numbers)


def _scheme_numbers(scores: Sequence[GroupScore]) -> dict[str, Any]:
    totals = torch.cat([score.logprobs.answer_KT.double().sum(-1) for score in scores])
    signals = torch.cat([score.loss.signal_KT.flatten() for score in scores])
    rewards = torch.cat([score.loss.reward.scaled_K for score in scores])
    advantages = torch.cat([score.loss.advantage.advantage_K.flatten() for score in scores])
    return {
        "logprob_min": float(totals.min()),
        "logprob_max": float(totals.max()),
        "naive_zeros": float((totals.float().exp() == 0).double().mean()),
        "token_signal": float(signals.mean()),
        "token_signal_max": float(signals.max()),
        "dead_groups": sum(score.loss.advantage.dead for score in scores) / len(scores),
        "finite": all(bool(values.isfinite().all()) for values in (signals, rewards, advantages)),
    }


def gradient(trial: Trial) -> Finding:
    """How much of the gradient each term of the loss has."""
    metrics, objective = trial.update.metrics, trial.config.objective
    keys = ("share_trace", "share_answer", "share_format", "token_signal", "answer_tokens", "answer_weight")
    details = {key: metrics[key] for key in keys}
    if doubt := balance.doubt(metrics, objective):
        return Finding("gradient", "warning", balance.described(metrics), doubt, details)
    return Finding("gradient", "ok", balance.described(metrics), details=details)


# --- trying ----------------------------------------------------------------------------------------------------------


def attempt(trial: Trial) -> None:
    """Two steps as training takes them, the first of one question, the last of all: two points tell what a token costs.

    The smaller one first: what an allocator keeps from a larger one would hide how little it takes.
    """
    for step, count in enumerate(sorted({1, len(trial.examples)}), 1):
        trial.passes.append(_step(trial.engine, trial.examples[:count], step))


def _step(engine: LocalTrainer, examples: Sequence[Example], step: int) -> Pass:
    with peak_memory(engine.backend.policy.device) as memory:
        update, groups = engine.train_step(examples, step)
    rows = [row for group in groups for row in engine.layout.rows_with_null(group)]
    rows = rows or [engine.layout.direct_row(example) for example in examples]
    return Pass(groups, update, min(engine.backend.policy.size(rows), engine.backend.budget.tokens), memory)
