"""Terminals of any encoding and width, Ctrl-C at any time, Tab, and a network that is not there."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from rich.table import Table
from typer.main import get_command
from typer.testing import CliRunner

from nrt_cli import cli, console, network
from nrt_cli.commands import completion
from nrt_cli.errors import ConfigError
from nrt_cli.records import Status

ROOT = Path(__file__).parent.parent


def nrt(*words: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    return subprocess.run(
        [sys.executable, "-m", "nrt_cli", *words],
        capture_output=True,
        cwd=cwd,
        env={**kept, "PYTHONPATH": path, **environment},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "environment"),
    [
        pytest.param("latin-1", {"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.full),
        pytest.param("ascii", {"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.full),
        ("ascii", {"PYTHONIOENCODING": "ascii:strict", "TERM": "dumb", "LC_ALL": "C"}),
        ("utf-8", {"LC_ALL": "C"}),
    ],
)
def test_any_encoding_will_do(encoding, environment, tmp_path):
    (tmp_path / "qa.jsonl").write_text('{"question": "Wieviel?", "answer": "zwölf ⏎ 十二"}\n', encoding="utf-8")
    (tmp_path / "c.yaml").write_text('{model: {path: "mödel 十"}}', encoding="utf-8")
    for words in (
        ("--help",),
        ("config", "diff", "paper", "c.yaml"),
        ("config", "show", "c.yaml"),
        ("data", "prepare", "qa.jsonl", "--out", "out", "--json"),
        ("train", "十", "--model", "ö"),
    ):
        done = nrt(*words, cwd=tmp_path, **environment)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == (2 if words[0] == "train" else 0)
        (done.stdout + done.stderr).decode(encoding)
    json.loads(nrt("config", "show", "c.yaml", "--json", cwd=tmp_path, **environment).stdout.decode("ascii"))
    (row,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert row["reward_model"]["ground_truth"] == "zwölf ⏎ 十二"


@pytest.mark.slow
def test_what_is_no_text_is_refused_in_a_sentence(tmp_path):
    done = nrt("generate", "x", "\udce4", cwd=tmp_path, LC_ALL="C.UTF-8")
    assert done.returncode == 2
    assert b"is not text in the terminal's encoding (utf-8)" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("where", ["typer", "nrt_cli.commands.train", "torch"])
def test_ctrl_c_while_importing_is_one_line(where, tmp_path):
    """The module whose import is cut into is one of the first, of our own, or of the slow ones of the work itself."""
    program = f"""
import sys, os, signal
class Cut:
    def find_spec(self, name, *_):
        if name == {where!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Cut())
sys.argv = ["nrt", "generate", "nowhere", "hello"]
from nrt_cli.__main__ import main
main()
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stderr == b"nrt: stopped; what was saved is kept.\n"
    assert done.returncode == 128 + signal.SIGINT


@pytest.mark.slow
def test_no_flag_shows_a_type(tmp_path):
    for words in (("--help",), ("train", "--help"), ("runs", "gc", "--help"), ("config", "--help")):
        assert b"<bool>" not in nrt(*words, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("width", "left"), [(200, "name step gain"), (25, "name step gain"), (24, "name gain"), (18, "name"), (13, "name")]
)
def test_a_table_drops_columns_before_it_breaks_names(width, left, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(console, "stdout", Console(file=out, width=width))
    table = Table(box=None, padding=(0, 1))
    for title in ("name", "step", "gain"):
        table.add_column(title)
    table.add_row("a-long-name", "3/8", "+0.5")
    console.show(table, ("step", "gain"))
    assert out.getvalue().split("\n")[0].split() == left.split()
    assert "a-long-name" in out.getvalue()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("model prepare m --out o --think-start null --init-start x", "--init-start has no effect where a trace"),
        ("push m --out o --private", "--private has no effect on a folder; drop it."),
        ("push m --repo a/b --overwrite", "--overwrite has no effect on a repository"),
        ("generate m q --no-think --max-trace-tokens 9", "--max-trace-tokens has no effect with --no-think; drop it."),
        ("chat m --no-think --max-trace-tokens 9", "--max-trace-tokens has no effect with --no-think; drop it."),
        ("generate m q --seed 1", "--seed has no effect without --temperature; drop it."),
        ("chat m --seed 1", "--seed has no effect without --temperature; drop it."),
        ("doctor laptop --questions 3", "--questions has no effect without --forecast; drop it."),
        ("data prepare x.jsonl --out o --seed 1", "--seed has no effect without --size, --train or --validation"),
        ("runs compare a b", "'compare' is no folder and no command of `nrt runs` (did you mean 'diff'?)."),
        ("runs exprot a", "(did you mean 'export'?)"),
        ("speedrun --table --model m", "--model has no effect beside --table; drop it."),
        ("train digits --dry-run --profile", "--profile has no effect on a plan"),
        ("train digits --dry-run --resume", "--resume has no effect on a plan"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(words, told):
    error = CliRunner().invoke(cli.app, words.split()).exception
    assert isinstance(error, ConfigError)
    assert told in str(error)


def test_help_lists_every_command_by_what_a_person_is_doing():
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "100", "TERM": "dumb"}).stdout
    found = re.findall(r"^╭─ (\w+) |^│ (\w+)  ", shown, re.MULTILINE)
    panel, listed = "", {}
    for title, command in found:
        panel = title or panel
        listed.setdefault(panel, []).extend([command] if command else [])
    assert listed == {"Options": [], **{panel: list(names) for panel, names in cli.PANELS.items()}}
    assert sorted(chain.from_iterable(cli.PANELS.values())) == sorted(get_command(cli.app).commands)


def test_the_help_of_runs_names_every_status():
    """It is written out there, since the records that define it are not read for a help text."""
    shown = CliRunner().invoke(cli.app, ["runs", "list", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    *first, last = get_args(Status)
    assert f"Only {', '.join(first)} or {last} ones." in " ".join(shown.replace("\u2502", " ").split())


def test_values_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/am", "runs/gm", "studies/x/runs/[a]"):
        (tmp_path / run / "checkpoints" / "step-000020").mkdir(parents=True)
        (tmp_path / run / "manifest.json").touch()
    (tmp_path / "mine.yaml").touch()
    assert completion.runs("") == ["runs/am", "runs/gm"]
    assert completion.runs("runs/g") == ["runs/gm"]
    assert completion.runs("studies/") == ["studies/x/runs/[a]"]
    assert completion.runs("studies/x/runs/[a]@") == ["studies/x/runs/[a]@20"]
    assert completion.configs("m") == ["mine.yaml"]
    assert completion.configs("lap") == ["laptop"]
    assert completion.methods("ws-") == ["ws-inv-p", "ws-neg-log-p"]
    assert completion.benchmarks("gsm8k,m") == ["gsm8k,mmlu", "gsm8k,math"]
    assert completion.settings("rollout.group") == ["rollout.group_size="]
    assert completion.studies("paper-3") == ["paper-3b"]
    assert completion.presets_and_configs("ref") == ["reference"]


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    network.find_hub.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    yield constants
    network.find_hub.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once(hub, monkeypatch):
    from huggingface_hub import utils

    asked = []
    real = utils.get_session
    monkeypatch.setattr(utils, "get_session", lambda: asked.append(1) or real())
    assert network.find_hub() == "the hub does not answer"
    assert network.find_hub() == "the hub does not answer"
    assert len(asked) == 1
    assert hub.HF_HUB_OFFLINE is True
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_the_terminal_breaks_the_lines_of_a_help_text(tmp_path):
    """Every paragraph's, also where the source breaks them elsewhere."""
    told = nrt("chat", "--help", cwd=tmp_path, COLUMNS="200").stdout.decode()
    assert "Ctrl-C stops a reply, Ctrl-D ends the talk; questions may also be piped in." in told
