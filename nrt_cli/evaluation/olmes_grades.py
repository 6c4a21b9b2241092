r"""The grades that OLMES gives the answers of its nine tasks, oddities and all: what Table 3 of the paper is made of.

Retold from its public source, oe_eval at 5a51f502; configs/eval/README.md has the places. `benchmark_graders` grades
the same answers strictly; programs and instructions are graded there in both ways at once. All take a time that grows
as the text does: where a pattern of OLMES's would look far ahead, the text is first cut to what it can find.
"""

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import Any

from nrt_cli.evaluation.rows import Row
from nrt_cli.grading.grading import verifier

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _choice(row: Row, subset: str, answers: Sequence[Any]) -> float:
    """The last sentence that was asked for, else the first of looser ones, else the last lone letter of a line."""
    text = answers[0]
    told = re.findall(r"Therefore, the answer is \(([A-D])\)", text)
    looser = (
        r"(?i)therefore,?\s*the\s*answer\s*is:?\s*\(?([A-D])\b",
        r"(?i)answer\s*is:?\s*\(?([A-D])\b",
        r"(?i)([A-D])\)?\s+is\s+correct",
        r"\(([A-D])\)",
    )
    told = told or [found[1] for pattern in looser if (found := re.search(pattern, text))][:1]
    lone = (re.findall(r"\b[A-D]\b", line) for line in text.split("\n"))
    told = told or next(filter(None, lone), [""])
    return float(told[-1].upper() == "ABCD"[row["answer"]])


_ANSWERS = {
    "boolean_expressions": "[tT]rue|[fF]alse",
    **dict.fromkeys(("causal_judgement", "navigate", "sports_understanding", "web_of_lies"), "[yY]es|[nN]o"),
    "dyck_languages": r"[\])}> ]+",
    "formal_fallacies": "[iI]nvalid|[vV]alid",
    "multistep_arithmetic_two": r"-?\d+",
    "object_counting": r"\d+",
    "word_sorting": "[a-z ]+",
}
"""What OLMES takes for an answer of a task of BBH; of the others it is a letter that stands in brackets."""


def _phrase(row: Row, subset: str, answers: Sequence[Any]) -> float:
    """The last answer that the first of OLMES's patterns finds, equal but for case and punctuation (which the task of
    brackets is made of): "the answer is D" has none, -10 is 10.
    """
    looked = _ANSWERS.get(subset, r"\([A-Z]\)")
    found = ((line, list(re.finditer(f"(?i){looked}", line))) for line in answers[0].split("\n"))
    text = "\n".join(line[: each[-1].end()] for line, each in found if each)
    said = ("(?i)So the answer is ", "(?i)answer is ", "(?i)answer:.*?", r"(?i)answer\b.*?", "", "(?i)")
    tried = (re.findall(f"{before}({looked})", text) for before in said)
    answer = next(filter(None, tried), [""])[-1].strip().lower()
    gold = row["target"].lower()
    if subset != "dyck_languages":
        answer, gold = answer.translate(_NO_PUNCTUATION), gold.translate(_NO_PUNCTUATION)
    return float(answer == gold)


def _spans(row: Row, subset: str, answers: Sequence[Any]) -> float:
    """F1 of the line after the last "The answer is ", else after the last "answer is" or "answer:", else of nothing."""
    from lm_eval.tasks.drop.utils import get_answers, process_results

    line = ["", *re.findall("The answer is (.*)", answers[0])][-1]
    for mark in ("(?i)answer is", "(?i)answer:"):
        rest = re.split(mark, answers[0])
        line = line or (rest[-1].strip().strip(".").partition("\n")[0] if len(rest) > 1 else "")
    spans = [re.sub("<([^<>]+)>", r"\1", part) for part in re.split(r"(?<=>)\s*,\s*", line)]
    gold = [list(answer) for answer in row.get("answers") or get_answers(row)]
    return float(process_results({"answers": gold}, spans)["f1"])


def _aliases(row: Row, subset: str, answers: Sequence[Any]) -> float:
    from nrt_cli.grading.graders import alias_list

    aliases = alias_list(row["possible_answers"])
    return float(any(form in answers[0] for each in aliases for form in (each, each.lower(), each.capitalize())))


def _mc2(row: Row, subset: str, answers: Sequence[Any]) -> float:
    """The true choices' share of the probability, each choice once; NaN where all vanish (OLMES then has no score)."""
    choices, labels = row["mc2_targets"]["choices"], row["mc2_targets"]["labels"]
    of = {each: (math.exp(value), label) for each, value, label in zip(choices, answers, labels, strict=True)}
    total = sum(share for share, _ in of.values())
    return sum(share for share, label in of.values() if label) / total if total else math.nan


def _number(row: Row, subset: str, answers: Sequence[Any]) -> float:
    """The last number as it is written, without commas; whole ones lose their sign, 18.0 is not 18."""

    def last(text: str) -> str:
        return str(["", *re.findall(r"[-+]?\d*\.\d+|\d+", re.sub(r"(\d),(\d)", r"\1\2", text))][-1])

    found = last(answers[0])
    return float(found != "" and found == last(row["answer"].rpartition("####")[2]))


# --- MATH: what OLMES takes for a solution's answers, spelled as in Lewkowycz et al. (2022), appendix D ---------------


def _mathematics(row: Row, subset: str, answers: Sequence[Any]) -> float:
    """Minerva's last sentence or the last box; else what stands between the last two dollar signs, else all of it."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    text, gold = answers[0], _spelled(_boxed(row["solution"]) or "")
    found = list(filter(None, (_minerva(text), _boxed(text))))
    parts = text.rsplit("$", 2)
    found = found or [parts[1] if len(parts) == 3 else text]
    return float(any(is_equiv(each, gold) or _same_value(each, gold) for each in map(_spelled, found)))


def _minerva(text: str) -> str | None:
    begin, end = "Final Answer: The final answer is", " I hope it is correct"
    for line in f"{text}{end[1:]}.".split("\n"):
        line = line[: line.rfind(end) + len(end) + 1]
        if found := re.search(f"{begin}(.*?).{end}.", line):
            return found[1].strip()
    return None


def _boxed(text: str) -> str | None:
    from lm_eval.tasks.hendrycks_math.utils import last_boxed_only_string, remove_boxed

    try:
        return str(remove_boxed(last_boxed_only_string(text)))
    except (AssertionError, TypeError):  # no box, one that is open, or another command's
        return None


LONGEST = 200
"""Characters of an answer whose value is looked for: a whole solution has none."""

_REPLACED = {
    **{"an ": "", "a ": "", ".$": "$", r"\$": "", "\\ ": "", " ": "", "mbox": "text"},
    **{r",\text{and}": ",", r"\text{and}": ",", r"\text{m}": r"\text{}"},
}
_WORDS = (
    r"square ways integers dollars mph inches ft hours km units \ldots sue points feet minutes digits cents degrees "
    "cm gm pounds meters meals edges students childrentickets multiples"
)
_REMOVED = (
    *(r"\text{s}", r"\text{.}", "\\text{\ns}", r"\text{}^2", r"\text{}^3", "\\text{\n}", r"\text{}", r"\mathrm{th}"),
    *(r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', r"\dots"),
)


def _spelled(answer: str) -> str:
    """An answer as Minerva's authors spell it, so that equal ones are more often the same text."""
    answer = answer.split("=")[-1]
    for old, new in (*_REPLACED.items(), *((old, "") for old in (*_WORDS.split(), *_REMOVED))):
        answer = answer.replace(old, new)
    lines = [f"${line.split('$')[1]}$" if line.count("$") > 1 else line for line in answer.split("\n")]
    for command, inside in (("text", ".*?"), ("textbf", ".*?"), ("overline", ".*?"), ("boxed", ".*")):
        parts = (line.rpartition("}") for line in lines)
        lines = [re.sub(rf"\\{command}{{({inside})}}", r"\1", head + brace) + tail for head, brace, tail in parts]
    answer = re.sub("frac([^{])(.)", r"frac{\1}{\2}", "\n".join(lines))
    answer = re.sub("sqrt([^{])", r"sqrt{\1}", answer).replace("$", "")
    return answer.replace(",", "") if answer.replace(",", "").isdigit() else answer


def _same_value(answer: str, gold: str) -> bool:
    """Whether two answers have the same value as far as OLMES's parser reads: up to a comma; no pairs, matrices, words.

    It is sympy's, of a version of ANTLR that does not go with ours; math-verify compares in its place.
    """
    read = [re.split(r",|\\%|\\text", re.sub(r"\\[,!:;]", "", each))[0] for each in (answer, gold)]
    unread = r"\\begin|\\f?box|(?<![\\A-Za-z])[A-Za-z]{3}"
    closed = all(each and each.count("(") == each.count(")") and not re.search(unread, each) for each in read)
    return closed and len(read[0]) <= LONGEST and verifier().equal(*reversed(read))


SCORES: dict[str, Callable[[Row, str, Sequence[Any]], float]] = {
    "choice": _choice,
    "phrase": _phrase,
    "spans": _spans,
    "aliases": _aliases,
    "mc2": _mc2,
    "number": _number,
    "math": _mathematics,
}
"""By grader: OLMES's score of a row's answers, given the subset's name too."""
