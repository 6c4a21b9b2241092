"""Prepared Parquet -> tokenised examples for the trainers.

Legend: N examples. Token ids lie in one flat int32 buffer with N + 1 offsets, so that a million examples cost their
tokens and not a million Python lists.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nrt_cli.data.sources import file_sha256
from nrt_cli.errors import DataError
from nrt_cli.records import Example
from nrt_cli.text.prompts import encode_answer, render_prompt

_COLUMNS = ("data_source", "prompt", "reward_model", "extra_info")
_LEAVES = ("reward_model.ground_truth", "extra_info.index")
_PREPARE = "make it with `nrt data prepare`, for example: nrt data prepare qa.jsonl --out data/qa"
_BATCH = 1024


@dataclass(frozen=True)
class _Ragged:
    """Rows of token ids: row i is `ids[offsets[i]:offsets[i + 1]]`. ids int32, offsets int64 [N + 1]."""

    ids: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, i: int) -> tuple[int, ...]:
        return tuple(self.ids[self.offsets[i] : self.offsets[i + 1]].tolist())


class _RaggedBuilder:
    def __init__(self) -> None:
        self.ids, self.offsets = array("i"), array("q", [0])

    def append(self, ids: list[int]) -> None:
        self.ids.extend(ids)
        self.offsets.append(len(self.ids))

    def build(self) -> _Ragged:
        return _Ragged(np.frombuffer(self.ids, dtype=np.int32), np.frombuffer(self.offsets, dtype=np.int64))


class ExampleSet:
    """Question-answer pairs as token ids, by position.

    `fingerprint` is the sha256 of the Parquet file; `dropped` counts the pairs left out, by reason.
    """

    def __init__(
        self,
        prompts: _Ragged,
        answers: _Ragged,
        indices: np.ndarray,
        source_ids: np.ndarray,
        sources: list[str],
        fingerprint: str,
        dropped: dict[str, int],
    ) -> None:
        self._prompts, self._answers = prompts, answers
        self._indices, self._source_ids, self._sources = indices, source_ids, sources
        self.fingerprint, self.dropped = fingerprint, dropped

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer together."""
        return int((np.diff(self._prompts.offsets) + np.diff(self._answers.offsets)).max())

    @property
    def means(self) -> tuple[float, float]:
        """Mean tokens of a prompt and of an answer with its eos."""
        return float(np.diff(self._prompts.offsets).mean()), float(np.diff(self._answers.offsets).mean())

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> Example:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        source = self._sources[self._source_ids[i]]
        return Example(int(self._indices[i]), source, self._prompts[i], self._answers[i])


def load_examples(path: str | Path, tokenizer: Any, max_prompt_tokens: int, max_answer_tokens: int) -> ExampleSet:
    """The pairs of a Parquet file whose rendered prompt and whose answer, eos included, are within the limits.

    `tokenizer` is a transformers tokenizer with a chat template. Raises DataError where the file is not one that
    `nrt data prepare` (or verl's preprocessing) makes, or where no pair is left.
    """
    path = Path(path)
    prompts, answers = _RaggedBuilder(), _RaggedBuilder()
    indices, source_ids, sources = array("q"), array("i"), dict[str, int]()
    dropped: Counter[str] = Counter()
    fingerprint = file_sha256(path)
    for number, row in enumerate(_rows(path)):
        if not isinstance(row["reward_model"]["ground_truth"], str):
            raise DataError(
                f"{path}: row {number} has no answer in reward_model.ground_truth, or not as text; {_PREPARE}."
            )
        # y* is encoded alone: a template that ends the assistant's turn must not add to it.
        prompt_ids = render_prompt(tokenizer, row["prompt"])
        answer_ids = encode_answer(tokenizer, row["reward_model"]["ground_truth"])
        if len(prompt_ids) > max_prompt_tokens:
            dropped["long-prompt"] += 1
        elif len(answer_ids) > max_answer_tokens:
            dropped["long-answer"] += 1
        else:
            prompts.append(prompt_ids)
            answers.append(answer_ids)
            indices.append(row["extra_info"]["index"])
            source_ids.append(sources.setdefault(row["data_source"], len(sources)))
    if not indices:
        raise DataError(_nothing_left(path, dropped, max_prompt_tokens, max_answer_tokens))
    return ExampleSet(
        prompts.build(),
        answers.build(),
        np.frombuffer(indices, dtype=np.int64),
        np.frombuffer(source_ids, dtype=np.int32),
        list(sources),
        fingerprint,
        dict(dropped),
    )


def read_texts(path: Path, indices: Collection[int]) -> dict[int, tuple[str, str]]:
    """Question and answer of some pairs of a prepared file, by `extra_info.index`, as they were written.

    Of a prompt with several turns, each is preceded by its role. Raises DataError where the file cannot be read.
    """
    found = {}
    for row in _rows(path):
        index, turns, answer = row["extra_info"]["index"], row["prompt"], row["reward_model"]["ground_truth"]
        if index in indices:
            alone = len(turns) == 1
            question = "\n\n".join(t["content"] if alone else f"{t['role']}: {t['content']}" for t in turns)
            found[index] = (question, answer)
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a prepared file, read in batches."""
    try:
        with pq.ParquetFile(path) as file:
            found = {*file.schema_arrow.names, *(file.schema.column(i).path for i in range(len(file.schema)))}
            if missing := [column for column in (*_COLUMNS, *_LEAVES) if column not in found]:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path}: column {missing[0]} is missing (found {names}); {_PREPARE}.")
            for batch in file.iter_batches(_BATCH, columns=list(_COLUMNS), use_threads=False):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}); {_PREPARE}.") from None


def _nothing_left(path: Path, dropped: Counter[str], max_prompt_tokens: int, max_answer_tokens: int) -> str:
    if not dropped:
        return f"{path}: no rows; {_PREPARE}."
    return (
        f"{path}: no pair is within the limits: {dropped['long-prompt']:,} prompts are longer than "
        f"{max_prompt_tokens:,} tokens and {dropped['long-answer']:,} answers longer than {max_answer_tokens:,}; raise "
        "data.max_prompt_tokens or data.max_answer_tokens."
    )
