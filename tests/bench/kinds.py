"""Which kinds of problems can a model sometimes think its way to? A few questions of each, before any training.

    python tests/bench/kinds.py --model models/qwen                  every kind, four questions with four traces each
    python tests/bench/kinds.py --model models/qwen --kinds sets,chain --questions 16 --traces 8

What is worth a longer look has traces that are right and traces that are not in one question, and is not right without
them: thinking, with the null trace and directly are greedy, a trace counts as right if the greedy answer after it is.
"""

import argparse
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from nrt_cli import config as configs
from nrt_cli.checks.interview import STEP, Interview, prospects
from nrt_cli.grading.grading import Pair, guess
from nrt_cli.records import Example
from nrt_cli.text.prompts import encode_answer, render_prompt
from nrt_cli.training.trainer import LocalTrainer

Made = tuple[str, str]
WORDS = [
    "planet",
    "garden",
    "window",
    "silver",
    "orange",
    "bridge",
    "market",
    "pencil",
    "summer",
    "winter",
    "castle",
    "forest",
    "rabbit",
    "button",
    "basket",
    "doctor",
    "flower",
    "engine",
    "island",
    "ladder",
    "mirror",
    "needle",
    "office",
    "pepper",
    "ticket",
    "violin",
    "wallet",
    "yellow",
]
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PRINTS = "\nWhat does this program print?"
ANSWER_TOKENS = 12


def sets(rng: random.Random) -> Made:
    one, other = (sorted(rng.sample(range(1, 13), 6)) for _ in range(2))
    shown = " & ".join("{" + ", ".join(map(str, each)) + "}" for each in (one, other))
    return f"print(len({shown})){PRINTS}", str(len({*one} & {*other}))


def filtered(rng: random.Random) -> Made:
    numbers, least = [rng.randint(1, 9) for _ in range(7)], rng.randint(3, 6)
    line = f"x = {numbers}\nprint(len([n for n in x if n > {least}])){PRINTS}"
    return line, str(sum(n > least for n in numbers))


def chain(rng: random.Random) -> Made:
    ring = rng.sample(range(1, 10), 6)
    after = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    items = list(after.items())
    rng.shuffle(items)
    start = rng.choice(ring)
    shown = ", ".join(f"{key}: {value}" for key, value in items)
    return f"d = {{{shown}}}\nWhat is d[d[d[{start}]]]?", str(after[after[after[start]]])


def swap(rng: random.Random) -> Made:
    values = dict(zip("abc", rng.sample(range(1, 10), 3), strict=True))
    lines = [f"a, b, c = {', '.join(map(str, values.values()))}"]
    for _ in range(3):
        one, other = rng.sample("abc", 2)
        values[one], values[other] = values[other], values[one]
        lines.append(f"{one}, {other} = {other}, {one}")
    asked = rng.choice("abc")
    return "\n".join([*lines, f"print({asked})"]) + PRINTS, str(values[asked])


def lists(rng: random.Random) -> Made:
    numbers = rng.sample(range(1, 10), 4)
    lines = [f"x = {numbers}"]
    for _ in range(3):
        change = rng.choice(("reverse()", "pop()", "pop(0)", "append", "insert"))
        if change.startswith("pop") and len(numbers) <= 3:
            change = "append"
        new = rng.choice([n for n in range(1, 10) if n not in numbers])
        change = {"append": f"append({new})", "insert": f"insert(0, {new})"}.get(change, change)
        lines.append(f"x.{change}")
        exec(lines[-1], {"x": numbers})
    at = rng.randrange(len(numbers))
    return "\n".join([*lines, f"print(x[{at}])"]) + PRINTS, str(numbers[at])


def tallest(rng: random.Random) -> Made:
    names = rng.sample("ABCDE", 4)
    pairs = list(pairwise(names))
    said = [f"{a} is taller than {b}." if rng.random() < 0.5 else f"{b} is shorter than {a}." for a, b in pairs]
    rng.shuffle(said)
    place = rng.randrange(4)
    asked = ("tallest", "second tallest", "third tallest", "shortest")[place]
    return f"{' '.join(said)} Who is the {asked}?", names[place]


def words_with(rng: random.Random) -> Made:
    words, letter = rng.sample(WORDS, 6), rng.choice("aeior")
    count = sum(letter in word for word in words)
    return f"How many of these words contain the letter {letter}: {', '.join(words)}?", str(count)


def sort(rng: random.Random) -> Made:
    numbers, place = rng.sample(range(10, 100), 5), rng.choice((2, 3, 4))
    asked = {2: "second", 3: "third", 4: "fourth"}[place]
    shown = ", ".join(map(str, numbers))
    return f"Which number is the {asked} smallest of {shown}?", str(sorted(numbers)[place - 1])


def weekday(rng: random.Random) -> Made:
    day, days = rng.randrange(7), rng.randint(2, 12)
    return f"Today is {DAYS[day]}. What day of the week is it in {days} days?", DAYS[(day + days) % 7]


def letters(rng: random.Random) -> Made:
    text, letter = "".join(rng.choice("abc") for _ in range(9)), rng.choice("abc")
    return f"How many times does the letter {letter} occur in {text}?", str(text.count(letter))


KINDS: dict[str, tuple[Callable[[random.Random], Made], str]] = {
    "sets": (sets, "Answer with one short line: the common numbers, = and how many they are."),
    "filter": (filtered, "Answer with one short line: the numbers, = and how many they are."),
    "chain": (chain, "Answer with one short chain of values."),
    "swap": (swap, "Answer with a, b, c after each line."),
    "lists": (lists, "Answer with x after each line."),
    "tallest-letters": (tallest, "Answer with one short chain from tallest to shortest."),
    "words-with": (words_with, "Answer with those words and their number."),
    "sort": (sort, "Answer with the sorted numbers."),
    "weekday": (weekday, "Answer with the days, one after another."),
    "count-letters": (letters, "Answer with the letters one by one."),
}
"""Each with the line that ends its questions."""


def asked(kind: str, engine: LocalTrainer, config: configs.RunConfig, questions: int) -> Interview:
    """The first questions of a kind, and who asks them."""
    make, suffix = KINDS[kind]
    made = [make(random.Random(f"{kind}/{index}")) for index in range(questions)]
    grader = guess([answer for _, answer in made])
    examples, pairs = [], []
    for index, (question, answer) in enumerate(made):
        prompt = render_prompt(engine.backend.tokenizer, [{"role": "user", "content": f"{question}\n{suffix}"}])
        examples.append(Example(index, kind, tuple(prompt), tuple(encode_answer(engine.backend.tokenizer, answer))))
        pairs.append(Pair(question, answer, grader))
    unused: Any = None
    return Interview(config, engine, examples, unused, pairs, kind, suffix, "", ANSWER_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--traces", type=int, default=4)
    options = parser.parse_args()
    config = configs.resolve(
        {
            "method": "ws-neg-log-p",
            "model": {"path": options.model, "dtype": "float32"},
            "rollout": {"group_size": options.traces, "max_trace_tokens": 36, "engine": "native"},
        }
    )
    engine = LocalTrainer(config, 1)
    assert engine.objective is not None
    print("kind             thinking  null  direct  traces right  questions with both", flush=True)
    for kind in options.kinds.split(","):
        interview = asked(kind, engine, config, options.questions)
        answered = interview.accuracies()
        right = [sum(each[k].grade.score for each in answered) for k in ("thinking", "null", "direct")]
        found = prospects(
            interview.looked_at(engine.sample(interview.examples, STEP)), engine.objective.method, config.objective
        )
        shares = "  ".join(f"{x:.0f} of {options.questions}" for x in right)
        print(
            f"{kind:15}  {shares}  {found.right} of {found.graded}  {found.mixed * options.questions:.0f}", flush=True
        )


if __name__ == "__main__":
    main()
