"""Questions that are trained on and asked again are said, recorded and shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from nrt_cli.checks.preflight import Candidate, held_out, overlap
from nrt_cli.cli import app
from nrt_cli.config import to_yaml
from nrt_cli.config.suite import NAMES, benchmark, own_benchmark
from nrt_cli.data.packaged import DOCUMENTS
from nrt_cli.errors import DataError
from nrt_cli.evaluation.rows import questions_here
from nrt_cli.measures.held_out import overlap_described, overlap_warnings
from nrt_cli.progress import Progress
from nrt_cli.records import Overlap
from nrt_cli.store import Run
from nrt_cli.training.start import load_inputs
from nrt_cli.workflows.train import train

EVAL_DATA = Path(__file__).parents[1] / "eval_data"


def asking(path: Path, *questions: str) -> str:
    rows = [
        {"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": str(number)}}
        for number, text in enumerate(questions)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture
def compared(tiny_config: Callable[..., Any], tmp_path: Path) -> Callable[..., Overlap]:
    def compare(train: list[str], held_out: list[str], *overrides: str) -> Overlap:
        files = (asking(tmp_path / "train.parquet", *train), asking(tmp_path / "validation.parquet", *held_out))
        config = tiny_config(f"data.train={files[0]}", f"data.validation={files[1]}", *overrides)
        return overlap(config, load_inputs(config))

    return compare


def test_held_out_questions_are_compared_as_they_are_rendered(compared: Callable[..., Overlap]) -> None:
    found = compared(["1 + 1?", "2 + 2?", "3 + 3?", "4 + 4?"], [" 1  + 1?", "2 + 2?", "2 + 2?", "5 + 5?"])
    assert (found.shared_with_validation, found.validation_questions) == (2, 3)
    (said,) = overlap_warnings(found)
    assert said.startswith("2 of 3 held-out questions are in the training data, so held-out figures flatter")


def test_the_same_file_twice_is_said_recorded_and_does_not_stop(
    tiny_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("method=sft", "train.steps=1")
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation": config.data.train})})
    train(tmp_path / "run", config, False, Progress)
    data = Run.open(tmp_path / "run").manifest()["data"]
    assert (data["shared_with_validation"], data["validation_questions"]) == (40, 40)
    assert "warning: 40 of 40 held-out questions are in the training data" in capsys.readouterr().err


def test_benchmarks_whose_documents_are_here_are_looked_for(compared: Callable[..., Overlap], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (EVAL_DATA / "gsm8k" / "test.jsonl").read_text().splitlines()]
    first = f"Solve this.\n\n{rows[0]['question'].upper()}"
    others = [f"{i} + {i}?" for i in range(4)]
    found = compared([first, *others], ["9 + 9?"], f"eval.data_dir={EVAL_DATA}")
    assert found.shared_with_validation == 0
    assert found.shared_with_benchmarks == dict.fromkeys(found.benchmark_documents, 0) | {"gsm8k": 1}
    assert found.benchmark_documents["gsm8k"] == len(rows)
    (said,) = overlap_warnings(found)
    assert said.startswith(f"1 of {len(rows)} documents of gsm8k are in the training data")
    assert f"gsm8k 1 of {len(rows)}" in overlap_described(found)
    # Without a folder, what a package on this machine carries is left.
    assert set(compared(others, ["9 + 9?"]).benchmark_documents) <= {*DOCUMENTS}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_every_benchmark_is_found_in_what_it_asks(name: str) -> None:
    """The prompt that the benchmark itself makes of a document holds what the document is known by."""
    from nrt_cli.evaluation.benchmark import load_suite
    from nrt_cli.text.questions import KnownDocuments

    (suite,) = load_suite([name])
    documents = suite.documents(EVAL_DATA)
    known = KnownDocuments(questions_here(benchmark(name), EVAL_DATA))
    found = set().union(*(known.found_in("\n".join(turn["content"] for turn in doc.messages)) for doc in documents))
    assert len(found) >= 0.9 * len(documents)


def test_documents_that_are_nowhere_here_are_not_looked_for(tmp_path: Path) -> None:
    assert questions_here(benchmark("popqa"), None) == questions_here(benchmark("popqa"), tmp_path) == []
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text("{broken")
    assert questions_here(benchmark("gsm8k"), tmp_path) == []  # `nrt eval` says what is wrong


def test_doctor_and_dry_run_say_it(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    config = tiny_config("method=sft")
    finding = held_out(Candidate(config))
    assert finding.verdict == "ok"
    assert finding.found.startswith("In the training data too: 0 of 8 held-out questions; documents of benchmarks: ")
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation": config.data.train})})
    finding = held_out(Candidate(config))
    assert finding.verdict == "warning"
    assert "nrt data prepare" in finding.do
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    ran = CliRunner().invoke(app, ["train", str(tmp_path / "config.yaml"), "--run", str(tmp_path / "r"), "--dry-run"])
    assert "40 of 40 held-out questions are in the training data" in " ".join(ran.output.split())


def test_a_users_benchmark_is_looked_for_too(tiny_config: Callable[..., Any], tmp_path: Path, nrt: Any) -> None:
    asked = [f"{i} + {i}?" for i in range(4)]
    train = asking(tmp_path / "train.parquet", "What is the capital of Norway?", *asked)
    config = tiny_config("method=sft", f"data.train={train}")
    own, rows = tmp_path / "mine.yaml", tmp_path / "mine.csv"
    own.write_text('{rows: mine.csv, prompt: "{{ask}}", grader: exact}')
    rows.write_text("ask,answer\nWhat is the capital of Norway?,Oslo\nWhat is not there?,x\n")
    found = held_out(Candidate(config, benchmarks=(own_benchmark(own),)))
    assert (found.verdict, "1 of 2 documents of mine are in the training data" in found.text) == ("warning", True)
    assert found.details["benchmark_documents"]["mine"] == 2
    rows.write_text("ask\nq\n")
    with pytest.raises(DataError, match=r"mine.csv:2: has no 'answer'; it has ask\."):
        held_out(Candidate(config, benchmarks=(own_benchmark(own),)))
    ended = nrt("doctor", "laptop", "--data", train, "--benchmarks", "gsm8k")
    assert (ended.code, "--benchmarks gsm8k: the suite's are looked for anyway" in ended.err) == (2, True)
    ended = nrt("doctor", "--benchmarks", own)
    assert (ended.code, "--benchmarks has no effect without training data" in ended.err) == (2, True)


def test_both_numbers_are_described() -> None:
    assert overlap_described(Overlap(None, 0, {}, {})) == (
        "In the training data too: nothing is held out; documents of benchmarks: none were on the machine to compare "
        "with."
    )
    some = Overlap(2, 1000, {"gsm8k": 0, "mmlu": 3}, {"gsm8k": 1319, "mmlu": 14042})
    assert overlap_described(some) == (
        "In the training data too: 2 of 1,000 held-out questions; documents of benchmarks: gsm8k 0 of 1,319, mmlu 3 of "
        "14,042."
    )
    assert len(list(overlap_warnings(some))) == 2
