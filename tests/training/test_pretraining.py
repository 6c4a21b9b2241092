"""A tiny model from nothing: its tokenizer, what it learns from, and that it is an ordinary model folder."""

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nrt_cli.data import digits
from nrt_cli.models.prepare import prepare_model
from nrt_cli.text.prompts import encode_answer, render_prompt
from nrt_cli.training import pretraining

WORDS = ["Q", ":", "?", "A", "1", "2", "+", "#", "*"]
DOCUMENTS = [("Q : 1 + 2 ?", "# A 1"), ("", "2 + 1 2 +"), ("Q : 2 ?", " A 2")]


def test_what_is_learned_is_the_text_and_its_end_alone():
    tokenizer = pretraining.word_tokenizer(WORDS)
    words = lambda ids: [tokenizer.decode([i]) for i in ids]  # noqa: E731
    examples = [pretraining._example(tokenizer, *document) for document in DOCUMENTS]
    assert [(words(e.prompt_ids), words(e.answer_ids)) for e in examples] == [
        (["Q", ":", "1", "+", "2", "?"], ["#", "A", "1", "<eos>"]),
        (["2"], ["+", "1", "2", "+", "<eos>"]),  # nothing comes before its first word
        (["Q", ":", "2", "?"], ["A", "2", "<eos>"]),
    ]


def test_a_step_is_adamws_on_the_mean_over_learned_words():
    """Against torch's own cross-entropy on padded rows and AdamW, step after step."""
    tokenizer = pretraining.word_tokenizer(WORDS)
    torch.manual_seed(0)
    model = pretraining._new_model(tokenizer, digits.POSITIONS)
    slow = copy.deepcopy(model)
    adamw = torch.optim.AdamW(slow.parameters(), lr=pretraining.LR, betas=pretraining.BETAS, weight_decay=0.01)
    trainer = pretraining._trainer(model, tokenizer, 3)
    for step in range(3):
        examples = [pretraining._example(tokenizer, *document) for document in DOCUMENTS]
        losses = []
        for example in examples:
            ids = [*example.prompt_ids, *example.answer_ids]
            logits = slow(input_ids=torch.tensor([ids])).logits[0, len(example.prompt_ids) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="none"))
        loss = torch.cat(losses).mean()
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(slow.parameters(), pretraining.CLIP)
        adamw.param_groups[0]["lr"] = pretraining.LR * pretraining._rate(step, 3)
        adamw.step()
        assert trainer.update(examples).metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    for fast, reference in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(fast, reference, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("step", "factor"), [(0, 1 / 50), (49, 1.0), (600, 1.0), (800, 0.5), (999, 0.05)])
def test_rate(step, factor):
    # Of 1000 steps 50 warm up and 400 cool down: after 800, half of those are left.
    assert pretraining._rate(step, 1000) == pytest.approx(factor)


def made(folder, seed=0, steps=6):
    losses = []
    pretraining.pretrain(WORDS, lambda step: DOCUMENTS, steps, folder, seed, lambda step, loss: losses.append(loss))
    return losses


def test_it_learns_and_the_same_seed_gives_the_same_weights(tmp_path):
    threads = torch.get_num_threads()
    one, same, other = made(tmp_path / "one"), made(tmp_path / "same"), made(tmp_path / "other", seed=1)
    assert one == same != other
    assert one[0] == pytest.approx(math.log(len(WORDS) + 3), abs=0.3)  # near a uniform guess over words and specials
    assert one[-1] < one[0] - 0.1
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "same")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert torch.get_num_threads() == threads


def test_a_model_from_nothing_is_prepared_like_any_other(tmp_path):
    made(tmp_path / "source", steps=2)
    prepare_model(str(tmp_path / "source"), tmp_path / "model", init_start="#", init_end="*")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "Q : 1 + 2 ?"}])
    assert tokenizer.decode(prompt) == "Q : 1 + 2 ?"
    assert tokenizer.decode(encode_answer(tokenizer, "A 1")) == "A 1 <eos>"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    rows = model.get_input_embeddings().weight
    start, mark = (tokenizer.convert_tokens_to_ids(token) for token in ("<|think_start|>", "#"))
    assert torch.cosine_similarity(rows[start], rows[mark], dim=0) > 0.99
