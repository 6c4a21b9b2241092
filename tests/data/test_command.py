"""`nrt data prepare` as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nrt_cli.commands.data import app
from nrt_cli.errors import DataError
from nrt_cli.files import read_record


def run(*args: object) -> str:
    ran = CliRunner().invoke(app, ["prepare", *map(str, args)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output


def in_a_process(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "nrt_cli", "data", "prepare", "qa.jsonl", "--out", "out", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_a_person_reads_a_summary_and_the_next_command(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text('{"q": "1", "a": "2"}\n' * 2 + '{"q": "3", "a": "4"}\n{"q": "5", "a": ""}\n')
    ran = in_a_process(tmp_path, "--map", "question=q,answer=a", "--validation", "0.5")
    assert (ran.returncode, ran.stderr) == (0, "")
    words = " ".join(ran.stdout.split())
    for part in (
        "rows read 4",
        "dropped, empty-answer 1",
        "dropped, duplicate 1",
        "kept 2 train 1 validation 1",
        "qa.jsonl │ 2 │ 100.00%",
        "Written to out: train.parquet, validation.parquet, dropped.jsonl",
        "--data out/train.parquet --validation out/validation.parquet",
    ):
        assert part in words


def test_a_script_reads_the_manifest(tmp_path: Path) -> None:
    printed = run("generated:sums?size=30", "--out", tmp_path / "out", "--validation", 10, "--size", 20, "--json")
    manifest = json.loads(printed)
    assert manifest == read_record(tmp_path / "out" / "manifest.json")
    assert (manifest["counts"]["train"], manifest["counts"]["validation"]) == (10, 10)


def test_an_error_is_one_sentence_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text('{"question": "1", "answer": "2"}\n{"question": \n')
    ran = in_a_process(tmp_path, "--strict")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "nrt: qa.jsonl:2: not valid JSON (Expecting value at column 14).\n"


def test_limits_are_measured_with_the_models_tokenizer(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "qa.jsonl").write_text('{"question": "1", "answer": "!!"}\n{"question": "1", "answer": "!!!"}\n')
    limits = ("--tokenizer", tiny_model_dir, "--max-answer-tokens", 3)
    manifest = json.loads(run(tmp_path / "qa.jsonl", "--out", tmp_path / "out", *limits, "--json"))
    assert manifest["counts"]["dropped"] == {"long-answer": 1}
    assert len(manifest["tokenizer"]) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--validation", "all"), "--validation all: give a number of questions"),
        (("--validation", "1.0"), "a share below 1"),
        (("--validation", "-3"), "give a number of questions"),
        (("--max-prompt-tokens", "5"), "need --tokenizer FOLDER"),
        (("--tokenizer", "model"), "no effect without --max-prompt-tokens"),
        (("--stratify",), "--stratify has no effect without --size, --train or --validation"),
        (("--size", "4", "--train", "3"), "give one of them"),
        (("--train", "3", "--validation", "0.2"), "--train needs a number of questions"),
        (("--selection", "train-test-split"), "needs --validation"),
        (("--selection", "train-test-split", "--validation", "1", "--stratify"), "leave out --stratify"),
        (("--map", "question=q"), "name both question and answer"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run("generated:sums?size=5", "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_what_was_not_read_is_said(tmp_path: Path) -> None:
    rows = [{"instruction": f"do {i}", "input": "this", "output": str(i), "id": i} for i in range(6)]
    lines = [json.dumps(row) for row in rows] + ["{broken", '{"instruction": "x"}', "[1]", "[2]"]
    (tmp_path / "qa.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    mapping = ("--map", "question=instruction,answer=output", "--grader", "number")
    words = " ".join(run(tmp_path / "qa.jsonl", "--out", out, *mapping).split())
    for part in (
        "dropped, unreadable 4",
        "4 rows could not be read, listed with the reason in",
        "qa.jsonl:7: not valid JSON",
        "qa.jsonl:8: --map names column 'output'; found 'instruction'. qa.jsonl:9: a row is a JSON object",
        "...",
        "Columns that hold something and were not used: input (6 rows), id (6 rows). --map can name question, answer, "
        "context,",
        "│ 100.00% │ number │",
    ):
        assert part in words
    with pytest.raises(DataError, match=r"qa\.jsonl:7: not valid JSON"):
        run(tmp_path / "qa.jsonl", "--out", tmp_path / "strict", *mapping, "--strict")
    mapping = ("--map", "question=instruction,answer=output,context=input")
    assert "not used: id (6 rows)" in run(tmp_path / "qa.jsonl", "--out", tmp_path / "whole", *mapping)


def test_an_output_of_an_earlier_version_is_kept_and_its_split_is_said(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}", "answer": "a"}) + "\n" for i in range(9))
    )
    command = (tmp_path / "qa.jsonl", "--out", tmp_path / "out", "--validation", 3)
    run(*command)
    manifest = read_record(tmp_path / "out" / "manifest.json")
    for key in ("questions", "graders", "unreadable", "unused_columns", "textless_turns"):
        del manifest[key]
    for key in ("grader", "train", "duplicates", "selection"):
        del manifest["settings"][key]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    words = " ".join(run(*command).split())
    assert "already holds exactly this" in words
    assert "split by row: --overwrite splits it by question" in words
    with pytest.raises(DataError, match=r"made with other duplicates \(False, now True\)"):
        run(*command, "--keep-duplicates")
    assert "already" not in run(*command, "--overwrite")
