"""Accuracy on question-answer pairs: how often the answer is right with thinking, and without.

All are greedy and of the same questions, so they are compared in pairs. With C tokens for a trace and A for an answer:

- thinking: x t_start z t_end y, z of C tokens at most, y of A;
- null: x t_start t_end y, y of C + A tokens;
- direct: x y, without think tokens, y of C + A tokens. What works in its answer is the honest rival of what thinks;
- other_trace: x t_start z' t_end y, z' the greedy trace of the next question, y of A tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nrt_cli.config.schema import SLACK
from nrt_cli.grading.grading import Grade, Pair, grade
from nrt_cli.measures.statistics import mean
from nrt_cli.records import ACCURACIES, Reply, Request


@dataclass(frozen=True)
class Question:
    """A prompt as token ids, with the reference answer and the name of the grader."""

    key: str
    prompt_ids: tuple[int, ...]
    pair: Pair


@dataclass(frozen=True)
class Graded:
    """A question's reply and its grade."""

    reply: Reply
    grade: Grade


def answer_cap(longest: int, most: int) -> int:
    """Tokens of an answer, where the longest reference has so many and `most` are allowed."""
    return min(longest + SLACK, most)


def answer_all(
    reasoner: Any,
    questions: Sequence[Question],
    kinds: Sequence[str],
    trace_cap: int,
    cap: int,
    min_trace_tokens: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[dict[str, Graded]]:
    """Every question's replies by kind of accuracy, graded.

    Args:
        reasoner: a `Reasoner`, or one of a model in memory; None where there are no questions.
        kinds: some of `ACCURACIES`; another row's trace is there only with thinking, and where there is another prompt.
        trace_cap: C, and `cap` A of the definitions above.
        advance: called for every reply.
    """
    replies: dict[tuple[str, int], Reply] = {}

    def ask(settings: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
        of_key = {f"{kind} {questions[i].key}": (kind, i) for kind, i in settings}
        asked = [Request(key, questions[at[1]].prompt_ids, **settings[at]) for key, at in of_key.items()]
        for request, reply in reasoner.run(asked) if asked else ():
            replies[of_key[request.key]] = reply
            advance()

    longer = {"max_answer_tokens": trace_cap + cap}
    settings: dict[str, dict[str, Any]] = {
        "thinking": {
            "think": True,
            "max_trace_tokens": trace_cap,
            "max_answer_tokens": cap,
            "min_trace_tokens": min_trace_tokens,
        },
        "null": {"think": True, "trace_ids": (), **longer},
        "direct": longer,
    }
    ask({(kind, i): settings[kind] for kind in kinds if kind in settings for i in range(len(questions))})
    if "other_trace" in kinds and "thinking" in kinds:
        prompts = [question.prompt_ids for question in questions]
        others = {}
        for i, own in enumerate(prompts):
            # The trace of the first question after it, in a circle, that has another prompt.
            after = (*range(i + 1, len(prompts)), *range(i))
            if (other := next((j for j in after if prompts[j] != own), None)) is not None:
                trace = replies["thinking", other].trace_ids
                others["other_trace", i] = {"think": True, "trace_ids": trace, "max_answer_tokens": cap}
        ask(others)
    return [
        {
            kind: Graded(reply, grade(question.pair, reply.answer))
            for kind in ACCURACIES
            if (reply := replies.get((kind, i))) is not None
        }
        for i, question in enumerate(questions)
    ]


def mean_scores(answered: Sequence[Mapping[str, Graded]]) -> dict[str, float]:
    """The mean score of every kind that was measured."""
    kinds = [kind for kind in ACCURACIES if any(kind in each for each in answered)]
    return {kind: mean([each[kind].grade.score for each in answered if kind in each]) for kind in kinds}
