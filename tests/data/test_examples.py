"""Prepared Parquet as token ids."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nrt_cli.data.examples import ExampleSet, Pairs, graded_pairs, load_examples, read_texts
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.errors import DataError
from nrt_cli.records import Example


@pytest.fixture
def qa(tmp_path: Path) -> Path:
    """Three pairs, the second with a long question and the third with a long answer."""
    rows = ('{"question": "a?", "answer": "b!", "source": "s"}', '{"question": "' + "?" * 99 + '", "answer": "c"}')
    (tmp_path / "qa.jsonl").write_text("\n".join([*rows, '{"question": "d?", "answer": "' + "!" * 99 + '"}']))
    prepare([str(tmp_path / "qa.jsonl")], tmp_path / "qa", Settings())
    return tmp_path / "qa" / "train.parquet"


def test_prompt_is_rendered_and_the_answer_is_alone_with_its_eos(qa: Path, tiny_tokenizer: Any) -> None:
    examples = load_examples(qa, tiny_tokenizer, 1000, 1000)
    assert (len(examples), examples.dropped) == (3, {})
    prompt = tiny_tokenizer.encode("<|user|>\na?\n<|assistant|>\n", add_special_tokens=False)
    answer = [*tiny_tokenizer.encode("b!", add_special_tokens=False), tiny_tokenizer.eos_token_id]
    assert examples[0] == Example(0, "s", tuple(prompt), tuple(answer))
    assert examples[-1] == examples[2]
    assert examples[2].source == "qa.jsonl"
    assert len(list(examples)) == 3
    assert examples.fingerprint == hashlib.sha256(qa.read_bytes()).hexdigest()


def test_over_long_pairs_are_dropped_and_counted(qa: Path, tiny_tokenizer: Any) -> None:
    examples = load_examples(qa, tiny_tokenizer, 90, 90)
    assert (len(examples), examples.dropped) == (1, {"long-prompt": 1, "long-answer": 1})
    prompt, answer = len(examples[0].prompt_ids), len(examples[0].answer_ids)
    assert len(load_examples(qa, tiny_tokenizer, prompt, answer)) == 1
    with pytest.raises(DataError, match=r"no pair is within the limits: 3 prompts .* raise data\.max_prompt_tokens"):
        load_examples(qa, tiny_tokenizer, prompt - 1, answer)


def test_a_file_of_another_kind_says_what_to_run(tmp_path: Path, tiny_tokenizer: Any) -> None:
    text, plain = tmp_path / "text.parquet", tmp_path / "plain.parquet"
    text.write_text("not Parquet")
    pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), plain)
    for path, message in (
        (tmp_path / "nowhere.parquet", "cannot be read"),
        (text, "not a readable Parquet file.*nrt data prepare"),
        (plain, r"column prompt is missing \(found question, answer\); make it with `nrt data prepare`"),
    ):
        with pytest.raises(DataError, match=message):
            load_examples(path, tiny_tokenizer, 10, 10)


def test_a_file_without_answers_or_rows_says_what_to_run(qa: Path, tiny_tokenizer: Any) -> None:
    table = pq.read_table(qa)
    no_answer = pa.array([{"style": "nrt"}] * 3)
    pq.write_table(table.set_column(2, "reward_model", no_answer), qa)
    with pytest.raises(DataError, match=r"3 unreadable\); one of them: .*:row 1: reward_model has no ground_truth"):
        load_examples(qa, tiny_tokenizer, 10, 10)
    pq.write_table(table.slice(0, 0), qa)
    with pytest.raises(DataError, match="no rows; make it with `nrt data prepare`"):
        load_examples(qa, tiny_tokenizer, 10, 10)


def verl_row(number: int, **changes: Any) -> dict[str, Any]:
    """As verl's preprocessing of GSM8K writes it."""
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"content": f"q{number}", "role": "user"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(number)},
        "extra_info": {"split": "train", "index": number, "answer": f"... #### {number}"},
    } | changes


INDICES: dict[str, list[Any]] = {
    "whole numbers, of other rows": [{"index": 4}, {"index": 5}, {"index": 6}],
    "DAPO's texts": [{"index": "9a9b6eb4"}, {"index": "a1cb49d1"}, {"index": "8c1e62ea"}],
    "repeated, as of two sources": [{"index": 0}, {"index": 1}, {"index": 0}],
    "null": [{"index": None}, {"index": None}, {"index": 2}],
    "no index": [{"split": "train"}] * 3,
    "null altogether": [None, None, None],
}


@pytest.mark.parametrize("infos", INDICES.values(), ids=INDICES)
def test_a_row_is_known_by_its_number_whatever_the_file_calls_it(
    tmp_path: Path, tiny_tokenizer: Any, infos: list[Any]
) -> None:
    rows = [verl_row(i, extra_info=info) for i, info in enumerate(infos)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "verl.parquet")
    examples = load_examples(tmp_path / "verl.parquet", tiny_tokenizer, 100, 100)
    assert [(example.index, example.source) for example in examples] == [(i, "openai/gsm8k") for i in range(3)]
    texts = read_texts(tmp_path / "verl.parquet", {0, 2})
    assert texts == {0: ("q0", "0"), 2: ("q2", "2")}


def test_rows_that_cannot_be_read_are_left_out_and_the_others_keep_their_numbers(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    path = tmp_path / "verl.parquet"
    bad = [
        verl_row(1, reward_model=None),
        verl_row(2, prompt=None),
        verl_row(3, prompt=[]),
        verl_row(4, data_source=None),
    ]
    pq.write_table(pa.Table.from_pylist([verl_row(0), *bad, verl_row(5)]), path)
    examples = load_examples(path, tiny_tokenizer, 100, 100)
    assert [(example.index, example.source) for example in examples] == [
        (0, "openai/gsm8k"),
        (4, "verl.parquet"),
        (5, "openai/gsm8k"),
    ]
    assert examples.dropped == {"unreadable": 1, "empty-question": 2}
    assert examples.unreadable == [f"{path}:row 2: reward_model has no ground_truth."]
    with pytest.raises(DataError, match=r"verl\.parquet:row 2: reward_model has no ground_truth"):
        load_examples(path, tiny_tokenizer, 100, 100, strict=True)


def test_answers_that_are_numbers_or_no_text(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [verl_row(i, reward_model={"ground_truth": answer}) for i, answer in enumerate([34, 7])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "numbers.parquet")
    assert read_texts(tmp_path / "numbers.parquet", {0}) == {0: ("q0", "34")}
    rows = [verl_row(i, reward_model={"ground_truth": {"target": 98, "numbers": [44, 19]}}) for i in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "countdown.parquet")
    with pytest.raises(DataError, match=r"2 unreadable\); .*ground_truth' must be text, found dict"):
        load_examples(tmp_path / "countdown.parquet", tiny_tokenizer, 100, 100)


def test_a_row_that_the_chat_template_refuses_is_named(tmp_path: Path, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    refusal = "{{ raise_exception('no system') if messages[0].role == 'system' }}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    path = tmp_path / "verl.parquet"
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    pq.write_table(pa.Table.from_pylist([verl_row(0), verl_row(1, prompt=talk)]), path)
    examples = load_examples(path, tokenizer, 100, 100)
    assert (len(examples), examples.dropped) == (1, {"unreadable": 1})
    assert examples.unreadable[0].startswith(f"{path}:row 2: The model's chat template refused the messages: ")


def test_prompts_that_are_in_two_files_are_counted_as_they_are_rendered(tmp_path: Path, tiny_tokenizer: Any) -> None:
    def of(name: str, questions: list[str]) -> ExampleSet:
        rows = [verl_row(i, prompt=[{"role": "user", "content": text}]) for i, text in enumerate(questions)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        return load_examples(tmp_path / name, tiny_tokenizer, 100, 100)

    train = of("train.parquet", ["a?", "b?", "c?", "a?"])
    held_out = of("validation.parquet", ["A ?", " C?", "B?", "a?", "d?"])
    assert (train.questions(), held_out.questions()) == (3, 5)
    assert held_out.shared_questions(train) == train.shared_questions(held_out) == 3
    assert train.shared_questions(train) == 3


def test_texts_are_as_written_and_turns_keep_their_roles(tmp_path: Path) -> None:
    turns = ["user", "assistant", "user", "assistant"]
    chat = {"messages": [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(turns)]}
    lines = [json.dumps({"question": f"q{i}", "answer": f"a{i}<eos>"}) for i in range(3)]
    (tmp_path / "qa.jsonl").write_text("\n".join(lines))
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat))
    for name in ("qa", "chat"):
        prepare([str(tmp_path / f"{name}.jsonl")], tmp_path / name, Settings())

    texts = read_texts(tmp_path / "qa" / "train.parquet", {0, 2})
    (turned,) = read_texts(tmp_path / "chat" / "train.parquet", {0}).values()

    assert set(texts) == {0, 2}
    assert all(answer == f"a{question[1:]}<eos>" for question, answer in texts.values())
    assert turned == ("user: user 0\n\nassistant: assistant 1\n\nuser: user 2", "assistant 3")


def test_a_row_without_a_grader_has_the_one_that_suits_all_answers_of_its_source(tmp_path: Path) -> None:
    """Those of rows that name one, too; and the same in training, where all are held, as in an evaluation of some."""
    named = {"style": "rule", "ground_truth": "in words", "grader": "exact"}
    bare = {"style": "rule", "ground_truth": "17"}
    rows = [
        {"data_source": source, "prompt": [{"role": "user", "content": f"{i}?"}], "reward_model": model}
        for i, (source, model) in enumerate([("mixed", named), ("mixed", bare), ("numbers", bare)])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    held = Pairs(tmp_path / "rows.parquet")
    assert [held[i].grader for i in range(3)] == ["exact", "exact", "number"]
    assert graded_pairs(tmp_path / "rows.parquet", [2, 1]) == [held[2], held[1]]
    assert [pair.grader for pair in graded_pairs(tmp_path / "rows.parquet", [0, 2], "math")] == ["math"] * 2
