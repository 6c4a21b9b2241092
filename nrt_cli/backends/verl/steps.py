"""Algorithm 1 over workers: the steps of the verl engine.

Shapes: K traces of a group, Z trace positions (t_end included), T answer tokens, N scored tokens of a group's rows.

The driver holds no weights. It asks the cluster for traces, for log-probabilities and for updates; what they mean is
computed by the same functions of `core` as the local engine's, on the driver or, where whole groups fit a forward pass,
in the loss function of the ranks (`loss.py`).
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from nrt_cli.backends.local.optimiser import rate_factor
from nrt_cli.backends.local.throughput import Clock
from nrt_cli.backends.verl.rows import as_rows, scored
from nrt_cli.backends.vllm_rollouts import stream_seed
from nrt_cli.config import RunConfig
from nrt_cli.errors import TrainingError
from nrt_cli.objective.group import Objective
from nrt_cli.objective.layout import Layout
from nrt_cli.objective.metrics import GroupScore
from nrt_cli.objective.rows import Row
from nrt_cli.records import Example, Rollout, RolloutGroup
from nrt_cli.text.tokens import ThinkTokens

Scores = list[tuple[Tensor, Tensor]]
"""Log-probabilities and entropies of the scored tokens of some rows."""


class Workers(Protocol):
    """What the engine asks of a cluster; a test's may be in its own process."""

    @property
    def ranks(self) -> int: ...
    def sample(self, requests: Sequence[dict[str, Any]], temperature: float) -> list[Rollout]: ...
    def score(self, batch: TensorDict) -> TensorDict: ...
    def score_reference(self, batch: TensorDict) -> TensorDict: ...
    def update(self, batch: TensorDict) -> dict[str, Any]: ...


class Steps:
    """Algorithm 1 over workers, whoever they are."""

    def __init__(self, config: RunConfig, updates: int, workers: Workers, tokens: ThinkTokens, budget: int) -> None:
        self.config, self.updates, self.workers, self.tokens, self.budget = config, updates, workers, tokens, budget
        self.updated = 0
        self.layout = Layout.of(config.objective, tokens, torch.device("cpu"))
        self.objective = Objective(config, self.layout)
        self.clock = Clock(torch.device("cpu"))

    # --- sampling --------------------------------------------------------------------------------------------------

    def sample(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        """K traces for each example, from the random streams that `key` names."""
        requests = [
            {
                "example": example,
                "tokens": self.tokens,
                "max_trace_tokens": self.config.rollout.trace_cap(len(example.answer_ids)),
                "seed": stream_seed(*key, example.index, k),
            }
            for example in examples
            for k in range(group_size)
        ]
        rollouts = iter(self.workers.sample(requests, self.config.rollout.temperature))
        return [RolloutGroup(example, tuple(next(rollouts) for _ in range(group_size))) for example in examples]

    # --- scoring ---------------------------------------------------------------------------------------------------

    def score(self, rows: Sequence[Row], reference: bool = False) -> Scores:
        """What the policy, or the starting model, says of each row's scored tokens, without gradient."""
        order, padded = self._dealt(rows, [len(row.ids) for row in rows])
        batch = as_rows(padded, self.config.rollout.temperature, entropy=not reference)
        tu.assign_non_tensor(batch, compute_loss=False)
        output = (self.workers.score_reference if reference else self.workers.score)(batch)
        logprobs = scored(output["log_probs"], batch)
        entropies = logprobs if reference else scored(output["entropy"], batch)
        by_row = dict(zip(order, zip(logprobs, entropies, strict=True), strict=True))
        return [by_row[i] for i in range(len(rows))]

    def _dealt(self, items: Sequence[Any], sizes: Sequence[int]) -> tuple[list[int], list[Any]]:
        """Items in the order in which ranks, each taking its share from the front, have about the same to do.

        The last item is repeated to make the shares equal. Returns each one's place in `items`, and the items.
        """
        ranks = self.workers.ranks
        missing = -len(items) % ranks
        places = [*range(len(items)), *([len(items) - 1] * missing)]
        if ranks > 1:
            shares = get_seqlen_balanced_partitions([sizes[i] for i in places], ranks, equal_size=True)
            places = [places[i] for share in shares for i in share]
        return places, [items[i] for i in places]

    def score_groups(self, groups: Sequence[RolloutGroup], null: bool, reference: bool = False) -> list[Scores]:
        """For each group the scores of its rows, the null trace's last if asked for."""
        rows = [self.layout.rows_with_null(group) if null else self.layout.rows(group) for group in groups]
        scores = iter(self.score([row for part in rows for row in part], reference))
        return [[next(scores) for _ in part] for part in rows]

    # --- updates ---------------------------------------------------------------------------------------------------

    def update(self, groups: Sequence[RolloutGroup]) -> tuple[list[GroupScore], list[dict[str, float]]]:
        """One optimiser step per minibatch; the groups as scored, and what the ranks say of each step.

        c_base and pi_old belong to the policy that sampled. They come out of the first minibatch's own forward pass,
        where pi_old is still the policy, so only what comes after it is scored before.
        """
        size = self.config.train.minibatch_size or len(groups)
        with self.clock("score"):
            known = self._known_before(groups, size)
        scores: list[GroupScore] = []
        steps: list[dict[str, float]] = []
        for start in range(0, len(groups), size):
            part = slice(start, start + size)
            step = self._whole if self._fits(groups[part]) else self._in_two_passes
            done, report = step(groups[part], known[part])
            scores += done
            steps.append(report)
        return scores, steps

    def _known_before(self, groups: Sequence[RolloutGroup], first: int) -> list[dict[str, Tensor]]:
        """What pi_old and the starting model say of each group, before the first optimiser step."""
        known: list[dict[str, Tensor]] = [{} for _ in groups]
        later = groups[first:]
        for before, group, scores in (
            zip(known[first:], later, self.score_groups(later, null=True), strict=True) if later else ()
        ):
            before["old_trace_KZ"] = self.layout.trace_logprobs(group, scores[:-1])
            before["base_logprobs_T"] = scores[-1][0].double()
        if self.config.objective.kl_weight:
            references = self.score_groups(groups, null=False, reference=True)
            for before, group, scores in zip(known, groups, references, strict=True):
                before["reference_trace_KZ"] = self.layout.trace_logprobs(group, scores)
        return known

    def _fits(self, groups: Sequence[RolloutGroup]) -> bool:
        """Whether each group fits a forward pass of one rank, and every rank gets as many."""
        tokens = max(sum(len(row.ids) for row in self.layout.rows_with_null(group)) for group in groups)
        return tokens <= self.budget and len(groups) % self.workers.ranks == 0

    def _whole(
        self, groups: Sequence[RolloutGroup], known: Sequence[dict[str, Tensor]]
    ) -> tuple[list[GroupScore], dict[str, float]]:
        """A minibatch in one pass: the ranks compute the loss of whole groups."""
        count = sum(len(group.rollouts) for group in groups)
        rows = [self.layout.rows_to_score(*pair) for pair in zip(groups, known, strict=True)]
        # verl's workers take as many rows of every group: one with fewer says its last again, which nothing reads.
        most = max(map(len, rows))
        rows = [part + part[-1:] * (most - len(part)) for part in rows]
        places, _ = self._dealt(groups, [sum(len(row.ids) for row in part) for part in rows])
        flat = [row for i in places for row in rows[i]]
        carried = [
            entry for i in places for entry in [(groups[i], known[i], len(rows[i])), *[None] * (len(rows[i]) - 1)]
        ]
        numbers = [(i, k) for i in places for k in range(len(rows[i]))]
        batch = as_rows(
            flat, self.config.rollout.temperature, entropy=True, carried=carried, row=list(range(len(flat)))
        )
        tu.assign_non_tensor(batch, rows_in_minibatch=count, force_group_size=len(rows[0]))
        metrics = self._step(batch)
        told = {numbers[i]: (torch.tensor(lp), torch.tensor(h)) for i, lp, h in metrics.pop("scored")}
        scores = []
        for i, (group, before) in enumerate(zip(groups, known, strict=True)):
            pairs = [told[i, k] for k in range(len(rows[i]))]
            logprobs_N, entropies_N = (torch.cat(column).double() for column in zip(*pairs, strict=True))
            scores.append(self.objective.score(group, before, logprobs_N, entropies_N, count))
        return scores, metrics

    def _in_two_passes(
        self, groups: Sequence[RolloutGroup], known: Sequence[dict[str, Tensor]]
    ) -> tuple[list[GroupScore], dict[str, float]]:
        """A minibatch whose groups do not fit: scored first, then updated with the gradient that the loss has there."""
        count = sum(len(group.rollouts) for group in groups)
        with self.clock("score"):
            told = self.score_groups(groups, null=any("base_logprobs_T" not in before for before in known))
        scores, gradients = [], []
        for group, before, pairs in zip(groups, known, told, strict=True):
            leaves = [torch.cat(column).double().requires_grad_() for column in zip(*pairs, strict=True)]
            score = self.objective.score(group, before, leaves[0], leaves[1], count)
            score.loss.total.backward()
            sizes = [len(pair[0]) for pair in pairs]
            grads = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)
            gradients += list(zip(*(grad.split(sizes) for grad in grads), strict=True))[: len(self.layout.rows(group))]
            scores.append(score.detached())
        rows = [row for group in groups for row in self.layout.rows(group)]
        return scores, self._step(self._with_gradients(rows, gradients))

    def _with_gradients(self, rows: Sequence[Row], gradients: Sequence[tuple[Tensor, Tensor]]) -> TensorDict:
        """Rows, each with the gradient of the loss by its log-probabilities; a repeated one counts once."""
        places, _ = self._dealt(rows, [len(row.ids) for row in rows])
        seen: set[int] = set()
        columns: dict[str, list[Tensor]] = {"gradient": [], "entropy_gradient": []}
        for i in places:
            for values, grad in zip(columns.values(), gradients[i], strict=True):
                values.append(torch.zeros_like(grad) if i in seen else grad)
            seen.add(i)
        entropy = bool(self.config.objective.entropy_weight)
        if not entropy:
            del columns["entropy_gradient"]
        return as_rows([rows[i] for i in places], self.config.rollout.temperature, entropy, **columns)

    def _step(self, batch: TensorDict) -> dict[str, Any]:
        """One optimiser step on a batch; gradient norm, learning rate and what else the ranks say."""
        rate = self.config.optimiser.lr * rate_factor(self.config.optimiser, self.updated, self.updates)
        tu.assign_non_tensor(
            batch,
            learning_rate=rate,
            mini_batch_size=len(batch),
            epochs=1,
            seed=0,
            dataloader_kwargs={"shuffle": False},
        )
        with self.clock("gradient"):
            metrics = self.workers.update(batch)
        norm = float(np.mean(metrics["grad_norm"]))
        if not np.isfinite(norm):
            raise TrainingError(f"the gradient's norm is {norm}")
        self.updated += 1
        told = {"grad_norm": norm, "lr": rate}
        return told | ({"scored": metrics["scored"]} if "scored" in metrics else {})
