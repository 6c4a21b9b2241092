"""Two phases in vLLM give what transformers gives. Without vLLM, a slow engine with its interface stands in for it."""

import math

import pytest
import torch
from sampling_checks import ASKED, PROMPTS, asked, plain_logprobs, replies

from nrt_cli.backends import reasoning
from nrt_cli.backends.reasoning import Reasoner, VllmReasoner
from nrt_cli.backends.vllm_engine import VllmOutput, installed
from nrt_cli.config import ModelSection
from nrt_cli.errors import ModelError
from nrt_cli.models.prepare import prepare_model
from nrt_cli.records import Reply, Request

CPU = ModelSection(dtype="float32", device="cpu")


class SlowEngine:
    """vLLM's part, greedily: a whole forward pass for every token."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.calls = []

    @torch.no_grad()
    def generate(self, requests):
        self.calls.append(len(requests))
        return [self._one(request) for request in requests]

    def _one(self, request):
        assert request.max_tokens > 0
        ids, stopped_by, text = [], None, ""
        while len(ids) < request.max_tokens and stopped_by is None:
            logits = self.model(torch.tensor([[*request.prompt_ids, *ids]]), use_cache=False).logits[0, -1]
            if len(ids) < request.min_tokens:
                logits[list(request.stop_ids)] = -math.inf
            ids.append(int(logits.argmax()))
            text = self.tokenizer.decode(ids)
            stopped_by = ids[-1] if ids[-1] in request.stop_ids else next((s for s in request.stop if s in text), None)
        return VllmOutput(tuple(ids), (), stopped_by, shared=0)

    def score(self, sequences):
        return [plain_logprobs(self.model, ids[:1], ids[1:]) for ids in sequences]


@pytest.fixture(scope="module")
def native(tiny_model_dir):
    return Reasoner(tiny_model_dir, CPU)


@pytest.fixture
def stand_in(tiny_model_dir, native, monkeypatch):
    monkeypatch.setattr(reasoning, "installed", lambda: "vllm")
    made = VllmReasoner(tiny_model_dir, CPU, 4)
    made.__dict__["engine"] = SlowEngine(native.model, native.tokenizer)
    return made


def agrees(reasoner, native, how):
    want = replies(native, asked(**how))
    assert replies(reasoner, asked(**how)) == want
    assert {reply.stop for reply in want.values()} >= {"cap", None}


@pytest.mark.parametrize("how", [{}, {"stop": ("e", "12")}], ids=str)
def test_two_phases_give_the_same_replies(how, stand_in, native):
    agrees(stand_in, native, how)
    # Five think, one of them without room for a trace; then all six answer.
    assert stand_in.engine.calls == [4, 6]


def test_many_requests_are_handed_over_in_turns(stand_in, native, monkeypatch):
    monkeypatch.setattr(reasoning, "TURNS", 1)
    agrees(stand_in, native, {})
    assert stand_in.engine.calls == [3, 4, 1, 2]


def test_continuations_are_scored_and_what_does_not_fit_is_marked(stand_in, native):
    requests = [
        Request(f"{i}{c}", p, "loglikelihood", continuation_ids=c)
        for i, p in enumerate(ASKED)
        for c in ((3,), (8, 9, 31))
    ]
    want = replies(native, requests)
    got = replies(stand_in, requests)
    assert got.keys() == want.keys()
    for key, reply in got.items():
        assert reply.logprob == pytest.approx(want[key].logprob, abs=1e-4)
    long = Request("long", tuple(range(5, 105)) * 6, max_answer_tokens=4)
    assert replies(stand_in, [long]) == {"long": Reply(cut=True)}


def test_sampled_parts_have_streams_of_their_own(stand_in):
    request = Request("q", PROMPTS[0], max_answer_tokens=3, temperature=0.8, top_p=0.9, seed_key=(4, 1), think=True)
    draft = stand_in.draft(request)
    trace = reasoning._request(draft)
    draft.close()
    answer = reasoning._request(draft)
    assert (answer.temperature, answer.top_p, answer.max_tokens) == (0.8, 0.9, 3)
    assert trace.seed != answer.seed
    other = Request("q", PROMPTS[0], max_answer_tokens=3, temperature=0.8, seed_key=(4, 2))
    assert reasoning._request(stand_in.draft(other)).seed not in (trace.seed, answer.seed)


def test_an_answer_that_opens_a_trace_ends_there(stand_in, monkeypatch):
    start, ids = stand_in.tokens.start_id, stand_in.tokenizer.encode("so it is 7", add_special_tokens=False)
    output = VllmOutput((*ids, start, *ids), (), None, shared=0)
    monkeypatch.setattr(stand_in.engine, "generate", lambda requests: [output])
    request = Request("q", PROMPTS[0], max_answer_tokens=99)
    assert replies(stand_in, [request]) == {"q": Reply(answer="so it is 7", answer_tokens=len(ids))}


def test_without_vllm_it_is_said_before_the_model_is_loaded(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(reasoning, "installed", lambda: None)
    with pytest.raises(ModelError, match=r"vllm is not installed; pip install .* or use --engine hf"):
        VllmReasoner(tiny_model_dir)


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="vllm is not installed")
def test_vllm_itself_gives_the_same_replies(tmp_path, make_tiny_source, make_tiny_tokenizer):
    # vLLM's kernels for CPUs want heads of 32 channels or more.
    source = make_tiny_source(tmp_path / "source", make_tiny_tokenizer(), head_dim=32)
    folder = prepare_model(str(source), tmp_path / "model", dtype="float32").folder
    native, reasoner = Reasoner(folder, CPU), VllmReasoner(folder, CPU, 4)
    for how in ({}, {"stop": ("e", "12")}):
        agrees(reasoner, native, how)
    scored = [Request("s", PROMPTS[0], "loglikelihood", continuation_ids=(8, 9, 31))]
    assert replies(reasoner, scored)["s"].logprob == pytest.approx(replies(native, scored)["s"].logprob, abs=1e-3)
    once, again, other = (replies(reasoner, asked(temperature=1.0, top_p=0.9, seed_key=(key,))) for key in (3, 3, 4))
    assert once == again != other
