"""Rows, token sequences whose tails are scored; and units of an update, rows with a loss of what a model says of them.

Shapes: K traces of a group, Z trace positions (t_end included), T answer tokens, N scored tokens of rows, row by row.

A backend computes the two numbers of each scored token and carries the loss's gradient back; what the loss means it
does not know. Units can be sent to other processes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nrt_cli import methods
from nrt_cli.config import RunConfig
from nrt_cli.errors import TrainingError
from nrt_cli.methods import Method
from nrt_cli.objective.losses import GroupContext, GroupLogprobs, GroupScore, Known, group_loss
from nrt_cli.records import Example, Rollout, RolloutGroup
from nrt_cli.text.tokens import ThinkTokens

Whose = Literal["policy", "reference", "follower"]
"""Whose log-probs: the policy's, the starting model's, or those of the slow copy that follows the policy."""


@dataclass(frozen=True)
class Row:
    """A token sequence whose tail is scored: `ids[scored_from:]`, each predicted from the position before it.

    The first `prompt` tokens are those that rows of one example share; by default, all that are not scored. Those in
    `ids[tempered[0]:tempered[1]]` were chosen at the rollout temperature and are scored at it, all others at 1.
    """

    ids: tuple[int, ...]
    scored_from: int
    tempered: tuple[int, int] = (0, 0)
    prompt: int | None = None

    @property
    def scored(self) -> int:
        return len(self.ids) - self.scored_from


def trace_prompt(example: Example, tokens: ThinkTokens) -> tuple[int, ...]:
    """What a trace is sampled after: x t_start, or x where there is no t_start."""
    return example.prompt_ids if tokens.start_id is None else (*example.prompt_ids, tokens.start_id)


def guide(example: Example) -> Example:
    """The example with y* in view: the question with its answer, as it ends a turn, and the question again."""
    return replace(example, prompt_ids=(*example.prompt_ids, *example.answer_ids, *example.prompt_ids))


def by_prompt(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Runs of consecutive rows that have the same prompt."""
    run: list[Row] = []
    for row in rows:
        if run:
            start = min(r.scored_from if r.prompt is None else r.prompt for r in (row, run[0]))
            if row.ids[:start] != run[0].ids[:start]:
                yield run
                run = []
        run.append(row)
    if run:
        yield run


class Layout:
    """The sequences of the objective over one set of think tokens.

    `bare_null`: the null trace lacks t_start (decision 12); `credit_eos`: an eos that ended a trace is scored (30).
    """

    def __init__(self, tokens: ThinkTokens, bare_null: bool = False, credit_eos: bool = False) -> None:
        self.tokens, self.bare_null, self.credit_eos = tokens, bare_null, credit_eos

    def rows(self, group: RolloutGroup) -> list[Row]:
        """x [t_start] z t_end y* of each trace, scored after x; then x [t_start] z eos where eos gets credit; then
        x [t_start] z t_end y where an answer was sampled, which is scored."""
        example = group.example
        opening = trace_prompt(example, self.tokens)
        traces, endings, answers = [], [], []
        for rollout in group.rollouts:
            ids = (*opening, *rollout.trace_ids, self.tokens.end_id, *example.answer_ids)
            # z and t_end are the policy's choices, at the rollout temperature.
            tempered = (len(opening), len(opening) + len(rollout.trace_ids) + 1)
            traces.append(Row(ids, len(example.prompt_ids), tempered))
            if self._ended_otherwise(rollout):
                assert rollout.ended_by is not None
                ids = (*opening, *rollout.trace_ids, rollout.ended_by)
                at = len(ids) - 1
                endings.append(Row(ids, at, (at, at + 1), prompt=len(example.prompt_ids)))
            if rollout.answer:
                before = (*opening, *rollout.trace_ids, self.tokens.end_id)
                ids = (*before, *rollout.answer.ids)
                answers.append(Row(ids, len(before), (len(before), len(ids)), prompt=len(example.prompt_ids)))
        return traces + endings + answers

    def _ended_otherwise(self, rollout: Rollout) -> bool:
        """Whether a token other than t_end ended the trace and is scored."""
        return self.credit_eos and rollout.stop == "eos"

    def rows_with_null(self, group: RolloutGroup) -> list[Row]:
        """The same, and the null trace last."""
        return [*self.rows(group), self.null_row(group.example)]

    def null_row(self, example: Example) -> Row:
        """x [t_start] t_end y*, of which y* is scored."""
        opening = example.prompt_ids if self.bare_null else trace_prompt(example, self.tokens)
        ids = (*opening, self.tokens.end_id, *example.answer_ids)
        return Row(ids, len(opening) + 1, prompt=len(example.prompt_ids))

    def answer_rows(self, group: RolloutGroup) -> list[Row]:
        """Each trace's row, of which y* alone is scored."""
        answer, rows = len(group.example.answer_ids), self.rows(group)[: len(group.rollouts)]
        return [replace(row, scored_from=len(row.ids) - answer, prompt=row.scored_from) for row in rows]

    def guide_rows(self, group: RolloutGroup) -> list[Row]:
        """Each trace after the prompt that shows y*, scored: as `trace_KZ`."""
        opening = trace_prompt(guide(group.example), self.tokens)
        rows = []
        for rollout in group.rollouts:
            last = rollout.ended_by if self._ended_otherwise(rollout) else self.tokens.end_id
            assert last is not None
            ids = (*opening, *rollout.trace_ids, last)
            rows.append(Row(ids, len(opening), (len(opening), len(ids))))
        return rows

    def direct_row(self, example: Example) -> Row:
        """x y*, of which y* is scored."""
        return Row((*example.prompt_ids, *example.answer_ids), len(example.prompt_ids))

    def reference_row(self, example: Example) -> Row:
        """x [t_start] z* t_end y*, of which all after x is scored (Eq. 1), or the direct row where there is no z*.

        That is t_start too: the paper's output begins with it, and Eq. 11 supervises both think tokens.
        """
        if not example.trace_ids:
            return self.direct_row(example)
        opening = trace_prompt(example, self.tokens)
        ids = (*opening, *example.trace_ids, self.tokens.end_id, *example.answer_ids)
        return Row(ids, len(example.prompt_ids))

    def assemble(self, group: RolloutGroup, logprobs_N: Tensor, entropies_N: Tensor) -> GroupLogprobs:
        """Cut a group's flat scores into start, trace and answer; those of a null trace, at the end, are not read."""
        start = 0 if self.tokens.start_id is None else 1
        answer = len(group.example.answer_ids)
        sizes = [start + len(rollout.trace_ids) + 1 + answer for rollout in group.rollouts]
        rows, entropies = (scored_N[: sum(sizes)].split(sizes) for scored_N in (logprobs_N, entropies_N))
        endings = iter(logprobs_N[sum(sizes) :])
        ended = sum(sizes) + sum(map(self._ended_otherwise, group.rollouts))
        answers = [len(rollout.answer.ids) for rollout in group.rollouts if rollout.answer]
        answer_KS, answer_entropy_KS = (
            pad_sequence(scored_N[ended : ended + sum(answers)].split(answers), batch_first=True) if answers else None
            for scored_N in (logprobs_N, entropies_N)
        )
        traces = [
            torch.cat([row[start : -answer - 1], next(endings)[None]])
            if self._ended_otherwise(rollout)
            else row[start:-answer]
            for rollout, row in zip(group.rollouts, rows, strict=True)
        ]
        return GroupLogprobs(
            start_K=torch.stack([row[0] for row in rows]) if start else None,
            trace_KZ=pad_sequence(traces, batch_first=True),
            entropy_KZ=pad_sequence([row[start:-answer] for row in entropies], batch_first=True),
            end_K=torch.stack([row[-answer - 1] for row in rows]),
            answer_KT=torch.stack([row[-answer:] for row in rows]),
            sampled_answer_KS=answer_KS,
            sampled_answer_entropy_KS=answer_entropy_KS,
        )

    def assembled(self, group: RolloutGroup, scores: Sequence[tuple[Tensor, Tensor]]) -> GroupLogprobs:
        """The same from the scores of its rows, in float64."""
        return self.assemble(group, *(torch.cat(parts).double() for parts in zip(*scores, strict=True)))

    def sampler_logprobs(self, group: RolloutGroup) -> Tensor:
        """What the sampler reported of traces and answers; 0 where what is scored was not sampled (and is masked)."""
        rows = []
        for rollout in group.rollouts:
            length = len(rollout.trace_ids)
            row = [*rollout.sampler_logprobs, 0.0][: length + 1]
            row[length] *= self._end_sampled(rollout)
            if rollout.guided:  # said with y* in view, which is nothing to hold against what is said without
                row = [math.nan] * len(row)
            rows.append(torch.tensor(row, dtype=torch.float64))
        answers = [torch.tensor(r.answer.sampler_logprobs, dtype=torch.float64) for r in group.rollouts if r.answer]
        parts = [pad_sequence(part, batch_first=True) for part in (rows, answers) if part]
        return torch.cat(parts, -1)

    def _end_sampled(self, rollout: Rollout) -> bool:
        """Whether the policy sampled what is scored at the trace's last position."""
        return rollout.stop == "end" or self._ended_otherwise(rollout)

    def context(self, group: RolloutGroup, known: Known, base_logprobs_T: Tensor) -> GroupContext:
        """Masks and everything else that is constant in a group's loss, on the device of `base_logprobs_T`."""
        device = base_logprobs_T.device
        lengths_K1 = torch.tensor([[len(r.trace_ids) + 1] for r in group.rollouts], device=device)
        at_Z = torch.arange(int(lengths_K1.max()), device=device)
        trace_mask_KZ = at_Z < lengths_K1
        forced_K = torch.tensor([r.forced for r in group.rollouts], device=device)
        # What ended the trace sits on its last real position.
        appended_K1 = torch.tensor([[not self._end_sampled(r)] for r in group.rollouts], device=device)
        sampled_mask_KZ = trace_mask_KZ & ~(appended_K1 & (at_Z == lengths_K1 - 1))
        old_KZ = None if known.old_trace_KZ is None else known.old_trace_KZ.to(device)
        answers = [len(r.answer.ids) for r in group.rollouts if r.answer]
        answer_mask_KS = (
            torch.arange(max(answers), device=device) < torch.tensor(answers, device=device)[:, None]
            if answers
            else None
        )
        return GroupContext(
            trace_mask_KZ,
            sampled_mask_KZ,
            forced_K,
            base_logprobs_T,
            old_KZ,
            old_KZ if known.sampler_is_old else self.sampler_logprobs(group).to(device),
            None if known.reference_trace_KZ is None else known.reference_trace_KZ.to(device),
            lengths_K1[:, 0] - 1,
            {name: each.to(device) if isinstance(each, Tensor) else each for name, each in known.asked.items()},
            answer_mask_KS,
        )


@dataclass(frozen=True)
class Unit:
    """What is differentiated together. A minibatch's loss is the sum over its units.

    `loss` takes logprobs_N and entropies_N and returns a scalar, differentiable in both, and what the trainer asks for.
    """

    rows: tuple[Row, ...]
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Any]]


class Objective:
    """The method, the constants and the layout that a run's units are made with."""

    def __init__(self, config: RunConfig, tokens: ThinkTokens) -> None:
        settings = self.settings = config.objective
        self.name, divisor = config.method, settings.length_divisor
        self.layout = Layout(tokens, settings.null_trace == "bare", settings.credit_eos)
        self.divisor = config.rollout.max_trace_tokens if divisor == "cap" else divisor

    @cached_property
    def method(self) -> Method:
        """Made where it is used: a user's is a function of their module, which every process imports itself."""
        return methods.get(self.name, self.settings)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "method"}

    def of_group(self, group: RolloutGroup, known: Known, traces: int) -> Unit:
        """A group's of the minibatch's `traces`; last, where it is not known, its null trace, which no loss reaches."""
        rows = self.layout.rows(group) if known.base_logprobs_T is not None else self.layout.rows_with_null(group)
        return Unit(tuple(rows), partial(self._group, group, known, traces))

    def _group(
        self, group: RolloutGroup, known: Known, traces: int, logprobs_N: Tensor, entropies_N: Tensor
    ) -> tuple[Tensor, GroupScore]:
        """A group's loss, and the group as scored. Raises TrainingError where the loss is not finite."""
        base_T = known.base_logprobs_T
        base_T = logprobs_N[-len(group.example.answer_ids) :].detach() if base_T is None else base_T.to(logprobs_N)
        context = self.layout.context(group, known, base_T)
        logprobs = self.layout.assemble(group, logprobs_N, entropies_N)
        loss = group_loss(self.method, logprobs, context, self.settings, traces, self.divisor)
        if not math.isfinite(float(loss.total.detach())):
            error = TrainingError(f"the loss is {float(loss.total.detach())} on example {group.example.index}")
            made = {"rewards": loss.reward.scaled_K, "token signals": loss.reward.token_KT}
            whose = [what for what, numbers in made.items() if not bool(numbers.isfinite().all())]
            if whose and bool(logprobs.answer_KT.isfinite().all() and base_T.isfinite().all()):
                error.remedy = (
                    f"Method {self.name!r} made {whose[0]} that are not finite of log-probs that are: mend it."
                )
            raise error
        # The same numbers without the graph they came from.
        numbers = {name: value.detach() for name, value in vars(logprobs).items() if value is not None}
        detached = replace(loss, total=loss.total.detach())
        return loss.total, GroupScore(replace(logprobs, **numbers), context, detached)

    def of_examples(self, examples: Sequence[Example]) -> list[Unit]:
        """Cross-entropy on what follows x, per such token of the minibatch: y*, and before it z* where there is one."""
        rows = [self.layout.reference_row(example) for example in examples]
        tokens = sum(row.scored for row in rows)
        return [
            Unit((row,), partial(_reference, len(e.answer_ids), tokens)) for row, e in zip(rows, examples, strict=True)
        ]


def _reference(
    answer_tokens: int, tokens: int, logprobs_N: Tensor, entropies_N: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A row's share of the mean over the minibatch's `tokens`; besides it, the sum of its answer's log-probs."""
    loss = -logprobs_N.sum() / tokens
    return loss, (loss.detach(), logprobs_N[-answer_tokens:].detach().sum())
