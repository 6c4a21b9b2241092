"""`nrt doctor`: two small steps on a few real rows, through the trainer's own engine. Nothing is saved.

Shapes: K traces of a group, T answer tokens, Z trace tokens, N scored tokens of a group's rows, V vocabulary.
"""

import contextlib
import math
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from nrt_cli.backends.local.rounding import allowed_gap
from nrt_cli.backends.machine import give_back_memory
from nrt_cli.backends.samplers import Canary, next_logprobs
from nrt_cli.checks.estimate import in_bytes, plan_for, refined
from nrt_cli.checks.findings import WITH_TRACES, Checks, Finding, judged, ok, problem, skipped
from nrt_cli.config import RunConfig, Weights
from nrt_cli.errors import TrainingError
from nrt_cli.objective.losses import (
    TERMS,
    Known,
    balance_described,
    balance_doubt,
    group_advantage,
    group_loss,
    group_of,
)
from nrt_cli.records import Example, Plan, RolloutGroup
from nrt_cli.text.pieces import pieces
from nrt_cli.training.start import Inputs
from nrt_cli.training.trainer import LocalTrainer, Update

QUESTIONS, GROUP, TRACE = 2, 4, 64
"""How much is tried at most: questions, traces of each, tokens of a trace."""

STRETCH = 1.05
"""What all weights are multiplied by, to see whether the sampler notices."""

SAFE_SHARE = 0.9
"""Share of the available memory or disk that a prediction may fill without a warning."""

EXPLAINED = "(rounding explains {:.1e})"


@dataclass
class Pass:
    """A step's largest forward pass in tokens, and bytes in use: the most within the step, and those after it."""

    tokens: int = 0
    most: float = math.nan
    after: float = math.nan


@dataclass
class Trial:
    """A trainer on a few questions, and what came of two steps: groups (none for SFT) and update of the last one."""

    config: RunConfig
    trainer: LocalTrainer
    inputs: Inputs
    examples: Sequence[Example]
    passes: Sequence[Pass]
    groups: Sequence[RolloutGroup]
    update: Update

    @property
    def largest_pass(self) -> int:
        """Tokens of the largest pass of the run that is tried."""
        train, rollout, examples = self.config.train, self.config.rollout, self.inputs.train
        of_group = (rollout.group_size + 1) * examples.longest_with(rollout.trace_cap)
        return min(train.micro_batch_tokens, train.batch_size * (of_group if self.groups else examples.longest))

    @property
    def checkpoint_bytes(self) -> int:
        """Of weights and moments as they are saved."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.trainer.backend.optimiser.state().values())

    @cached_property
    def plan(self) -> Plan:
        return refined(plan_for(self.config, self.inputs.train), self.config, self)


STEP: Checks[Trial] = Checks()


def tried(config: RunConfig, trainer: LocalTrainer, inputs: Inputs) -> Trial:
    """Two steps of a run's own engine as training takes them, but few questions, few traces and short ones.

    The first is of one question, the last of all: two points tell what a token costs. The smaller comes first, since
    what an allocator keeps would hide how little it takes.
    """
    rollout, train = config.rollout, config.train
    fewer = {"group_size": min(rollout.group_size, GROUP), "max_trace_tokens": min(rollout.max_trace_tokens, TRACE)}
    batch = {"batch_size": QUESTIONS, "minibatch_size": None}
    small = {"rollout": rollout.model_copy(update=fewer), "train": train.model_copy(update=batch)}
    trainer.config, backend = config.model_copy(update=small), trainer.backend
    trainer.verifier = inputs.verifying(backend.tokenizer, backend.tokens)
    if backend.sampler is not None:
        backend.sampler.settings = trainer.config.rollout
    backend.tell(lambda _: None)
    examples = [inputs.train[i] for i in range(min(QUESTIONS, len(inputs.train)))]
    passes = []
    for step, count in enumerate(sorted({1, len(examples)}), 1):
        with peak_memory(backend.policy.device) as memory:
            update, groups = trainer.train_step(examples[:count], step)
        rows = [row for group in groups for row in trainer.layout.rows_with_null(group)]
        rows = rows or [trainer.layout.direct_row(example) for example in examples[:count]]
        memory.tokens = min(backend.policy.size(rows), backend.budget.tokens)
        passes.append(memory)
    return Trial(config, trainer, inputs, examples, passes, groups, update)


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Pass]:
    """What the work in the block takes: of a GPU as torch counts it, on a CPU of this process as the system does."""
    found = Pass()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.most = float(torch.cuda.max_memory_allocated(device))
        found.after = float(torch.cuda.memory_allocated(device))
        return
    process, done = psutil.Process(), threading.Event()
    give_back_memory()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        give_back_memory()
        found.most, found.after = float(max(seen)), float(process.memory_info().rss)


# --- where everything stands -----------------------------------------------------------------------------------------


@STEP.check("positions", when=WITH_TRACES)
def positions(trial: Trial) -> Finding:
    """One example's rows, token by token, with the loss terms that reach each: read off the loss's own gradient."""
    backend, group = trial.trainer.backend, trial.groups[0]
    answer, think = group.example.answer_ids, {backend.tokens.start_id, backend.tokens.end_id}
    rows = trial.trainer.layout.rows_with_null(group)
    null, scores = rows[-1], backend.score(rows)
    # For each trace's row, for each scored token, the loss terms with a gradient there: as if every trace were better
    # than none, and every answer token alike, so that no position is silent by chance.
    layout, method = trial.trainer.layout, trial.trainer.objective.method
    alike = {"advantage": "raw", "baseline": "none", "token_signal": "fixed"}
    flat, entropies = (torch.cat(parts).double() for parts in zip(*scores, strict=True))
    known = Known(asked=trial.trainer.asked([group])[0][0])
    context = layout.context(group, known, scores[-1][0].double())
    sizes = [row.scored for row in layout.rows(group)]
    terms: list[list[list[str]]] = [[[] for _ in range(size)] for size in sizes]
    for term in TERMS:
        weights = Weights(**dict.fromkeys(TERMS, 0.0) | {term: 1.0})
        only = trial.config.objective.model_copy(update=alike | {"weights": weights})
        leaf_N = flat.clone().requires_grad_()
        loss = group_loss(method, layout.assemble(group, leaf_N, entropies), context, only, 1, 1)
        if loss.total.requires_grad:
            (grad_N,) = torch.autograd.grad(loss.total, leaf_N, allow_unused=True)
            for names, grads in zip(terms, grad_N[: sum(sizes)].split(sizes), strict=True):
                for at in grads.nonzero()[:, 0].tolist():
                    names[at].append(term)
    shown = []
    for name, row, names in (("a trace", rows[0], terms[0]), ("the null trace", null, [["baseline"]] * null.scored)):
        reached: list[list[str]] = [[]] * row.scored_from + list(names)
        each = enumerate(zip(row.ids, pieces(backend.tokenizer, row.ids), reached, strict=True))
        tokens = [{"position": i, "id": token, "token": text, "terms": names} for i, (token, text, names) in each]
        shown.append({"row": name, "tokens": tokens})
    misplaced = []
    traces = len(group.rollouts)  # after these come the rows of what else ended a trace, which have no y*
    for k, (row, names) in enumerate(zip(rows[:traces], terms[:traces], strict=True)):
        scored = row.ids[row.scored_from :]
        reach = {term: [i for i, on in enumerate(names) if term in on] for term in TERMS}
        if tuple(scored[i] for i in reach["answer"]) != answer:
            misplaced.append(f"trace {k}: the answer term is not on y* and its eos")
        if any(scored[i] not in think for i in reach["format"]):
            misplaced.append(f"trace {k}: the format term is on other tokens than t_start and t_end")
        if any(i >= len(scored) - len(answer) for i in reach["trace"]):
            misplaced.append(f"trace {k}: the trace term reaches y*")
    if null.ids[null.scored_from :] != answer or null.ids[null.scored_from - 1] != backend.tokens.end_id:
        misplaced.append("the null trace's row is not t_end and then y*")
    counts = {term: sum(term in names for names in terms[0]) for term in ("format", "trace", "answer")}
    counted = ", ".join(f"{term} term on {count} tokens" for term, count in counts.items())
    found = f"example {group.example.index}: {counted}; null trace: {null.scored} answer tokens"
    details = {"example": group.example.index, "rows": shown}
    if misplaced:
        do = "do not train: report it with the output of `nrt doctor --json`."
        return problem(f"{found}; {'; '.join(misplaced)}", do, details)
    return ok(found, "look at the rows below: is this where your answers begin and end?", details)


# --- log-probabilities -----------------------------------------------------------------------------------------------


@STEP.check("fused against plain log-probs")
@torch.no_grad()
def fused(trial: Trial) -> Finding:
    """The trainer's log-probs against a plain forward pass and log-softmax, row by row."""
    layout, policy = trial.trainer.layout, trial.trainer.backend.policy
    rows = [layout.direct_row(example) for example in trial.examples]
    if trial.groups:
        rows = layout.rows_with_null(trial.groups[0])[-2:]

    def fast() -> Tensor:
        return torch.cat([logprobs_N for logprobs_N, _ in trial.trainer.backend.score(rows)])

    def plain() -> Tensor:
        """By the textbook: whole logits, softmax, one row at a time, temperatures apart."""
        found = []
        for row in rows:
            ids = torch.tensor([row.ids], device=policy.device)
            logits_NV = policy.model(ids, use_cache=False).logits[0, row.scored_from - 1 : -1].double()
            first, last = (edge - row.scored_from for edge in row.tempered)
            if last > 0:
                logits_NV[max(first, 0) : last] /= policy.temperature
            found.append(logits_NV.log_softmax(-1).gather(-1, ids[0, row.scored_from :, None])[:, 0])
        return torch.cat(found)

    gaps = (fast().double() - plain()).abs()
    allowed = allowed_gap(policy.model, plain, fast)
    mean, most = float(gaps.mean()), float(gaps.max())
    found = f"{len(gaps)} tokens: mean difference {mean:.1e}, largest {most:.1e} nats"
    details = {"tokens": len(gaps), "mean": mean, "max": most, "allowed": allowed, "packed": policy.packing}
    do = "set engine.packing=off; if it stays, this architecture is not supported (Llama, Mistral, Qwen, Gemma are)."
    return ok(found, "", details) if mean <= allowed else problem(f"{found} {EXPLAINED.format(allowed)}", do, details)


@STEP.check("rollout against trainer log-probs", when=WITH_TRACES)
def rollouts(trial: Trial) -> Finding:
    """What the sampler said of its own tokens against what the trainer says of them."""
    mean, most = (trial.update.metrics[key] for key in ("sampler_gap", "sampler_gap_max"))
    found = f"{trial.trainer.backend.sampler.name} sampler: mean difference {mean:.1e}, largest {most:.1e} nats"  # type: ignore[union-attr]
    return _of_gap(trial, mean, found, {"mean": mean, "max": most})


def _of_gap(trial: Trial, gap: float, found: str, details: Mapping[str, Any]) -> Finding:
    """Whether rounding explains a gap between sampler and trainer."""
    if math.isnan(gap):
        return skipped("no trace has a token", "raise rollout.max_trace_tokens and look again.", details)
    rows = [row for group in trial.groups for row in trial.trainer.layout.rows(group)]
    score = lambda: torch.cat([logprobs_N for logprobs_N, _ in trial.trainer.backend.score(rows)])  # noqa: E731
    # The floor, in nats, is what two engines may differ by where nothing is rounded.
    allowed = allowed_gap(trial.trainer.backend.policy.model, score, floor=1e-3)
    do = "set rollout.engine=native or model.dtype=float32; objective.tis_cap=2 bounds what is left of the gap."
    return ok(found, "", details) if gap <= allowed else problem(f"{found} {EXPLAINED.format(allowed)}", do, details)


# --- the scheme ------------------------------------------------------------------------------------------------------


@STEP.check("underflow", when=WITH_TRACES)
def underflow(trial: Trial) -> Finding:
    """The scheme's rewards, advantages and token signals on real rows, and what naive float32 would make of them."""
    scores = trial.update.scores
    totals = torch.cat([score.logprobs.answer_KT.double().sum(-1) for score in scores])
    signals = torch.cat([score.loss.signal_KT.flatten() for score in scores])
    rewards = torch.cat([score.loss.reward.scaled_K for score in scores])
    advantages = torch.cat([score.loss.advantage.advantage_K.flatten() for score in scores])
    low, high, signal, largest = map(float, (totals.min(), totals.max(), signals.mean(), signals.max()))
    zeros = float((totals.float().exp() == 0).double().mean())
    dead = sum(score.loss.advantage.dead for score in scores) / len(scores)
    finite = all(bool(values.isfinite().all()) for values in (signals, rewards, advantages))
    details = {"logprob_min": low, "logprob_max": high, "naive_zeros": zeros, "token_signal": signal}
    details |= {"token_signal_max": largest, "dead_groups": dead, "finite": finite}
    found = (
        f"{trial.config.method}: log P(y*) from {low:.0f} to {high:.0f} nats, of whose probabilities float32 would "
        f"make {zeros:.0%} 0; token signals average {signal:.2g}; {dead:.0%} of {len(scores)} groups have no advantage"
    )
    if not finite:
        do = "set objective.weight_cap=100, or choose another method."
        return problem(f"{found}; rewards are not finite", do, details)
    do = ""
    if trial.config.objective.token_signal == "derived" and largest > 1e3:  # nothing but one token's gradient is left
        do = f"single tokens weigh up to {largest:.2g}: set objective.weight_cap, for example 100."
    elif dead == 1:
        do = (
            "no trace beats the null trace here, so the policy gradient starts from nothing: fine if it changes within "
            "some steps; else a larger rollout.group_size, another method, or objective.baseline=none."
        )
    return judged(found, do, details)


@STEP.check("one group by hand", when=WITH_TRACES)
def by_hand(trial: Trial) -> Finding:
    """What the method makes of one group, in a table from which each number can be made again: one that has a signal,
    if there is one."""
    objective, scores = trial.config.objective, trial.update.scores
    at = next((i for i, score in enumerate(scores) if not score.loss.advantage.dead), 0)
    score, example, method = scores[at], trial.groups[at].example, trial.trainer.objective.method
    group = group_of(method, score.logprobs, score.context, objective)
    reward, shaped = score.loss.reward, group_advantage(score.loss.reward, objective.baseline, "raw").advantage_K
    columns: dict[str, Tensor] = {
        "tokens": score.context.trace_mask_KZ.sum(-1) - 1,
        "log P(y*)": group.logprobs_KT.sum(-1),
    }
    null = {"log P(y*)": float(group.base_logprobs_T.sum()), "R": float(reward.base)}
    if group.closed_K is not None:
        columns["ended"] = group.closed_K.long()
    if group.trace_logprobs_KZ is not None and group.reference_trace_KZ is not None:
        columns["drift"] = (group.trace_logprobs_KZ - group.reference_trace_KZ).sum(-1)
    if group.follower_logprobs_KT is not None:
        columns["log P slow"] = group.follower_logprobs_KT.sum(-1)
    columns |= {"R": reward.reward_K, "R'": shaped, "A": score.loss.advantage.advantage_K}
    rows = [
        {"trace": str(k), **{name: float(column[k]) for name, column in columns.items()}}
        | {"weights": [float(weight) for weight in score.loss.signal_KT[k]]}
        for k in range(len(group.logprobs_KT))
    ]
    rows.append({"trace": "null", **dict.fromkeys(columns, math.nan), **null, "weights": []})
    told = method.formulas.reward.text if method.formulas else "its code"
    found = f"example {example.index}: R = {told}; R' with objective.baseline={objective.baseline}, A with "
    found += f"objective.advantage={objective.advantage}; weights of y*'s tokens with token_signal="
    found += f"{objective.token_signal} and balance={objective.balance}"
    found += "; drift is log pi(z) less the starting model's" * ("drift" in columns)
    if not reward.kept:
        found += "; the method filters this group out"
    details = {"example": example.index, "columns": ["trace", *columns, "weights"], "group": rows}
    return ok(found, "does each number follow from those before it?", details)


@STEP.check("gradient", when=WITH_TRACES)
def gradient(trial: Trial) -> Finding:
    metrics = trial.update.metrics
    keys = ("share_trace", "share_answer", "share_format", "token_signal", "answer_tokens", "answer_weight")
    doubt = balance_doubt(metrics, trial.config.objective)
    return judged(balance_described(metrics), doubt, {key: metrics[key] for key in keys})


# --- what the run will take ------------------------------------------------------------------------------------------


@STEP.check("memory")
def memory(trial: Trial) -> Finding:
    device, last = trial.trainer.backend.policy.device, trial.passes[-1]
    need, target = trial.plan.memory_update, trial.largest_pass
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    room = free + last.after
    found = f"{last.most / 1e9:.1f} GB at {last.tokens} tokens a pass; about {need / 1e9:.1f} GB at {target}, "
    found += f"of {room / 1e9:.1f} GB"
    details = {"measured": last.most, "tokens": last.tokens, "predicted": need, "at_tokens": target, "room": room}
    do = "lower train.micro_batch_tokens (same result), or set model.gradient_checkpointing=true, model.lora.rank=32 "
    do += "or optimiser.states=8bit."
    return judged(found, do if need > SAFE_SHARE * room else "", details)


@STEP.check("time")
def time(trial: Trial) -> Finding:
    """If traces stay as long as now, and if all run into the cap."""
    plan = trial.plan
    steps, low, high = plan.steps, plan.seconds, plan.gpu_hours_most * 3600 / plan.steps
    found = f"a step {_span(low)} to {_span(high)}, {steps} steps {_span(low * steps)} to {_span(high * steps)}"
    found += f" ({'; '.join(plan.assumptions)})"
    details = {"step_seconds": [low, high], "steps": steps, "total_seconds": [low * steps, high * steps]}
    do = "lower train.batch_size, rollout.group_size, rollout.max_trace_tokens or --steps, or take a faster machine."
    return judged(found, do if low * steps > 7 * 86400 else "", details)


def _span(seconds: float) -> str:
    units = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((each for each in units if seconds >= each[0]), units[-1])
    return f"{seconds / size:.1f} {unit}"


@STEP.check("disk")
def disk(trial: Trial) -> Finding:
    """Checkpoints with the moments, and the exported model."""
    need, kept, free = trial.plan.disk, trial.plan.disk_kept, shutil.disk_usage(Path.cwd()).free
    found = f"about {in_bytes(need)} for checkpoints and model, {in_bytes(kept)} when it is done; "
    found += f"{in_bytes(free)} are free"
    details = {"needed": need, "kept": kept, "free": free, "checkpoint": trial.checkpoint_bytes}
    do = "make room (`nrt runs gc`), lower train.keep_checkpoints, or name another disk with --run."
    return judged(found, do if need > SAFE_SHARE * free else "", details)


@STEP.check("stale-weight canary", when=WITH_TRACES)  # last, since it changes the weights
def stale(trial: Trial) -> Finding:
    """Whether new weights reach the sampler, and whether the canary would notice if they did not."""
    backend, layout, model = trial.trainer.backend, trial.trainer.layout, trial.trainer.backend.policy.model
    assert backend.sampler is not None
    canary = Canary(backend.tokenizer, trial.config.rollout.temperature)
    before_V = next_logprobs(model, canary.prompt_ids, canary.temperature)[-1]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(STRETCH)
    backend.sampler.update()
    # Compares by itself, and raises where the sampler lags behind.
    (group,) = trial.trainer.sample(trial.examples[:1], 2)
    trainer_KZ = layout.assembled(group, backend.score(layout.rows(group))).chosen_KZ
    context = layout.context(group, Known(), torch.zeros(1))
    gaps = (trainer_KZ - layout.sampler_logprobs(group))[context.chosen_mask_KZ()].abs()
    gap = float(gaps.mean()) if len(gaps) else math.nan
    moved_V = next_logprobs(model, canary.prompt_ids, canary.temperature)[-1] - before_V
    moved = float((moved_V.abs() * before_V.exp()).sum())
    details = {"moved": moved, "gap": gap}
    try:
        values, ids = before_V.topk(20)
        canary.check(dict(zip(ids.tolist(), values.tolist(), strict=True)), model, "old")
    except TrainingError:
        found = f"weights changed by {STRETCH - 1:.0%}: log-probs moved by {moved:.2g} nats, the sampler's along"
        return _of_gap(trial, gap, f"{found}; old ones are noticed; mean difference {gap:.1e}", details)
    do = "do not trust the canary with this model: compare metrics.jsonl's sampler_gap from step to step."
    return judged(f"a change of {moved:.2g} nats was too small for the canary to tell", do, details)
