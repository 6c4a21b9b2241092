"""Verdicts: what a verifier gives an answer that a policy sampled in training, which learns whatever it is paid for.

A grader of `grading` decides, in a process of its own with a time limit. What ends no answer, hangs the grader or makes
it fail, and what would fool one, has the score 0 and a fault that is counted: an answer that is empty, is the question
again, or is several answers at once.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from nrt_cli.errors import ConfigError
from nrt_cli.grading.grading import Pair, find, guess
from nrt_cli.grading.plain import bare, boxes, told
from nrt_cli.grading.served import Served, serve
from nrt_cli.records import Fault, Verdict
from nrt_cli.text.questions import normalised

SECONDS = 10.0
"""Of a grader for one answer. Ours take under a millisecond, but for mathematics, which has that limit for each of the
ways to read an answer."""
MOST_SECONDS = {"math": 60.0, "code": 60.0}
_PROGRAM = "from nrt_cli.grading.verdicts import _serve; _serve()"
_PARTS = re.compile(r"\s*(?:[,;|/\n]|\bor\b|\band\b)\s*|(?<=[\d)])\s+(?=[\d(+-])")


class Verifier:
    """Graders in `workers` processes."""

    def __init__(self, workers: int | None = None, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.served = [Served(_PROGRAM, None) for _ in range(workers or min(4, os.cpu_count() or 1))]

    def verdicts(self, asked: Sequence[tuple[Pair, str, bool]]) -> list[Verdict]:
        """What each answer gets: (pair, answer, whether its end was sampled)."""
        faults = [refused(*each) for each in asked]
        waiting = [i for i, fault in enumerate(faults) if not fault]
        found: dict[int, Verdict] = {}

        def work(worker: int) -> None:
            for i in waiting[worker :: len(self.served)]:
                found[i] = self._judged(self.served[worker], *asked[i][:2])

        with ThreadPoolExecutor(len(self.served)) as pool:
            list(pool.map(work, range(len(self.served))))
        return [found[i] if i in found else Verdict(0.0, faults[i]) for i in range(len(asked))]

    def _judged(self, served: Served, pair: Pair, answer: str) -> Verdict:
        score = served.ask([asdict(pair), answer], MOST_SECONDS.get(pair.grader, self.seconds))
        return Verdict(0.0, "failed") if score is None else Verdict(float(score))

    def close(self) -> None:
        for served in self.served:
            served.close()


def _serve() -> None:
    def score(asked: Any) -> float | None:
        if asked is None:
            return 0.0
        pair = Pair(**asked[0])
        try:
            found = find(pair.grader)(pair, asked[1]).score
        except (Exception, SystemExit):  # a user's grader raises what it likes
            return None
        return found if 0 <= found <= 1 else None  # NaN where nothing was graded

    serve(score)


def require_verifier(pairs: Sequence[Pair]) -> None:
    """Try each grader on the first reference answer that is its own. Raises ConfigError for one that does not work."""
    verifier = Verifier(1)
    try:
        for pair in {pair.grader: pair for pair in reversed(pairs)}.values():
            find(pair.grader)
            if verifier.verdicts([(pair, pair.answer, True)])[0].fault == "failed":
                raise ConfigError(
                    f"grader {pair.grader!r} fails, or takes more than {verifier.seconds:.0f} seconds, on the "
                    f"reference answer {pair.answer[:60]!r}; mend it before a policy learns from it."
                )
    finally:
        verifier.close()


# --- what would fool a grader ----------------------------------------------------------------------------------------


def refused(pair: Pair, answer: str, finished: bool) -> Fault:
    """`refused` for what is no answer, whatever a grader would say of it; else nothing."""
    text, question = normalised(answer), normalised(pair.question)
    rest = text.replace(question, "") if question else text
    if not finished or not rest.strip(" .,:;!?"):
        return "refused"
    return "refused" if pair.grader != "code" and several(answer, pair.answer) else ""


def several(answer: str, reference: str) -> bool:
    """Whether a text is more answers than the reference is, such as a list of all numbers up to ten.

    What it says its answer is, or puts in boxes, has to be one thing; and where it is nothing but a list of numbers,
    letters or short phrases, it may not be longer than the reference. Numbers on the way to an answer are no answers.
    """
    for said in (boxes(answer), told(answer)):
        # By their first words: the reasons that follow an answer are no other answer.
        if len({words[0] for each in said if (words := re.findall(r"[\w.-]*\w", bare(each)))}) > 1:
            return True
    if boxes(answer) or told(answer) or guess([answer]) in ("number", "choice", "math"):
        return False  # it says which, or is one of these, however many signs it is made of
    parts, known = _listed(answer), _listed(reference)
    if len(parts) <= max(1, len(known)):
        return False
    kinds = {guess([part]) for part in parts}
    return kinds <= {"number", "choice", "math"} or (
        kinds <= {"number", "choice", "exact"} and len(parts) >= len(known) + 2
    )


def _listed(text: str) -> list[str]:
    """The different parts of a list."""
    return [*dict.fromkeys(part for each in _PARTS.split(text.strip().strip(".")) if (part := bare(each)))]
