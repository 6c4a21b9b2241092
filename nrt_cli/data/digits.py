"""The laptop study's world: sums of four digits of which only the last digit counts, and a language to talk about them.

A tiny model that has read this world's documents can answer a question's words but not its one hard digit, unless it
works the sum out before. How to work one out is in the documents; that it helps is not. One problem in five is never
written down here, in any order of its digits, so that it can be asked later.

Text is words and marks between blanks. A row or document depends on the seed and its index alone.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

TERMS = 4
WORLD = "digits-2"
"""This version of the world; in the first, `digits`, a held-out problem could be trained on in another order."""

POSITIONS = 192
"""Tokens that the tiny model has room for."""

HELD_OUT_SHARE = 5
"""One problem in so many is held out."""

_HELD_OUT_SALT = b"922"
"""Of those up to 2000, the one by which the ten answers are the most equally frequent among the held-out problems."""

SEPARATORS = ("#", "*", "~")
"""Marks between the parts of a document: what think tokens start from."""

_LEADS = ("so", "let us see", "first", "hmm")
_ADJECTIVES = ("old", "red", "small", "slow", "long")
_PROSE = (
    "the cat sat on the {} hill",
    "a {} dog ran over the river",
    "the {} bird flew under a tree",
    "the man walked home with his {} bag",
    "a woman walked near the {} house",
    "the child sat with her {} bread",
    "the bag was full of {} apples",
    "the {} day was long and the sun rose",
    "the wind blew over the {} river",
)
_WRONG_STEP = 0.03
"""Share of the written steps whose result is drawn at random: people err."""

Problem = Sequence[int]


def held_out(problem: Problem) -> bool:
    """Whether a problem is kept from everything that trains; it is with every order of its digits or with none."""
    return zlib.crc32(_HELD_OUT_SALT + bytes(sorted(problem))) % HELD_OUT_SHARE == 0


@cache
def held_out_problems() -> list[tuple[int, ...]]:
    """All of them, in numerical order."""
    return [problem for problem in product(range(10), repeat=TERMS) if held_out(problem)]


def question(problem: Problem) -> str:
    return f"Q : {' + '.join(map(str, problem))} ?"


def answer(problem: Problem, last_digit: int | None = None) -> str:
    """What is said of a problem; `last_digit` where that is not the right one."""
    digit = sum(problem) % 10 if last_digit is None else last_digit
    return f"A : the sum of {' , '.join(map(str, problem))} ends in {digit} ."


def draw(rng: random.Random) -> tuple[int, ...]:
    """A problem that may be trained on."""
    while held_out(problem := tuple(rng.randrange(10) for _ in range(TERMS))):
        pass
    return problem


def pair(rng: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    problem = draw(rng)
    return question(problem), answer(problem)


def held_out_pair(rng: random.Random) -> tuple[str, str]:
    """A question that nothing trains on, and its answer."""
    problem = rng.choice(held_out_problems())
    return question(problem), answer(problem)


def pair_by_lot(rng: random.Random) -> tuple[str, str]:
    """A question and an answer whose last digit is drawn by lot: nothing can be worked out that would help."""
    problem = draw(rng)
    return question(problem), answer(problem, rng.randrange(10))


def held_out_pair_by_lot(rng: random.Random) -> tuple[str, str]:
    """The same of a question that nothing trains on."""
    problem = rng.choice(held_out_problems())
    return question(problem), answer(problem, rng.randrange(10))


def text(rng: random.Random, kept: bool = False) -> str:
    """Plain text, such as is read on from any place: questions with their answers, and prose between them; `kept` has
    the problems that nothing trains on."""
    parts = []
    for _ in range(8):
        problem = rng.choice(held_out_problems()) if kept else draw(rng)
        parts.append(f"{question(problem)} {answer(problem)}" if rng.random() < 0.75 else sentences(rng, 1))
    return " ".join(parts)


# --- documents -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of documents; prose is the rest."""

    direct: float
    worked: float
    sidetracked: float
    drill: float


FIRST = Mixture(direct=0.10, worked=0.70, sidetracked=0.0, drill=0.20)
"""What is read first: the tables, and copying. With half as many drills, one of two seeds did not learn to add."""

THEN = Mixture(direct=0.32, worked=0.08, sidetracked=0.37, drill=0.15)
"""What is read after it, until worked text after a question is rare: RL has something left to find."""


Said = tuple[str, Callable[[int | None], str]]
"""A problem's question, and its answer with a last digit, None for the right one."""


def said(rng: random.Random, problem: Problem) -> Said:
    """How this world asks and answers a problem; nothing of it is left to chance."""
    return question(problem), lambda last_digit: answer(problem, last_digit)


def documents(
    seed: int, start: int, count: int, mixture: Mixture, say: Callable[[random.Random, Problem], Said] = said
) -> Iterator[tuple[str, str]]:
    """Documents `start` to `start + count` as (question, what follows it); the first is empty where there is none."""
    shares = (mixture.direct, mixture.worked, mixture.sidetracked, mixture.drill)
    for index in range(start, start + count):
        rng = random.Random(f"digits/{seed}/{index}")
        (kind,) = rng.choices(("direct", "worked", "sidetracked", "drill", "prose"), (*shares, 1 - sum(shares)))
        if kind == "prose":
            yield "", sentences(rng, 3)
        elif kind == "drill":  # loose facts; none goes on from the one before, or it would work out a problem
            facts, result = [], -1
            for _ in range(6):
                while (a := rng.randrange(10)) == result:
                    pass
                b = rng.randrange(10)
                result = (a + b) % 10
                facts.append(f"{a} {rng.choice(('+', '+', 'and'))} {b} {rng.choice(('=', 'makes'))} {result}")
            yield "", " , ".join(facts) + " ."
        else:
            problem = draw(rng)
            asked, reply = say(rng, problem)
            if kind == "direct":  # its answer, which is sometimes restated
                text = f"{_separator(rng)} {reply(None)}"
                text += f" {_separator(rng)} {reply(None)}" if rng.random() < 0.35 else ""
            elif kind == "worked":  # an answer follows three times in four, and is restated three times in ten
                # Running sums in one of two styles, and the digit they end in, right or wrong.
                form, result, steps = rng.choice(("{} + {} = {}", "{} and {} makes {}")), problem[0], []
                for term in problem[1:]:
                    before, right = result, (result + term) % 10
                    result = rng.randrange(10) if rng.random() < _WRONG_STEP else right
                    steps.append(form.format(before, term, result))
                working = f"{rng.choice(_LEADS)} {rng.choice((' , ', ' then ')).join(steps)} ."
                text, how = f"{_separator(rng)} {working}", rng.random()
                for least in (0.25, 0.70):
                    text += f" {_separator(rng)} {reply(result)}" if how >= least else ""
            else:  # somebody changes the subject, and in every second case answers at last
                separator = _separator(rng)
                text = f"{separator} {sentences(rng, rng.choice((1, 1, 2, 2, 3)))}"
                text += f" {_separator(rng)} {reply(None)}" if rng.random() < 0.5 else ""
            yield asked, text


def _separator(rng: random.Random) -> str:
    return rng.choice((*SEPARATORS, ""))


def sentences(rng: random.Random, count: int) -> str:
    return " . ".join(rng.choice(_PROSE).format(rng.choice(_ADJECTIVES)) for _ in range(count)) + " ."


def vocabulary() -> list[str]:
    """Every word and mark of this world, in a fixed order."""
    phrases = [question((0,) * TERMS), answer((0,) * TERMS), "+ = and makes then", *SEPARATORS, *_LEADS, *_ADJECTIVES]
    words = [*map(str, range(10)), *(word for phrase in (*phrases, *_PROSE) for word in phrase.split())]
    return [word for word in dict.fromkeys(words) if word != "{}"]
