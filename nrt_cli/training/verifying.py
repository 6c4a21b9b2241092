"""Who judges the answers that a policy samples in training: the graders that the data names (`grading.verdicts`)."""

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


def answer_metrics(rollouts: Sequence[Rollout], judged: bool) -> dict[str, float]:
    """Of a step's sampled answers their tokens and how many end; where they are `judged`, their mean score and the
    shares without a verdict for each reason. NaN is the mean of none."""
    answers = [rollout.answer for rollout in rollouts if rollout.answer]
    verdicts = [answer.verdict for answer in answers if answer.verdict]
    found = {
        "sampled_answer_tokens": mean([len(answer.ids) for answer in answers]),
        "finished_share": mean([answer.finished for answer in answers]),
    }
    if not judged:
        return found
    return found | {
        "verified": mean([verdict.score for verdict in verdicts]),
        "verifier_failed": mean([verdict.fault == "failed" for verdict in verdicts]),
        "verifier_refused": mean([verdict.fault == "refused" for verdict in verdicts]),
        "verified_share": len(verdicts) / len(rollouts),
    }
