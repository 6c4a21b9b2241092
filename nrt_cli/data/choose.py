"""Which rows are used, and in which split: decided on arrays, without the rows.

Legend: N spooled rows. A row is the 64-bit hashes of its content, keyed by the seed, and of its question, and its
source's number.
"""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nrt_cli.errors import DataError

UNUSED, TRAIN, VALIDATION, DUPLICATE = range(4)
"""What becomes of a row."""


@dataclass(frozen=True)
class Settings:
    """What decides the output, besides the inputs.

    `validation` is a number of questions (int) or a share of them (float): all rows that ask one of them are held out.
    `grader` is a name of `text.grading`; None keeps what prepared rows name, and guesses one for each other source from
    its answers. `suffix` is a last line for every question; what is chosen does not depend on it.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    stratify: bool = False
    validation: int | float = 0
    seed: int = 0
    max_prompt_tokens: int | None = None
    max_answer_tokens: int | None = None
    grader: str | None = None
    suffix: str | None = None


@dataclass
class Tally:
    """What the first pass found.

    `hashes` and `questions` (uint64) and `source_ids` (int32) have one entry per spooled row. `unreadable` says of the
    first rows that could not be read why; `unused` counts the rows in which a column holds something that was not read;
    `graders` are those that sources which were prepared before name.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    textless: int = 0
    hashes: array = field(default_factory=lambda: array("Q"))
    questions: array = field(default_factory=lambda: array("Q"))
    source_ids: array = field(default_factory=lambda: array("i"))
    sources: dict[str, int] = field(default_factory=dict)
    graders: dict[str, str] = field(default_factory=dict)


def choose(tally: Tally, settings: Settings) -> np.ndarray:
    """codes_N (uint8): unused, train, validation or duplicate. Counts duplicates in `tally`."""
    hashes_N = np.frombuffer(tally.hashes, dtype=np.uint64)
    ids_N = np.frombuffer(tally.source_ids, dtype=np.int32)
    first = np.unique(hashes_N, return_index=True)[1]  # ascending by hash, and the first row of each
    if duplicates := len(hashes_N) - len(first):
        tally.dropped["duplicate"] = duplicates
    if not len(first):
        raise DataError(
            f"No question-answer pair is left of {tally.read:,} rows{_because(tally.dropped)}."
            + (f" The first that cannot be read: {tally.unreadable[0]}" if tally.unreadable else "")
        )
    if settings.size is not None and settings.size > len(first):
        raise DataError(
            f"--size {settings.size:,} asks for more than the {len(first):,} pairs that are left of {tally.read:,} "
            f"rows{_because(tally.dropped)}; lower it."
        )
    names = list(tally.sources) if settings.stratify else None
    used = take(first, ids_N, len(first) if settings.size is None else settings.size, names)
    # take() may group by source; back into the random order, of which the questions held out are the beginning.
    used = used[np.argsort(hashes_N[used])]
    questions_N = np.frombuffer(tally.questions, dtype=np.uint64)
    asked = np.sort(np.unique(questions_N[used], return_index=True)[1])  # of each question, its first row in `used`
    chosen = take(used[asked], ids_N, _held_out(settings.validation, len(asked)), names)
    held_out = used[np.isin(questions_N[used], questions_N[chosen])]
    codes_N = np.full(len(hashes_N), DUPLICATE, dtype=np.uint8)
    codes_N[first] = UNUSED
    codes_N[used] = TRAIN
    codes_N[held_out] = VALIDATION
    return codes_N


def _because(dropped: Mapping[str, int]) -> str:
    listed = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    return f" (dropped: {listed})" if listed else ""


def _held_out(asked: int | float, questions: int) -> int:
    count = round(asked * questions) if isinstance(asked, float) else asked
    if asked and not 0 < count < questions:
        raise DataError(
            f"--validation {asked} would hold out {count:,} of {questions:,} questions; leave some on both sides."
        )
    return count


def take(order: np.ndarray, ids_N: np.ndarray, count: int, names: Sequence[str] | None) -> np.ndarray:
    """`count` of the row numbers in `order`: the first ones, or the first ones of each source in its proportion.

    `ids_N` is the source number of each row, `names` the sources' names; None does not look at sources.
    """
    if names is None:
        return order[:count]
    by_source = order[np.argsort(ids_N[order], kind="stable")]
    counts = np.bincount(ids_N[order], minlength=len(names))
    rank_in_source = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return by_source[rank_in_source < np.repeat(quotas(counts.tolist(), count, names), counts)]


def quotas(counts: Sequence[int], total: int, names: Sequence[str]) -> list[int]:
    """`total` over sources in proportion to `counts`, by largest remainder; ties go to the first name."""
    whole = sum(counts)
    quota = [count * total // whole for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: (-(counts[i] * total % whole), names[i]))
    for i in by_remainder[: total - sum(quota)]:
        quota[i] += 1
    return quota
