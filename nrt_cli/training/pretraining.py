"""A tiny Llama trained from nothing on generated text, and a tokenizer of words: the laptop study's base model."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nrt_cli.backends.local.backend import Loaded
from nrt_cli.config import resolve
from nrt_cli.data import digits
from nrt_cli.files import draft
from nrt_cli.methods import SUPERVISED
from nrt_cli.models.loading import quiet
from nrt_cli.records import Example
from nrt_cli.text.tokens import ThinkTokens
from nrt_cli.training.trainer import LocalTrainer

UNKNOWN, EOS, PAD = "<unk>", "<eos>", "<pad>"
CHAT_TEMPLATE = "{%- for message in messages -%}{{ message['content'] + ' ' }}{%- endfor -%}"
"""The turns one after another: such a model knows no roles."""

WIDTH, LAYERS, HEADS, INNER = 128, 3, 4, 256
LR, BETAS, DECAY, WARMUP, CLIP = 2e-3, (0.9, 0.98), 0.01, 50, 1.0
STEADY = 0.6
"""Share of the steps after which the learning rate falls, linearly, to a twentieth."""

Documents = Sequence[tuple[str, str]]
"""(Context that is read, text that is learned) pairs."""


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, words being what stands between blanks."""
    vocabulary = {word: i for i, word in enumerate([UNKNOWN, EOS, PAD, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: dict[str, Any] = {"unk_token": UNKNOWN, "eos_token": EOS, "pad_token": PAD}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pretrain(
    words: Sequence[str],
    batch: Callable[[int], Documents],
    steps: int,
    folder: Path,
    seed: int,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    positions: int = digits.POSITIONS,
) -> None:
    """Train on `batch(step)` for steps 0 to `steps` and save model and tokenizer, as a hub model would be, in `folder`.

    On one thread, so that the same arguments give the same weights on the same machine. `progress` is called after
    every step with the number of steps done and the loss in nats per token; `positions` are how many tokens the model
    has room for.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = word_tokenizer(words)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _new_model(tokenizer, positions)
        if steps:
            trainer = _trainer(model, tokenizer, steps)
            for step in range(steps):
                documents = [_example(tokenizer, *document) for document in batch(step)]
                progress(step + 1, trainer.update(documents).metrics["loss"])
    finally:
        torch.set_num_threads(threads)
    _save(model, tokenizer, folder)


def untrained(words: Sequence[str], folder: Path, **shape: int) -> None:
    """Save a Llama of any shape with random weights, to measure with: always the same ones."""
    tokenizer = word_tokenizer(words)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings: dict[str, Any] = {**shape, **ends, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**settings))
    _save(model, tokenizer, folder)


def _save(model: LlamaForCausalLM, tokenizer: Any, folder: Path) -> None:
    with quiet(), draft(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _trainer(model: LlamaForCausalLM, tokenizer: Any, steps: int) -> LocalTrainer:
    """Cross-entropy on text is what SFT is on answers; no think tokens have a part in it."""
    optimiser = {"lr": LR, "betas": BETAS, "weight_decay": DECAY, "clip_norm": CLIP}
    train = {"minibatch_size": None, "micro_batch_tokens": 16384}
    settings = {"method": SUPERVISED.name, "optimiser": optimiser, "train": train, "engine": {"packing": "off"}}
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    loaded = Loaded(model, tokenizer, ThinkTokens(None, eos, eos, pad))
    return LocalTrainer(resolve(settings, origin="pretraining"), steps, loaded, factor=lambda step: _rate(step, steps))


def _rate(step: int, steps: int) -> float:
    """The learning rate's factor: a short warm-up, then steady, then falling."""
    done = step / steps
    return min(1.0, (step + 1) / WARMUP) * (1.0 if done < STEADY else max(0.05, (1 - done) / (1 - STEADY)))


def _example(tokenizer: Any, context: str, text: str) -> Example:
    """A document: its context, whose words are random, is read, and its text is learned with an eos.

    Nothing comes before the first word of a text without context, so that it cannot be learned.
    """
    before = tokenizer.encode(context)
    ids = (*before, *tokenizer.encode(text), tokenizer.eos_token_id)
    learned = max(1, len(before))
    return Example(0, "document", ids[:learned], ids[learned:])


@torch.no_grad()
def _new_model(tokenizer: Any, positions: int) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
    }
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "max_position_embeddings": positions}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings: dict[str, Any] = {**sizes, **heads, **ends, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    # Wider rows than transformers' 0.02: at this size, small embeddings keep copying from being learned.
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            scale = 0.4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            weight.normal_(std=scale / math.sqrt(weight.shape[1]))
    model.model.embed_tokens.weight.normal_(std=0.7)
    model.lm_head.weight.normal_(std=0.02)
    return model
