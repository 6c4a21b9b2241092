"""`nrt speedrun`: when it is done, what an entry holds, and what running one again finds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from nrt_cli import config as configs
from nrt_cli.cli import app
from nrt_cli.errors import ConfigError, DataError, ModelError
from nrt_cli.models.sources import DIGITS, model_fingerprint
from nrt_cli.progress import Progress
from nrt_cli.store import Run
from nrt_cli.workflows import speedrun as work
from nrt_cli.workflows.speedrun import (
    TRACKS,
    Entry,
    Score,
    compared,
    entry_files,
    markdown,
    read_entry,
    result_of,
    standings,
)

PAGE = Path(__file__).parents[2] / "nrt_cli" / "help" / "speedrun.md"
SMALL = (
    "train.steps=6", "train.batch_size=1", "train.checkpoint_every=1",
    "rollout.group_size=2", "rollout.max_trace_tokens=4",
)  # fmt: skip
OPTIONS = [part for key in SMALL for part in ("--set", key)]


def scores(*accuracies: float) -> list[Score]:
    return [Score(step=2 * i, accuracy=share, seconds=3.0 * i) for i, share in enumerate(accuracies)]


def entry(*accuracies: float, **changes) -> Entry:
    """One with a threshold of 90 %, that of the digits."""
    found = scores(*accuracies)
    minutes, steps = result_of(found, 0.9)
    values = {
        "track": "digits", "date": "2026-01-02", "commit": "a" * 40, "clean": True, "seed": 0, "settings": {},
        "model": "m", "machine": MACHINE, "minutes": minutes, "steps": steps, "scores": list(map(vars, found)),
    }  # fmt: skip
    return Entry.model_validate(values | changes)


MACHINE = {
    "device": "cpu", "cpu": "A processor", "capability": "AVX2", "cores": 2, "memory_gib": 8, "threads": 1,
    "dtype": "float32", "torch": "2.13.0", "python": "3.11.7", "load": 1.0,
}  # fmt: skip

# --- when it is done -------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 0.5, 0.8, 1.0]), min_size=1))
@example([0.0, 0.8, 0.5, 0.9, 0.79, 0.8, 1.0, 1.0])  # the first two in a row
def test_it_is_done_where_a_slow_search_says(accuracies):
    found = [i for i in range(1, len(accuracies)) if accuracies[i] >= 0.8 and accuracies[i - 1] >= 0.8]
    assert result_of(scores(*accuracies), 0.8)[1] == (2 * found[0] if found else None)


# --- entries ---------------------------------------------------------------------------------------------------------


def test_an_entry_reads_back_and_cannot_say_more_than_its_scores(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text(configs.to_yaml(entry(0.0, 0.5, 0.95, 1.0)))
    assert read_entry(str(file)) == entry(0.0, 0.5, 0.95, 1.0)
    for wrong in ({"minutes": 0.05}, {"steps": 4}, {"minutes": None, "steps": None}):
        file.write_text(yaml.safe_dump(json.loads(entry(0.0, 0.5, 0.95, 1.0).model_dump_json()) | wrong))
        with pytest.raises(ConfigError, match=r"are not what the scores say: 0.15 and 6"):
            read_entry(str(file))
    file.write_text(file.read_text().replace("track: digits", "track: digitz"))
    with pytest.raises(ConfigError, match="there is digits, real"):
        read_entry(str(file))
    with pytest.raises(ConfigError, match="no such entry"):
        read_entry(str(tmp_path / "two.yaml"))


def test_the_table_has_the_quickest_first_and_seeds_of_one_program_together():
    slow = [entry(0.0, 0.0, 0.0, 1.0, 1.0, seed=seed) for seed in (1, 0)]
    changed = {"settings": {"optimiser.lr": 0.001}}
    uneven = [entry(0.0, 1.0, 1.0, **changed), entry(0.0, 0.1, seed=1, **changed)]
    quick = entry(0.0, 1.0, 1.0, note="a | b", clean=False)
    elsewhere = entry(0.0, 0.5, machine=MACHINE | {"cpu": "Another"})
    rows = standings([*slow, elsewhere, *uneven, quick])
    assert [(row[0].machine.name.split(" (")[0], [e.seed for e in row]) for row in rows] == [
        ("A processor", [0]),
        ("A processor", [0, 1]),
        ("A processor", [0, 1]),
        ("Another", [0]),
    ]
    lines = [line for line in markdown(rows).splitlines() if line.startswith("| ")]
    setup = "1 thread, float32, torch 2.13.0"
    assert lines[1].startswith(f"| 0.10 | 4 | 0 | a \\| b | {setup} | 1.0 | aaaaaaaaa and changes |")
    assert lines[2].startswith("| 0.20 (0.20 to 0.20) | 8, 8 | 0, 1 | the shipped recipe |")
    # Half of its seeds never got there, so its median is not finite.
    assert lines[3].startswith("| not reached by 1 of 2 (best 100%) | 4, - | 0, 1 | `--set optimiser.lr=0.001` |")
    assert lines[5].startswith("| not reached (best 50%) | - | 0 |")


def test_the_page_has_the_table_of_the_shipped_entries():
    """`nrt speedrun --table` prints what goes there."""
    shipped = [read_entry(str(file)) for file in entry_files()]
    assert markdown(standings(shipped)).strip() in PAGE.read_text(encoding="utf-8")
    assert all(found.clean and found.commit for found in shipped)
    shown = CliRunner().invoke(app, ["speedrun", "--table"])
    assert shown.stdout.strip() == markdown(standings(shipped)).strip()
    assert len(json.loads(CliRunner().invoke(app, ["speedrun", "--table", "--json"]).stdout)) == len(standings(shipped))


# --- what may be changed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["digits", "--set", "data.train=x.parquet"], "data.train: the model, the data and the scores"),
        (["digits", "--set", "data.max_answer_tokens=3"], "data.max_answer_tokens: the model"),
        (["digits", "--set", "train.validate_every=1"], "train.validate_every: the model"),
        (["digits", "--set", "train.validation_size=8"], "train.validation_size: the model"),
        (["digits", "--set", "model.path=builtin:tiny"], "model.path: the model"),
        (["digits", "--model", "builtin:tiny"], "leave --model out"),
        (["digits", "--set", "method=sft"], "whose model thinks"),
        (["digits", "--set", "method=my_module:reward"], "built-in scheme"),
        (["digits", "--set", "optimiser.lrr=1"], "optimiser.lr"),
        (["digitz"], "there is digits, real"),
        (["real"], "needs --model"),
        ([], "say one thing"),
        (["digits", "--table"], "say one thing"),
        (["--table", "--seed", "1"], "say one thing"),
        (["--verify", "x.yaml", "--set", "seed=1"], "say one thing"),
        (["--verify", "x.yaml"], "x.yaml: no such entry"),
    ],
)
def test_what_a_speedrun_decides_is_refused(words, told):
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(app, ["speedrun", *words], catch_exceptions=False)
    assert told in str(refused.value)


def test_another_program_and_other_settings_are_other_runs(tmp_path, monkeypatch):
    places = {work.plan("digits", tmp_path, asked).run for asked in ((), ("optimiser.lr=1e-3",), ("seed=1",))}
    assert len(places) == 3
    assert work.plan("digits", tmp_path, ("seed=1",)).run == work.plan("digits", tmp_path, (), 1).run
    assert work.plan("digits", tmp_path, ("optimiser.lr=1e-3",), 2).changed == {"optimiser.lr": 1e-3}
    monkeypatch.setattr(work, "PROGRAM", tmp_path)
    assert work.plan("digits", tmp_path).run not in places


def test_the_digits_begin_from_the_shipped_model(tmp_path, monkeypatch):
    assert all(configs.load(track.recipe).thinks for track in TRACKS.values())
    assert TRACKS["digits"].model == model_fingerprint(DIGITS)
    monkeypatch.setitem(TRACKS, "digits", replace(TRACKS["digits"], model="0" * 64))
    with pytest.raises(ModelError, match="another model than that of digits"):
        work.speedrun(work.plan("digits", tmp_path), lambda steps, done: pytest.fail("nothing is trained"))


# --- run and verified ------------------------------------------------------------------------------------------------


@pytest.fixture
def easy(monkeypatch):
    """The digits' speedrun, done at its second score."""
    monkeypatch.setitem(TRACKS, "digits", replace(TRACKS["digits"], threshold=0.0))


@pytest.fixture
def say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "_commit", lambda: ("a" * 40, True))
    return lambda *words: CliRunner().invoke(app, ["speedrun", *words])


@pytest.mark.slow
def test_a_run_makes_an_entry_and_a_doctored_one_fails(easy, say, tmp_path):
    made = say("digits", "--seed", "3", *OPTIONS)
    assert made.exit_code == 0, made.output
    (file,) = Path("speedruns").glob("*.yaml")
    found, run = read_entry(str(file)), Run.open(file.with_suffix(""))
    assert f"nrt speedrun --verify {file}" in made.stdout
    assert (found.steps, found.seed, found.clean) == (2, 3, True)
    assert found.settings["train.steps"] == 6
    assert found.settings.keys() == {key.partition("=")[0] for key in SMALL}
    # It ended there, with a model.
    assert [record["step"] for record in run.metrics()] == [1, 2]
    assert (run.path / "export").is_dir()
    assert [score.accuracy for score in found.scores] == [r["accuracy_thinking"] for r in run.metrics("held_out")]
    seconds = [record["seconds"] for record in run.metrics()]
    assert [score.seconds for score in found.scores] == pytest.approx([0, sum(seconds)], abs=1e-3)
    assert found.minutes == pytest.approx(sum(seconds) / 60, abs=1e-3)
    written = file.read_text()
    assert say("digits", "--seed", "3", *OPTIONS).exit_code == 0
    assert file.read_text() == written

    again = say("--verify", str(file))
    assert again.exit_code == 0, again.output
    assert "all 2 are equal" in again.stdout
    doctored = found.model_dump(mode="json")
    doctored["scores"][0]["accuracy"] += 1 / 128
    Path("doctored.yaml").write_text(yaml.safe_dump(doctored))
    wrong = say("--verify", "doctored.yaml", "--json")
    assert wrong.exit_code == 1, wrong.output
    (problem,) = [f for f in json.loads(wrong.stdout.splitlines()[-1])["findings"] if f["verdict"] == "problem"]
    assert (problem["check"], problem["found"]) == ("scores", "not equal from the first on")


@pytest.mark.slow
@pytest.mark.full
def test_one_that_never_gets_there_is_an_entry_too_and_goes_on_after_an_interruption(say, tmp_path):
    attempt = work.plan("digits", Path("speedruns"), SMALL)

    class Stopping(Progress):
        def step(self, record, sample):
            if record["step"] == 3:
                raise EOFError

    with pytest.raises(EOFError):
        work.speedrun(attempt, Stopping)
    assert not attempt.entry.exists()
    ended = say("digits", *OPTIONS, "--json")
    assert ended.exit_code == 1, ended.output
    record = json.loads(ended.stdout.splitlines()[-1])
    assert (record["minutes"], record["steps"], record["run"]) == (None, None, str(attempt.run))
    assert [score["step"] for score in record["scores"]] == [0, 2, 4, 6]
    told = say("digits", *OPTIONS)
    assert told.exit_code == 1
    assert "never 90% twice in a row in 6 steps" in told.stdout


def test_a_run_whose_held_out_questions_are_trained_on_is_none(say, easy, monkeypatch):
    attempt = work.plan("digits", Path("speedruns"), (*SMALL, "train.steps=1"))
    real = Run.manifest

    def shared(run):
        found = real(run)
        return found | {"data": found.get("data", {}) | {"shared_with_validation": 2}}

    monkeypatch.setattr(Run, "manifest", shared)
    with pytest.raises(DataError, match="2 held-out questions are in the training data"):
        work.speedrun(attempt, Progress)


# --- what is found ---------------------------------------------------------------------------------------------------

ELSEWHERE = MACHINE | {"cpu": "Another"}
WAY = (0.0, 0.5, 0.9, 0.9)


@pytest.mark.parametrize(
    ("there", "here", "wrong"),
    [
        (entry(*WAY), entry(*WAY), []),
        (entry(*WAY), entry(*WAY, commit="b" * 40), []),  # told, not refused
        (entry(*WAY), entry(*WAY, model="n"), ["starting model"]),
        (entry(*WAY), entry(0.0, 0.4, 0.9, 0.9), ["scores"]),
        (entry(*WAY), entry(0.0, 0.5, 0.5, 0.9, 0.9), ["scores", "steps needed"]),
        # Rounding: another processor.
        (entry(*WAY, machine=ELSEWHERE), entry(*WAY), []),
        (entry(*WAY, machine=ELSEWHERE), entry(0.0, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9), []),  # 6 and 12 steps
        (entry(*WAY, machine=ELSEWHERE), entry(0.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.9), ["steps needed"]),
        (entry(*WAY, machine=ELSEWHERE), entry(0.1, *WAY[1:]), ["scores"]),  # before anything was trained
        (entry(*WAY, machine=ELSEWHERE), entry(0.0, 0.5, 0.1), ["steps needed"]),
    ],
)
def test_what_rounding_explains_and_what_not(there, here, wrong):
    found = list(compared(there, here))
    assert [finding.check for finding in found if finding.verdict == "problem"] == wrong
    same = there.commit == here.commit
    assert [finding.check for finding in found if finding.verdict == "warning"] == ([] if same else ["program"])
