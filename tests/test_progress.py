"""What people and scripts see while a run goes on."""

import io
import json
import math

import pytest
from rich.console import Console

from nrt_cli import console, progress
from nrt_cli.progress import COLUMNS, JsonProgress, LiveProgress, Progress, StudyProgress, choose

RECORD = {"kind": "train", "step": 1, **dict.fromkeys(COLUMNS, 0.25), "entropy": 1.5, "dead_groups": 0.5}
HELD_OUT = {"kind": "held_out", "step": 0, "answer_logprob": -16.85, "null_logprob": -17.0, "gain": 0.15}
HOSTILE = {
    "prompt": "[red]not red[/red] [link=https://example.org]x[/link]",
    "trace": "\x1b[2J\x1b]0;owned\x07 nul:\x00 bell:\x07 [/bold]",
    "answer": "over\rwritten \x9b31m\n\n\nend",
}


@pytest.fixture
def screen(monkeypatch):
    """What stderr shows: a recorded terminal of 80 columns, with colours."""
    recorded = Console(file=io.StringIO(), force_terminal=True, width=80, height=40, highlight=False)
    monkeypatch.setattr(console, "stderr", recorded)
    return recorded.file


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def rendered():
    """The panel as plain text of 80 columns."""

    def render(display, height=40):
        target = Console(file=io.StringIO(), width=80, height=height, highlight=False)
        target.print(display._panel())
        return target.file.getvalue()

    return render


def at(step, **more):
    return {**RECORD, "step": step, **more}


def test_a_step_is_one_plain_line_however_long(monkeypatch):
    log = Console(file=io.StringIO(), width=40, highlight=False)
    monkeypatch.setattr(console, "stderr", log)
    display = Progress(4)
    display.held_out(HELD_OUT)
    display.step(at(1), HOSTILE)
    display.note("dropped [red]\x1b[31m")
    lines = log.file.getvalue().splitlines()
    assert lines[0] == "held-out after step 0: log P(y*) -16.850 with a trace, -17.000 without (gain +0.150)"
    assert lines[1].startswith("step 1/4  loss 0.250  reward 0.25  gain +0.250")
    assert "entropy 1.50  dead 50%" in lines[1]
    assert lines[2] == "dropped [red]\\x1b[31m"
    assert len(lines) == 3


def test_a_line_shows_what_was_measured(screen):
    display = Progress(2)
    display.step({"kind": "train", "step": 1, "loss": 2.0, "tokens_per_second": 10.4}, None)
    assert screen.getvalue().startswith("step 1/2  loss 2.000  tok/s 10  eta")
    display.step(at(2, sampler_gap=math.nan), None)
    assert "gap nan" in screen.getvalue()


def test_json_lines_are_one_document_each(capsys, screen):
    display = JsonProgress(2)
    with display:
        display.held_out(HELD_OUT)
        display.note("a note goes to stderr")
        display.step(at(1, gain=math.nan, source="naïve\nline"), HOSTILE)
    out = capsys.readouterr().out
    records = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert [record["kind"] for record in records] == ["held_out", "train"]
    assert records[1]["gain"] is None
    assert "a note" in screen.getvalue()


def test_eta_is_the_pace_of_this_process(clock):
    display = Progress(steps=110, done=10)
    assert display.eta() == "-"
    clock[0] += 50  # held-out scores before the first step are no pace
    display.held_out(HELD_OUT)
    clock[0] += 80
    display.step(at(12), None)
    # 2 steps in 80 s, 98 steps to go: 3920 s
    assert display.eta() == "1:05:20"
    clock[0] += 40
    display.held_out(HELD_OUT)  # these belong to the pace
    assert display.eta() == "1:38:00"
    display.step(at(110), None)
    assert display.eta() == "0:00:00"


def test_the_panel_is_readable_at_80_columns(rendered, clock):
    display = LiveProgress(steps=20)
    assert "step 0/20" in rendered(display)
    display.held_out(HELD_OUT)
    for step in range(1, 13):
        clock[0] += 2
        display.step(at(step, gain=float(step)), {"prompt": "2+2?", "trace": "two and two", "answer": "4"})
    display.held_out({**HELD_OUT, "step": 6})
    display.held_out({**HELD_OUT, "step": 12})
    lines = rendered(display).splitlines()
    assert {len(line) for line in lines} == {80}
    assert len(lines) < 30
    text = "\n".join(lines)
    assert "step 12/20" in text
    assert "eta 0:00:16" in text
    (gain,) = [line.split() for line in lines if "gain over" in line]
    # first, mean of the last ten (3 to 12), now
    assert gain[-4:-1] == ["+1.000", "+7.500", "+12.000"]
    assert all(title in text for title, *_ in COLUMNS.values())
    assert text.count("held-out after step") == 2  # the first and the newest
    assert "after step 6" not in text
    assert [line for line in lines if "trace: two and two" in line]


def test_the_panel_keeps_its_height_whatever_a_trace_holds(rendered):
    display = LiveProgress(steps=2)
    display.step(at(1), {"prompt": "p\n" * 500, "trace": "word " * 5000, "answer": "\n" * 300 + "4"})
    lines = rendered(display).splitlines()
    assert len(lines) < 35
    assert {len(line) for line in lines} == {80}
    assert sum(" ..." in line for line in lines) == 2


def test_hostile_text_is_shown_and_not_executed(rendered, screen):
    display = LiveProgress(steps=1)
    display.step(at(1), HOSTILE)
    display.note(HOSTILE["trace"])
    text = rendered(display)
    assert not set(text) & {"\x1b", "\x00", "\x07", "\r", "\x9b"}
    for shown in ("[red]not red[/red]", "[link=https://example.org]x[/link]", "\\x1b[2J", "nul:\\x00", "[/bold]"):
        assert shown in text
    with display:
        pass
    # On a terminal, the only escapes are ours.
    assert "\x1b[2J" not in screen.getvalue()
    assert "\x1b]0;" not in screen.getvalue()


def test_the_display_suits_its_reader(monkeypatch, screen):
    assert type(choose(False, 1, 0)) is LiveProgress
    assert type(choose(True, 1, 0)) is JsonProgress
    monkeypatch.setattr(console, "stderr", Console(file=io.StringIO()))
    assert type(choose(False, 1, 0)) is Progress


@pytest.fixture
def study(monkeypatch, clock):
    """A study's display of four parts of work, one of which is in `a` and three in `b`; and what it says."""
    log = Console(file=io.StringIO(), width=200, highlight=False)
    monkeypatch.setattr(console, "stderr", log)
    display = StudyProgress()
    display.begin({"a": 1.0, "b": 3.0})
    return display, log.file


def test_a_study_says_how_much_is_done_and_when_it_will_be(study, clock):
    """Half of three parts of four are 3/8; they took 10 seconds, so the other 5/8 take 16.7."""
    display, said = study
    assert display.eta() == "-"
    clock[0] += 10
    display.progress("b", 0.5, "step 4")
    assert display.eta() == "0:00:16"
    display.progress("b", 0.51, "not a tenth further")
    assert said.getvalue().splitlines() == ["30 % done, eta 0:00:16; b: step 4"]
    display.ended("b", "finished", "")
    display.ended("a", "failed", "no data")
    assert said.getvalue().splitlines()[1:] == ["b: finished", "warning: a: failed: no data"]
    assert display.eta() == "0:00:00"


def test_a_studys_bars_show_every_task_that_runs(screen, clock):
    with StudyProgress() as display:
        display.begin({"a": 1.0, "b": 3.0})
        clock[0] += 10
        display.progress("b", 0.5, "step 4 of [8]")
        shown = {task.description: (task.completed, task.fields["what"]) for task in display.bars.tasks}
        assert shown == {"2 tasks": (0.375, "eta 0:00:16"), "b": (0.5, "step 4 of [8]")}
        display.ended("b", "finished", "")
        assert [task.description for task in display.bars.tasks] == ["2 tasks"]
