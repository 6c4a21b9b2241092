"""`nrt chat`: what of a conversation stands in the next prompt, from a terminal and from a pipe."""

import json
import os
import pty
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nrt_cli.cli import app
from nrt_cli.errors import ModelError
from nrt_cli.text.prompts import render_prompt
from nrt_cli.text.reasoning import Part
from nrt_cli.workflows.generate import Conversation, Generator

ROOT = Path(__file__).parents[2]
CAPS = {"max_trace_tokens": 6, "max_answer_tokens": 5}


@pytest.fixture
def generator(tiny_model_dir):
    return Generator(tiny_model_dir)


@pytest.fixture
def prompts(generator, monkeypatch):
    """The requests that reach the engine."""
    seen = []
    stream = generator.reasoner.stream
    monkeypatch.setattr(generator.reasoner, "stream", lambda request: seen.append(request) or stream(request))
    return seen


def test_answers_stay_and_traces_go(generator, prompts):
    talk = Conversation(generator, **CAPS)
    turns = []
    for question in ("What is 3 plus 4?", "And 5?", "Why?"):
        turns.append({"role": "user", "content": question})
        said = generator.collect(question, "on", talk.ask(question))
        assert said["trace"]
        assert list(prompts[-1].prompt_ids) == render_prompt(generator.reasoner.tokenizer, turns)
        turns.append({"role": "assistant", "content": said["answer"]})
    assert talk.turns == turns


def test_the_first_turn_is_what_generate_says_and_later_ones_draw_anew(generator):
    sampled = {"temperature": 1.0, **CAPS}
    talk = Conversation(generator, seed=3, **sampled)
    first = list(talk.ask("What?"))
    assert first == list(generator.stream("What?", seed=3, **sampled))
    talk.turns.clear()
    assert list(talk.ask("What?")) == list(generator.stream("What?", seed=4, **sampled)) != first


def test_a_reply_that_was_stopped_is_forgotten(generator, prompts):
    talk = Conversation(generator, **CAPS)
    with closing(talk.ask("What is 3 plus 4?")) as pieces:
        assert next(pieces)[0] == Part.trace
    assert talk.turns == []
    list(talk.ask("And 5?"))
    turns = [{"role": "user", "content": "And 5?"}]
    assert list(prompts[-1].prompt_ids) == render_prompt(generator.reasoner.tokenizer, turns)


@pytest.mark.parametrize(("positions", "caps"), [(110, {}), (90, {"max_trace_tokens": 20}), (100, CAPS), (512, CAPS)])
def test_the_earliest_turns_go_where_there_is_no_room(generator, prompts, monkeypatch, positions, caps):
    reply = [(Part.trace, "so"), (Part.answer, "It is 7.")]
    monkeypatch.setattr(generator.reasoner, "stream", lambda request: prompts.append(request) or iter(reply))
    generator.reasoner.positions = positions
    talk = Conversation(generator, **caps)
    for number in range(6):
        question = f"What is {number} plus 4?"
        before = list(talk.turns)
        list(talk.ask(question))
        used = prompts[-1]

        def room(turns, question=question):
            try:
                request = generator.request(question, earlier=turns, **caps)
            except ModelError:
                return 0
            return request.max_trace_tokens + request.max_answer_tokens

        kept = next(n for n in range(0, len(before) + 1, 2) if n == len(before) or 2 * room(before[n:]) >= room([]))
        want = [*before[kept:], {"role": "user", "content": question}]
        assert list(used.prompt_ids) == render_prompt(generator.reasoner.tokenizer, want)
        assert talk.forgotten == kept // 2
    assert (len(talk.turns) < 12) == (positions < 512)


def test_a_question_that_does_not_fit_is_refused_and_the_conversation_goes_on(generator):
    talk = Conversation(generator, **CAPS)
    list(talk.ask("What?"))
    with pytest.raises(ModelError, match="do not fit the model's 512 positions"):
        list(talk.ask("What? " * 300))
    list(talk.ask("Why?"))
    assert [turn["content"] for turn in talk.turns[::2]] == ["What?", "Why?"]


OPTIONS = ["--max-trace-tokens", "6", "--max-answer-tokens", "5"]


def test_questions_may_be_piped(tiny_model_dir):
    run = CliRunner().invoke
    words = [str(tiny_model_dir), *OPTIONS, "--json"]
    done = run(app, ["chat", *words], input=b"What?\n\n  \nW\xe4rum?", catch_exceptions=False)
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == json.loads(run(app, ["generate", words[0], "What?", *words[1:]], catch_exceptions=False).stdout)
    assert second["question"] == "W\ufffdrum?"
    shown = run(app, ["chat", words[0], *OPTIONS[2:], "--no-think"], input="What?\n", catch_exceptions=False).stdout
    assert "trace" not in shown
    assert "answer" in shown
    assert run(app, ["chat", *words], input="").stdout == ""


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_a_reply_and_ctrl_d_ends(tiny_model_dir):
    ours, theirs = pty.openpty()
    # A cap that is far away, and a trace that cannot close: the reply goes on until it is stopped.
    slow = "import sys; import nrt_cli.backends.reasoning as r; r.choose = lambda logits, rows: [60] * len(rows)"
    # Where the tests run in the background, Ctrl-C is switched off for all that they start.
    on = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{on}; {slow}; from nrt_cli.cli import main; sys.argv[0] = 'nrt'; main()"
    words = ["chat", tiny_model_dir, "--max-trace-tokens", "400", "--max-answer-tokens", "9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)

        said = b""

        def until(mark: bytes) -> bytes:
            nonlocal said
            while mark not in said:
                said += os.read(ours, 1000)
            before, _, said = said.partition(mark)
            return before

        until(b"> ")
        os.write(ours, b"\nWhat?\n")
        until(b"trace\r\n")
        process.send_signal(2)
        assert b"no part of the talk" in until(b"\n> ")
        os.write(ours, b"What? " * 300 + b"\n")
        assert b"do not fit the model's 512" in until(b"lower the caps.")
        until(b"> ")
        os.write(ours, b"\x04")
        assert process.wait() == 0
    os.close(ours)
