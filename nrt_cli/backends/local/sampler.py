"""Sampling traces: one prefill per prompt, K continuations from it, finished rows dropped.

Shapes: P prompts, R rows (prompts times K), C trace cap, V vocabulary, B blocks of it, X tokens of one, W = B * X.

Every trace has a random stream of its own, keyed by (seed, step, example, k), so what it samples does not depend on
what it shares a batch with, and a resumed run continues as if it had never stopped.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nrt_cli.backends.local.decoding import open_batch, prepacked
from nrt_cli.config import RolloutSection
from nrt_cli.objective.rows import trace_prompt
from nrt_cli.records import Example, Rollout, RolloutGroup, Stop
from nrt_cli.text.tokens import ThinkTokens

COMPACT_SHARE = 0.25
"""Rows are dropped once this share of them is finished: dropping copies what is kept of the others."""

BLOCK = 256
"""Tokens of the vocabulary whose probabilities are summed together when one is picked."""


def random_stream(length: int, *key: int) -> np.ndarray:
    """`length` uniforms in [0, 1) that depend on nothing but the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(length)


def pick(logits_RV: Tensor, uniforms_R: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability: tokens_R, logprobs_R.

    Inverts the cumulative distribution at `uniforms_R`; None takes the likeliest token.
    """
    top_R1 = logits_RV.amax(-1, keepdim=True)
    weights_RBX = _weights(logits_RV, top_R1)
    # Running sums are double: float32 over a large vocabulary drifts by more than a rare token's probability.
    sums_RB = weights_RBX.sum(-1).cumsum(-1, dtype=torch.float64)
    if uniforms_R is None:
        tokens_R1 = logits_RV.argmax(-1, keepdim=True)
    else:
        # First which block of the vocabulary, then which token in it.
        block_R1, rest_R1 = _find(sums_RB, uniforms_R[:, None].double())
        chosen_RX = weights_RBX.gather(1, block_R1[..., None].expand(-1, -1, BLOCK))[:, 0]
        within_R1, _ = _find(chosen_RX.cumsum(-1, dtype=torch.float64), rest_R1)
        tokens_R1 = block_R1 * BLOCK + within_R1
    logprobs_R1 = logits_RV.gather(-1, tokens_R1) - top_R1 - sums_RB[:, -1:].log().to(logits_RV.dtype)
    return tokens_R1[:, 0], logprobs_R1[:, 0]


def _weights(logits_RV: Tensor, top_R1: Tensor) -> Tensor:
    """exp(logits - top) in blocks [R, B, BLOCK]; what fills the last block up weighs nothing."""
    vocabulary = logits_RV.shape[-1]
    blocks_RW = logits_RV.new_empty(len(logits_RV), vocabulary + -vocabulary % BLOCK)
    blocks_RW[:, vocabulary:] = 0
    torch.sub(logits_RV, top_R1, out=blocks_RW[:, :vocabulary]).exp_()
    return blocks_RW.unflatten(-1, (-1, BLOCK))


def _find(sums_RN: Tensor, share_R1: Tensor) -> tuple[Tensor, Tensor]:
    """The entry in which a share (0 to 1) of the total falls, and how far into that entry, as a share of it."""
    total_R1 = sums_RN[:, -1:]
    # Kept below the total, so that rounding cannot leave a share beyond the last entry that has any width.
    target_R1 = torch.minimum(share_R1 * total_R1, total_R1.nextafter(torch.zeros_like(total_R1)))
    at_R1 = torch.searchsorted(sums_RN, target_R1, right=True)
    before_R1 = torch.where(at_R1 > 0, sums_RN.gather(-1, (at_R1 - 1).clamp(min=0)), 0.0)
    return at_R1, (target_R1 - before_R1) / (sums_RN.gather(-1, at_R1) - before_R1)


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms_RC: Tensor | None,
    stop_ids: Sequence[int],
    pad_id: int,
    cap: int,
    temperature: float = 1.0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Decode a row for each prompt, a token of every unfinished row at a time; equal prompts are read once.

    Args:
        uniforms_RC: the random number for each row and position; None decodes greedily.
        stop_ids: a row is finished once it samples one of these, or after `cap` tokens.

    Yields:
        rows_R (row numbers, finished ones left out), tokens_R (stop tokens included) and logprobs_R under the tempered
        distribution they were drawn from.
    """
    with evaluating(model):
        stops = torch.tensor(stop_ids, device=model.device)
        batch = open_batch(model, pad_id)
        logits_RV = batch.add(prompts)
        rows = torch.arange(len(prompts), device=model.device)
        live = torch.ones_like(rows, dtype=torch.bool)
        for position in range(cap):
            uniforms_R = None if uniforms_RC is None else uniforms_RC[rows, position]
            tokens, logprobs = pick(logits_RV / temperature, uniforms_R)
            yield rows[live], tokens[live], logprobs[live]
            live &= ~torch.isin(tokens, stops)
            if position == cap - 1 or not live.any():
                return
            if (~live).float().mean() >= COMPACT_SHARE:
                batch.keep(live.nonzero()[:, 0].tolist())
                rows, tokens = rows[live], tokens[live]
                live = live[live]
            logits_RV = batch.step(tokens.tolist(), live.tolist())


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """A model in training mode that checkpoints is given no cache by transformers: it would see its last token only."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def sample_groups(
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokens: ThinkTokens,
    settings: RolloutSection,
    group_size: int,
    key: Sequence[int],
) -> list[RolloutGroup]:
    """K traces for each example, at most `settings.batch_rows` rows at a time, in the examples' order.

    Args:
        key: names the random streams, such as (seed, step); each trace adds its example and its k.
    """
    traces = [(example, k) for example in examples for k in range(group_size)]
    # Whole groups, as long as one fits: each batch reads its prompts anew.
    size = settings.batch_rows // group_size * group_size or settings.batch_rows
    with prepacked(model):
        rollouts = [
            rollout
            for start in range(0, len(traces), size)
            for rollout in _sample_together(model, traces[start : start + size], tokens, settings, key)
        ]
    return [
        RolloutGroup(example, tuple(rollouts[i * group_size : (i + 1) * group_size]))
        for i, example in enumerate(examples)
    ]


def _sample_together(
    model: PreTrainedModel,
    traces: Sequence[tuple[Example, int]],
    tokens: ThinkTokens,
    settings: RolloutSection,
    key: Sequence[int],
) -> list[Rollout]:
    """One batch of `sample_groups`: each example's k-th trace."""
    uniforms_RC = np.stack([random_stream(settings.max_trace_tokens, *key, e.index, k) for e, k in traces])
    caps = [settings.trace_cap(len(example.answer_ids)) for example, _ in traces]
    sampled: list[list[int]] = [[] for _ in uniforms_RC]
    logprobs: list[list[float]] = [[] for _ in uniforms_RC]
    for rows, ids, values in decode(
        model,
        [trace_prompt(example, tokens) for example, _ in traces],
        torch.from_numpy(uniforms_RC).to(model.device),
        tokens.trace_ends,
        tokens.pad_id,
        settings.max_trace_tokens,
        settings.temperature,
    ):
        for row, token, value in zip(rows.tolist(), ids.tolist(), values.tolist(), strict=True):
            # Leaving out what comes after a trace's own cap is sampling up to that cap.
            if len(sampled[row]) < caps[row]:
                sampled[row].append(token)
                logprobs[row].append(value)
    return [rollout_of(ids, values, tokens) for ids, values in zip(sampled, logprobs, strict=True)]


def rollout_of(ids: list[int], logprobs: list[float], tokens: ThinkTokens) -> Rollout:
    """Cut off the token that ended the trace."""
    stop: Stop = "cap"
    if ids[-1] == tokens.end_id:
        stop = "end"
    elif ids[-1] in tokens.trace_ends:
        stop = "eos"
    if stop == "cap":
        return Rollout(tuple(ids), tuple(logprobs), stop)
    return Rollout(tuple(ids[:-1]), tuple(logprobs), stop, ids[-1])
