"""The accuracies against transformers' own `generate`, one question at a time."""

import pytest
import torch

from nrt_cli.backends.reasoning import LoadedReasoner, Reasoner
from nrt_cli.config import ModelSection
from nrt_cli.grading.accuracies import SLACK, Question, answer_all, answer_cap, mean_scores
from nrt_cli.grading.grading import Pair
from nrt_cli.records import ACCURACIES
from nrt_cli.text.pieces import text_within

C, A = 7, 5
PROMPTS = [(9, 31, 44), (5, 6, 7, 8, 9, 10, 11, 12, 60), (77,), (20, 30, 40, 50, 60), (61, 9)]


@pytest.fixture(scope="module")
def reasoner(tiny_model_dir):
    """Sharpened, so that what is likeliest depends on the prompt."""
    made = Reasoner(tiny_model_dir, ModelSection(dtype="float32", device="cpu"), 3)
    with torch.no_grad():
        made.model.get_output_embeddings().weight *= 15
        made.model.get_input_embeddings().weight *= 15
        for layer in made.model.model.layers:
            layer.self_attn.v_proj.weight *= 30
            layer.self_attn.o_proj.weight *= 30
    return made


def questions(references=("nothing",) * len(PROMPTS)):
    return [Question(str(i), prompt, Pair("", references[i], "exact")) for i, prompt in enumerate(PROMPTS)]


@torch.no_grad()
def slowly(reasoner, ids, most, ends, barred=()):
    """What `generate` says after some tokens, without the token that ended it."""
    given = torch.tensor([ids])
    out = reasoner.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=reasoner.tokens.pad_id,
        suppress_tokens=list(barred) or None,
    )[0, len(ids) :].tolist()
    return out[:-1] if out[-1] in ends else out


def expected(reasoner):
    """Trace and the four answers of every question, as token ids."""
    start, end = reasoner.tokens.start_id, reasoner.tokens.end_id
    after = lambda ids, most: slowly(reasoner, ids, most, reasoner.tokens.stop_ids, [start, end])  # noqa: E731
    traces = [slowly(reasoner, [*x, start], C, reasoner.tokens.trace_ends) for x in PROMPTS]
    return traces, [
        {
            "thinking": after([*x, start, *traces[i], end], A),
            "null": after([*x, start, end], C + A),
            "direct": after(x, C + A),
            "other_trace": after([*x, start, *traces[(i + 1) % len(PROMPTS)], end], A),
        }
        for i, x in enumerate(PROMPTS)
    ]


def test_no_questions_need_nobody_to_answer_them():
    """A backend whose sampler answers no questions, as verl's, has held-out scores all the same."""
    assert answer_all(None, [], [*ACCURACIES], 8, 8) == []


def test_every_reply_is_what_generate_says(reasoner):
    traces, answers = expected(reasoner)
    found = answer_all(reasoner, questions(), tuple(ACCURACIES), C, A)
    text = lambda ids: text_within(reasoner.tokenizer, ids, special=False)  # noqa: E731
    assert [list(each["thinking"].reply.trace_ids) for each in found] == traces
    assert len({tuple(trace) for trace in traces}) > 2  # else one trace would do for another
    for each, answer in zip(found, answers, strict=True):
        assert {kind: each[kind].reply.answer for kind in each} == {kind: text(ids) for kind, ids in answer.items()}
        assert {kind: each[kind].reply.answer_tokens for kind in each} == {k: len(ids) for k, ids in answer.items()}


def test_a_model_in_memory_says_the_same_and_stays_in_training(reasoner):
    loaded = LoadedReasoner(reasoner.model.train(), reasoner.tokenizer, reasoner.tokens, batch_rows=2)
    assert answer_all(loaded, questions(), ["thinking", "other_trace"], C, A) == answer_all(
        reasoner, questions(), ["thinking", "other_trace"], C, A
    )
    assert reasoner.model.training
    reasoner.model.eval()


def test_accuracies_are_the_shares_of_right_replies(reasoner):
    said = answer_all(reasoner, questions(), tuple(ACCURACIES), C, A)
    # The first two references are what was said after the model's own trace; the others nobody says.
    references = [each["thinking"].reply.answer if i < 2 else "nothing" for i, each in enumerate(said)]
    means = mean_scores(answer_all(reasoner, questions(references), tuple(ACCURACIES), C, A))
    assert list(means) == list(ACCURACIES)
    assert means["thinking"] == pytest.approx(2 / 5)


def test_another_row_is_one_with_another_prompt(reasoner):
    same = [Question(str(i), PROMPTS[0], Pair("", "nothing", "exact")) for i in range(2)]
    assert [list(each) for each in answer_all(reasoner, same, tuple(ACCURACIES), C, A)] == [
        ["thinking", "null", "direct"]
    ] * 2
    other = [*same, Question("2", PROMPTS[1], Pair("", "nothing", "exact"))]
    found = answer_all(reasoner, other, tuple(ACCURACIES), C, A)
    assert [each["other_trace"].reply.trace_ids for each in found] == [
        found[2]["thinking"].reply.trace_ids,
        found[2]["thinking"].reply.trace_ids,
        found[0]["thinking"].reply.trace_ids,
    ]


def test_an_answer_may_be_longer_than_the_longest_reference_but_not_than_is_allowed():
    assert (answer_cap(4, 100), answer_cap(90, 100)) == (4 + SLACK, 100)
