"""The local engine: rollouts and updates on the CPU or one GPU.

Shapes: K traces of a group, Z trace positions (t_end included), T answer tokens, N scored tokens of a group's rows.

The unit of an update is a group. Its loss is a function of its log-probabilities, and those of the model: the first
part is differentiated on detached leaves, the second with the gradient that comes out. So a group that fits the token
budget is done in one forward pass, several of them together, and one that does not is scored first and redone in parts,
with the same result.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrt_cli.backends.local.memory import Budget
from nrt_cli.backends.local.optimiser import Optimiser
from nrt_cli.backends.local.policy import Policy
from nrt_cli.backends.local.reasoning import LoadedReasoner
from nrt_cli.backends.local.throughput import Clock, matmul_ceiling
from nrt_cli.backends.samplers import make_sampler
from nrt_cli.config import RunConfig
from nrt_cli.errors import TrainingError
from nrt_cli.models.loading import load_model, load_tokens
from nrt_cli.models.lora import adapt
from nrt_cli.objective.group import Objective, direct_scores, held_out_scores, mean_of
from nrt_cli.objective.layout import Layout
from nrt_cli.objective.metrics import GroupScore, step_metrics
from nrt_cli.objective.rows import Row
from nrt_cli.records import Example, HeldOut, RolloutGroup

TRAIN_STREAM, HELD_OUT_STREAM = 0, 1
"""First part of the random streams' key, so that scoring held-out examples never changes what training samples."""


@dataclass(frozen=True)
class Update:
    """What one training step did: its metrics and, for RL methods, every group as it was scored."""

    metrics: dict[str, float]
    scores: list[GroupScore]


class LocalEngine:
    """A policy, its optimiser, its sampler and the pieces of the objective, for one run.

    Attributes:
        remarks: what a person should know about how this run computes.
    """

    def __init__(self, config: RunConfig, updates: int) -> None:
        self.config = config
        self.updates = updates
        self.budget = Budget(config.train.micro_batch_tokens)
        names = config.tokens
        self.tokenizer, self.tokens = load_tokens(config.model.path, names.think_start, names.think_end)
        model = load_model(config.model)
        if config.model.lora.rank is not None:
            model = adapt(model, config.model.lora, self.tokens, config.seed)
        packing = config.engine.packing == "auto"
        self.policy = Policy(model, self.tokens.pad_id, config.rollout.temperature, packing)
        self.layout = Layout.of(config.objective, self.tokens, model.device)
        self.optimiser = Optimiser(model, config.optimiser)
        self.objective, self.sampler = None, None
        if config.method != "sft":
            self.objective = Objective(config, self.layout)
        if config.thinks:
            self.sampler = make_sampler(config, model, self.tokenizer, self.tokens)
        self.reference = None
        if config.objective.kl_weight:
            frozen = load_model(config.model).requires_grad_(False)
            self.reference = Policy(frozen, self.tokens.pad_id, config.rollout.temperature, packing)
        self.clock = Clock(model.device)
        self.ceiling = matmul_ceiling(model.device, model.dtype, torch.get_num_threads())
        self.work = 0.0
        self.verified = False
        self.remarks = [_not_packed(self.policy)] if self.policy.no_packing else []

    def tell(self, say: Callable[[str], None]) -> None:
        """Say the remarks, and whatever comes up later, through `say`."""
        self.budget.say = say
        for remark in self.remarks:
            say(remark)

    def sample(self, examples: Sequence[Example], step: int) -> list[RolloutGroup]:
        """K traces for each example under the current policy, from the random streams of this step."""
        return self._sample(examples, self.config.rollout.group_size, (self.config.seed, TRAIN_STREAM, step))

    def _sample(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        assert self.sampler is not None
        return self.sampler.sample_groups(examples, group_size, key)

    def train_step(self, examples: Sequence[Example], step: int) -> tuple[Update, list[RolloutGroup]]:
        """Sample (for RL methods) and update; seconds of each phase and rates are among the metrics."""
        started = time.perf_counter()
        self.work = 0.0  # what held-out scores took is no part of a step
        groups: list[RolloutGroup] = []
        if self.objective is None:
            update = self.update_sft(examples)
        else:
            with self.clock("rollout"):
                groups = self.sample(examples, step)
            update = self.update(groups)
        seconds = time.perf_counter() - started
        update.metrics.update(self._rates(groups, update.metrics["tokens"], seconds))
        return update, groups

    def _rates(self, groups: Sequence[RolloutGroup], tokens: float, seconds: float) -> dict[str, float]:
        """Seconds by phase, tokens a second, and the share of the machine's matmul rate that the update reached."""
        phases = self.clock.read()
        rates = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        rates |= {f"seconds_{phase}": phases[phase] for phase in phases}
        rates["seconds_update"] = seconds - phases.get("rollout", 0.0)
        rate = self.work / rates["seconds_update"]
        if rate > self.ceiling:
            # Something else kept the machine busy while the ceiling was measured.
            again = matmul_ceiling.__wrapped__(self.policy.device, self.policy.model.dtype, torch.get_num_threads())
            self.ceiling = max(self.ceiling, again)
        rates["mfu"] = rate / self.ceiling
        if groups:
            sampled = sum(len(r.sampler_logprobs) for group in groups for r in group.rollouts)
            rates["rollout_tokens_per_second"] = sampled / phases["rollout"]
        return rates

    def update(self, groups: Sequence[RolloutGroup]) -> Update:
        """Algorithm 1 for one batch of sampled groups: one optimiser step per minibatch.

        c_base and pi_old belong to the policy that sampled, so what is needed of them later is known before the first
        optimiser step; the first minibatch needs no pass for either, since there pi_old is the current policy.
        """
        size = self.config.train.minibatch_size or len(groups)
        if not self.verified:
            # Once on real rows, the longest trace's and the null trace's, before anything is learned from them: the
            # shortest way to find a model for which packing is not what it should be.
            longest = max(self.layout.rows(groups[0]), key=lambda row: len(row.ids))
            if self.policy.packing and not self.policy.verify_packing(
                [longest, self.layout.null_row(groups[0].example)]
            ):
                self.budget.say(_not_packed(self.policy))
            self.verified = True
        with self.clock("score"):
            known = self._known_before(groups, size)
        scores: list[GroupScore] = []
        steps: list[dict[str, float]] = []
        for start in range(0, len(groups), size):
            part, part_known = groups[start : start + size], known[start : start + size]
            with self.clock("gradient"):
                scores += self.budget.retrying(lambda: self._minibatch(part, part_known), self.optimiser.forget)  # noqa: B023
            steps.append(self._step())
        metrics = step_metrics(scores, len(steps)) | mean_of(steps)
        metrics["tokens"] = self.layout.tokens_of(groups)
        return Update(metrics, scores)

    def _minibatch(self, groups: Sequence[RolloutGroup], known: Sequence[dict[str, Tensor]]) -> list[GroupScore]:
        """The gradient of one minibatch; returns its groups as scored."""
        rows = sum(len(group.rollouts) for group in groups)
        scores: list[GroupScore] = []
        for together in self._together(groups):
            scores += self._accumulate(groups[together], known[together], rows)
        return scores

    def update_sft(self, examples: Sequence[Example]) -> Update:
        """Cross-entropy on what follows x, per such token of the minibatch: y*, and before it z* where there is one."""
        size = self.config.train.minibatch_size or len(examples)
        reports, steps = [], []
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            with self.clock("gradient"):
                report = self.budget.retrying(lambda: self._minibatch_sft(part), self.optimiser.forget)  # noqa: B023
            if not math.isfinite(report["loss"]):
                raise TrainingError(f"the loss is {report['loss']} on examples {[e.index for e in examples]}")
            reports.append(report)
            steps.append(self._step())
        metrics = mean_of(reports) | mean_of(steps)
        metrics["tokens"] = sum(len(self.layout.reference_row(example).ids) for example in examples)
        return Update(metrics, [])

    def _minibatch_sft(self, examples: Sequence[Example]) -> dict[str, float]:
        """The gradient of one minibatch; returns its loss and the mean log-prob of an answer token."""
        rows = [self.layout.reference_row(example) for example in examples]
        tokens, answer_tokens = sum(row.scored for row in rows), sum(len(e.answer_ids) for e in examples)
        loss, answers = 0.0, torch.zeros((), device=self.policy.device)
        waiting = iter(examples)
        for part in self.policy.micro_batches(rows, self.budget.tokens):
            logprobs_N, _ = self.policy.score(part)
            share = -logprobs_N.sum() / tokens
            share.backward()
            self._worked(part, backward=True)
            loss += float(share.detach())
            for logprobs_T in logprobs_N.detach().split([row.scored for row in part]):
                answers += logprobs_T[-len(next(waiting).answer_ids) :].sum()
        return {"loss": loss, "answer_logprob_per_token": float(answers) / answer_tokens}

    @torch.no_grad()
    def held_out(self, examples: Sequence[Example]) -> HeldOut:
        """log P(y*) of held-out examples, in nats: with one sampled and the null trace if it thinks, else direct.

        The traces come from the same random streams at every call, so two calls differ by the policy alone.
        """
        if self.sampler is None:
            rows = [self.layout.direct_row(example) for example in examples]
            return direct_scores(rows, examples, self._score_policy)
        groups = self._sample(examples, 1, (self.config.seed, HELD_OUT_STREAM))
        return held_out_scores(groups, self.layout, self._score_policy)

    def reasoner(self) -> LoadedReasoner:
        """The policy as it is, to ask it questions."""
        return LoadedReasoner(self.policy.model, self.tokenizer, self.tokens, self.config.rollout.batch_rows)

    def _score_policy(self, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
        return self._score(self.policy, rows)

    def _score(self, policy: Policy, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
        """Log-probs and entropies of each row, without gradient, in passes that fit."""
        scores = self.budget.retrying(
            lambda: policy.score_without_gradient(rows, self.budget.tokens), undo=lambda: None
        )
        self._worked(rows)
        return scores

    def _worked(self, rows: Sequence[Row], backward: bool = False) -> None:
        """Count the work of a pass."""
        self.work += self.policy.work(rows, backward)

    def _known_before(self, groups: Sequence[RolloutGroup], first: int) -> list[dict[str, Tensor]]:
        """What pi_old and the starting model say of each group, before the first optimiser step.

        A group of the first minibatch (the first `first`) that fits the budget needs no pass for pi_old at all: its
        null trace rides along in its forward pass with gradient, where pi_old is still the policy. For later ones, what
        the sampler said of its own tokens is what pi_old says, where the sampler is the policy itself.
        """
        known: list[dict[str, Tensor]] = [{} for _ in groups]
        later = range(first, len(groups))
        if self._sampler_knows():
            for i in later:
                known[i]["old_trace_KZ"] = known[i]["sampler_trace_KZ"] = self.layout.sampler_logprobs(groups[i])
        else:
            for i, scores in zip(later, self._score_groups(self.policy, groups[first:], null=True), strict=True):
                known[i]["old_trace_KZ"] = self.layout.trace_logprobs(groups[i], scores[:-1])
                known[i]["base_logprobs_T"] = scores[-1][0].double()
        alone = [i for i in range(len(groups)) if "base_logprobs_T" not in known[i]]
        alone = [i for i in alone if i >= first or not self._fits([groups[i]])]
        nulls = self._score(self.policy, [self.layout.null_row(groups[i].example) for i in alone])
        for i, (logprobs_T, _) in zip(alone, nulls, strict=True):
            known[i]["base_logprobs_T"] = logprobs_T.double()
        if self.reference is not None:
            for i, scores in enumerate(self._score_groups(self.reference, groups)):
                known[i]["reference_trace_KZ"] = self.layout.trace_logprobs(groups[i], scores)
        return known

    def _score_groups(
        self, policy: Policy, groups: Sequence[RolloutGroup], null: bool = False
    ) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """For each group the scores of its rows, the null trace's last if asked for."""
        rows = [self.layout.rows_with_null(group) if null else self.layout.rows(group) for group in groups]
        scores = iter(self._score(policy, [row for part in rows for row in part]))
        for part in rows:
            yield [next(scores) for _ in part]

    def _sampler_knows(self) -> bool:
        """Whether the sampler's log-probs are pi_old's, at every position that is credited."""
        assert self.sampler is not None
        return self.sampler.name == "native" and not self.config.objective.credit_forced_end

    def _fits(self, groups: Sequence[RolloutGroup]) -> bool:
        """Whether groups, their null traces included, are packed into one forward pass."""
        rows = [row for group in groups for row in self.layout.rows_with_null(group)]
        return self.policy.packing and self.policy.size(rows) <= self.budget.tokens

    def _together(self, groups: Sequence[RolloutGroup]) -> Iterator[slice]:
        """Consecutive groups that share a forward pass; one that fits none goes alone."""
        start = 0
        for end in range(1, len(groups) + 1):
            if end == len(groups) or not self._fits(groups[start : end + 1]):
                yield slice(start, end)
                start = end

    def _accumulate(
        self, groups: Sequence[RolloutGroup], known: Sequence[dict[str, Tensor]], rows_in_minibatch: int
    ) -> list[GroupScore]:
        """Add the gradient of some groups to the model's; returns the groups as scored."""
        group_rows = [self.layout.rows_to_score(*pair) for pair in zip(groups, known, strict=True)]
        rows = [row for part in group_rows for row in part]
        parts = list(self.policy.micro_batches(rows, self.budget.tokens))
        if len(parts) == 1:
            graph = self.policy.score(rows)
        else:
            scored = self.policy.score_without_gradient(rows, self.budget.tokens)
            graph = (torch.cat([s[0] for s in scored]), torch.cat([s[1] for s in scored]))
        leaves = [scored_N.detach().double().requires_grad_() for scored_N in graph]
        sizes = [sum(row.scored for row in part) for part in group_rows]
        columns = (leaf.split(sizes) for leaf in leaves)
        scores = []
        assert self.objective is not None
        for group, before, logprobs_N, entropies_N in zip(groups, known, *columns, strict=True):
            scores.append(self.objective.score(group, before, logprobs_N, entropies_N, rows_in_minibatch))
        torch.stack([score.loss.total for score in scores]).sum().backward()
        self._backward(parts, graph, [_grad(leaf).to(graph[0].dtype) for leaf in leaves])
        # A pass that is done twice for want of memory is useful once.
        self._worked(rows, backward=True)
        return [score.detached() for score in scores]

    def _backward(self, parts: list[list[Row]], graph: tuple[Tensor, ...], grads: list[Tensor]) -> None:
        """Send the gradient of the scores into the model: through the graph, or part by part where there is none."""
        if len(parts) == 1:
            torch.autograd.backward(graph, grads)
            return
        sizes = [sum(row.scored for row in part) for part in parts]
        for part, *part_grads in zip(parts, *(grad.split(sizes) for grad in grads), strict=True):
            torch.autograd.backward(self.policy.score(part), part_grads)

    def _step(self) -> dict[str, float]:
        with self.clock("optimiser"):
            report = self.optimiser.step(self.updates)
        if not math.isfinite(report["grad_norm"]):
            raise TrainingError(f"the gradient's norm is {report['grad_norm']}")
        if self.sampler is not None:
            self.sampler.update()
        return report


def _not_packed(policy: Policy) -> str:
    return f"nothing is packed, since {policy.no_packing}"


def _grad(leaf: Tensor) -> Tensor:
    """A leaf's gradient; zeros where the loss did not use it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
