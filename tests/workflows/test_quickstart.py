"""`nrt quickstart` whole, cut down to two tiny steps; what it trains on, and the model that it begins with."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from nrt_cli import config as configs
from nrt_cli.cli import app
from nrt_cli.commands import quickstart as command
from nrt_cli.commands import view
from nrt_cli.data import digits
from nrt_cli.files import sha256
from nrt_cli.measures.statistics import share_over_rows
from nrt_cli.models.sources import DIGITS
from nrt_cli.progress import Race, plot
from nrt_cli.store import Run
from nrt_cli.training.locate import locate_inputs
from nrt_cli.workflows import quickstart as workflow
from nrt_cli.workflows.quickstart import DIGITS as RECIPE

SMALL = (
    "train.steps=3", "train.batch_size=1", "train.validate_every=1", "rollout.max_trace_tokens=4",
    "train.validation_size=4", "train.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def quickstart(folder):
    """The command with the small settings, in one folder."""
    options = [part for key in SMALL for part in ("--set", key)]
    return lambda *more: CliRunner().invoke(app, ["quickstart", "--folder", str(folder), *options, *more])


@pytest.fixture(scope="module")
def first(quickstart):
    return quickstart()


@pytest.mark.slow
def test_it_trains_three_arms_that_differ_in_what_they_are(first, folder):
    assert first.exit_code == 0, first.output
    runs = {name: Run.open(folder / name) for name in RECIPE.arms}
    config = {name: run.config() for name, run in runs.items()}
    assert [config[name].method for name in RECIPE.arms] == ["sft", "ws-neg-log-p", "ws-neg-log-p"]
    assert [config[name].objective.weights.trace for name in ("control", "nrt")] == [0, 1]
    # All begin with the shipped weights.
    assert len({run.manifest()["fingerprints"]["model"] for run in runs.values()}) == 1
    for run in runs.values():
        scored = run.metrics("held_out")
        assert [record["step"] for record in scored] == [0, 1, 2, 3]
        assert all({"accuracy_thinking", "accuracy_direct"} & record.keys() for record in scored)


@pytest.mark.slow
def test_what_it_prints_is_what_the_runs_hold_and_answers(first, folder):
    rows = Run.open(folder / "nrt").held_out_rows(3)
    for kind in ("thinking", "null", "direct", "other_trace"):
        found = share_over_rows([float(row[f"{kind}_score"]) for row in rows])
        (line,) = re.findall(r"^NRT  .*", first.stdout, re.MULTILINE)
        assert f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]" in line
    assert "n = 4 held-out questions" in first.output
    assert "question by question: null trace" in " ".join(first.output.split())
    for step in range(4):  # one question is shown
        (line,) = re.findall(rf"^  step   {step}  .*", first.output, re.MULTILINE)
        row = Run.open(folder / "nrt").held_out_rows(step)[0]
        assert " ".join(row["thinking_reply"].split()) in line
        assert line.endswith("(right)" if row["thinking_score"] == 1 else "(wrong)")
    (words,) = re.findall(r"^  nrt generate (.+) '(Q : .+)'$", first.output, re.MULTILINE)
    asked = CliRunner().invoke(app, ["generate", *words])
    assert asked.exit_code == 0, asked.output


@pytest.mark.slow
def test_again_it_does_nothing_and_says_the_same(first, quickstart, folder):
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    again = quickstart()
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert written == {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.jsonl")}
    as_json = quickstart("--json")
    assert as_json.exit_code == 0, as_json.output
    record = json.loads(as_json.stdout.splitlines()[-1])
    assert [row["arm"] for row in record["rows"]] == ["untrained", *RECIPE.arms]
    assert record["questions"] == 4


@pytest.mark.slow
def test_lines_of_an_earlier_process_go_on(first, folder):
    races = []

    def race(titles, chance):
        races.append(Race(True, titles, chance))
        return races[0]

    workflow.quickstart(workflow.choose(RECIPE, folder, SMALL), race)
    for name, curve in races[0].curves.items():
        run = Run.open(folder / name)
        seconds = [record["seconds"] for record in run.metrics()]
        scored = [record.get("accuracy_thinking", record.get("accuracy_direct")) for record in run.metrics("held_out")]
        assert curve == [(pytest.approx(sum(seconds[:step])), scored[step]) for step in range(4)]


@pytest.mark.slow
def test_with_a_language_model_it_says_first_what_that_takes(tmp_path):
    small = (
        "train.steps=3", "train.batch_size=1", "train.validate_every=1", "train.validation_size=2", "train.threads=1",
        "rollout.max_trace_tokens=4", "rollout.group_size=2", "data.max_prompt_tokens=400", "data.max_answer_tokens=8",
    )  # fmt: skip
    words = ["quickstart", "--real", "--folder", str(tmp_path), *(part for key in small for part in ("--set", key))]

    def real(*more):
        return CliRunner().invoke(app, [*words, *more])

    made = real("builtin:tiny")
    assert made.exit_code == 0, made.output
    said = " ".join(made.stderr.split())
    assert re.search(r"million parameters, nothing to fetch; [\d.]+ MB of disk .* computed in b?float(32|16)", said)
    assert said.index("about NRT ") < said.index("step 0:")
    assert "chance" not in made.output
    table = re.findall(r"^(untrained|SFT|control|NRT)  ", made.stdout, re.MULTILINE)
    assert table == ["untrained", "NRT"]
    assert "What NRT thinks of the first held-out question" in made.stdout
    # The questions end in the line that keeps traces short, which the model remembers.
    (run,) = {re.search(r"^  nrt chat (.+)$", made.stdout, re.MULTILINE)[1]}
    assert Run.open(Path(run)).suffix() == "Answer with one short equation."

    # The other arms, beside what is there; what is there needs no word.
    more = real("--arms", "control,sft,nrt", "--json")
    assert more.exit_code == 0, more.output
    expected, *_, summary = map(json.loads, more.stdout.splitlines())
    assert expected["kind"] == "expected"
    assert [title for title, *_ in expected["arms"]] == ["SFT", "control"]
    assert [row["arm"] for row in summary["rows"]] == ["untrained", "sft", "control", "nrt"]
    assert "parameters" not in real("--arms", "nrt").stderr

    other = real("builtin:digits")
    assert other.exit_code != 0
    assert "its runs began from" in str(other.exception)


def test_what_stands_in_the_way_is_said_before_anything_is_made(tmp_path):
    for words, said in (
        (["--real", "nobody/nothing"], "hub cannot be read"),  # conftest: HF_HUB_OFFLINE=1
        (["--real", "missing.gguf"], "missing.gguf: no such folder or .gguf file"),
        (["--real", "--arms", "nrt,rl"], "--arms rl: choose some of sft,control,nrt"),
        (["builtin:tiny"], "nrt quickstart --real builtin:tiny"),
    ):
        done = CliRunner().invoke(app, ["quickstart", "--folder", str(tmp_path / "q"), *words])
        assert done.exit_code != 0
        assert said in f"{done.output} {done.exception}"
        assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("terminal", "display", "opens"),
    [(True, "DISPLAY", True), (True, "WAYLAND_DISPLAY", True), (True, None, False), (False, "DISPLAY", False)],
)
def test_the_page_opens_only_before_a_person(monkeypatch, terminal, display, opens):
    """Neither without a desktop nor into a pipe."""
    monkeypatch.setattr(command.console, "stdout", SimpleNamespace(is_terminal=terminal))
    monkeypatch.setattr(view.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv(display, ":0")
    assert view.has_screen() == opens


def test_held_out_questions_have_digits_that_nothing_trains_on(tmp_path, monkeypatch):
    monkeypatch.setattr("nrt_cli.training.locate.platformdirs.user_cache_path", lambda *_, **__: tmp_path)
    data = locate_inputs(configs.load("quickstart", model={"path": str(tmp_path)})).data
    asked = {}
    for split, file in (("train", data.train), ("validation", data.validation)):
        rows = pq.read_table(file).column("prompt").to_pylist()
        asked[split] = [tuple(sorted(map(int, re.findall(r"\d", row[0]["content"])))) for row in rows]
    assert len(asked["validation"]) >= 128
    assert all(map(digits.held_out, asked["validation"]))
    assert set(asked["train"]).isdisjoint(asked["validation"])


def test_the_shipped_model_is_the_one_that_was_recorded():
    made = json.loads((DIGITS / "made.json").read_text())
    assert made["sha256"] == sha256(DIGITS / "model.safetensors")
    assert made.keys() == {"command", "sha256", "cpu", "python", "torch"}
    assert (DIGITS / "model.safetensors").stat().st_size < 2.2e6


def test_lines_are_drawn_where_their_values_are():
    lines = plot({"sft": [(0, 0.1), (5, 0.1)], "nrt": [(0, 0.0), (10, 1.0)]}, RECIPE.chance, width=11, height=11)
    body = [line[7:18] for line in lines[:11]]
    assert [row.index("*") for row in body] == [10 - i for i in range(11)]  # a straight line, from bottom to top
    assert lines[0].startswith(" 100% |")
    assert lines[9] == "      |s*" + "ssss" + "....." + " chance"
    assert lines[-1].endswith("10 s")
    assert plot({"sft": []}, RECIPE.chance)  # before anything is scored
