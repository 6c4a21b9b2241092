"""`nrt generate`: the sequence is the one that was trained, and text arrives in whole letters."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nrt_cli.backends import reasoning
from nrt_cli.backends.reasoning import Reasoner
from nrt_cli.errors import ModelError
from nrt_cli.records import Request
from nrt_cli.text.reasoning import Part
from nrt_cli.text.tokens import ThinkTokens
from nrt_cli.workflows.generate import Generator

QUESTION = "What is 3 plus 4?"


@pytest.fixture
def generator(tiny_model_dir):
    return Generator(tiny_model_dir)


def answer(generator, question=QUESTION, **settings):
    """Trace and answer as joined text."""
    caps = {"max_trace_tokens": 8, "max_answer_tokens": 8}
    texts = {Part.trace: "", Part.answer: ""}
    for part, text in generator.stream(question, **(caps | settings)):
        texts[part] += text
    return texts[Part.trace], texts[Part.answer]


def test_a_prepared_model_thinks_then_answers(generator):
    parts = [part for part, _ in generator.stream(QUESTION, max_trace_tokens=4, max_answer_tokens=4)]
    assert parts == sorted(parts, key=[Part.trace, Part.answer].index)
    assert set(parts) == {Part.trace, Part.answer}
    parts = [part for part, _ in generator.stream(QUESTION, mode="off", max_answer_tokens=4)]
    assert set(parts) == {Part.answer}


def test_greedy_repeats_itself_and_seeds_differ(generator):
    assert answer(generator) == answer(generator, seed=1)
    sampled = [answer(generator, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0][0] != answer(generator)[0]


class Script:
    """Tokens in place of those that a model would choose, and the drafts that they were chosen for."""

    def __init__(self, monkeypatch, trace, answer):
        monkeypatch.setattr(reasoning, "choose", self.choose)
        self.tokens = {Part.trace: trace, Part.answer: answer}
        self.contexts = {Part.trace: [], Part.answer: []}

    def choose(self, logits, rows):
        (row,) = rows
        self.contexts[row.draft.part].append(row.draft.context)
        # Past its cap a trace is closed whatever is chosen.
        return [(*self.tokens[row.draft.part], 0)[row.draft.position]]


@pytest.fixture
def script(monkeypatch):
    return lambda trace, answer: Script(monkeypatch, trace, answer)


def test_the_sequence_is_the_one_of_training(generator, script):
    tokens, ids = generator.reasoner.tokens, generator.reasoner.tokenizer.encode("so it is 7", add_special_tokens=False)
    played = script([*ids, tokens.end_id], [*ids[:2], tokens.eos_id])
    trace, text = answer(generator, max_trace_tokens=50)
    assert (trace, text) == ("so it is 7", generator.reasoner.tokenizer.decode(ids[:2]))
    x = played.contexts[Part.trace][0]
    assert x[-1] == tokens.start_id
    assert played.contexts[Part.trace][-1] == [*x, *ids]
    assert played.contexts[Part.answer][0] == [*x, *ids, tokens.end_id]


@pytest.mark.parametrize("ended", ["cap", "eos"])
def test_a_trace_that_does_not_close_itself_is_closed(ended, generator, script):
    tokens, ids = generator.reasoner.tokens, generator.reasoner.tokenizer.encode("so it is 7", add_special_tokens=False)
    played = script([*ids[:3], tokens.eos_id] if ended == "eos" else ids, [ids[0]] * 9)
    answer(generator, max_trace_tokens=3, max_answer_tokens=2)
    assert played.contexts[Part.answer][0] == [*played.contexts[Part.trace][0], *ids[:3], tokens.end_id]
    assert len(played.contexts[Part.answer]) == 2


def test_what_does_not_fit_the_model_is_refused(generator):
    with pytest.raises(ModelError, match=r"the question \(\d+ tokens\) and the caps \(500 \+ 20\) do not fit the"):
        answer(generator, max_trace_tokens=500, max_answer_tokens=20)
    answer(generator, mode="off", max_trace_tokens=500, max_answer_tokens=20)


def test_a_reply_shares_the_models_room_where_its_caps_do_not_fit(generator, script):
    """As tables of cases ask, with the caps of training; what is cut by it says so."""
    ids = generator.reasoner.tokenizer.encode("so it is 7", add_special_tokens=False)
    fits = script([*ids[:3], generator.reasoner.tokens.end_id], [ids[0], generator.reasoner.tokens.eos_id])
    reply = generator.reply(QUESTION, 500, 500)
    assert (reply.stop, reply.trace_tokens, reply.cut) == ("end", 3, False)
    assert fits.contexts[Part.answer]

    script([ids[0]] * 500, [ids[0]] * 500)
    reply = generator.reply(QUESTION, 500, 500)
    room = generator.reasoner.positions - len(generator.request(QUESTION, "on", 1, 1).prompt_ids) - 2
    assert (reply.stop, reply.cut) == ("cap", True)
    assert reply.trace_tokens == room // 2
    assert reply.answer_tokens == room - room // 2

    script([ids[0]] * 500, [ids[0]] * 500)
    reply = generator.reply(QUESTION, 500, 4)
    assert (reply.trace_tokens, reply.answer_tokens) == (room - 4, 4)


class Bytes(Reasoner):
    """Streams with a byte-level tokenizer, where a letter may take several tokens; the tokens are given."""

    def __init__(self, played):
        alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        self.tokens, self.positions = ThinkTokens(None, -2, -1, -3), None
        self.ids = played(self.tokenizer)

    def steps(self, drafts):
        for token in (*self.ids, self.tokens.eos_id):
            drafts[0].take(token)
            yield drafts[0]

    def pieces(self):
        request = Request("q", (), max_answer_tokens=len(self.ids) + 1)
        return [text for part, text in self.stream(request) if part == Part.answer]


@pytest.mark.parametrize("text", ["naïve — ok", "  two spaces", " 🙂🙃", "日本語\n\nend ", "a\ufffdb", "can 't , no ."])
def test_streamed_pieces_are_whole_letters_and_join_to_the_whole_text(text):
    fake = Bytes(lambda tokenizer: tokenizer.encode(text))
    assert len(fake.ids) == len(text.encode())
    pieces = fake.pieces()
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
        assert sum(map(bool, pieces)) == len(text)
    half = Bytes(lambda tokenizer: tokenizer.encode("ok é")[:-1])  # a letter at the end is not lost
    assert "".join(half.pieces()) == half.tokenizer.decode(half.ids) == "ok \ufffd"


def test_a_run_generates_as_its_method_was_trained(shared_run):
    both = {Part.trace, Part.answer}
    for method, mode, parts in (("am", "on", both), ("sft", "on", {Part.answer}), ("sft", "forced", both)):
        run = shared_run(f"method={method}", "train.steps=1")
        stream = Generator(run.path).stream(QUESTION, mode, max_trace_tokens=4, max_answer_tokens=4)
        assert {part for part, _ in stream} == parts


def test_what_is_no_model_is_refused(shared_run, tmp_path):
    with pytest.raises(ModelError, match="no model there"):
        Generator(tmp_path)
    unfinished = tmp_path / "run"
    shutil.copytree(shared_run("method=am", "train.steps=1").path, unfinished)
    (unfinished / "export" / "nrt.json").write_text("{}")
    with pytest.raises(ModelError, match=r"nrt\.json: is damaged"):
        Generator(unfinished)
    shutil.rmtree(unfinished / "export")
    with pytest.raises(ModelError, match="no exported model yet; finish it with"):
        Generator(unfinished)


def test_the_commands(nrt, shared_run):
    run = shared_run("method=am", "train.steps=1")
    shutil.copytree(run.path, nrt.folder / "a [red]run")
    caps = ("--max-trace-tokens", 6, "--max-answer-tokens", 6)
    ended = nrt("generate", "a [red]run", QUESTION, "--json", *caps)
    record = json.loads(ended.out)
    assert record.keys() == {"question", "trace", "answer"}
    want = answer(Generator(run.path), max_trace_tokens=6, max_answer_tokens=6)
    assert (record["trace"], record["answer"]) == want
    shown = nrt("generate", "a [red]run", QUESTION, *caps).out
    assert shown == f"trace\n{record['trace']}\nanswer\n{record['answer']}\n"
    assert json.loads(nrt("generate", "a [red]run", QUESTION, "--json", "--no-think", *caps[2:]).out)["trace"] is None
    ended = nrt("generate", "a [red]run", " ")
    assert (ended.code, "the question is empty" in ended.err) == (2, True)


def test_runs_are_listed(nrt, shared_run):
    run = shared_run("method=am", "train.steps=1")
    shutil.copytree(run.path, nrt.folder / "a [red]run")
    # Neither somebody else's manifest nor a damaged one is in the way.
    for name, content in (("data", '{"format": "other"}'), ("page", "[1]"), ("cut", '{"for')):
        (nrt.folder / name).mkdir()
        (nrt.folder / name / "manifest.json").write_text(content)
    table = nrt("runs", ".").out
    assert "a [red]run" in table
    assert "1/1" in table
    (listed,) = json.loads(nrt("runs", ".", "--json").out)
    assert (listed["method"], listed["status"], listed["step"], listed["steps"]) == ("am", "finished", 1, 1)
    assert listed["held_out"] == run.metrics("held_out")[-1]["answer_logprob"]
    empty = nrt("runs", "nowhere")
    assert (empty.code, empty.out, "no runs here" in empty.err) == (0, "", True)
    assert json.loads(nrt("runs", "nowhere", "--json").out) == []
