"""Algorithm 1, once: sample, score what pi_old knows, then an optimiser step per minibatch; and held-out scores.

Shapes: K traces of a group, Z trace positions (t_end included), T answer tokens, N scored tokens of a row.

Where it is computed is a backend's business, which gets rows and a loss that is a function of what is said of them.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nrt_cli.backends.local.backend import Loaded, LocalBackend
from nrt_cli.backends.local.rounding import UNMEASURED
from nrt_cli.backends.local.throughput import synchronise
from nrt_cli.backends.reasoning import Reasoner
from nrt_cli.backends.samplers import FLOOR
from nrt_cli.config import OptimiserSection, RunConfig
from nrt_cli.errors import TrainingError
from nrt_cli.objective.losses import GroupScore, Known, step_metrics
from nrt_cli.objective.rows import Objective, Row, Unit, Whose, guide
from nrt_cli.records import Example, HeldOut, RolloutGroup, SampledAnswer
from nrt_cli.store import Content
from nrt_cli.text.tokens import ThinkTokens
from nrt_cli.training.verifying import Verifying, answer_metrics

TRAIN_STREAM, HELD_OUT_STREAM, GUIDE_STREAM = 0, 1, 3
"""First part of the random streams' key, so that scoring held-out examples never changes what training samples."""

Scores = tuple[Tensor, Tensor]
"""logprobs_N and entropies_N of a row's scored tokens, natural logs and nats."""


class Backend(Protocol):
    """Where a policy is kept, sampled, scored and updated.

    On `device` log-probabilities lie; `exact_sampler`: what the sampler says of its own tokens is what a pass over them
    would say; `work` is floating-point operations since it was set to 0.
    """

    tokenizer: Any
    tokens: ThinkTokens
    device: torch.device
    exact_sampler: bool
    work: float

    def sample(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        """K traces for each example from the weights last published, from the random streams that `key` names."""

    def answer(self, groups: Sequence[RolloutGroup], key: Sequence[int]) -> list[list[SampledAnswer]]:
        """An answer after each of the groups' traces, by the same weights and from streams that `key` names."""

    def score(self, rows: Sequence[Row], whose: Whose = "policy") -> list[Scores]:
        """What the policy, the starting model or the slow copy says of rows, without gradient."""

    def follow(self, keep: float) -> None:
        """Move the slow copy: `keep` of itself and the rest of the policy."""

    def forward_backward(self, units: Sequence[Unit]) -> None:
        """Add the gradient of the units' losses, of a whole minibatch, to that of the next step."""

    def step(self, rate: float) -> tuple[float, list[Any]]:
        """One optimiser step; the gradient's norm, and what each unit's loss said besides. None if it is not finite."""

    def publish(self) -> None:
        """The policy's weights to whoever samples, if they have older ones."""

    def save(self) -> Content:
        """A checkpoint's tensors by name, or what writes them into a folder."""

    def load(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint."""

    def export(self, folder: Path, checkpoint: Path) -> None:
        """The policy as a model folder."""

    # Facts.
    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether a row more of the same prompt costs no pass of its own."""

    def mfu(self, seconds: float) -> float:
        """The share of the machine's matmul rate that `work` in so many seconds is; NaN if not measured."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint says besides its tensors."""

    def broken_weight(self) -> str | None:
        """The name of a weight that is not finite: only whole weights may take a good checkpoint's place."""

    def reasoner(self) -> Reasoner | None:
        """The policy as it is, to ask it questions."""

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what a person should know of how this computes, and whatever comes up later, through `say`."""


@dataclass(frozen=True)
class Update:
    """What one training step did: its metrics and, where traces are sampled, every group as it was scored."""

    metrics: dict[str, float]
    scores: list[GroupScore]


def rate_factor(settings: OptimiserSection, update: int, updates: int) -> float:
    """Share of the peak learning rate at optimiser step `update` (from 0) of `updates`."""
    warmup = math.ceil(settings.warmup * updates)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    progress = (update - warmup) / max(1, updates - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": cosine}[settings.schedule]


class Clock:
    """Seconds by phase since it was last read, wherever the phase is computed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        synchronise(self.device)
        started = time.perf_counter()
        try:
            yield
        finally:
            synchronise(self.device)
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """The seconds of each phase, and from 0 again."""
        seconds, self.seconds = self.seconds, {}
        return seconds


class Trainer:
    """A run's policy in training: `updated` of the whole run's `updates` optimiser steps are taken.

    `factor` is the share of the peak learning rate at an update (from 0); None: as the config's schedule has it.
    `verifier` judges answers, for a method that asks for verdicts.
    """

    def __init__(
        self,
        config: RunConfig,
        backend: Backend,
        updates: int,
        factor: Callable[[int], float] | None = None,
        verifier: Verifying | None = None,
    ) -> None:
        self.config, self.backend, self.updated = config, backend, 0
        self.factor = factor or (lambda update: rate_factor(config.optimiser, update, updates))
        self.objective = Objective(config, backend.tokens)
        self.layout, self.asks = self.objective.layout, config.asks
        self.memory: Mapping[str, float] = {}
        self.verifier = verifier
        self.clock = Clock(backend.device)

    def train_step(self, examples: Sequence[Example], step: int) -> tuple[Update, list[RolloutGroup]]:
        """Sample, where the method does, and update; seconds of each phase and rates are among the metrics."""
        started = time.perf_counter()
        self.clock.read()  # what held-out scores took is no part of a step
        self.backend.work = 0.0
        sample = self.guided if "guide" in self.asks else self.sample
        groups = sample(examples, step) if self.config.samples else []
        groups = self.answered(groups, step) if "answers" in self.asks else groups
        update = self.update(groups or examples)
        seconds = time.perf_counter() - started
        phases, tokens = self.clock.read(), update.metrics["tokens"]
        update.metrics.update({"seconds": seconds, "tokens_per_second": tokens / seconds})
        update.metrics.update({f"seconds_{phase}": taken for phase, taken in phases.items()})
        updating = seconds - phases.get("rollout", 0.0) - phases.get("verify", 0.0)
        update.metrics["seconds_update"] = updating
        update.metrics["mfu"] = self.backend.mfu(updating)
        if groups:
            rollouts = [rollout for group in groups for rollout in group.rollouts]
            sampled = sum(len(rollout.sampler_logprobs) for rollout in rollouts)
            sampled += sum(len(rollout.answer.ids) for rollout in rollouts if rollout.answer)
            update.metrics["rollout_tokens_per_second"] = sampled / phases["rollout"]
            if "answers" in self.asks:
                update.metrics.update(answer_metrics(rollouts, "verdicts" in self.asks))
        return update, groups

    def sample(self, examples: Sequence[Example], step: int) -> list[RolloutGroup]:
        """K traces for each example under the current policy, from the random streams of this step."""
        return self._sample(examples, self.config.rollout.group_size, (self.config.seed, TRAIN_STREAM, step))

    def guided(self, examples: Sequence[Example], step: int) -> list[RolloutGroup]:
        """K traces for each example, a share of which the policy samples with y* in view; these come last."""
        size, seed = self.config.rollout.group_size, self.config.seed
        count = guided_traces(size, self.config.objective.guided_share)
        groups = self._sample(examples, size - count, (seed, TRAIN_STREAM, step))
        seeing = self._sample([guide(example) for example in examples], count, (seed, GUIDE_STREAM, step))
        return [
            replace(own, rollouts=own.rollouts + tuple(replace(r, guided=True) for r in other.rollouts))
            for own, other in zip(groups, seeing, strict=True)
        ]

    def answered(self, groups: Sequence[RolloutGroup], step: int) -> list[RolloutGroup]:
        """The same groups, each trace with an answer after it; where verdicts are asked for, those of rows that have a
        verifier, and its verdict."""
        judge = self.verifier
        assert judge or "verdicts" not in self.asks, "a method that asks for verdicts was given nobody to judge"
        answered = list(groups)
        at = [i for i, group in enumerate(groups) if judge is None or judge.judges(group.example)]
        asked = [groups[i] for i in at]
        with self.clock("rollout"):
            answers = self.backend.answer(asked, (self.config.seed, TRAIN_STREAM, step)) if at else []
        if judge:
            with self.clock("verify"):
                answers = judge.judged([group.example for group in asked], answers)
        for i, group, said in zip(at, asked, answers, strict=True):
            pairs = zip(group.rollouts, said, strict=True)
            answered[i] = replace(group, rollouts=tuple(replace(r, answer=answer) for r, answer in pairs))
        return answered

    def _sample(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        with self.clock("weights"):
            self.backend.publish()
        with self.clock("rollout"):
            return self.backend.sample(examples, group_size, key)

    def require_own_samples(self, update: Update) -> None:
        """Raises TrainingError where the sampler runs other weights than the policy's, by what both say of its tokens.

        What a sampler of ours looks at before it samples is told from rounding more finely.
        """
        gap = update.metrics.get("sampler_gap", math.nan)
        dtype = self.config.model.dtype
        allowed = FLOOR + UNMEASURED[getattr(torch, dtype, torch.bfloat16)]
        if gap > allowed:  # NaN where nothing was sampled
            error = TrainingError(
                f"the sampler does not run the trainer's weights: what the two say of sampled tokens differs by "
                f"{gap:.2g} nats on average (rounding in {dtype} explains {allowed:.2g})"
            )
            error.remedy = self.config.backend.OTHER_SAMPLING
            raise error

    def update(self, batch: Sequence[RolloutGroup] | Sequence[Example]) -> Update:
        """One optimiser step per minibatch of sampled groups (Algorithm 1) or, without traces, of examples (Eq. 1).

        c_base and pi_old belong to the policy that sampled, so what is needed of them later is known before the first
        optimiser step; the first minibatch needs no pass for either, since there pi_old is the current policy.
        """
        groups = [item for item in batch if isinstance(item, RolloutGroup)]
        examples = [item for item in batch if isinstance(item, Example)]
        size = self.config.train.minibatch_size or len(batch)
        known: list[Known] = []
        if groups:
            with self.clock("score"):
                known = self._known_before(groups, size)
        scores: list[GroupScore] = []
        reports: list[dict[str, float]] = []
        for start in range(0, len(batch), size):
            part = slice(start, start + size)
            traces = sum(len(group.rollouts) for group in groups[part])
            units = [self.objective.of_group(*pair, traces) for pair in zip(groups[part], known[part], strict=True)]
            units += self.objective.of_examples(examples[part])
            rate = self.config.optimiser.lr * self.factor(self.updated)
            with self.clock("gradient"):
                self.backend.forward_backward(units)
            with self.clock("optimiser"):
                norm, said = self.backend.step(rate)
            report = {"grad_norm": norm, "lr": rate}
            if examples:
                loss, answers = (float(torch.stack(column).sum()) for column in zip(*said, strict=True))
                if not math.isfinite(loss):
                    raise TrainingError(f"the loss is {loss} on examples {[e.index for e in examples[part]]}")
                tokens = sum(len(example.answer_ids) for example in examples[part])
                report |= {"loss": loss, "answer_logprob_per_token": answers / tokens}
            else:
                scores += said
            if not math.isfinite(norm):
                raise TrainingError(f"the gradient's norm is {norm}")
            self.updated += 1
            if "follower" in self.asks and self.updated % self.config.objective.follower_every == 0:
                self.backend.follow(self.config.objective.follower_keep)
            reports.append(report)
        if scores:
            self.memory = self.objective.method.remember(self.memory, [score.loss.reward for score in scores])
        # Means over minibatches, a minibatch's loss being the sum over its units.
        metrics = step_metrics(scores, len(reports)) if scores else {}
        metrics |= {key: sum(report[key] for report in reports) / len(reports) for key in reports[0]}
        rows = [row for group in groups for row in self.layout.rows(group)[: len(group.rollouts)]]
        rows += [self.layout.reference_row(example) for example in examples]
        sampled = [rollout.answer for group in groups for rollout in group.rollouts if rollout.answer]
        metrics["tokens"] = sum(len(row.ids) for row in rows) + sum(len(answer.ids) for answer in sampled)
        return Update(metrics, scores)

    def _known_before(self, groups: Sequence[RolloutGroup], first: int) -> list[Known]:
        """What pi_old and the starting model say of each group, before the first optimiser step.

        A group of the first minibatch (the first `first`) needs no pass for pi_old at all: its null trace rides along
        in its forward pass with gradient, where pi_old is still the policy. For later ones, what the sampler said of
        its own tokens is what pi_old says, where the sampler is the policy itself.
        """
        known = [Known() for _ in groups]
        said_by_policy = self.backend.exact_sampler and "guide" not in self.asks
        if said_by_policy and not self.config.objective.credit_forced_end:
            for i, group in enumerate(groups[first:], first):
                known[i] = Known(old_trace_KZ=self.layout.sampler_logprobs(group), sampler_is_old=True)
        elif len(groups) > first:
            rows = [self.layout.rows_with_null(group) for group in groups[first:]]
            for i, scores in enumerate(self._scored(rows), first):
                chosen_KZ = self.layout.assembled(groups[i], scores[:-1]).chosen_KZ
                known[i] = Known(base_logprobs_T=scores[-1][0].double(), old_trace_KZ=chosen_KZ)
        without = [i for i, each in enumerate(known) if each.base_logprobs_T is None]
        alone = [i for i in without if i >= first or not self.backend.fits(self.layout.rows_with_null(groups[i]))]
        nulls = self._scored([[self.layout.null_row(groups[i].example)] for i in alone])
        for i, ((logprobs_T, _),) in zip(alone, nulls, strict=True):
            known[i] = replace(known[i], base_logprobs_T=logprobs_T.double())
        for i, (asked, reference_KZ) in enumerate(self.asked(groups)):
            reference_KZ = reference_KZ if self.config.objective.kl_weight else None
            known[i] = replace(known[i], reference_trace_KZ=reference_KZ, asked=asked)
        return known

    def asked(self, groups: Sequence[RolloutGroup]) -> list[tuple[dict[str, Any], Tensor | None]]:
        """Of each group the fields of `Group` that the method asks for and no pass of the policy says; and what the
        starting model, where it is asked, says of all that the policy chose."""
        asked: list[dict[str, Any]] = [{"memory": self.memory} for _ in groups]
        references: list[Tensor | None] = [None for _ in groups]
        if "answers" in self.asks:
            for found, group in zip(asked, groups, strict=True):
                answers = [rollout.answer for rollout in group.rollouts]
                found["finished_K"] = torch.tensor([bool(answer and answer.finished) for answer in answers])
                if "verdicts" in self.asks:
                    verdicts = [answer.verdict.score if answer and answer.verdict else math.nan for answer in answers]
                    found["verdicts_K"] = torch.tensor(verdicts, dtype=torch.float64)
        if "guide" in self.asks:
            scored = self._scored([self.layout.guide_rows(group) for group in groups])
            for found, group, scores in zip(asked, groups, scored, strict=True):
                found["guide_trace_KZ"] = pad_sequence([row.double() for row, _ in scores], batch_first=True)
                found["guided_K"] = torch.tensor([rollout.guided for rollout in group.rollouts])
        if "reference" in self.asks:
            scored = self._scored([self.layout.rows(group) for group in groups], "reference")
            for i, (group, scores) in enumerate(zip(groups, scored, strict=True)):
                said = self.layout.assembled(group, scores)
                asked[i] |= {"reference_trace_KZ": said.trace_KZ, "reference_logprobs_KT": said.answer_KT}
                references[i] = said.chosen_KZ
        if "follower" in self.asks:
            scored = self._scored([self.layout.answer_rows(group) for group in groups], "follower")
            for found, scores in zip(asked, scored, strict=True):
                found["follower_logprobs_KT"] = torch.stack([logprobs_T for logprobs_T, _ in scores]).double()
        return [*zip(asked, references, strict=True)]

    def _scored(self, parts: Sequence[Sequence[Row]], whose: Whose = "policy") -> list[list[Scores]]:
        """The scores of each part's rows, all of them asked for at once."""
        rows = [row for part in parts for row in part]
        scores = iter(self.backend.score(rows, whose) if rows else ())
        return [[next(scores) for _ in part] for part in parts]

    @torch.no_grad()
    def held_out(self, examples: Sequence[Example]) -> HeldOut:
        """log P(y*) of held-out examples, in nats: with one sampled and the null trace if it thinks, else direct.

        The traces come from the same random streams at every call, so two calls differ by the policy alone.
        """
        if not self.config.thinks:
            logprobs = self.answer_logprobs([self.layout.direct_row(example) for example in examples], examples)
            return HeldOut({"answer_logprob": mean_total(logprobs), "perplexity": perplexity(logprobs)}, logprobs)
        groups = self._sample(examples, 1, (self.config.seed, HELD_OUT_STREAM))
        traces = [group.rollouts[0] for group in groups]
        with_trace = self.answer_logprobs([self.layout.rows(group)[0] for group in groups], examples)
        with_null = self.answer_logprobs([self.layout.null_row(example) for example in examples], examples)
        metrics = {
            "answer_logprob": mean_total(with_trace),
            "null_logprob": mean_total(with_null),
            "gain": mean_total(with_trace) - mean_total(with_null),
            "perplexity": perplexity(with_trace),
            "null_perplexity": perplexity(with_null),
            "trace_length": sum(len(trace.trace_ids) for trace in traces) / len(traces),
            "forced_share": sum(trace.forced for trace in traces) / len(traces),
        }
        return HeldOut(metrics, with_trace, tuple(groups), with_null)

    def answer_logprobs(self, rows: Sequence[Row], examples: Sequence[Example]) -> tuple[tuple[float, ...], ...]:
        """Of each row, the log-probs of y*, its last tokens."""
        scored = zip(self.backend.score(rows), examples, strict=True)
        return tuple(tuple(logprobs_N[-len(e.answer_ids) :].tolist()) for (logprobs_N, _), e in scored)

    def state(self) -> dict[str, Any]:
        return {"updates": self.updated, "memory": dict(self.memory), **self.backend.state()}

    def load(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.backend.load(folder, state, tensors)
        self.updated, self.memory = state["updates"], state.get("memory", {})


class LocalTrainer(Trainer):
    """The same in this process, its policy, sampler and optimiser within reach: for checks, benchmarks and tests."""

    backend: LocalBackend

    def __init__(self, config: RunConfig, updates: int, loaded: Loaded | None = None, **settings: Any) -> None:
        super().__init__(config, LocalBackend(config, loaded), updates, **settings)


def mean_total(logprobs: Sequence[Sequence[float]]) -> float:
    """Mean over examples of log P(y*), in nats."""
    return sum(map(sum, logprobs)) / len(logprobs)


def perplexity(logprobs: Sequence[Sequence[float]]) -> float:
    """Of y*: exp of the mean of -log p over all tokens of all examples."""
    return math.exp(min(700.0, -sum(map(sum, logprobs)) / sum(map(len, logprobs))))


def guided_traces(group_size: int, share: float) -> int:
    """How many of K traces see y*: a share, but one at least, and one at least that does not."""
    return min(max(1, round(share * group_size)), group_size - 1)
