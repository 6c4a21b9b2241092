"""Which rows are used, and in which split: decided on arrays, without the rows.

Legend: N spooled rows. A row is the 64-bit hashes of its content, keyed by the seed, and of its question, its source's
number, and its own among all rows that were read.
"""

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from nrt_cli.errors import DataError

UNUSED, TRAIN, VALIDATION, DUPLICATE = range(4)
"""What becomes of a row."""


Selection = Literal["content", "train-test-split"]


@dataclass(frozen=True)
class Settings:
    """What decides the output, besides the inputs.

    `selection` is how rows are drawn, after or before the others are dropped:

    - content: from those that are left, `size` by the hashes of their contents. `validation` is a number of questions
      (int) or a share of them (float): all rows that ask one of them are held out.
    - train-test-split: from all that were read, by their numbers, as `train_test_split` of Hugging Face datasets draws
      them with seed=`seed` and test_size=`validation`; `size` takes its first training rows. Then rows are dropped.

    `train` is how many rows to train on are drawn of those that are not held out; None takes all. `duplicates` keeps
    rows that are the same.
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
    train: int | None = None
    duplicates: bool = False
    selection: Selection = "content"

    def __post_init__(self) -> None:
        """Raises DataError for what has no effect, or cannot be meant together."""
        if self.stratify and not (self.size or self.train or self.validation):
            raise DataError("--stratify has no effect without --size, --train or --validation.")
        if self.selection == "train-test-split":
            if self.stratify:
                raise DataError("--selection train-test-split does not look at sources; leave out --stratify.")
            if not self.validation:
                raise DataError("--selection train-test-split needs --validation, its test_size.")
        elif self.train:
            if self.size:
                raise DataError("--size counts what is held out too, --train what is trained on; give one of them.")
            if isinstance(self.validation, float):
                raise DataError("--train needs a number of questions for --validation, such as 512, not a share.")


@dataclass
class Tally:
    """What the first pass found.

    `hashes`, `questions` and `numbers` (uint64; a row's place among all that were read) and `source_ids` (int32) have
    one entry per spooled row. `unreadable` says of the first rows that could not be read why; `unused` counts the rows
    in which a column holds something that was not read; `graders` are those that prepared sources name, and `traces`
    counts the spooled rows that have one.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    textless: int = 0
    hashes: array = field(default_factory=lambda: array("Q"))
    questions: array = field(default_factory=lambda: array("Q"))
    numbers: array = field(default_factory=lambda: array("Q"))
    source_ids: array = field(default_factory=lambda: array("i"))
    sources: dict[str, int] = field(default_factory=dict)
    graders: dict[str, str] = field(default_factory=dict)
    traces: int = 0


def choose(tally: Tally, settings: Settings) -> np.ndarray:
    """codes_N (uint8): unused, train, validation or duplicate. Counts duplicates in `tally`."""
    hashes_N = np.frombuffer(tally.hashes, dtype=np.uint64)
    copies_N = _copies(hashes_N)
    kept = np.arange(len(hashes_N)) if settings.duplicates else np.flatnonzero(copies_N == 0)
    if duplicates := len(hashes_N) - len(kept):
        tally.dropped["duplicate"] = duplicates
    if not len(kept):
        raise DataError(
            f"No question-answer pair is left of {tally.read:,} rows{_because(tally.dropped)}."
            + (f" The first that cannot be read: {tally.unreadable[0]}" if tally.unreadable else "")
        )
    if settings.selection == "content":
        # Copies of a row are as far apart in the random order as any rows: adding a large odd number wraps around.
        keys_N = hashes_N + copies_N * np.uint64(0x9E3779B97F4A7C15)
        train, held_out = _by_content(tally, settings, kept[np.argsort(keys_N[kept])], keys_N)
    else:
        train, held_out = _as_datasets_does(tally, settings, kept)
    if settings.train is not None and settings.train > len(train):
        raise DataError(
            f"--train {settings.train:,} asks for more than the {len(train):,} pairs that are left to train on of "
            f"{tally.read:,} rows{_because(tally.dropped)}; lower it{', or raise --size' if settings.size else ''}."
        )
    if settings.train is not None:
        ids_N = np.frombuffer(tally.source_ids, dtype=np.int32)
        train = take(train, ids_N, settings.train, list(tally.sources) if settings.stratify else None)
    codes_N = np.full(len(hashes_N), DUPLICATE, dtype=np.uint8)
    codes_N[kept] = UNUSED
    codes_N[train] = TRAIN
    codes_N[held_out] = VALIDATION
    return codes_N


def _copies(hashes_N: np.ndarray) -> np.ndarray:
    """How many of the rows before each are the same: 0 for the first of its content."""
    by_hash = np.argsort(hashes_N, kind="stable")
    first = np.concatenate([[True], np.diff(hashes_N[by_hash]) != 0])[: len(by_hash)]
    places = np.arange(len(by_hash))
    copies_N = np.empty(len(by_hash), dtype=np.uint64)
    copies_N[by_hash] = places - np.maximum.accumulate(np.where(first, places, 0))
    return copies_N


def _by_content(
    tally: Tally, settings: Settings, order: np.ndarray, keys_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, both in the random order that `order` has all rows in."""
    if settings.size is not None and settings.size > len(order):
        raise DataError(
            f"--size {settings.size:,} asks for more than the {len(order):,} pairs that are left of {tally.read:,} "
            f"rows{_because(tally.dropped)}; lower it."
        )
    ids_N = np.frombuffer(tally.source_ids, dtype=np.int32)
    names = list(tally.sources) if settings.stratify else None
    used = take(order, ids_N, len(order) if settings.size is None else settings.size, names)
    # take() may group by source; back into the random order, of which the questions held out are the beginning.
    used = used[np.argsort(keys_N[used])]
    questions_N = np.frombuffer(tally.questions, dtype=np.uint64)
    asked = np.sort(np.unique(questions_N[used], return_index=True)[1])  # of each question, its first row in `used`
    chosen = take(used[asked], ids_N, _held_out(settings.validation, len(asked)), names)
    is_held_out = np.isin(questions_N[used], questions_N[chosen])
    return used[~is_held_out], used[is_held_out]


def _as_datasets_does(tally: Tally, settings: Settings, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, as Hugging Face datasets' `train_test_split` draws from all rows that were read."""
    count = settings.validation
    count = math.ceil(count * tally.read) if isinstance(count, float) else count
    if not 0 < count < tally.read:
        raise DataError(
            f"--validation {settings.validation} would hold out {count:,} of {tally.read:,} rows; leave some on both "
            "sides."
        )
    drawn = np.random.default_rng(settings.seed).permutation(tally.read)
    place = np.empty(tally.read, dtype=np.int64)
    place[drawn] = np.arange(tally.read)
    places = place[np.frombuffer(tally.numbers, dtype=np.uint64)[kept]]
    in_order, places = kept[np.argsort(places)], np.sort(places)
    last = tally.read if settings.size is None else count + settings.size
    return in_order[(places >= count) & (places < last)], in_order[places < count]


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
