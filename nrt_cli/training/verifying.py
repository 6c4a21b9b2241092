"""Who judges the answers that a policy samples in training: the graders that the data names (`grading.verdicts`)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nrt_cli.data.examples import Pairs
from nrt_cli.grading.verdicts import Verifier
from nrt_cli.measures.statistics import mean
from nrt_cli.records import Example, Rollout, SampledAnswer
from nrt_cli.text.pieces import text_within
from nrt_cli.text.tokens import ThinkTokens


class Verifying:
    """The training pairs, by the number of their row, and the processes that judge answers to them."""

    def __init__(self, pairs: Pairs, tokenizer: Any, tokens: ThinkTokens) -> None:
        self.pairs, self.tokenizer, self.tokens = pairs, tokenizer, tokens
        self.verifier = Verifier()

    def judges(self, example: Example) -> bool:
        """Whether the example's row has a verifier."""
        return self.pairs[example.index].grader != "none"

    def judged(
        self, examples: Sequence[Example], answers: Sequence[Sequence[SampledAnswer]]
    ) -> list[list[SampledAnswer]]:
        """Each example's answers with their verdicts."""
        asked = [
            (self.pairs[example.index], self._text(answer), answer.finished)
            for example, group in zip(examples, answers, strict=True)
            for answer in group
        ]
        found = iter(self.verifier.verdicts(asked))
        return [[replace(answer, verdict=next(found)) for answer in group] for group in answers]

    def _text(self, answer: SampledAnswer) -> str:
        """As graders of evaluations see it: without what ended it."""
        ended = answer.ids[-1] in self.tokens.trace_ends
        return text_within(self.tokenizer, answer.ids[: len(answer.ids) - ended], special=False)


def verdict_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Of a step's sampled answers the mean score, the shares without a verdict for each reason, and their tokens."""
    answers = [rollout.answer for rollout in rollouts if rollout.answer]
    verdicts = [answer.verdict for answer in answers if answer.verdict]
    if not verdicts:
        return dict.fromkeys(("verified", "verifier_failed", "verifier_refused", "sampled_answer_tokens"), math.nan) | {
            "verified_share": 0.0
        }
    return {
        "verified": mean([verdict.score for verdict in verdicts]),
        "verifier_failed": mean([verdict.fault == "failed" for verdict in verdicts]),
        "verifier_refused": mean([verdict.fault == "refused" for verdict in verdicts]),
        "sampled_answer_tokens": mean([len(answer.ids) for answer in answers]),
        "verified_share": len(verdicts) / len(rollouts),
    }
