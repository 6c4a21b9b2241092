"""How each benchmark's answers are graded: extraction by `grading.graders`, comparison by the field's libraries.

DROP's F1 and IFEval's checkers are lm-eval's own; MATH is compared by lm-eval's string rules and by math-verify;
HumanEval runs in the sandbox. A user's own benchmark is graded as pairs are. No grader sees a trace.
"""

import atexit
import logging
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from operator import eq
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import AS_PAIRS, BenchmarkSpec
from nrt_cli.errors import ConfigError
from nrt_cli.evaluation.rows import Row
from nrt_cli.grading import graders, sandbox
from nrt_cli.grading.grading import Grade, find, verifier
from nrt_cli.grading.numerals import last_number, numeral, only_number, pure_number, ready, same_number
from nrt_cli.grading.plain import boxed, plain
from nrt_cli.records import OLMES

Answers = Sequence[Any]
"""Texts, or for benchmarks in mode `loglikelihood` the log-probability of each choice in nats."""


@dataclass(frozen=True)
class BenchmarkGrader:
    """A row's reference answer, as JSON, and the grade of the replies to it.

    `grade` is given row, reference answer, replies and the subset's patterns; `packages` is what it imports.
    """

    gold: Callable[[Row], Any]
    grade: Callable[[Row, Any, Answers, tuple[str, ...]], Grade]
    packages: tuple[str, ...] = ()


class GradedRow(dict[str, Any]):
    """A row as a user's grader gets it: its columns, and what every row that is graded has."""

    def __init__(self, row: Row, answer: str, grader: str) -> None:
        super().__init__(row)
        self.answer, self.grader = answer, grader


def grader_of(spec: BenchmarkSpec) -> BenchmarkGrader:
    """The grader that a benchmark names. Raises ConfigError where there is none, or where it lacks a package."""
    if not (spec.own and (spec.grader in AS_PAIRS or ":" in spec.grader)):
        if spec.grader not in GRADERS:
            names = [*dict.fromkeys((*AS_PAIRS, *GRADERS)), "module:function"] if spec.own else GRADERS
            raise ConfigError(f"{spec.file}: grader={spec.grader!r} is unknown; choose one of {', '.join(names)}.")
        return GRADERS[spec.grader]
    try:
        function = find(spec.grader)
    except ConfigError as error:
        raise ConfigError(f"{spec.file}: {error}") from None

    def grade(row: Row, answer: Any, answers: Answers, patterns: tuple[str, ...]) -> Grade:
        grades = [function(GradedRow(row, answer, spec.grader), reply) for reply in answers]
        names = dict.fromkeys(name for each in grades for name in each.scores)
        means = {name: sum(each.scores.get(name, 0.0) for each in grades) / len(grades) for name in names}
        return Grade(tuple(each.extracted[0] for each in grades), means)

    return BenchmarkGrader(lambda row: str(row.get(spec.reference, "")), grade)


def _exact_match(read: Callable[..., str | None], same: Callable[[Any, Any], bool]) -> Any:
    """A grader that reads an answer, knowing its patterns and the gold one, and compares what it read."""

    def grade(row: Row, gold: Any, answers: Answers, patterns: tuple[str, ...]) -> Grade:
        found = read(answers[0], patterns, gold)
        return Grade((found,), {"exact_match": float(same(found, gold))})

    return grade


def _phrase(answer: str, patterns: tuple[str, ...], gold: str) -> str | None:
    if not re.fullmatch(r"\([A-R]\)", gold):
        return graders.phrase(answer, patterns)
    letter = graders.letter(answer, "ABCDEFGHIJKLMNOPQR")
    return letter and f"({letter})"


def _spans(row: Row, gold: Any, answers: Answers, patterns: tuple[str, ...]) -> Grade:
    from lm_eval.tasks.drop.utils import process_results

    def spelled(span: str) -> str:
        number = ready(span).strip().removesuffix("%").rstrip()
        return number if pure_number(number) else plain(span)

    found = graders.spans(answers[0])
    said, accepted = list(map(spelled, found or [""])), [list(map(spelled, spans)) for spans in gold]
    if len(said) == 1 and pure_number(said[0]):
        # The scorer splits at hyphens, and so takes -5 for 5.
        accepted = [spans for spans in accepted if spans[0].startswith("-") == said[0].startswith("-")]
    scores = process_results({"answers": accepted}, said)
    return Grade((", ".join(found) if found else None,), {key: float(scores[key]) for key in ("f1", "em")})


def _accepted(row: Row) -> list[list[str]]:
    """DROP's accepted answers, each a list of spans."""
    from lm_eval.tasks.drop.utils import get_answers

    return [list(answer) for answer in row.get("answers") or get_answers(row)]


def _equal_mathematics(found: str | None, gold: str) -> bool:
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    if found is None:
        return False
    # A comma may be that of a list.
    numbers = "," not in found + gold and only_number(found) and only_number(gold)
    same = numbers and same_number(numeral(found), numeral(gold))
    return same or bool(is_equiv(found, gold)) or verifier().equal(gold, found)


def _closable(line: str) -> str:
    """A line without most of what it opens after the last that closes: from each, lm-eval looks to the line's end."""
    for opening, closing in (("[", "]"), ("<", ">>")):
        head, mark, tail = line.rpartition(closing)
        line = head + mark + tail.replace(opening, "", max(0, tail.count(opening) - 999))
    return line


def _instructions(row: Row, gold: Any, answers: Answers, patterns: tuple[str, ...]) -> Grade:
    sentence_data()
    import langdetect
    from lm_eval.tasks.ifeval.utils import process_results

    # Languages are guessed and what an instruction does not say is drawn, such as a letter where "#" is none.
    langdetect.DetectorFactory.seed = 0
    state = random.getstate()
    random.seed(0)
    asked = {**row, "kwargs": [{**given} for given in row["kwargs"]]}
    try:
        found = process_results(asked, ["\n".join(map(_closable, answers[0].split("\n")))])
    except RecursionError:  # JSON of a thousand levels
        found = process_results(asked, [""])
    random.setstate(state)
    followed = [name for name, kept in zip(gold, found["inst_level_loose_acc"], strict=True) if kept]
    scores = {key: float(found[key]) for key in ("prompt_level_loose_acc", "prompt_level_strict_acc")}
    for strictness in ("loose", "strict"):
        kept = found[f"inst_level_{strictness}_acc"]
        scores[f"instruction_share_{strictness}"] = sum(kept) / len(kept)
    return Grade((", ".join(followed) or None,), scores)


def _code(row: Row, gold: Any, answers: Answers, patterns: tuple[str, ...]) -> Grade:
    found = [graders.code(answer, row["entry_point"], row["prompt"]) for answer in answers]
    ours = [program.rstrip() for program in found if program]
    as_olmes = [f"{row['prompt']}{answer}".rstrip() for answer in answers]
    tests = f"{row['test']}\n\ncheck({row['entry_point']})\n"
    # Samples are often the same text, and both gradings often run the same program: once.
    programs = list(dict.fromkeys((*ours, *as_olmes)))
    passed = dict(zip(programs, sandbox.run(programs, tests, row["entry_point"], row["prompt"]), strict=True))
    correct = sum(passed[program] for program in ours)
    scores = {f"pass_at_{k}": graders.pass_at_k(len(answers), correct, k) for k in (1, 10)}
    olmes = graders.pass_at_k(len(answers), sum(passed[program] for program in as_olmes), 10)
    return Grade(tuple(found), scores | {OLMES: olmes})


GRADERS = {
    "choice": BenchmarkGrader(
        lambda row: "ABCD"[row["answer"]], _exact_match(lambda answer, *_: graders.letter(answer, "ABCD"), eq)
    ),
    "number": BenchmarkGrader(
        lambda row: last_number(row["answer"].rpartition("####")[2]),
        _exact_match(lambda answer, *_: last_number(answer), same_number),
    ),
    "phrase": BenchmarkGrader(lambda row: row["target"], _exact_match(_phrase, graders.same_phrase)),
    "aliases": BenchmarkGrader(
        lambda row: graders.alias_list(row["possible_answers"]),
        _exact_match(lambda answer, _, gold: graders.any_alias(answer, gold), lambda found, _: found is not None),
    ),
    "spans": BenchmarkGrader(_accepted, _spans, ("lm_eval", "scipy")),
    "mc2": BenchmarkGrader(
        lambda row: [
            text
            for text, label in zip(row["mc2_targets"]["choices"], row["mc2_targets"]["labels"], strict=True)
            if label
        ],
        lambda row, gold, answers, _: Grade((), {"mc2": graders.mc2(answers, row["mc2_targets"]["labels"])}),
    ),
    "math": BenchmarkGrader(
        lambda row: boxed(plain(row["solution"], latex=True)) or "",
        _exact_match(lambda answer, *_: graders.mathematics(answer), _equal_mathematics),
        ("lm_eval", "math_verify"),
    ),
    "instructions": BenchmarkGrader(
        lambda row: list(row["instruction_id_list"]), _instructions, ("lm_eval", "langdetect", "nltk", "immutabledict")
    ),
    "code": BenchmarkGrader(lambda row: row.get("canonical_solution", ""), _code),
}
"""By the name in a benchmark's `grader`. What is changed here raises `version` of each benchmark that names it."""


@cache
def sentence_data() -> str:
    """Which data nltk splits sentences with, for IFEval; makes nltk find it. Nothing is downloaded.

    `punkt_tab` where nltk has it; else the copy that PyPI's llama-index-core carries; else `untrained`: the same
    algorithm without its list of abbreviations.
    """
    import nltk

    def there() -> bool:
        try:
            nltk.data.find("tokenizers/punkt_tab/english")
        except LookupError:
            return False
        return True

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    package = find_spec("llama_index")
    if not there() and package is not None and package.submodule_search_locations:
        for location in package.submodule_search_locations:
            nltk.data.path.append(str(Path(location) / "core" / "_static" / "nltk_cache"))
    if there():
        return "punkt_tab"
    scratch = tempfile.TemporaryDirectory(prefix="nrt-nltk-")
    atexit.register(scratch.cleanup)
    english = Path(scratch.name) / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (english / name).touch()
    nltk.data.path.append(scratch.name)
    return "untrained"
