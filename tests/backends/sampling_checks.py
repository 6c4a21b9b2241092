"""What samplers are held against: plain forwards of a sharpened model, and the softmax that traces should follow.

Shapes: V vocabulary.
"""

import math

import numpy as np
import pytest
import torch

from nrt_cli.objective.rows import trace_prompt
from nrt_cli.records import Example, Request

PROMPTS = [(9, 31, 44), (5, 6, 7, 8, 9, 10, 11, 12, 60), (77,), (20, 30, 40, 50, 60)]
EXAMPLES = [Example(i, "made", prompt, (3, 1)) for i, prompt in enumerate(PROMPTS)]


def sharpen(model, by=15):
    """Larger embeddings: distributions far from uniform that depend on the prompt."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in {id(embedding): embedding, id(head): head}.values():
            weight *= by
    return model


@torch.no_grad()
def next_token_logprobs(model, ids, temperature=1.0):
    """One plain forward: log pi(. | ids[:i]) for every i."""
    return (model(torch.tensor([ids]), use_cache=False).logits[0] / temperature).log_softmax(-1)


def plain_logprobs(model, prompt, sampled, temperature=1.0):
    table = next_token_logprobs(model, [*prompt, *sampled], temperature)
    return [table[len(prompt) + i - 1, token].item() for i, token in enumerate(sampled)]


def sampled_ids(rollout, tokens):
    """What the policy chose and the sampler reported a number for."""
    assert (rollout.ended_by == tokens.end_id) == (rollout.stop == "end")
    return (*rollout.trace_ids, *(() if rollout.stop == "cap" else (rollout.ended_by,)))


def reports_plain_logprobs(groups, model, tokens, temperature, tolerance):
    for example, group in zip(EXAMPLES, groups, strict=True):
        assert group.example is example
        for rollout in group.rollouts:
            want = plain_logprobs(model, trace_prompt(example, tokens), sampled_ids(rollout, tokens), temperature)
            assert rollout.sampler_logprobs == pytest.approx(want, abs=tolerance)
            assert len(set(want)) == len(want), "no two positions look alike, so a shift would be seen"


def first_tokens_follow_the_softmax(group, model, tokens, temperature):
    """Many traces of one prompt. A chi-square of n degrees has mean n and variance 2n; the bound is 5 sigma."""
    stops = {"end": tokens.end_id, "eos": tokens.eos_id}
    first = [r.trace_ids[0] if r.trace_ids else stops[r.stop] for r in group.rollouts]
    for asked, follows in ((temperature, True), (1.2, False)):  # the second shows that the test has teeth
        table = next_token_logprobs(model, trace_prompt(group.example, tokens), asked)[-1].double().exp().numpy()
        # "eos" is also what stops a trace that would open another.
        table[tokens.eos_id] += table[tokens.start_id]
        table[tokens.start_id] = 0
        expected_V, counts_V = table * len(first), np.bincount(first, minlength=len(table)).astype(float)
        rare_V = expected_V < 5  # which count as one token
        gather = lambda x: np.append(x[~rare_V], x[rare_V].sum())  # noqa: B023, E731
        statistic = ((gather(counts_V) - gather(expected_V)) ** 2 / gather(expected_V)).sum()
        degrees = int((~rare_V).sum())
        assert degrees > 15
        assert (statistic < degrees + 5 * math.sqrt(2 * degrees)) == follows


# --- replies of reasoners --------------------------------------------------------------------------------------------

ASKED = [*PROMPTS, (9, 31, 44), (61, 9)]
CAPS = [(6, 5), (3, 9), (12, 1), (1, 12), (7, 7), (0, 4)]


def asked(**changes):
    """Six requests of all kinds, each with a random stream of its own."""
    return [
        Request(
            f"{i}",
            prompt,
            think=i != 1,
            max_trace_tokens=caps[0],
            max_answer_tokens=caps[1],
            **({"seed_key": (3, i), "min_trace_tokens": i % 2} | changes),
        )
        for i, (prompt, caps) in enumerate(zip(ASKED, CAPS, strict=True))
    ]


def replies(reasoner, requests):
    return {request.key: reply for request, reply in reasoner.run(requests)}
