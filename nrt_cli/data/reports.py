"""A second world of the same sums, whose answers are long: a report of which only two words need the trace.

    x    Q : 3 + 4 + 9 + 1 in 4 ?
    y*   A : the second is 4 . the wind blew over the old river . their sum is odd . the first is 3 .
         the sum of 3 , 4 , 9 , 1 ends in 7 .

The question says how many sentences come before the last one. Some copy a digit of the question, which needs no trace,
some are prose that nothing tells, and one says whether the sum is odd, at a place that nothing tells; where there is no
room for it, the last digit alone is hard. So log P(y*) falls with the length of y*, by what no trace can change.

Problems, what is held out, and how a sum is worked out are those of `digits`.
"""

import random
from collections.abc import Iterator

from nrt_cli.data import digits
from nrt_cli.data.digits import FIRST, TERMS, Mixture, Problem, Said

__all__ = ["FIRST", "POSITIONS", "THEN", "WORLD", "documents", "held_out_pair", "pair", "vocabulary"]

WORLD = "reports"

POSITIONS = 384
"""Tokens that the tiny model has room for: a document may work a sum out and answer twice."""

THEN = Mixture(direct=0.30, worked=0.14, sidetracked=0.33, drill=0.15)
"""What is read last. With the 8 % of working in `digits`, 4 % of what was sampled after a question was some, other text
being longer here, and `logp` found nothing in it in 80 steps."""

LENGTHS = (0, 4, 8, 12, 16)
"""How many sentences may come before the last one: answers of 16 to about 120 words and marks."""

COPIED = 0.5
"""Share of the sentences before the last one that copy a digit; the others are prose."""

_PLACES = ("first", "second", "third", "fourth")


def said(rng: random.Random, problem: Problem) -> Said:
    """A question and its report, every sentence but the last drawn anew each time it is told."""
    length = rng.choice(LENGTHS)

    def report(last_digit: int | None) -> str:
        digit = sum(problem) % 10 if last_digit is None else last_digit
        before = []
        for _ in range(length - 1):
            place = rng.randrange(TERMS)
            copied = f"the {_PLACES[place]} is {problem[place]} ."
            before.append(copied if rng.random() < COPIED else digits.sentences(rng, 1))
        if length:
            before.insert(rng.randrange(length), f"their sum is {('even', 'odd')[digit % 2]} .")
        mark, _, last = digits.answer(problem, digit).partition(" : ")
        return " ".join((f"{mark} :", *before, last))

    return f"{digits.question(problem).removesuffix(' ?')} in {length} ?", report


def pair(rng: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    question, report = said(rng, digits.draw(rng))
    return question, report(None)


def held_out_pair(rng: random.Random) -> tuple[str, str]:
    """A question whose problem nothing trains on, and its answer."""
    question, report = said(rng, rng.choice(digits.held_out_problems()))
    return question, report(None)


def documents(seed: int, start: int, count: int, mixture: Mixture) -> Iterator[tuple[str, str]]:
    """As `digits.documents`, with this world's questions and answers."""
    return digits.documents(seed, start, count, mixture, said)


def vocabulary() -> list[str]:
    """Every word and mark of this world, in a fixed order."""
    own = [*_PLACES, "is", "their", "even", "odd", *map(str, LENGTHS)]
    return list(dict.fromkeys([*digits.vocabulary(), *own]))
