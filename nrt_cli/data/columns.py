"""The shape of a row: which columns hold the prompt x and the reference answer y*.

Text is taken as it is: nothing is stripped or normalised.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from nrt_cli.data.sources import Row
from nrt_cli.errors import DataError

ROLES = {
    theirs: ours
    for ours, names in {
        "system": "system",
        "developer": "developer",
        "user": "user human",
        "assistant": "assistant gpt chatgpt model bot function_call",
        "tool": "tool function ipython observation function_response tool_response",
    }.items()
    for theirs in names.split()
}
"""Who speaks: what data sets call it, and what we do."""

MAPPABLE = ("question", "answer", "context", "system", "messages", "source", "trace")
OPTIONAL = ("context", "system", "source", "trace")
"""Of these, what a row may lack, as a line of JSONL without that key does; one that every row lacks is refused."""
ACCEPTED = (
    "messages, conversations, prompt + completion, question + answer, instruction (+ input) + output, instruction "
    "(+ context) + response, prompt + response, prompt + reward_model, or your own names through --map "
    "question=COLUMN,answer=COLUMN"
)
_SOURCE_COLUMNS = ("data_source", "source", "dataset")
_SHOWN = 12
"""Columns that a message names."""

Message = dict[str, str]


@dataclass(frozen=True)
class Pair:
    """A prompt x as chat messages, and y* as text; None where a conversation has no assistant turn.

    `grader` is the one that a prepared row names and `trace` the reference trace z*, each "" for none. `unused` are the
    columns that hold something and were not read; `textless` counts turns of the assistant or a tool that were left out
    because they have no text. A `span`'s one message is plain text, which y* continues; `section` names the part of
    the document that its window overlaps nothing outside of, where it was just cut.
    """

    where: str
    source: str
    messages: list[Message]
    answer: str | None
    grader: str = ""
    unused: tuple[str, ...] = ()
    textless: int = 0
    trace: str = ""
    span: bool = False
    section: str = ""

    @property
    def lacks(self) -> str | None:
        """What is missing to train on it: no-assistant-turn, empty-question, empty-answer or nothing."""
        if self.answer is None:
            return "no-assistant-turn"
        asked = any(message["role"] == "user" for message in self.messages)
        if not asked or not self.messages[-1]["content"].strip():
            return "empty-question"
        return None if self.answer.strip() else "empty-answer"


@dataclass(frozen=True)
class _Shape:
    """The columns of a pair. `question` holds text or a conversation; without `answer`, y* is that's last turn.

    `context` follows the question after a blank line, where there is any, as in Alpaca's and Dolly's rows; `system`
    stands before it. `trace` holds the reasoning of y*, apart from it; no name of a column means that by itself.
    """

    question: str
    answer: str | None = None
    context: str | None = None
    system: str | None = None
    trace: str | None = None

    @cached_property
    def needed(self) -> list[str]:
        return [column for column in (self.question, self.answer) if column]


_SHAPES = (
    _Shape("messages"),
    _Shape("prompt", "completion"),
    _Shape("question", "answer"),
    _Shape("instruction", "output", context="input"),
    _Shape("conversations"),
    _Shape("prompt", "reward_model"),
    _Shape("instruction", "response", context="context"),
    _Shape("prompt", "response"),
)
"""The first whose columns are all there counts: many data sets carry flat copies beside `messages`."""

VERL = ("prompt", "reward_model")
SPAN = "span"
"""The style of a row whose prompt is plain text and whose answer is what follows it there, rather than chat."""
SUFFIX = b"nrt.suffix"
"""In the metadata of a prepared file: the last line that all its questions were given."""


def parse_mapping(text: str) -> dict[str, str]:
    """`question=col,answer=col` as {ours: theirs}. Raises DataError unless it names a whole shape."""
    mapping: dict[str, str] = {}
    for part in text.split(","):
        ours, equals, theirs = part.partition("=")
        if not equals or not theirs or ours not in MAPPABLE:
            raise DataError(f"--map {part!r}: write OURS=COLUMN, where OURS is one of {', '.join(MAPPABLE)}.")
        if ours in mapping:
            raise DataError(f"--map {text!r}: {ours} is given twice; name one column for it.")
        mapping[ours] = theirs
    if not ({"question", "answer"} <= set(mapping)) ^ ("messages" in mapping):
        raise DataError(f"--map {text!r}: name both question and answer, or messages alone.")
    if "messages" in mapping and (extra := set(mapping) & {"question", "answer", "context"}):
        raise DataError(f"--map {text!r}: {', '.join(sorted(extra))} cannot go with messages, which hold all of it.")
    return mapping


def read_pair(row: Row, mapping: Mapping[str, str]) -> Pair:
    """The question-answer pair in a row.

    Raises DataError where the row cannot be read: with where it is, and which columns were found and are accepted.
    """
    if row.problem:
        raise DataError(f"{row.where}: {row.problem}.")
    needed = [column for ours, column in mapping.items() if ours not in OPTIONAL]
    if missing := [column for column in needed if column not in row.values]:
        raise DataError(f"{row.where}: --map names column {missing[0]!r}; found {_found(row)}.")
    if mapping:
        question = mapping.get("messages") or mapping["question"]
        shape = _Shape(question, *(mapping.get(ours) for ours in ("answer", "context", "system", "trace")))
    else:
        there = [shape for shape in _SHAPES if all(column in row.values for column in shape.needed)]
        if not there:
            found = _found(row)
            raise DataError(f"{row.where}: no question and answer recognised; found {found}; accepted are {ACCEPTED}.")
        # The first whose columns all hold something, else the first whose columns are there.
        whole = (shape for shape in there if all(row.values[column] is not None for column in shape.needed))
        shape = next(whole, there[0])
    if shape.answer is None or isinstance(row.values[shape.question], list):
        messages, textless = _conversation(row, shape.question)
    else:
        messages, textless = [{"role": "user", "content": _text(row, shape.question)}], 0
    context, system = (_text(row, name) if name in row.values else "" for name in (shape.context, shape.system))
    if context.strip() and messages:
        messages[-1]["content"] += f"\n\n{context}"
    if system.strip():
        messages.insert(0, {"role": "system", "content": system})
    if shape.answer is None:
        messages, answer = _last_turn(messages)
    elif shape.answer == "completion" and isinstance(row.values["completion"], list):
        # TRL's conversational form, where both columns are lists of messages.
        completion, more = _conversation(row, "completion")
        textless += more
        messages, answer = _last_turn(messages + completion)
    else:
        answer = _text(row, shape.answer)
    # The column that has the name of the data, if one does.
    columns = (mapping["source"],) if "source" in mapping else _SOURCE_COLUMNS
    source = next((name for name in columns if isinstance(value := row.values.get(name), str) and value), None)
    used = {shape.question, shape.answer, shape.context, shape.system, shape.trace, source}
    left = ((name, value) for name, value in row.values.items() if name not in used)
    unused = tuple(name for name, value in left if not is_nothing(value) and value not in ("", [], {}))
    # An earlier output of `nrt data prepare` has a grader and perhaps a trace beside its answer.
    kept = row.values[shape.answer] if shape.answer else None
    beside = {name: text for name, text in kept.items() if isinstance(text, str)} if isinstance(kept, dict) else {}
    trace = _text(row, shape.trace) if shape.trace in row.values else ""
    trace = beside.get("trace", "") if shape.trace is None else trace if trace.strip() else ""
    origin = row.values[source] if source else row.origin
    about = beside.get("style") == SPAN, beside.get("section", "")
    return Pair(row.where, origin, messages, answer, beside.get("grader", ""), unused, textless, trace, *about)


def _last_turn(messages: list[Message]) -> tuple[list[Message], str | None]:
    """x = everything before the last assistant turn, y* = that turn; what follows it is no part of either."""
    for last in range(len(messages) - 1, -1, -1):
        if messages[last]["role"] == "assistant":
            return messages[:last], messages[last]["content"]
    return messages, None


def _conversation(row: Row, column: str) -> tuple[list[Message], int]:
    """The turns that have text, and how many have none."""
    turns = row.values[column]
    if isinstance(turns, str):  # as a CSV has it
        with contextlib.suppress(ValueError, RecursionError):
            turns = json.loads(turns)
    if isinstance(turns, dict) and all(isinstance(values, list) for values in turns.values()):
        # As `datasets` hands on a sequence of turns: a list for each of their keys.
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=False)]
    if not isinstance(turns, list):
        raise DataError(f"{row.where}: {column!r} must be a list of messages, found {_kind(turns)}.")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):  # by OpenAI's names or ShareGPT's
        where = f"{row.where}: message {number} of {column!r}"
        if not isinstance(turn, dict):
            raise DataError(f"{where} must have role and content, found {_kind(turn)}.")
        speaker = next((turn[key] for key in ("role", "from") if turn.get(key) is not None), None)
        text = next((turn[key] for key in ("content", "value") if turn.get(key) is not None), None)
        calls = turn.get("tool_calls") or turn.get("function_call")
        if speaker is None or (not calls and not {"content", "value"} & set(turn)):
            raise DataError(f"{where} must have role and content.")
        role = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
        if role is None:
            accepted = "system, developer, user, assistant, tool, and what ShareGPT calls them"
            raise DataError(f"{where} has role {short(speaker)}; accepted are {accepted}.")
        ours = role in ("assistant", "tool")
        if isinstance(text, list):
            texts = []
            for part in text:
                said = part.get("text") if isinstance(part, dict) else part
                if isinstance(said, str):
                    texts.append(said)
                elif not ours:  # a question that is more than text cannot be asked
                    kind = part.get("type") if isinstance(part, dict) else None
                    raise DataError(f"{where} has a part that is not text ({short(kind) if kind else _kind(part)}).")
            text = "".join(texts) if texts else None
        if text is None or (not text and calls):
            if ours:  # a call of a tool, or its result
                continue
            raise DataError(f"{where} has no text.")
        if isinstance(text, bytes):
            text = _decoded(text, where)
        if not isinstance(text, str):
            raise DataError(f"{where} must have text as its content, found {_kind(text)}.")
        messages.append({"role": role, "content": text})
    return messages, len(turns) - len(messages)


def _text(row: Row, column: str) -> str:
    """A column's text. Whole numbers have one spelling and count as text, as do JSON's others, which are read as they
    are spelled; nothing at all counts as empty."""
    value = row.values[column]
    if column == "reward_model":  # verl's: the answer is inside
        value = value.get("ground_truth") if isinstance(value, dict) else None
        if value is None:
            raise DataError(f"{row.where}: reward_model has no ground_truth.")
        column = "reward_model.ground_truth"
    if is_nothing(value):
        return ""
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return f"{value:f}" if isinstance(value, Decimal) else str(value)
    if isinstance(value, bytes):
        return _decoded(value, f"{row.where}: column {column!r}")
    if not isinstance(value, str):
        raise DataError(f"{row.where}: column {column!r} must be text, found {_kind(value)}.")
    return value


def _decoded(value: bytes, where: str) -> str:
    """Text that a file holds as plain bytes, as some writers of Parquet leave it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DataError(f"{where} must be text, found bytes that are not UTF-8.") from None


def is_nothing(value: Any) -> bool:
    return value is None or value != value  # NaN, which is how pandas writes nothing, is not equal to itself


def _found(row: Row) -> str:
    names = [short(name) for name in row.values]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}" if names else "no columns"


def short(value: Any) -> str:
    """A value from the data as a message can quote it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _kind(value: Any) -> str:
    if isinstance(value, Exception):
        return f"what cannot be read ({value})"
    return "nothing" if value is None else type(value).__name__
