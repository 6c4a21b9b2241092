"""Which columns become x and y*."""

import math
from decimal import Decimal
from typing import Any

import pytest

from nrt_cli.data.columns import Pair, parse_mapping, read_pair
from nrt_cli.data.sources import Row
from nrt_cli.errors import DataError


def pair(values: dict[str, Any], mapping: str | None = None) -> Pair:
    return read_pair(Row("qa.jsonl:17", "qa.jsonl", values), parse_mapping(mapping) if mapping else {})


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER, ASSISTANT = turn("user", "q"), turn("assistant", "a")

CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}

SHAPES: list[tuple[dict[str, Any], list[dict[str, str]], str | None]] = [
    ({"question": " q ", "answer": "a\n"}, [turn("user", " q ")], "a\n"),
    ({"question": "q", "answer": 30}, [USER], "30"),
    ({"question": "q", "answer": None}, [USER], ""),
    ({"instruction": "q", "input": math.nan, "output": "a"}, [USER], "a"),
    ({"prompt": "q", "completion": "a"}, [USER], "a"),
    ({"prompt": [USER], "completion": [ASSISTANT]}, [USER], "a"),
    ({"prompt": [USER], "completion": "a"}, [USER], "a"),
    ({"instruction": "do", "input": "this", "output": "a"}, [turn("user", "do\n\nthis")], "a"),
    ({"instruction": "do", "input": "", "output": "a"}, [turn("user", "do")], "a"),
    ({"instruction": "do", "input": None, "output": "a"}, [turn("user", "do")], "a"),
    ({"instruction": "do", "output": "a"}, [turn("user", "do")], "a"),
    ({"messages": [USER, ASSISTANT]}, [USER], "a"),
    ({"messages": [turn("system", "s"), USER, ASSISTANT, turn("user", "r"), turn("assistant", "b")]},
     [turn("system", "s"), USER, ASSISTANT, turn("user", "r")], "b"),
    ({"messages": [USER, ASSISTANT, turn("user", "unanswered")]}, [USER], "a"),
    ({"messages": [USER]}, [USER], None),
    ({"messages": [{**USER, "id": 3}, {**ASSISTANT, "id": 4}], "prompt": "p", "completion": "c"}, [USER], "a"),
    ({"messages": None, "question": "q", "answer": "a"}, [USER], "a"),
    # ShareGPT, by all the names that it goes by.
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [USER], "a"),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "User", "value": "q"},
      {"from": "ChatGPT", "value": "a"}]}, [turn("system", "s"), USER], "a"),
    ({"conversations": [USER, ASSISTANT]}, [USER], "a"),
    ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, [USER], "a"),
    ({"messages": [{**USER, "from": None, "value": None}, {"from": "gpt", "value": "a"}]}, [USER], "a"),
    ({"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, [USER], "a"),
    # Text in parts, as OpenAI's and the models' own clients write it.
    ({"messages": [turn("user", [{"type": "text", "text": "q "}, {"type": "text", "text": "r"}]), ASSISTANT]},
     [turn("user", "q r")], "a"),
    ({"messages": [turn("user", ["q"]), turn("assistant", [{"type": "thinking", "thinking": "t"}, {"text": "a"}])]},
     [USER], "a"),
    # A call of a tool has no text; what the tool said has.
    ({"messages": [USER, {**CALL, "content": None}, turn("tool", "42"), ASSISTANT]}, [USER, turn("tool", "42")], "a"),
    ({"messages": [USER, {**CALL, "content": ""}, turn("function", "42"), ASSISTANT]}, [USER, turn("tool", "42")], "a"),
    ({"messages": [USER, {**CALL, "content": "Let me see."}, turn("tool", "42")]}, [USER], "Let me see."),
    ({"messages": [USER, CALL]}, [USER], None),
    ({"messages": [USER, {"role": "assistant", "function_call": {"name": "f"}}]}, [USER], None),
    ({"messages": [USER, turn("assistant", "")]}, [USER], ""),
    # Dolly's, and what others call the same.
    ({"instruction": "do", "context": "this", "response": "a", "category": "x"}, [turn("user", "do\n\nthis")], "a"),
    ({"instruction": "do", "context": "", "response": "a"}, [turn("user", "do")], "a"),
    ({"instruction": "do", "response": "a"}, [turn("user", "do")], "a"),
    ({"prompt": "q", "response": "a"}, [USER], "a"),
    # verl's and DAPO's Parquet.
    ({"data_source": "d", "prompt": [USER], "ability": "math", "reward_model": {"style": "rule", "ground_truth": "a"},
      "extra_info": {"index": "9a9b6eb4"}}, [USER], "a"),
    ({"prompt": [USER], "reward_model": {"ground_truth": 34}, "extra_info": None}, [USER], "34"),
    ({"prompt": "q", "solution": "34", "reward_model": {"ground_truth": "34"}}, [USER], "34"),
    ({"question": b"q", "answer": Decimal("100")}, [USER], "100"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "messages", "answer"), SHAPES)
def test_shapes(values: dict[str, Any], messages: list[dict[str, str]], answer: str | None) -> None:
    got = pair(values)
    assert (got.messages, got.answer) == (messages, answer)


def test_a_mapping_names_other_columns() -> None:
    got = pair({"input": "q", "target": "a", "answer": "no"}, "question=input,answer=target")
    assert (got.messages, got.answer) == ([USER], "a")
    assert pair({"talk": [USER, ASSISTANT]}, "messages=talk").answer == "a"
    whole = {"instruction": "do", "input": "this", "system": "s", "output": "a"}
    got = pair(whole, "question=instruction,context=input,system=system,answer=output")
    assert (got.messages, got.unused) == ([turn("system", "s"), turn("user", "do\n\nthis")], ())
    assert pair({"talk": [USER, ASSISTANT], "s": "S"}, "messages=talk,system=s").messages == [turn("system", "S"), USER]
    assert pair({"talk": [USER], "to": "a"}, "question=talk,answer=to").messages == [USER]
    # A line of JSONL may leave out what is not needed.
    got = pair(
        {"instruction": "do", "output": "a"}, "question=instruction,context=input,system=s,answer=output,source=x"
    )
    assert (got.messages, got.answer, got.source) == ([turn("user", "do")], "a", "qa.jsonl")


@pytest.mark.parametrize(
    ("values", "mapping", "unused"),
    [
        # Alpaca's context would be lost without a word.
        ({"instruction": "do", "input": "this", "output": "a"}, "question=instruction,answer=output", ("input",)),
        ({"instruction": "do", "input": "", "output": "a"}, "question=instruction,answer=output", ()),
        (
            {"question": "q", "answer": "a", "system": "s", "id": 0, "none": None, "nan": math.nan},
            None,
            ("system", "id"),
        ),
        ({"messages": [USER, ASSISTANT], "tools": [], "source": "s", "dataset": "d"}, None, ("dataset",)),
    ],
)
def test_columns_that_hold_something_and_are_not_used_are_told(
    values: dict[str, Any], mapping: str | None, unused: tuple[str, ...]
) -> None:
    assert pair(values, mapping).unused == unused


def test_turns_without_text_are_counted() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert pair({"messages": [USER, call, turn("tool", None), call, ASSISTANT]}).textless == 3
    assert pair({"messages": [USER, ASSISTANT]}).textless == 0


@pytest.mark.parametrize(
    ("values", "mapping", "source"),
    [
        ({}, None, "qa.jsonl"),
        ({"source": "s"}, None, "s"),
        ({"dataset": "d"}, None, "d"),
        ({"data_source": "x", "source": "s"}, None, "x"),
        ({"source": None}, None, "qa.jsonl"),
        ({"source": "s", "set": "t"}, "question=question,answer=answer,source=set", "t"),
    ],
)
def test_the_source_is_a_column_or_the_file(values: dict[str, Any], mapping: str | None, source: str) -> None:
    assert pair({"question": "q", "answer": "a", **values}, mapping).source == source


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"input": "q", "target": "a"}, None, r"^qa\.jsonl:17: no .* found 'input', 'target'; accepted are messages"),
    ({"input": "q"}, "question=input,answer=target", r"--map names column 'target'; found 'input'"),
    ({"question": "q", "answer": ["a"]}, None, r"column 'answer' must be text, found list"),
    ({"question": "q", "answer": 1.5}, None, r"column 'answer' must be text, found float"),
    ({"question": "q", "answer": True}, None, r"column 'answer' must be text, found bool"),
    ({"messages": "hello"}, None, r"'messages' must be a list of messages, found str"),
    ({"messages": [{"role": "user"}]}, None, r"message 1 of 'messages' must have role and content"),
    ({"messages": ["q"]}, None, r"message 1 of 'messages' must have role and content, found str"),
    ({"messages": [USER, turn("critic", "a")]}, None, r"message 2 of 'messages' has role 'critic'; accepted are"),
    ({"messages": [turn(None, "a")]}, None, r"must have role and content"),
    ({"messages": [turn(["user"], "a")]}, None, r"has role \['user'\]"),
    ({"messages": [turn("user", [{"type": "text"}])]}, None, r"message 1 of 'messages' has a part that is not text"),
    ({"messages": [turn("user", [{"type": "image_url"}])]}, None, r"a part that is not text \('image_url'\)"),
    ({"messages": [turn("user", None), ASSISTANT]}, None, r"message 1 of 'messages' has no text"),
    ({"messages": [turn("user", {"text": "q"}), ASSISTANT]}, None, r"must have text as its content, found dict"),
    ({"prompt": [USER], "reward_model": None}, None, r"reward_model has no ground_truth"),
    ({"prompt": [USER], "reward_model": {"style": "rule"}}, None, r"reward_model has no ground_truth"),
    ({"prompt": [USER], "reward_model": {"ground_truth": ["a"]}}, None, r"reward_model\.ground_truth' must be text"),
    ({"question": b"\xff", "answer": "a"}, None, r"'question' must be text, found bytes that are not UTF-8"),
    ({f"column {i}": 1 for i in range(99)}, None, r"'column 11' and 87 more; accepted"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "mapping", "message"), BAD)
def test_wrong_columns_are_named(values: dict[str, Any], mapping: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pair(values, mapping)


@pytest.mark.parametrize(
    "text",
    ["question", "question=", "q=a", "question=a", "messages=m,question=q", "source=s",
     "question=a,question=b,answer=c", "messages=m,answer=a", "messages=m,context=c", "question=q,context=c"],
)  # fmt: skip
def test_a_mapping_that_names_no_whole_shape_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="--map"):
        parse_mapping(text)
