"""How each benchmark's answers are graded: extraction by `grading.graders`, comparison by the field's libraries.

DROP's F1 and IFEval's checkers are lm-eval's own; MATH is compared by lm-eval's string rules and by math-verify;
HumanEval runs in the sandbox. A scorer reads a document's row and the answers to its requests, and never a trace.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import BenchmarkSpec
from nrt_cli.evaluation import sandbox
from nrt_cli.evaluation.lm_eval.rows import Row
from nrt_cli.grading import graders
from nrt_cli.grading.grading import Grade, verifier

Answers = Sequence[Any]
"""Texts, or for benchmarks in mode `loglikelihood` the log-probability of each choice in nats."""


def _exact(extracted: str | None, right: bool) -> Grade:
    return Grade((extracted,), {"exact_match": float(right)})


def _choice(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    letter = graders.choice(answers[0])
    return _exact(letter, letter == gold(spec, row))


def _number(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    found = graders.number(answers[0])
    return _exact(found, graders.same_number(found, gold(spec, row)))


def _phrase(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    found = graders.phrase(answers[0], spec.answer_patterns(subset))
    return _exact(found, graders.same_phrase(found, gold(spec, row)))


def _aliases(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    found = graders.any_alias(answers[0], gold(spec, row))
    return _exact(found, found is not None)


def _spans(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    from lm_eval.tasks.drop.utils import process_results

    found = graders.spans(answers[0])
    scores = process_results({"answers": gold(spec, row)}, found or [""])
    return Grade((", ".join(found) if found else None,), {key: float(scores[key]) for key in ("f1", "em")})


def _mc2(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    return Grade((), {"mc2": graders.mc2(answers, row["mc2_targets"]["labels"])})


def _math(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    found, right = graders.mathematics(answers[0]), gold(spec, row)
    return _exact(found, found is not None and (bool(is_equiv(found, right)) or verifier().equal(right, found)))


def _instructions(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    sentence_data()
    import langdetect
    from lm_eval.tasks.ifeval.utils import process_results

    langdetect.DetectorFactory.seed = 0  # it guesses at random otherwise
    found = process_results({**row, "kwargs": [{**given} for given in row["kwargs"]]}, [answers[0]])
    followed = [
        name for name, kept in zip(row["instruction_id_list"], found["inst_level_loose_acc"], strict=True) if kept
    ]
    scores = {key: float(found[key]) for key in ("prompt_level_loose_acc", "prompt_level_strict_acc")}
    for strictness in ("loose", "strict"):
        kept = found[f"inst_level_{strictness}_acc"]
        scores[f"instruction_share_{strictness}"] = sum(kept) / len(kept)
    return Grade((", ".join(followed) or None,), scores)


def _code(spec: BenchmarkSpec, subset: str, row: Row, answers: Answers) -> Grade:
    found = [graders.code(answer, row["entry_point"], row["prompt"]) for answer in answers]
    tested = [program and f"{program}\n\n{row['test']}\n\ncheck({row['entry_point']})\n" for program in found]
    # Samples are often the same text; the same program is run once.
    programs = list(dict.fromkeys(program for program in tested if program))
    passed = dict(zip(programs, sandbox.run(programs), strict=True))
    correct = sum(passed[program] for program in tested if program)
    scores = {f"pass_at_{k}": graders.pass_at_k(len(answers), correct, k) for k in (1, 10)}
    return Grade(tuple(found), scores)


GRADERS: dict[str, Callable[[BenchmarkSpec, str, Row, Answers], Grade]] = {
    "choice": _choice,
    "number": _number,
    "phrase": _phrase,
    "aliases": _aliases,
    "spans": _spans,
    "mc2": _mc2,
    "math": _math,
    "instructions": _instructions,
    "code": _code,
}
PACKAGES = {
    "spans": ("lm_eval", "scipy"),
    "math": ("lm_eval", "math_verify"),
    "instructions": ("lm_eval", "langdetect", "nltk", "immutabledict"),
}
"""What a grader imports besides lm-eval's task machinery."""


def gold(spec: BenchmarkSpec, row: Row) -> Any:
    """The reference answer of a row, as JSON."""
    match spec.grader:
        case "choice":
            return "ABCD"[row["answer"]]
        case "number":
            return graders.number(row["answer"].rpartition("####")[2])
        case "phrase":
            return row["target"]
        case "aliases":
            return graders.alias_list(row["possible_answers"])
        case "spans":
            return [list(answer) for answer in row.get("answers") or _drop_answers(row)]
        case "mc2":
            targets = row["mc2_targets"]
            return [text for text, label in zip(targets["choices"], targets["labels"], strict=True) if label]
        case "math":
            return graders.boxed(row["solution"]) or ""
        case "code":
            return row.get("canonical_solution", "")
        case _:
            return list(row["instruction_id_list"])


def _drop_answers(row: Row) -> Any:
    from lm_eval.tasks.drop.utils import get_answers

    return get_answers(row)


@cache
def sentence_data() -> str:
    """Which data nltk splits sentences with, for IFEval; makes nltk find it. Nothing is downloaded.

    `punkt_tab` where nltk has it; else the copy that PyPI's llama-index-core carries; else `untrained`: the same
    algorithm without its list of abbreviations.
    """
    import nltk

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if _has_punkt(nltk):
        return "punkt_tab"
    if (package := find_spec("llama_index")) is not None and package.submodule_search_locations:
        for location in package.submodule_search_locations:
            nltk.data.path.append(str(Path(location) / "core" / "_static" / "nltk_cache"))
        if _has_punkt(nltk):
            return "punkt_tab"
    folder = Path(_scratch().name)
    english = folder / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (english / name).touch()
    nltk.data.path.append(str(folder))
    return "untrained"


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that lives as long as this process."""
    return tempfile.TemporaryDirectory(prefix="nrt-nltk-")


def _has_punkt(nltk: Any) -> bool:
    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True
