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

from nrt_cli.grading.grading import Grade, Pair, grade
from nrt_cli.measures.held_out import SLACK
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
        reasoner: a `Reasoner` of `engines.reasoners` or of a model in memory.
        kinds: some of `ACCURACIES`; another row's trace is there only with thinking, and where there is another prompt.
        trace_cap: C, and `cap` A of the definitions above.
        advance: called for every reply.
    """
    replies: dict[tuple[str, int], Reply] = {}

    def ask(requests: Mapping[tuple[str, int], Request]) -> None:
        of_key = {request.key: place for place, request in requests.items()}
        for request, reply in reasoner.run(requests.values()):
            replies[of_key[request.key]] = reply
            advance()

    def request(kind: str, i: int, **settings: Any) -> Request:
        return Request(f"{kind} {questions[i].key}", questions[i].prompt_ids, **settings)

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
    asked = [kind for kind in kinds if kind in settings]
    ask({(kind, i): request(kind, i, **settings[kind]) for kind in asked for i in range(len(questions))})
    if "other_trace" in kinds and "thinking" in kinds:
        others = {i: other for i in range(len(questions)) if (other := _next(questions, i)) is not None}
        ask(
            {
                ("other_trace", i): request(
                    "other_trace", i, think=True, trace_ids=replies["thinking", other].trace_ids, max_answer_tokens=cap
                )
                for i, other in others.items()
            }
        )
    return [
        {
            kind: Graded(reply, grade(question.pair, reply.answer))
            for kind in ACCURACIES
            if (reply := replies.get((kind, i))) is not None
        }
        for i, question in enumerate(questions)
    ]


def _next(questions: Sequence[Question], i: int) -> int | None:
    """The first question after the i-th, in a circle, that has another prompt."""
    after = (*range(i + 1, len(questions)), *range(i))
    return next((j for j in after if questions[j].prompt_ids != questions[i].prompt_ids), None)


def mean_scores(answered: Sequence[Mapping[str, Graded]]) -> dict[str, float]:
    """The mean score of every kind that was measured."""
    kinds = [kind for kind in ACCURACIES if any(kind in each for each in answered)]
    return {kind: mean([each[kind].grade.score for each in answered if kind in each]) for kind in kinds}
