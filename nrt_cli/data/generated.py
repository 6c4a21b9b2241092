"""Question-answer pairs made here, with no dependencies: what the quickstart and the laptop study train on.

A row depends on its task, the seed and its index alone, so a larger `size` extends a smaller one. Change `VERSION`
when the text of any row changes, or for one task its entry in `VERSIONS`: the fingerprint of generated data has them.
"""

import random
import zlib
from collections.abc import Callable
from functools import partial

from nrt_cli.data import digits, reports

VERSION = 1
VERSIONS = {
    **dict.fromkeys(("digits", "digits-held-out", "digits-by-lot", "digits-by-lot-held-out"), digits.WORLD),
    **dict.fromkeys(("digits-text", "digits-text-held-out"), digits.WORLD),
    **dict.fromkeys(("reports", "reports-held-out"), reports.WORLD),
}

_SUM_PHRASES = (
    "What is {terms}?",
    "Compute {terms}.",
    "Add these numbers: {listed}.",
    "Find the sum of {listed}.",
    "What do you get when you add {listed}?",
    "Work out {terms} and give the result.",
)
_NAMES = ("Ana", "Ben", "Chloe", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kemi", "Leo")
_GOODS = ("pens", "apples", "notebooks", "stickers", "muffins", "candles", "postcards", "oranges", "mugs", "marbles")
_SHOPPING_PHRASES = (
    "{name} buys {n} {a} for {p} dollars each and {m} {b} for {q} dollars each. How many dollars does {name} pay?",
    "{a} cost {p} dollars each and {b} cost {q} dollars each. What is the price of {n} {a} and {m} {b} in dollars?",
    "At the market {name} picks {n} {a} at {p} dollars each, then {m} {b} at {q} dollars each. "
    "What is the total in dollars?",
)


def _sums(rng: random.Random) -> tuple[str, str]:
    """Two numbers to add, small enough that a small model can often do it in writing."""
    a, b = rng.randint(1, 15), rng.randint(1, 15)
    return rng.choice(_SUM_PHRASES).format(terms=f"{a} + {b}", listed=f"{a} and {b}"), str(a + b)


def _shopping(rng: random.Random) -> tuple[str, str]:
    """A word problem of two products and a sum."""
    n, p, m, q = (rng.randint(2, 12) for _ in range(4))
    a, b = rng.sample(_GOODS, 2)
    question = rng.choice(_SHOPPING_PHRASES).format(name=rng.choice(_NAMES), n=n, a=a, p=p, m=m, b=b, q=q)
    return question[0].upper() + question[1:], str(n * p + m * q)


_SET, _NUMBERS, _MOST_COMMON = 6, 15, 5
"""Elements of each set, the numbers they are of, and how many both may have, each number of them equally often."""


def _sets(rng: random.Random, held_out: bool = False) -> tuple[str, str]:
    """A line of Python that counts what two sets share: found by looking, not by arithmetic."""
    while True:
        common = rng.randint(1, _MOST_COMMON)
        drawn = rng.sample(range(1, _NUMBERS + 1), 2 * _SET - common)
        one, other = set(drawn[:_SET]), set(drawn[_SET - common :])
        # A fifth of all pairs of sets, whichever comes first, is kept from what `sets` trains on.
        if (zlib.crc32(repr(sorted(map(sorted, (one, other)))).encode()) % 5 == 0) == held_out:
            break
    shown = [", ".join(map(str, sorted(each))) for each in (one, other)]
    return f"print(len({{{shown[0]}}} & {{{shown[1]}}}))\nWhat does this program print?", str(common)


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "sums": _sums,
    "shopping": _shopping,
    "digits": digits.pair,
    "digits-held-out": digits.held_out_pair,
    "digits-by-lot": digits.pair_by_lot,
    "digits-by-lot-held-out": digits.held_out_pair_by_lot,
    "reports": reports.pair,
    "reports-held-out": reports.held_out_pair,
    "sets": _sets,
    "sets-held-out": partial(_sets, held_out=True),
}


TEXTS: dict[str, Callable[[random.Random], str]] = {
    "digits-text": digits.text,
    "digits-text-held-out": partial(digits.text, kept=True),
}
"""Plain text, for `nrt data prepare --spans`."""


def generate(task: str, index: int, seed: int) -> dict[str, str]:
    """Row `index` of `task`: a question and its answer, or a text."""
    rng = random.Random(f"{task}/{seed}/{index}")
    if task in TEXTS:
        return {"text": TEXTS[task](rng)}
    question, answer = TASKS[task](rng)
    return {"question": question, "answer": answer}
