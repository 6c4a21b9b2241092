"""What the runs of a study begin from, as it is planned, as its commands make it and as it is trained on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from nrt_analysis.report.paper import paper
from typer.testing import CliRunner

from nrt_cli.checks import estimate
from nrt_cli.cli import app
from nrt_cli.config.study import load_study, planned_runs
from nrt_cli.data.examples import load_examples, suffix_of
from nrt_cli.errors import DataError
from nrt_cli.files import read_record
from nrt_cli.models.loading import load_tokenizer
from nrt_cli.workflows.study import make_inputs, plan_study

CAPS = (34, 8)
"""Tokens of a prompt and of an answer, which the response's cap bounds: some rows of the file below have more."""


@pytest.fixture
def study(tmp_path: Path, make_tiny_tokenizer: Callable[..., Any], make_tiny_source: Callable[..., Path]) -> Path:
    rows = [{"question": "?" * (1 + i % 20), "answer": f"{i}" + "!" * (i % 11)} for i in range(240)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_tiny_source(tmp_path / "source", make_tiny_tokenizer())
    file = tmp_path / "small.yaml"
    file.write_text(
        "title: Small\n"
        f"model: {{name: small, source: '{tmp_path / 'source'}'}}\n"
        f"data: {{sources: ['{tmp_path / 'qa.jsonl'}'], train: 40, validation: 3}}\n"
        f"run:\n  data: {{max_prompt_tokens: {CAPS[0]}, max_answer_tokens: {CAPS[1] + 2}}}\n"
        f"  rollout: {{max_response_tokens: {CAPS[1] + 2}}}\n"
        "  train: {batch_size: 8, minibatch_size: 8}\n"
        "methods: [sft, am]\nseeds: [0]\n"
    )
    return file


@pytest.mark.slow
def test_exactly_as_many_rows_as_are_planned_are_left_to_train_on(study: Path, tmp_path: Path, nrt_in: Any) -> None:
    asked = load_study(str(study))
    folder = tmp_path / "made"
    make_inputs(folder, asked, lambda *told: None)
    manifest = read_record(folder / "data" / "manifest.json")
    assert {"long-prompt", "long-answer"} <= set(manifest["counts"]["dropped"])
    tokenizer = load_tokenizer(folder / "models" / "small")
    found = load_examples(folder / "data" / "train.parquet", tokenizer, *CAPS)
    assert (len(found), found.dropped) == (40, {})  # a run drops none of them
    plan = plan_study(folder, asked)
    assert [(run["examples"], run["steps"]) for run in plan["runs"]] == [(40, 5)] * 2

    # The commands that the plan prints make the same.
    again = plan_study(Path("by-hand"), asked)["commands"]
    run = nrt_in(tmp_path)
    for command in again[:2]:
        done = run(*command.split()[1:])
        assert done.code == 0, done.err
    rows = [pq.read_table(at / "data" / "train.parquet").to_pylist() for at in (folder, tmp_path / "by-hand")]
    assert rows[0] == rows[1]


def test_a_plan_is_shown_of_a_model_that_is_not_made_yet_with_what_this_cpu_takes(study: Path) -> None:
    shown = CliRunner().invoke(app, ["reproduce", str(study), "--dry-run", "--set", "run.model.device=cpu"])
    assert shown.exit_code == 0, shown.output
    # Not sft's run, which is shorter.
    assert re.search(r"am, local .* small, [\d,]+ parameters", " ".join(shown.output.split()))
    assert re.search(r"disk; [\d.,]+ hours of training on this CPU", " ".join(shown.output.split()))
    assert "nan" not in shown.output
    with pytest.raises(DataError, match="--size counts what is held out too"):
        plan_study(Path("study"), load_study(str(study), ["data.size=50"]))


def test_a_last_line_of_every_question_is_in_pairs_and_commands(tmp_path: Path) -> None:
    asked = load_study("real", ["data.sources=['generated:shopping?size=12']", "data.size=12", "data.validation=4"])
    (apart, pairs) = [c for c in plan_study(tmp_path, asked)["commands"] if c.startswith("nrt data prepare")]
    assert asked.data.suffix
    assert f"--suffix '{asked.data.suffix}'" in apart
    assert f"--suffix '{asked.data.suffix}'" in pairs
    make_source = asked.model.model_copy(update={"source": "builtin:digits"})
    make_inputs(tmp_path, asked.model_copy(update={"model": make_source}), lambda *told: None)
    for file in ("data/train.parquet", "held-out/train.parquet"):
        questions = [row[0]["content"] for row in pq.read_table(tmp_path / file).column("prompt").to_pylist()]
        assert questions
        assert all(question.endswith(f"\n{asked.data.suffix}") for question in questions)
        assert suffix_of(tmp_path / file) == asked.data.suffix


@pytest.mark.parametrize("name", ["paper-3b", "paper-mistral-7b", "paper-8b"])
def test_the_papers_rows_are_one_number_everywhere(name: str) -> None:
    """Table 4's total is what studies draw, plans assume and 800 steps of 256 use up."""
    rows = sum(paper()["composition"].values())
    asked = load_study(name)
    assert rows == asked.data.train == estimate.PAPER_EXAMPLES == 800 * 256
    assert (asked.data.selection, asked.data.seed, asked.data.validation) == ("train-test-split", 42, 1024)
    assert (asked.data.size, asked.data.duplicates) == (220_000, True)
    plan = plan_study(Path("study"), asked)
    assert {run["examples"] for run in plan["runs"]} == {rows}
    # SFT has a batch size of its own.
    assert {run["steps"] for run in plan["runs"] if run["method"] != "sft"} == {800}
    readme = Path("configs/README.md").read_text(encoding="utf-8")
    assert f"--train {rows} " in readme
    longest = next(planned_runs(asked, Path("study"))).config.longest_answer
    assert f"--max-answer-tokens {longest}\n" in readme
    assert f" --max-answer-tokens {longest} " in next(c for c in plan["commands"] if c.startswith("nrt data"))
    assert readme.count("| 800 |") == 3
