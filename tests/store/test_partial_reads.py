"""Reading the beginning of what may be long: traces, documents, lines."""

import json

import pytest

from nrt_cli.errors import StoreError
from nrt_cli.records import TRACE_COLUMNS, Document, TraceRow
from nrt_cli.store import Run
from nrt_cli.store.evals import DOCUMENTS, Evaluation
from nrt_cli.store.files import lines


@pytest.fixture
def run(tmp_path):
    """Seven rows of one trace file; all but three columns are null."""
    made = Run.create(tmp_path / "run", "{}", {"method": "am"})
    made.write_traces("step-000001", [TraceRow(example=i, trace=f"t{i}", trace_ids=[i]) for i in range(7)])
    return made


def test_the_first_rows_are_those_of_all_rows(run):
    every = run.traces("step-000001")
    assert len(every) == 7
    for first in (1, 3, 7, 100):
        assert run.traces("step-000001", first=first) == every[:first]
    assert run.traces("step-000001", ("example", "gain"), first=2) == [{"example": i, "gain": None} for i in (0, 1)]
    assert list(every[0]) == list(TRACE_COLUMNS)


def test_rows_are_counted(run):
    run.write_traces("step-000002", [])
    assert [run.count_traces(name) for name in run.trace_names()] == [7, 0]
    assert run.traces("step-000002", first=5) == []


def test_missing_traces_are_named(run):
    with pytest.raises(StoreError, match="stored are step-000001"):
        run.traces("step-000009", first=1)


def test_a_column_that_the_file_lacks_is_null(run):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"example": [4]}), run.path / "traces" / "step-000003.parquet")
    assert run.traces("step-000003", ("example", "trace"), first=1) == [{"example": 4, "trace": None}]


def test_the_first_documents_of_an_evaluation(tmp_path):
    evaluation = Evaluation.create(tmp_path, "gsm8k", {}, {})
    for key in "abc":
        evaluation.append(Document("gsm8k", "", key, (), "42"))
    assert [document.id for document in evaluation.documents(2).values()] == ["a", "b"]
    assert evaluation.documents(9) == evaluation.documents()
    with (evaluation.path / DOCUMENTS).open("a") as file:
        file.write('{"torn')
    assert len(evaluation.documents(9)) == 3


def test_lines_end_at_line_feeds_only(tmp_path):
    """What JSON may hold unescaped, such as U+2028, ends no line; nor does a carriage return."""
    path = tmp_path / "x.jsonl"
    records = [{"text": "a\u2028b\u0085c"}, {"text": "\r\n"}]
    path.write_bytes(b"\n".join(json.dumps(r, ensure_ascii=False).encode() for r in records) + b'\n[1]\n\xff\n{"b": 1}')
    assert list(lines(path)) == [*records, {"b": 1}]
    assert list(lines(tmp_path / "none")) == []
