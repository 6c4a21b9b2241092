"""Readers against small files written here."""

import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_cli.data import generated, sources
from nrt_cli.data.sources import Row, open_sources
from nrt_cli.errors import DataError

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "a\nb", "answer": 'c, "d"'}]


def read(*specs: object) -> list[Row]:
    return [row for source in open_sources([str(spec) for spec in specs]) for row in source.rows()]


def written(folder: Path, kind: str) -> Path:
    path = folder / f"qa.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "csv":
        path.write_text('question,answer\n1+1?,2\n"a\nb","c, ""d"""\n')
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize(("kind", "second"), [("jsonl", "2"), ("json", "row 2"), ("csv", "3"), ("parquet", "row 2")])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str, second: str) -> None:
    rows = read(written(tmp_path, kind))
    assert [row.values for row in rows] == ROWS
    assert rows[1].where == f"qa.{kind}:{second}"
    assert rows[0].origin == f"qa.{kind}"


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "qa.jsonl")
    with pytest.raises(DataError, match=r"qa\.jsonl: is a pipe, .* write them to a file first"):
        read(tmp_path / "qa.jsonl")


def test_a_folder_is_read_in_the_order_of_names_and_names_tell_files_apart(tmp_path: Path) -> None:
    for folder in ("b", "a"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, "jsonl")
    (tmp_path / "LICENSE").write_text("not data")
    assert [row.where for row in read(tmp_path)] == ["a/qa.jsonl:1", "a/qa.jsonl:2", "b/qa.jsonl:1", "b/qa.jsonl:2"]


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "q"}\n\n  \n{"question": "r"}')
    assert [row.where for row in read(path)] == ["qa.jsonl:1", "qa.jsonl:4"]


BAD: list[tuple[str, bytes, str]] = [
    ("qa.json", b'[{"a": 1},\n{"a": }]', r"qa\.json:2: not valid JSON \(Expecting value\)"),
    ("qa.json", b'[{"a": 1}\n{"a": 2}]', r"qa\.json:2: not valid JSON \(expected , or \]"),
    ("qa.json", b'[{"a": 1},', r"qa\.json:1: not valid JSON"),
    ("qa.json", b'{"a": 1}', r"expected an array of rows; for one object a line, name the file \.jsonl"),
    ("qa.json", b'[{"a": 1}]\n[{"a": 2}]', r"qa\.json:2: not valid JSON \(there is more after the array of rows\)"),
    ("qa.json", b'[{"a": 1},\n{"a": 1, "a": 2}]', r"qa\.json:2: not valid JSON \(column 'a' is given twice"),
    ("qa.json", b'[{"a": ' + b"[" * 99_999, r"qa\.json:1: not valid JSON \(it is nested too deeply\)"),
    ("qa.json", b"", r"qa\.json:1: not valid JSON"),
    ("qa.csv", b'a,b\n1,"2\n', r"qa\.csv:2: not valid CSV \(a quote that opens here is not closed\)"),
    ("qa.csv", b'"a"b,c\n1,2\n', r"qa\.csv:1: the names of the columns are not valid CSV"),
    ("qa.csv", b"a,a\n1,2\n", r"qa\.csv:1: two columns have the same name, 'a'"),
    ("qa.csv", b"fran\xe7ais,b\n1,2\n", r"qa\.csv:1: the names of the columns are not UTF-8 text"),
    ("qa.parquet", b"PAR1 not really", r"qa\.parquet: not a readable Parquet file"),
    ("qa.parquet", b"", r"qa\.parquet: not a readable Parquet file"),
    ("qa.txt", b"hello", r"cannot tell the format; name it \.jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_malformed_file_is_named_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


BAD_ROWS: list[tuple[str, bytes, str, str]] = [
    ("qa.jsonl", b'{"a": 1}\n{"a": \n{"a": 2}', "qa.jsonl:2", "not valid JSON (Expecting value at column 7)"),
    ("qa.jsonl", b'{"a": 1}\n[1]\n{"a": 2}', "qa.jsonl:2", "a row is a JSON object of columns, found list"),
    ("qa.jsonl", b'{"a": 1}\n{"a": "\xff"}\n{"a": 2}', "qa.jsonl:2", "bytes that are not UTF-8"),
    ("qa.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n{"a": 2}', "qa.jsonl:2", "column 'a' is given twice"),
    ("qa.jsonl", b'{"a": 1}\n' + b"[" * 99_999 + b'\n{"a": 2}', "qa.jsonl:2", "nested too deeply"),
    ("qa.json", b'[{"a": 1},\n7, {"a": 2}]', "qa.json:row 2", "a row is a JSON object of columns, found int"),
    ("qa.csv", b"a\n1\n1,2,3\n2\n", "qa.csv:3", "3 fields where the header names 1"),
    ("qa.csv", b'a\n1\n"x"y\n2\n', "qa.csv:3", "not valid CSV"),
    ("qa.csv", b'a\n1\n"caf\xe9\nau lait"\n2\n', "qa.csv:3", "bytes that are not UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "where", "problem"), BAD_ROWS)
def test_a_row_that_cannot_be_read_is_told_and_those_after_it_are_read(
    tmp_path: Path, name: str, content: bytes, where: str, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    before, bad, after = read(tmp_path / name)
    assert (bad.where, bad.values) == (where, {})
    assert problem in bad.problem
    assert [str(row.values["a"]) for row in (before, after)] == ["1", "2"]
    assert not before.problem + after.problem


def test_whole_numbers_of_any_length_keep_their_digits(tmp_path: Path) -> None:
    digits = "7" * 5000
    (tmp_path / "qa.jsonl").write_text(f'{{"a": {digits}}}')
    (tmp_path / "qa.json").write_text(f'[{{"a": -{digits}}}, {{"a": {2**80}}}]')
    (tmp_path / "qa.csv").write_text(f"a\n{digits}\n")
    values = [row.values["a"] for name in ("jsonl", "json", "csv") for row in read(tmp_path / f"qa.{name}")]
    assert values == [digits, f"-{digits}", 2**80, digits]


def test_other_numbers_of_json_stay_as_they_are_spelled(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text('{"a": 3.10, "b": 1e-5, "c": NaN}')
    (row,) = read(tmp_path / "qa.jsonl")
    assert (row.values["a"], row.values["b"], math.isnan(row.values["c"])) == ("3.10", "1e-5", True)


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["q"]), pa.array(["a"]), pa.array(["b"])], ["question", "answer", "answer"])
    pq.write_table(table, tmp_path / "qa.parquet")
    with pytest.raises(DataError, match=r"qa\.parquet: two columns have the same name, 'answer'"):
        read(tmp_path / "qa.parquet")


def test_a_parquet_cell_that_python_has_no_value_for_harms_no_other(tmp_path: Path) -> None:
    when = pa.array([0, 2**62], pa.timestamp("ms"))  # the second is in a year that Python does not know
    pq.write_table(pa.table({"question": ["coffee", "tea"], "when": when}), tmp_path / "qa.parquet")
    first, second = read(tmp_path / "qa.parquet")
    assert (first.values["question"], second.values["question"]) == ("coffee", "tea")
    assert isinstance(second.values["when"], ValueError)


def test_hidden_copies_are_no_data_and_capitals_do_not_hide_a_suffix(tmp_path: Path) -> None:
    for folder in (".ipynb_checkpoints", "__MACOSX", "a/.git"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "QA.JSONL").write_text('{"question": "q"}')
    for copy in (".ipynb_checkpoints/QA-checkpoint.jsonl", "__MACOSX/._QA.jsonl", "a/.git/x.csv", ".hidden.json"):
        (tmp_path / copy).write_text("not data")
    assert [row.where for row in read(tmp_path)] == ["QA.JSONL:1"]
    (tmp_path / ".hidden.json").write_text('[{"question": "r"}]')
    assert [row.where for row in read(tmp_path / ".hidden.json")] == [".hidden.json:row 1"]  # by name it is meant


@pytest.mark.parametrize("spec", ["missing.jsonl", "owner/missing.jsonl", "missing"])
def test_a_missing_file_is_said_to_be_missing(spec: str) -> None:
    with pytest.raises(DataError, match=f"^{spec}: no such file or folder"):
        read(spec)


def test_an_empty_folder_and_a_source_given_twice_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.jsonl"):
        read(tmp_path)
    path = written(tmp_path, "jsonl")
    with pytest.raises(DataError, match="given twice"):
        read(path, tmp_path / "." / "qa.jsonl")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
json_rows = st.lists(st.dictionaries(st.text(max_size=4), json_values, max_size=3), max_size=8)


@settings(deadline=None, max_examples=60)  # files and a busy machine
@given(rows=json_rows, block=st.integers(1, 40), indent=st.sampled_from([None, 0, 2]))
def test_a_json_array_reads_the_same_in_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], block: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "qa.json"
    path.write_text(json.dumps(rows, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_BLOCK", block)
        assert [row.values for row in read(path)] == rows


def test_generated_rows_depend_on_task_seed_and_index_alone() -> None:
    few, many = read("generated:sums?size=5&seed=3"), read("generated:sums?size=50&seed=3")
    assert few == many[:5]
    assert few != read("generated:sums?size=5&seed=4")


def test_generated_tasks_share_the_size_evenly() -> None:
    rows = read("generated:sums,shopping?size=5")
    assert [row.origin for row in rows] == ["generated:sums"] * 3 + ["generated:shopping"] * 2


def test_generated_answers_are_right() -> None:
    for row in read("generated:sums?size=200"):
        numbers = _numbers(row.values["question"])
        assert 2 <= len(numbers) <= 4
        assert row.values["answer"] == str(sum(numbers))
    for row in read("generated:shopping?size=200"):
        question = row.values["question"]
        # Two phrases tell count and price of one product, then of the other; one tells both prices first.
        first, second, third, fourth = _numbers(question)
        prices_first = "What is the price of" in question
        n, p, m, q = (third, first, fourth, second) if prices_first else (first, second, third, fourth)
        assert row.values["answer"] == str(n * p + m * q)


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def test_fingerprints_change_with_content_and_options(tmp_path: Path) -> None:
    def of(spec: object) -> str:
        return open_sources([str(spec)])[0].fingerprint()

    path = written(tmp_path, "jsonl")
    before = of(path)
    path.write_text(path.read_text() + "\n")
    assert of(path) != before
    assert of("generated:sums?size=5") == of("generated:sums?size=5&seed=0")
    assert of("generated:sums?size=5") != of("generated:sums?size=6")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("generated:sum", "no task 'sum'; there are sums"),
        ("generated:sums?rows=5", "unknown option 'rows'; known are size, seed"),
        ("generated:sums?size=many", "size must be a whole number of at most 18 digits, not 'many'"),
        *(
            (f"generated:sums?size={size}", "size must be a whole number of at most 18 digits")
            for size in ("9" * 5000, "9" * 19, "-1", "1.5", "")  # the first is also longer than a file's name may be
        ),
        ("generated:sums,sums", "'sums' is named twice"),
    ],
)
def test_a_wrong_generator_says_what_there_is(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(spec)


def test_task_names_are_the_ones_documented() -> None:
    kinds = ("digits", "digits-by-lot", "reports", "sets")
    assert set(generated.TEXTS) == {"digits-text", "digits-text-held-out"}
    assert set(generated.TASKS) == {"sums", "shopping", *kinds, *(f"{kind}-held-out" for kind in kinds)}


def test_shared_elements_are_counted_and_nothing_held_out_is_trained_on() -> None:
    """By a second way to the answer, and with the two sets in either order."""
    seen = {}
    for task in ("sets", "sets-held-out"):
        rows = read(f"generated:{task}?size=1000")
        pairs = []
        for row in rows:
            program, asked = row.values["question"].split("\n")
            assert asked == "What does this program print?"
            one, other = (frozenset(_numbers(part)) for part in program.split("&"))
            assert len(one) == len(other) == 6
            assert row.values["answer"] == str(12 - len(one | other))
            pairs.append(frozenset((one, other)))
        seen[task] = set(pairs)
        answers = Counter(row.values["answer"] for row in rows)
        assert set(answers) == set("12345")
        assert max(answers.values()) < 250  # of 1000: no answer is a good guess
    assert len(seen["sets"]) > 900
    assert seen["sets"].isdisjoint(seen["sets-held-out"])


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A dataset folder without a script, which `datasets` reads as it reads one on the hub."""
    pytest.importorskip("datasets")
    folder = tmp_path / "maths"
    (folder / "data").mkdir(parents=True)
    for split, row in zip(("train", "test"), ROWS, strict=True):
        (folder / "data" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_a_hub_dataset_streams_the_split_asked_for(hub_folder: Path) -> None:
    assert [row.values for row in read(f"hub:{hub_folder}")] == ROWS[:1]
    test = read(f"hub:{hub_folder}?split=test")
    assert [(row.values, row.where, row.origin) for row in test] == [(ROWS[1], f"{hub_folder}:row 1", str(hub_folder))]


def test_a_wrong_hub_split_is_one_sentence(hub_folder: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Bad split: nope"):
        read(f"hub:{hub_folder}?split=nope")


@pytest.mark.parametrize(
    ("package", "extra", "spec"),
    [("datasets", "hub", "owner/name"), ("reasoning_gym", "generate", "reasoning-gym:chain_sum")],
)
def test_without_a_package_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str, spec: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(DataError, match=rf"pip install 'nrt-cli\[{extra}\]'"):
        read(spec)


def test_reasoning_gym_rows() -> None:
    pytest.importorskip("reasoning_gym")
    rows = read("reasoning-gym:chain_sum,gsm_symbolic?size=5&seed=1")
    assert [row.origin for row in rows] == ["reasoning-gym:chain_sum"] * 3 + ["reasoning-gym:gsm_symbolic"] * 2
    assert rows == read("reasoning-gym:chain_sum,gsm_symbolic?size=5&seed=1")
    assert all(row.values["question"] and row.values["answer"] for row in rows)
    with pytest.raises(DataError, match="no task 'chain_sun'; there are chain_sum"):
        read("reasoning-gym:chain_sun")
