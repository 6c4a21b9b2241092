"""`nrt data prepare --suffix`: a last line for every question."""

import pyarrow.parquet as pq
import pytest

from nrt_cli.data.examples import read_texts, suffix_of
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.errors import DataError

LINE = "Answer with one short equation."


def questions(folder, split):
    return [row["prompt"][-1]["content"] for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]


@pytest.fixture
def prepared(tmp_path):
    def make(name, *sources, **settings):
        out = tmp_path / name
        prepare([str(source) for source in sources] or ["generated:sums?size=60"], out, Settings(**settings))
        return out

    return make


def test_every_question_ends_in_it_and_the_choice_is_the_same(prepared):
    choice = {"size": 40, "validation": 10, "seed": 3}
    without, suffixed = prepared("a", **choice), prepared("b", **choice, suffix=LINE)
    for split in ("train", "validation"):
        assert questions(suffixed, split) == [f"{question}\n{LINE}" for question in questions(without, split)]
        assert suffix_of(suffixed / f"{split}.parquet") == LINE
        assert suffix_of(without / f"{split}.parquet") is None
    assert read_texts(suffixed / "train.parquet", [0])[0][0].endswith(f"\n{LINE}")


def test_it_is_given_once_and_not_to_an_empty_question(prepared, tmp_path):
    once = prepared("once", suffix=LINE)
    again = prepared("again", once / "train.parquet", suffix=LINE)
    assert sorted(questions(again, "train")) == sorted(questions(once, "train"))
    (tmp_path / "qa.jsonl").write_text('{"question": " ", "answer": "1"}\n{"question": "Why?", "answer": "So."}\n')
    assert questions(prepared("two", tmp_path / "qa.jsonl", suffix=LINE), "train") == [f"Why?\n{LINE}"]


def test_the_last_turn_gets_it(prepared, tmp_path):
    turns = '{"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}, '
    turns += '{"role": "user", "content": "C?"}, {"role": "assistant", "content": "D."}]}\n'
    (tmp_path / "chat.jsonl").write_text(turns)
    (row,) = pq.read_table(prepared("chat", tmp_path / "chat.jsonl", suffix="é") / "train.parquet").to_pylist()
    assert [turn["content"] for turn in row["prompt"]] == ["A?", "B.", "C?\né"]
    assert row["reward_model"]["ground_truth"] == "D."


def test_another_line_is_another_recipe(prepared):
    prepared("out", suffix=LINE)
    prepared("out", suffix=LINE)
    with pytest.raises(DataError, match="other suffix"):
        prepared("out")
