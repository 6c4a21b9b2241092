"""Scores of answers against the slow way: all logits at once, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from nrt_cli.config import ModelSection, RolloutSection
from nrt_cli.errors import ModelError
from nrt_cli.records import Example
from nrt_cli.workflows.scoring import Scorer

THINK = ("<|think_start|>", "<|think_end|>")


def float32(folder: Path) -> ModelSection:
    return ModelSection(path=str(folder), dtype="float32")


@pytest.fixture(scope="module")
def scorer(tiny_model_dir: Path) -> Scorer:
    return Scorer(float32(tiny_model_dir), *THINK)


@pytest.fixture(scope="module")
def truth(tiny_model_dir: Path) -> Any:
    """log p and entropy of the last `count` ids, from the full softmax in float64."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64)

    @torch.no_grad()
    def score(ids: list[int], count: int) -> tuple[list[float], list[float]]:
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[-count - 1 : -1]
        picked = logprobs.gather(-1, torch.tensor(ids[-count:])[:, None])[:, 0]
        return picked.tolist(), (-(logprobs.exp() * logprobs).sum(-1)).tolist()

    return score


EXAMPLE = Example(7, "test", (20, 21, 22, 23), (30, 31, 32, 33, 34))


@pytest.mark.parametrize("kind", ["trace", "empty", "null", "bare", "direct"])
def test_scores_are_those_of_the_full_softmax(scorer: Scorer, truth: Any, tiny_model_dir: Path, kind: str) -> None:
    start, end = scorer.tokens.start_id, scorer.tokens.end_id
    scorer = Scorer(float32(tiny_model_dir), *THINK, bare_null=True) if kind == "bare" else scorer
    row, before = {
        "trace": (lambda: scorer.row(EXAMPLE, (40, 41)), [start, 40, 41, end]),
        "empty": (lambda: scorer.row(EXAMPLE, ()), [start, end]),
        "null": (lambda: scorer.layout.null_row(EXAMPLE), [start, end]),
        "bare": (lambda: scorer.layout.null_row(EXAMPLE), [end]),
        "direct": (lambda: scorer.direct_row(EXAMPLE), []),
    }[kind]
    # Beside another row, so that batching has its chance to go wrong.
    _, (logprobs_T, entropies_T) = scorer.score([scorer.row(EXAMPLE, (50, 51, 52)), row()])
    logprobs, entropies = truth([*EXAMPLE.prompt_ids, *before, *EXAMPLE.answer_ids], 5)
    assert logprobs_T.tolist() == pytest.approx(logprobs, abs=1e-5)
    assert entropies_T.tolist() == pytest.approx(entropies, abs=1e-5)


def test_what_a_trace_is_sampled_from_does_not_depend_on_its_neighbours(scorer: Scorer) -> None:
    other = Example(8, "test", (24, 25), (30, 34))
    settings = RolloutSection(max_trace_tokens=6)
    alone = scorer.sample([EXAMPLE], 2, settings, (0, 2))
    beside = scorer.sample([other, EXAMPLE], 2, settings, (0, 2))
    assert [rollout.trace_ids for rollout in alone[0].rollouts] == [r.trace_ids for r in beside[1].rollouts]


def test_what_does_not_fit_is_refused(scorer: Scorer) -> None:
    # 4 + 501 + 2 + 5 is all that the model has room for.
    assert len(scorer.row(EXAMPLE, (40,) * 501).ids) == 512
    with pytest.raises(ModelError, match=r"example 7 needs 513 positions .*but the model has 512; shorten"):
        scorer.row(EXAMPLE, (40,) * 502)


def test_a_prompt_is_computed_once_for_all_that_is_scored_after_it(scorer: Scorer) -> None:
    """4 tokens of the prompt and t_start, shared; then z, t_end and 5 answer tokens, the last of which is not read; the
    row of the empty trace is the null trace's.
    """
    rows = [scorer.row(EXAMPLE, trace) for trace in ((40, 41), (50, 51, 52), ())]
    assert scorer.policy.size([*rows, scorer.layout.null_row(EXAMPLE)]) == 5 + 7 + 8 + 5
