"""Prepared Parquet -> tokenised examples for the trainers.

Legend: N examples. Token ids lie in one flat int32 buffer with N + 1 offsets, so that a million examples cost their
tokens and not a million Python lists.
"""

import contextlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nrt_cli.data.columns import SUFFIX, VERL, Pair, read_pair
from nrt_cli.data.sources import Row, file_sha256, parquet_rows
from nrt_cli.errors import DataError
from nrt_cli.grading import grading
from nrt_cli.records import Example
from nrt_cli.text.prompts import encode_answer, encode_plain, encode_span, prompt_text
from nrt_cli.text.questions import KnownDocuments, digest, normalised

_PREPARE = "make it with `nrt data prepare`, for example: nrt data prepare qa.jsonl --out data/qa"
SHOWN = 3
"""Rows that could not be read of which is said why."""


class _Ragged:
    """Rows of token ids: row i is `ids[offsets[i]:offsets[i + 1]]`; `lengths` are their numbers of tokens."""

    def __init__(self) -> None:
        self.ids, self.offsets = array("i"), array("q", [0])

    def append(self, ids: list[int]) -> None:
        self.ids.extend(ids)
        self.offsets.append(len(self.ids))

    def __getitem__(self, i: int) -> tuple[int, ...]:
        return tuple(self.ids[self.offsets[i] : self.offsets[i + 1]])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(np.frombuffer(self.offsets, dtype=np.int64))


@dataclass(frozen=True)
class References:
    """How reference traces are read: at most `cap(answer_tokens)` tokens, none of them one that ends a trace."""

    cap: Callable[[int], int]
    ends: Collection[int]


@dataclass(eq=False)
class ExampleSet:
    """Question-answer pairs as token ids, by position.

    `fingerprint` is the sha256 of the Parquet file; `dropped` counts the pairs left out, by reason, and `unreadable`
    says of the first rows that could not be read why. `traces` counts the pairs that have a reference trace;
    `_references` is None where nothing trains on them. `_questions` has a digest of each prompt.
    """

    fingerprint: str
    _references: _Ragged | None
    _prompts: _Ragged = field(default_factory=_Ragged)
    _answers: _Ragged = field(default_factory=_Ragged)
    _indices: array = field(default_factory=lambda: array("q"))
    _source_ids: array = field(default_factory=lambda: array("i"))
    _sources: list[str] = field(default_factory=list)
    _questions: array = field(default_factory=lambda: array("Q"))
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    traces: int = 0
    spans: int = 0
    """How many are plain text, cut in two."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer together, with the reference trace and think tokens of those read."""
        lengths = self._prompts.lengths + self._answers.lengths
        if self._references:
            traces = self._references.lengths
            lengths = lengths + traces + 2 * (traces > 0)
        return int(lengths.max())

    def longest_with(self, trace_cap: Callable[[int], int]) -> int:
        """Tokens of the longest prompt, trace and answer together, with the two think tokens.

        `trace_cap` says how long a trace may be before an answer of so many tokens.
        """
        lengths = zip(self._prompts.lengths.tolist(), self._answers.lengths.tolist(), strict=True)
        return max(prompt + answer + trace_cap(answer) for prompt, answer in lengths) + 2

    @property
    def means(self) -> tuple[float, float]:
        """Mean tokens of a prompt and of an answer with its eos."""
        return float(self._prompts.lengths.mean()), float(self._answers.lengths.mean())

    @property
    def mean_trace(self) -> float | None:
        """Mean tokens of the reference traces, over all pairs; None where they are not read."""
        return float(self._references.lengths.mean()) if self._references else None

    def left_out(self, of: str) -> list[str]:
        """What was dropped, in words, and of the first rows that could not be read why; nothing where all was taken.

        `of` is what these examples are.
        """
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        said = [f"dropped {of}: {dropped}; {len(self)} examples left"] if dropped else []
        return said + [f"could not be read: {text}" for text in self.unreadable]

    def questions(self) -> int:
        """How many different prompts there are, as they are rendered, whatever their case, spacing and width."""
        return len(np.unique(self._questions))

    def shared_questions(self, others: "ExampleSet") -> int:
        """How many of these prompts are among the others'."""
        return len(np.intersect1d(self._questions, others._questions))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Example:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        source = self._sources[self._source_ids[i]]
        trace = self._references[i] if self._references else ()
        return Example(self._indices[i], source, self._prompts[i], self._answers[i], trace)


def load_examples(
    path: str | Path,
    tokenizer: Any,
    max_prompt_tokens: int,
    max_answer_tokens: int,
    strict: bool = False,
    references: References | None = None,
) -> ExampleSet:
    """The pairs of a Parquet file whose rendered prompt and whose answer, eos included, are within the limits.

    `tokenizer` is a transformers tokenizer with a chat template. A row that cannot be read, or whose messages the
    template refuses, is left out and counted, or with `strict` an error. Reference traces are read where `references`
    says how. Raises DataError where the file is not one that `nrt data prepare` (or verl's preprocessing) makes, or
    where no pair, or none of the traces asked for, is left.
    """
    path = Path(path)
    found = ExampleSet(file_sha256(path), _Ragged() if references else None)
    dropped, sources = found.dropped, dict[str, int]()
    for number, row in enumerate(_rows(path)):
        try:
            pair = read_pair(row, {})
            prompt = "" if pair.lacks else pair.messages[0]["content"]
            prompt = prompt if pair.lacks or pair.span else prompt_text(tokenizer, pair.messages)
            question = digest(normalised(prompt))
        except DataError as error:
            message = str(error) if str(error).startswith(row.where) else f"{row.where}: {error}"
            if strict:
                raise DataError(message) from None
            dropped["unreadable"] += 1
            found.unreadable += [message] if len(found.unreadable) < SHOWN else []
            continue
        if pair.lacks:
            dropped[pair.lacks] += 1
            continue
        if pair.span:
            prompt_ids, answer_ids = encode_span(tokenizer, prompt, str(pair.answer))
        else:
            prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
            # y* is encoded alone: a template that ends the assistant's turn must not add to it.
            answer_ids = encode_answer(tokenizer, str(pair.answer))
        trace_ids = encode_plain(tokenizer, pair.trace) if references else []
        if len(prompt_ids) > max_prompt_tokens:
            dropped["long-prompt"] += 1
        elif len(answer_ids) > max_answer_tokens:
            dropped["long-answer"] += 1
        elif references and len(trace_ids) > references.cap(len(answer_ids)):
            dropped["long-trace"] += 1
        elif references and not set(references.ends).isdisjoint(trace_ids):
            # Some tokenizers have think tokens that are no special tokens, which no option keeps as text.
            dropped["think-token-in-trace"] += 1
        else:
            found.traces += bool(pair.trace)
            found.spans += pair.span
            if found._references is not None:
                found._references.append(trace_ids)
            found._prompts.append(prompt_ids)
            found._answers.append(answer_ids)
            found._indices.append(number)
            found._source_ids.append(sources.setdefault(pair.source, len(sources)))
            found._questions.append(question)
    found._sources = list(sources)
    if len(found) and (found.traces or not references):
        return found
    if lost := dropped["long-trace"] + dropped["think-token-in-trace"]:
        reason = (
            f"no reference trace is left of {lost:,}: {dropped['long-trace']:,} are longer than "
            f"rollout.max_trace_tokens and rollout.max_response_tokens allow, raise them; "
            f"{dropped['think-token-in-trace']:,} have a think token of the model's in their text, take it out."
        )
    elif len(found):
        reason = (
            "no row has a reference trace; name the column that does with `nrt data prepare --map "
            "question=COLUMN,answer=COLUMN,trace=COLUMN`, or leave out data.traces."
        )
    elif dropped["long-prompt"] + dropped["long-answer"]:
        reason = (
            f"no pair is within the limits: {dropped['long-prompt']:,} prompts are longer than {max_prompt_tokens:,} "
            f"tokens and {dropped['long-answer']:,} answers longer than {max_answer_tokens:,}; raise "
            "data.max_prompt_tokens or data.max_answer_tokens."
        )
    elif dropped:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        first = f"; one of them: {found.unreadable[0]}" if found.unreadable else "."
        reason = f"no row is a question and an answer ({counts}){first}"
    else:
        reason = f"no rows; {_PREPARE}."
    raise DataError(f"{path}: {reason}")


def graded_pairs(path: Path, indices: Sequence[int], grader: str | None = None) -> list[grading.Pair]:
    """Some pairs of a prepared file, by the number of their row, each with its grader, or with `grader` if given."""
    pairs = Pairs(path, set(indices))
    found = [pairs[number] for number in indices]
    return [replace(pair, grader=grader) for pair in found] if grader else found


class Pairs:
    """The pairs of a prepared file by the number of their row, all or those wanted, each with its grader's name.

    The grader is the one that the row names. Where it names none, as in older files and verl's own, it is the one that
    suits all answers of the row's source.
    """

    def __init__(self, path: Path, wanted: Container[int] | None = None) -> None:
        numbers, texts = array("q"), (list[str](), list[str](), list[str](), list[str]())
        answers = defaultdict[str, list[str]](list)
        for number, row in enumerate(_rows(path)):
            with contextlib.suppress(DataError):
                pair = read_pair(row, {})
                if pair.answer and not pair.lacks:
                    answers[pair.source].append(pair.answer)
                    if wanted is None or number in wanted:
                        numbers.append(number)
                        told = _question(pair), pair.answer, pair.grader, pair.source
                        for column, text in zip(texts, told, strict=True):
                            column.append(text)
        unnamed = {source for grader, source in zip(*texts[2:], strict=True) if not grader}
        guessed = {source: grading.guess(answers[source]) for source in unnamed}
        graders = [grader or guessed[source] for grader, source in zip(*texts[2:], strict=True)]
        self.places = {number: i for i, number in enumerate(numbers)}
        self.graders = Counter(zip(texts[3], graders, strict=True))
        """How many pairs each (source, grader) has."""
        self._columns = [pa.array(column, pa.large_string()) for column in (texts[0], texts[1], graders)]

    def __getitem__(self, number: int) -> grading.Pair:
        i = self.places[number]
        return grading.Pair(*(column[i].as_py() for column in self._columns))

    def of_graders(self) -> list[grading.Pair]:
        """The first pair of each grader."""
        first: dict[str, int] = {}
        for number, i in self.places.items():
            first.setdefault(self._columns[2][i].as_py(), number)
        return [self[number] for number in first.values()]


def read_texts(path: Path, indices: Collection[int]) -> dict[int, tuple[str, str]]:
    """Question and answer of some pairs of a prepared file, by the number of their row, as they were written.

    Of a prompt with several turns, each is preceded by its role. Raises DataError where the file cannot be read.
    """
    found = {}
    for number, row in enumerate(_rows(path)):
        if number in indices:
            pair = read_pair(row, {})
            found[number] = (_question(pair), str(pair.answer))
    return found


def _question(pair: Pair) -> str:
    alone = len(pair.messages) == 1
    return "\n\n".join(t["content"] if alone else f"{t['role']}: {t['content']}" for t in pair.messages)


def suffix_of(path: Path) -> str | None:
    """The last line that `nrt data prepare --suffix` gave every question of a file; None where it gave none."""
    try:
        suffix = (pq.read_schema(path).metadata or {}).get(SUFFIX)
    except (pa.ArrowException, OSError):
        return None
    return suffix.decode() if suffix else None


def documents_in(path: Path, known: KnownDocuments) -> set[int]:
    """Numbers of the known documents that stand in a row of a file, in its turns, trace and answer taken together."""
    found: set[int] = set()
    for row in _rows(path):
        with contextlib.suppress(DataError):
            pair = read_pair(row, {})
            texts = [*(turn["content"] for turn in pair.messages), pair.trace, pair.answer or ""]
            found |= known.found_in("\n".join(filter(None, texts)))
    return found


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `nrt data prepare` or verl's preprocessing made."""
    try:
        names = pq.read_schema(path).names
        if missing := [column for column in VERL if column not in names]:
            raise DataError(f"{path}: column {missing[0]} is missing (found {', '.join(names)}); {_PREPARE}.")
        for where, values in parquet_rows(path, str(path), ("data_source", *VERL)):
            assert isinstance(values, dict)  # only text formats have rows that are none
            yield Row(where, path.name, values)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); {_PREPARE}.") from None
