"""A tiny model from nothing: its tokenizer, what it learns from, and that it is an ordinary model folder."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nrt_cli.models.prepare import prepare_model
from nrt_cli.text.prompts import encode_answer, render_prompt
from nrt_cli.training import pretraining

WORDS = ["Q", ":", "?", "A", "1", "2", "+", "#", "*"]
DOCUMENTS = [("Q : 1 + 2 ?", "# A 1"), ("", "2 + 1 2 +"), ("Q : 2 ?", " A 2")]


def test_targets_are_the_text_and_its_end_alone():
    tokenizer = pretraining.word_tokenizer(WORDS)
    ids, targets = pretraining._tensors(tokenizer, DOCUMENTS)
    eos, pad, none = tokenizer.eos_token_id, tokenizer.pad_token_id, pretraining.IGNORED
    words = [[tokenizer.decode([i]) for i in row] for row in ids.tolist()]
    assert words[0] == ["Q", ":", "1", "+", "2", "?", "#", "A", "1", "<eos>"]
    assert words[1] == ["2", "+", "1", "2", "+", "<eos>", *["<pad>"] * 4]
    assert targets[0].tolist() == [none] * 6 + ids[0, 6:].tolist()
    assert targets[1].tolist() == [*ids[1, :6].tolist(), *[none] * 4]
    assert targets[2].tolist() == [none] * 4 + [*ids[2, 4:6].tolist(), eos] + [none] * 3
    assert ids[2, 7:].tolist() == [pad] * 3


def test_loss_is_that_of_the_next_word():
    """By hand: one document of two learned words, from the logits at the words before them."""
    tokenizer = pretraining.word_tokenizer(WORDS)
    torch.manual_seed(0)
    model = pretraining._new_model(tokenizer)
    ids, targets = pretraining._tensors(tokenizer, [("Q 1", "A")])  # Q 1 A <eos>: learned are A and <eos>
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    by_hand = -(logprobs[1, ids[0, 2]] + logprobs[2, ids[0, 3]]) / 2
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
    assert pretraining._step(model, optimiser, ids, targets) == pytest.approx(float(by_hand), rel=1e-5)


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
