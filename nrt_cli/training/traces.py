"""Sampled groups as rows of the trace table: one row per trace, token ids and numbers per token side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nrt_cli.grading.accuracies import Graded
from nrt_cli.grading.grading import Pair
from nrt_cli.objective.losses import GroupScore
from nrt_cli.records import Example, HeldOut, RolloutGroup, TraceRow
from nrt_cli.text.pieces import text_within


def trace_rows(
    step: int, groups: Sequence[RolloutGroup], scores: Sequence[GroupScore] | None, tokenizer: Any
) -> list[TraceRow]:
    """The rows of some groups.

    Lists are per token: `trace_*` and `sampled` over z and t_end, `answer_*`, `null_logprobs` and `token_signals` over
    y* with its eos. `sampled` is False where t_end was appended and no eos is scored.
    """
    rows = []
    for g, group in enumerate(groups):
        row = _direct_row(step, group.example, tokenizer)
        for k, rollout in enumerate(group.rollouts):
            text, logprobs = text_within(tokenizer, rollout.trace_ids), rollout.sampler_logprobs
            row = replace(
                row, k=k, trace=text, stop=rollout.stop, trace_ids=rollout.trace_ids, sampler_logprobs=logprobs
            )
            if rollout.answer and rollout.answer.verdict:
                row = replace(
                    row,
                    sampled_answer=text_within(tokenizer, rollout.answer.ids),
                    verdict=rollout.answer.verdict.score,
                    verdict_fault=rollout.answer.verdict.fault,
                )
            if scores:
                score, reward = scores[g], scores[g].loss.reward
                real_Z = score.context.trace_mask_KZ[k]
                row = replace(
                    row,
                    sampled=score.context.sampled_mask_KZ[k][real_Z].tolist(),
                    trace_logprobs=score.logprobs.trace_KZ[k][real_Z].tolist(),
                    trace_entropies=score.logprobs.entropy_KZ[k][real_Z].tolist(),
                    answer_logprobs=score.logprobs.answer_KT[k].tolist(),
                    null_logprobs=score.context.base_logprobs_T.tolist(),
                    token_signals=reward.token_KT[k].tolist(),
                    gain=float(score.gain_K[k]),
                    reward=float(reward.reward_K[k]),
                    reward_base=float(reward.base),
                    reward_scaled=float(reward.scaled_K[k]),
                    reward_base_scaled=float(reward.scaled_base),
                    reward_log_scale=float(reward.log_scale),
                    advantage=float(score.loss.advantage.advantage_K[k]),
                    dead_group=score.loss.advantage.dead,
                )
            rows.append(row)
    return rows


def held_out_rows(
    step: int,
    examples: Sequence[Example],
    held_out: HeldOut,
    pairs: Sequence[Pair],
    answered: Sequence[Mapping[str, Graded]],
    tokenizer: Any,
) -> list[TraceRow]:
    """A row per held-out example: its trace, if there is one, what y* scored, and its graded replies."""
    rows = trace_rows(step, held_out.groups, None, tokenizer) or [_direct_row(step, e, tokenizer) for e in examples]
    for i, row in enumerate(rows):
        answer_logprobs, graded = held_out.answer_logprobs[i], answered[i].items()
        more: dict[str, Any] = {f"{kind}_reply": found.reply.answer for kind, found in graded}
        more |= {f"{kind}_score": found.grade.score for kind, found in graded}
        if held_out.null_logprobs:
            null_logprobs = held_out.null_logprobs[i]
            more |= {"null_logprobs": null_logprobs, "gain": sum(answer_logprobs) - sum(null_logprobs)}
        rows[i] = replace(row, answer_logprobs=answer_logprobs, grader=pairs[i].grader, **more)
    return rows


def _direct_row(step: int, example: Example, tokenizer: Any) -> TraceRow:
    return TraceRow(
        step=step,
        example=example.index,
        source=example.source,
        k=0,
        prompt=tokenizer.decode(example.prompt_ids),
        answer=text_within(tokenizer, example.answer_ids),
        prompt_ids=example.prompt_ids,
        answer_ids=example.answer_ids,
    )
