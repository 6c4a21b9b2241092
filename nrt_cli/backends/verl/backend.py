"""The verl backend: Ray, FSDP2 and vLLM, one GPU to many nodes.

The driver holds no weights. It asks the processes for traces, for log-probabilities and for updates; units' losses are
computed on the ranks where whole units fit a forward pass (`loss.py`), else on the driver.

Shapes: N scored tokens of some rows, one row after another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from nrt_cli.backends.local.decoding import answer_of, answer_requests
from nrt_cli.backends.samplers import stream_seed
from nrt_cli.backends.verl.loss import as_rows, scored
from nrt_cli.config import RunConfig
from nrt_cli.errors import StoreError
from nrt_cli.models.export import RANKS, export_checkpoint, ranks_weights
from nrt_cli.models.loading import load_tokens
from nrt_cli.objective.rows import Row, Unit, Whose, trace_prompt
from nrt_cli.records import Example, Rollout, RolloutGroup, SampledAnswer
from nrt_cli.text.tokens import ThinkTokens

Scores = list[tuple[Tensor, Tensor]]
"""Log-probabilities and entropies of the scored tokens of some rows."""


class VerlBackend:
    """A run's processes, `Cluster` or `TrainingRanks` (a test's may be in its own), behind `training.trainer.Backend`.

    `budget` are the tokens of a rank's forward pass; None: as the settings of the processes say.
    """

    device = torch.device("cpu")
    exact_sampler = False
    work = 0.0

    def __init__(self, config: RunConfig, processes: Any, budget: int | None = None) -> None:
        self.config, self.processes = config, processes
        self.budget = processes.budget if budget is None else budget
        self.tokenizer, self.tokens = load_tokens(config.model.path, config.tokens.think_start, config.tokens.think_end)
        self.units: Sequence[Unit] = ()
        self.taken = 0
        """Optimiser steps of this process."""
        self.published: int | None = None
        """After how many of them the sampler's weights were taken."""
        self.following: float | None = None
        """How much of itself the slow copy keeps when it moves, which the next batch tells the ranks."""

    def tell(self, say: Callable[[str], None]) -> None:
        say(f"verl is up: {self.processes.ranks} of its ranks hold different rows")

    def sample(self, examples: Sequence[Example], group_size: int, key: Sequence[int]) -> list[RolloutGroup]:
        requests = [
            {
                "group": "-".join(map(str, (*key, example.index))),
                "opening": trace_prompt(example, self.tokens),
                "example": example,
                "tokens": self.tokens,
                "max_trace_tokens": self.config.rollout.trace_cap(len(example.answer_ids)),
                "seed": stream_seed(*key, example.index, k),
            }
            for example in examples
            for k in range(group_size)
        ]
        rollouts = iter(self.processes.sample(requests, self.config.rollout.temperature))
        return [RolloutGroup(example, tuple(next(rollouts) for _ in range(group_size))) for example in examples]

    def answer(self, groups: Sequence[RolloutGroup], key: Sequence[int]) -> list[list[SampledAnswer]]:
        """Its servers sample what follows a trace as they sample a trace."""
        self.publish()  # they sleep after traces
        requests = [
            {
                "group": "-".join(map(str, seeds)),
                "opening": opening,
                "example": group.example,
                "tokens": self.tokens,
                "max_trace_tokens": cap,
                "seed": stream_seed(*seeds),
            }
            for group in groups
            for opening, cap, seeds in answer_requests(group, self.tokens, self.config.rollout, key)
        ]
        sampled = iter(self.processes.sample(requests, self.config.rollout.temperature))
        return [[_answer(next(sampled), self.tokens) for _ in group.rollouts] for group in groups]

    def publish(self) -> None:
        if self.processes.asleep or self.published != self.taken:
            self.processes.publish(self.taken)
            self.published = self.taken

    def reasoner(self) -> None:
        """Nobody to ask questions: the samplers end with their trace, and so accuracies are not measured."""

    # --- scores and gradients ----------------------------------------------------------------------------------------

    def follow(self, keep: float) -> None:
        self.following = keep

    def _told(self) -> dict[str, Any]:
        """What a batch tells the ranks to do first."""
        keep, self.following = self.following, None
        return {} if keep is None else {"follow": keep}

    def score(self, rows: Sequence[Row], whose: Whose = "policy") -> Scores:
        reference = whose == "reference"
        order, padded = self._dealt(rows, [len(row.ids) for row in rows])
        batch = as_rows(padded, self.config.rollout.temperature, entropy=not reference)
        tu.assign_non_tensor(batch, compute_loss=False, whose=whose, **({} if reference else self._told()))
        output = (self.processes.score_reference if reference else self.processes.score)(batch)
        logprobs = scored(output["log_probs"], batch)
        entropies = logprobs if reference else scored(output["entropy"], batch)
        by_row = dict(zip(order, zip(logprobs, entropies, strict=True), strict=True))
        return [by_row[i] for i in range(len(rows))]

    def _dealt(self, items: Sequence[Any], sizes: Sequence[int]) -> tuple[list[int], list[Any]]:
        """Items in the order in which ranks, each taking its share from the front, have about the same to do.

        The last item is repeated to make the shares equal. Returns each one's place in `items`, and the items.
        """
        ranks = self.processes.ranks
        missing = -len(items) % ranks
        places = [*range(len(items)), *([len(items) - 1] * missing)]
        if ranks > 1:
            shares = get_seqlen_balanced_partitions([sizes[i] for i in places], ranks, equal_size=True)
            places = [places[i] for share in shares for i in share]
        return places, [items[i] for i in places]

    def fits(self, rows: Sequence[Row]) -> bool:
        """A pass that comes before an update is of all rows alike."""
        return True

    def forward_backward(self, units: Sequence[Unit]) -> None:
        """Kept for `step`: verl's ranks go forward, back and on in one call."""
        self.units = units

    def step(self, rate: float) -> tuple[float, list[Any]]:
        """Units that fit a pass take one, the others two; then one optimiser step."""
        units, fit = self.units, self._fitting()
        others = [i for i in range(len(units)) if i not in fit]
        said: dict[int, Any] = {}
        norm = math.nan
        if fit:
            norm, told = self._whole([units[i] for i in fit], rate, bool(others))
            said |= zip(fit, told, strict=True)
        if others:
            norm, told = self._in_two_passes([units[i] for i in others], rate)
            said |= zip(others, told, strict=True)
        self.taken += int(math.isfinite(norm))
        return norm, [said[i] for i in range(len(units))]

    def _fitting(self) -> list[int]:
        """Places of the units whose rows fit a pass together: the shortest, as many for each rank."""
        most = max(len(unit.rows) for unit in self.units)
        sizes = [sum(len(row.ids) for row in _evened(unit, most)) for unit in self.units]
        fit = sorted((i for i, size in enumerate(sizes) if size <= self.budget), key=sizes.__getitem__)
        return sorted(fit[: len(fit) - len(fit) % self.processes.ranks])

    def _whole(self, units: Sequence[Unit], rate: float, more: bool) -> tuple[float, list[Any]]:
        """Units in one pass: the ranks compute their losses. `more` of the step's gradient is to come."""
        # verl's workers take as many rows of every unit: one with fewer says its last again, which nothing reads.
        most = max(len(unit.rows) for unit in units)
        rows = [_evened(unit, most) for unit in units]
        places, _ = self._dealt(units, [sum(len(row.ids) for row in part) for part in rows])
        flat = [row for i in places for row in rows[i]]
        carried = [entry for i in places for entry in [(units[i].loss, most), *[None] * (most - 1)]]
        numbers = [(i, k) for i in places for k in range(most)]
        batch = as_rows(flat, self.config.rollout.temperature, True, carried=carried, row=list(range(len(flat))))
        tu.assign_non_tensor(batch, force_group_size=most)
        metrics = self._update(batch, rate, more)
        told = {numbers[i]: (torch.tensor(lp), torch.tensor(h)) for i, lp, h in metrics["scored"]}
        said = []
        for i, unit in enumerate(units):
            pairs = (told[i, k] for k in range(most))
            said.append(unit.loss(*(torch.cat(column).double() for column in zip(*pairs, strict=True)))[1])
        return metrics["norm"], said

    def _in_two_passes(self, units: Sequence[Unit], rate: float) -> tuple[float, list[Any]]:
        """Units that do not fit: scored first, then updated with the losses' gradient."""
        rows = [row for unit in units for row in unit.rows]
        scores = iter(self.score(rows))
        said, gradients = [], []
        for unit in units:
            pairs = [next(scores) for _ in unit.rows]
            leaves = [torch.cat(column).double().requires_grad_() for column in zip(*pairs, strict=True)]
            total, besides = unit.loss(*leaves)
            total.backward()
            said.append(besides)
            grads = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)
            gradients += list(zip(*(grad.split([len(pair[0]) for pair in pairs]) for grad in grads), strict=True))
        # What no loss reaches, such as a null trace, needs no second pass.
        reached = [i for i, grads in enumerate(gradients) if any(bool(grad.any()) for grad in grads)] or [0]
        places, _ = self._dealt(reached, [len(rows[i].ids) for i in reached])
        columns: dict[str, list[Tensor]] = {"gradient": [], "entropy_gradient": []}
        seen: set[int] = set()
        for place in places:
            for values, grad in zip(columns.values(), gradients[reached[place]], strict=True):
                values.append(torch.zeros_like(grad) if place in seen else grad)  # a repeated row counts once
            seen.add(place)
        entropy = bool(self.config.objective.entropy_weight)
        if not entropy:
            del columns["entropy_gradient"]
        batch = as_rows([rows[reached[i]] for i in places], self.config.rollout.temperature, entropy, **columns)
        return self._update(batch, rate)["norm"], said

    def _update(self, batch: TensorDict, rate: float, more: bool = False) -> dict[str, Any]:
        """The gradient of a batch and, with no `more` to come, a step with all that has gathered.

        Returns the gradient's `norm`, NaN without a step, and what was `scored` where the rows were of whole units.
        """
        tu.assign_non_tensor(batch, learning_rate=rate, more=more, mini_batch_size=len(batch), epochs=1)
        tu.assign_non_tensor(batch, seed=0, dataloader_kwargs={"shuffle": False}, **self._told())
        metrics = self.processes.update(batch)
        return {"norm": float(np.mean(metrics["grad_norm"])), "scored": metrics.get("scored", ())}

    def mfu(self, seconds: float) -> float:
        """The ranks' matmul rate is not measured from here."""
        return math.nan

    # --- files -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {"ranks": int(self.processes.workers.world_size), "follow": self.following}

    def save(self) -> Callable[[Path], None]:
        """Writes the ranks' weights and moments, each rank its own, and the weights as a Hugging Face folder."""
        return lambda folder: self.processes.save(folder.absolute() / RANKS, self.taken)

    def broken_weight(self) -> None:
        """Weights are finite as long as gradients are, and the ranks take no step with one that is not."""

    def load(self, folder: Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint of as many ranks. Raises StoreError for another number."""
        ranks = int(self.processes.workers.world_size)
        if state.get("ranks") != ranks:
            raise StoreError(
                f"{folder}: was saved by {state.get('ranks')} ranks and this run has {ranks}; resume with as many."
            )
        self.processes.load(folder.absolute() / RANKS)
        self.taken, self.published, self.following = state["updates"], None, state.get("follow")

    def export(self, folder: Path, checkpoint: Path) -> None:
        export_checkpoint(ranks_weights(checkpoint), self.config, Path(self.config.model.path), folder)

    def close(self) -> None:
        self.processes.close()


def _answer(sampled: Rollout, tokens: ThinkTokens) -> SampledAnswer:
    """What an agent loop hands back as a trace."""
    ended = () if sampled.ended_by is None else (sampled.ended_by,)
    return answer_of((*sampled.trace_ids, *ended), sampled.sampler_logprobs, tokens)


def _evened(unit: Unit, rows: int) -> list[Row]:
    """A unit's rows, the last of them again until there are so many."""
    return [*unit.rows, *unit.rows[-1:] * (rows - len(unit.rows))]
