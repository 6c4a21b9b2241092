"""Batched reasoning against slow generation: one request at a time, the whole sequence read anew for every token."""

import contextlib
import json
import math
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampling_checks import PROMPTS, asked, plain_logprobs, replies, sharpen

from nrt_cli.backends import reasoning
from nrt_cli.backends.local import attention
from nrt_cli.backends.local.decoding import random_stream
from nrt_cli.backends.reasoning import Reasoner, nucleus
from nrt_cli.config import ModelSection
from nrt_cli.errors import ModelError
from nrt_cli.records import Reply, Request
from nrt_cli.text.reasoning import Draft, Part

CPU = ModelSection(dtype="float32", device="cpu")


def open_sharpened(folder, batch_rows):
    """With larger embeddings and head, so that distributions are far from uniform and depend on the prompt."""
    made = Reasoner(folder, CPU, batch_rows)
    sharpen(made.model)
    return made


@pytest.fixture(scope="module")
def reasoner(tiny_model_dir):
    return open_sharpened(tiny_model_dir, 4)


SAMPLED = {"temperature": 0.9, "top_p": 0.8}


@torch.no_grad()
def slowly(reasoner, request):
    """The reply, and the logits that each of its tokens was chosen from."""
    draft = Draft(request, reasoner.tokens, reasoner.tokenizer, reasoner.positions)
    seen = []
    while not draft.done:
        logits = reasoner.model(torch.tensor([draft.context]), use_cache=False).logits[0, -1]
        seen.append(logits.clone())
        logits[list(draft.banned)] = -math.inf
        draft.take(pick_slowly(logits, draft))
    return draft.reply(), seen


def pick_slowly(logits, draft):
    """The likeliest token; or walk through the nucleus, token by token, up to the random number."""
    if not draft.request.temperature:
        return int(logits.argmax())
    if draft.left <= 0:
        return 0
    probs = (logits / draft.request.temperature).double().softmax(-1).tolist()
    inside, mass = set(), 0.0
    for token in sorted(range(len(probs)), key=lambda token: -probs[token]):
        if mass >= draft.request.top_p:
            break
        inside.add(token)
        mass += probs[token]
    number = 0 if draft.part is Part.trace else 1
    target, passed = random_stream(99, *draft.request.seed_key, number)[draft.position] * mass, 0.0
    for token in sorted(inside):
        passed += probs[token]
        if passed > target:
            return token
    raise AssertionError


@pytest.fixture(params=["shared prompts", "transformers' cache"])
def batches(request, reasoner):
    """Either kind of batch; the second is for architectures that do not take attention patterns."""
    if request.param != "shared prompts":
        reasoner.model.set_attn_implementation("sdpa")
    opened = type(reasoning.open_batch(reasoner.model, 0)).__name__
    yield opened
    attention.enable(reasoner.model)


@pytest.mark.parametrize(
    "how", [{}, SAMPLED, {"temperature": 2.0}, {"stop": ("e", "12")}, {"prefill_ids": (7, 8, 9)}], ids=str
)
def test_replies_are_those_of_slow_generation(how, reasoner, batches):
    want = {request.key: slowly(reasoner, request)[0] for request in asked(**how)}
    assert replies(reasoner, asked(**how)) == want
    # Something of every kind was seen.
    assert {reply.stop for reply in want.values()} >= {"cap", None}
    assert len({reply.answer for reply in want.values()}) > 3


def test_logits_are_those_of_plain_forwards(reasoner, batches, monkeypatch):
    """At every token of every row, though rows of other lengths join and leave beside it."""
    assert batches in ("SharedBatch", "Batch")
    seen = {request.key: [] for request in asked()}
    choose = reasoning.choose

    def record(logits_RV, rows):
        for logits, row in zip(logits_RV, rows, strict=True):
            if row.live:
                seen[row.draft.request.key].append(logits.clone())
        return choose(logits_RV, rows)

    monkeypatch.setattr(reasoning, "choose", record)
    replies(reasoner, asked())
    for request in asked():
        _, want = slowly(reasoner, request)
        torch.testing.assert_close(torch.stack(seen[request.key]), torch.stack(want), rtol=1e-4, atol=1e-4)


@given(order=st.permutations(range(6)), batch_rows=st.integers(1, 7), how=st.sampled_from([{}, SAMPLED]))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_replies_do_not_depend_on_the_batch(order, batch_rows, how, reasoner):
    reasoner.batch_rows = 4
    want = replies(reasoner, asked(**how))
    reasoner.batch_rows = batch_rows
    requests = asked(**how)
    assert replies(reasoner, [requests[i] for i in order]) == want
    assert replies(reasoner, [requests[order[0]]]) == {f"{order[0]}": want[f"{order[0]}"]}


def test_streams_are_the_requests_own(reasoner):
    """One prompt twenty times: the same seed says the same, others differ; the answer's stream is not the trace's."""
    base = {"think": True, "max_trace_tokens": 8, "max_answer_tokens": 8, "temperature": 1.5}
    requests = [Request(f"{i}", PROMPTS[0], seed_key=(7, i % 10), **base) for i in range(20)]
    got = replies(reasoner, requests)
    assert all(got[f"{i}"] == got[f"{i + 10}"] for i in range(10))
    assert len({(reply.trace, reply.answer) for reply in got.values()}) > 5
    # What an answer draws does not shift with the trace's cap.
    direct = [Request(f"{cap}", PROMPTS[0], max_answer_tokens=8, seed_key=(7, 0), temperature=1.5) for cap in (0, 1)]
    assert len(set(replies(reasoner, direct).values())) == 1


@contextlib.contextmanager
def always(reasoner, token, context):
    """A head that prefers a token, above all after this context."""
    with torch.no_grad():
        head = reasoner.model.get_output_embeddings().weight
        kept = head[token].clone()
        head[token] = 100 * reasoner.model.base_model(torch.tensor([context])).last_hidden_state[0, -1]
        yield
        head[token] = kept


def test_a_forced_trace_is_not_empty(reasoner):
    """With a model that would end every trace at once."""
    requests = [
        Request(f"{least}", PROMPTS[0], think=True, max_trace_tokens=5, max_answer_tokens=2, min_trace_tokens=least)
        for least in (0, 1)
    ]
    with always(reasoner, reasoner.tokens.end_id, [*PROMPTS[0], reasoner.tokens.start_id]):
        got = replies(reasoner, requests)
    assert (got["0"].trace_tokens, got["0"].stop) == (0, "end")
    assert got["1"].trace_tokens > 0


def test_an_answer_opens_no_trace(reasoner):
    """With a model that would think though it is to answer."""
    request = Request("q", PROMPTS[0], max_answer_tokens=1)
    with always(reasoner, reasoner.tokens.start_id, PROMPTS[0]):
        assert int(reasoner.model(torch.tensor([PROMPTS[0]])).logits[0, -1].argmax()) == reasoner.tokens.start_id
        # Think tokens would not show in the text.
        assert replies(reasoner, [request])["q"].answer


def test_continuations_are_scored(reasoner):
    """Several of one prompt, the same one twice, and one that generates beside them."""
    pairs = [(p, c) for p in PROMPTS[:4] for c in ((3,), (8, 9, 31), (5, 5, 5, 5, 5, 5))] + [(PROMPTS[0], (3,))]
    scored = [Request(f"{i}", p, "loglikelihood", continuation_ids=c) for i, (p, c) in enumerate(pairs)]
    got = replies(reasoner, [*scored[::2], Request("g", (5,), max_answer_tokens=2), *scored[1::2]])
    for request in scored:
        want = sum(plain_logprobs(reasoner.model, request.prompt_ids, request.continuation_ids))
        assert got[request.key].logprob == pytest.approx(want, abs=1e-4)
    assert got["g"].logprob is None
    assert got["g"].answer_tokens


def test_what_does_not_fit_is_marked(reasoner):
    long = tuple(5 + i % 90 for i in range(600))
    requests = [
        Request("no room", long, max_answer_tokens=3),
        Request("no score", long[:510], "loglikelihood", continuation_ids=(1, 2, 3)),
        Request("a score", long[:509], "loglikelihood", continuation_ids=(1, 2, 3)),
        Request("less", long[:505], think=True, max_trace_tokens=9, max_answer_tokens=4),
    ]
    got = replies(reasoner, requests)
    assert got["no room"] == Reply(cut=True)
    assert math.isnan(got["no score"].logprob)
    assert got["no score"].cut
    assert got["a score"].logprob < 0
    # 512 positions less 505 and two think tokens leave 5: half of them to a trace.
    assert got["less"].trace_tokens <= 2
    assert got["less"].answer_tokens <= 4


def test_rows_are_refilled(reasoner, monkeypatch):
    """Twelve answers of 2 tokens and one of 24: beside the long one the others take turns, so nothing waits for it."""
    steps = []
    opened = reasoning.open_batch

    def counted(*arguments):
        batch = opened(*arguments)
        step = batch.step
        batch.step = lambda tokens, live: steps.append(len(tokens)) or step(tokens, live)
        return batch

    monkeypatch.setattr(reasoning, "open_batch", counted)
    monkeypatch.setattr(reasoning, "choose", lambda logits_RV, rows: [5] * len(rows))
    reasoner.batch_rows = 4
    caps = [24, *[2] * 12]
    finished = [
        r.key for r, _ in reasoner.run([Request(f"{i}", (9, 31), max_answer_tokens=c) for i, c in enumerate(caps)])
    ]
    assert finished[-1] == "0"
    assert sorted(finished) == sorted(str(i) for i in range(13))
    # The first token needs no step, so the long answer takes 23; no more than its share of rows runs at a time.
    assert len(steps) == 23
    assert max(steps) <= 4


def test_replies_come_as_they_finish(reasoner):
    requests = [Request(f"{cap}", (9, 31, 44), max_answer_tokens=cap) for cap in (40, 1)]
    running = reasoner.run(requests)
    assert next(running)[0].key == "1"
    running.close()


@given(
    logits=st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=12),
    top_p=st.floats(0.01, 1.0),
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits, top_p):
    logits_RV = torch.tensor([logits])
    kept = nucleus(logits_RV, torch.tensor([[top_p]], dtype=torch.float64))[0].isfinite()
    probs = logits_RV[0].double().softmax(-1)
    inside = probs[kept].sum().item()
    assert inside >= top_p - 1e-9
    # Without its least likely token it would fall short, and nothing outside is likelier than anything inside.
    assert inside - probs[kept].min().item() < top_p + 1e-9
    assert kept.all() or probs[~kept].max() <= probs[kept].min() + 1e-9


def test_top_p_by_hand():
    logits_RV = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().repeat(3, 1)
    kept_RV = nucleus(logits_RV, torch.tensor([[0.5], [0.51], [1.0]])).isfinite()
    assert kept_RV.tolist() == [[False, True, False, False], [False, True, False, True], [True] * 4]


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("place", [0, 3])
def test_a_model_stops_where_generate_does(file, place, tiny_model_dir, tmp_path):
    """With a list of tokens that end answers, one of which comes early; transformers takes it from either file."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    request = Request("q", PROMPTS[0], think=False, max_answer_tokens=40)
    free = Reasoner(folder, CPU).draft(request)
    for _ in (model := Reasoner(folder, CPU)).steps([free]):
        pass
    chosen = free.answer_ids[place]
    first = free.answer_ids.index(chosen)
    if file == "config.json":
        (folder / "generation_config.json").unlink()
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | {"eos_token_id": [model.tokens.eos_id, chosen]}))
    reasoner = Reasoner(folder, CPU)
    theirs = reasoner.model.generate(torch.tensor([PROMPTS[0]]), do_sample=False, max_new_tokens=40)[0]
    assert len(free.answer_ids) > first + 1
    assert theirs[len(PROMPTS[0]) :].tolist() == [*free.answer_ids[:first], chosen]
    (_, reply), *_ = reasoner.run([request])
    assert (reply.answer_tokens, reply.cut) == (first, False)


def test_the_weights_are_loaded_at_the_first_request(tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    unloaded = Reasoner(folder, CPU)
    assert (unloaded.about.thinks, unloaded.positions) == (True, 512)
    with pytest.raises(ModelError, match="its files hold 0"):
        list(unloaded.run(asked()))


def test_a_model_without_think_tokens_is_refused(tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "nrt.json").unlink()
    with pytest.raises(ModelError, match="nrt model prepare"):
        Reasoner(folder, CPU)
    (folder / "nrt.json").write_text('{"tokens": {"think_start": null, "think_end": {"token": "<|gone|>"}}}')
    with pytest.raises(ModelError, match=r"'<\|gone\|>' is .* run `nrt model prepare`"):
        Reasoner(folder, CPU)
