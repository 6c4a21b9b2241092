"""Rows of benchmarks that are not as they should be: one sentence with file and row, no traceback, no silent 0."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("lm_eval")

from nrt_cli.config.suite import benchmark, own_benchmark
from nrt_cli.errors import DataError
from nrt_cli.evaluation.benchmark import Benchmark

CASES = yaml.safe_load((Path(__file__).parent / "malformed_rows.yaml").read_text())
GOOD = {
    "gsm8k": {"question": "What is 1 + 1?", "answer": "#### 2"},
    "mmlu": {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "anatomy"},
    "bbh": {"input": "q", "target": "(A)"},
    "drop": {
        **{"passage": "p", "question": "q", "answers": [["2"]]},
        "validated_answers": {"number": [], "date": [], "spans": []},
    },
    "popqa": {"question": "q", "possible_answers": ["a"]},
    "truthfulqa": {"question": "q", "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]}},
    "ifeval": {"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "humaneval": {"task_id": "t", "prompt": "def f():", "test": "def check(f): ...", "entry_point": "f"},
    "own": {"ask": "q", "answer": "1", "options": ["a", "b"], "possible_answers": ["a"], "answers": [["a"]]},
}


def said_of(spec: Any, data_dir: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        Benchmark(spec).check(data_dir, allow_unsafe_code=True)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def write(file: Path, *rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    if file.suffix == ".csv":
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    elif file.suffix == ".json":
        json.dump(rows, text)
    else:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    file.write_text(text.getvalue())
    return file


@pytest.mark.parametrize(("kind", "where"), [("jsonl", "2"), ("json", "row 2"), ("csv", "3"), ("parquet", "row 2")])
@pytest.mark.parametrize("column", ["question", "answer"])
def test_what_a_row_lacks_is_said_alike_in_every_format(tmp_path: Path, kind: str, where: str, column: str) -> None:
    file, good = tmp_path / "gsm8k" / f"test.{kind}", GOOD["gsm8k"]
    write(file, good, {**good, column: None})
    assert said_of(benchmark("gsm8k"), tmp_path).startswith(f"{file}:{where}: has no {column!r}; where it stands, ")
    write(file, good, good)
    assert Benchmark(benchmark("gsm8k")).check(tmp_path) == []


@pytest.mark.parametrize(("name", "content", "said"), CASES["files"])
def test_a_file_that_is_none(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / name).write_bytes(content.encode().replace(rb"\xe9", b"\xe9"))
    assert said in said_of(benchmark("gsm8k"), tmp_path)


def test_a_mark_of_byte_order_is_no_part_of_a_row(tmp_path: Path) -> None:
    for kind in ("jsonl", "json", "csv"):
        file = write(tmp_path / kind / "gsm8k" / f"test.{kind}", GOOD["gsm8k"])
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        (document,) = Benchmark(benchmark("gsm8k")).documents(tmp_path / kind)
        assert (document.messages[0]["content"], document.gold) == ("Question: What is 1 + 1?\nAnswer:", "2")


@pytest.mark.parametrize(("name", "other", "said"), CASES["rows"])
def test_a_column_of_another_type(tmp_path: Path, name: str, other: dict[str, Any], said: str) -> None:
    folder = name.partition("/")[0]
    file = write(tmp_path / f"{name}.jsonl", GOOD[folder], {**GOOD[folder], **other})
    found = said_of(benchmark(folder), tmp_path)
    assert found.startswith(f"{file}:2: ")
    assert said in found


@pytest.mark.parametrize(("prompt", "grader", "other", "said"), CASES["own"])
def test_a_users_rows(tmp_path: Path, prompt: str, grader: str, other: dict[str, Any], said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"rows": "mine.jsonl", "prompt": prompt, "grader": grader}))
    file = write(tmp_path / "mine.jsonl", GOOD["own"], GOOD["own"] | other)
    found = said_of(own_benchmark(path))
    assert found.startswith(f"{file}:2: ")
    assert said in found


def test_numbers_of_rows_are_numbers(tmp_path: Path) -> None:
    """What a prompt or a user's function computes with."""
    (tmp_path / "mine.yaml").write_text('{rows: mine.json, prompt: "{{price * 2}}?", grader: number}')
    write(tmp_path / "mine.json", {"price": 1.5, "answer": 3})
    (document,) = Benchmark(own_benchmark(tmp_path / "mine.yaml")).documents(None)
    assert (document.messages[0]["content"], document.gold) == ("3.0?", "3")
