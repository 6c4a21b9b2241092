"""A tiny Llama trained from nothing on generated text, and a tokenizer of words: the laptop study's base model.

Shapes: B documents, T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nrt_cli.files import draft
from nrt_cli.models.loading import quiet

UNKNOWN, EOS, PAD = "<unk>", "<eos>", "<pad>"
CHAT_TEMPLATE = "{%- for message in messages -%}{{ message['content'] + ' ' }}{%- endfor -%}"
"""The turns one after another: such a model knows no roles."""

WIDTH, LAYERS, HEADS, INNER, POSITIONS = 128, 3, 4, 256, 192
LR, BETAS, DECAY, WARMUP, CLIP = 2e-3, (0.9, 0.98), 0.01, 50, 1.0
STEADY = 0.6
"""Share of the steps after which the learning rate falls, linearly, to a twentieth."""

IGNORED = -100

Documents = Sequence[tuple[str, str]]
"""(Context that is read, text that is learned) pairs."""


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, words being what stands between blanks."""
    vocabulary = {word: i for i, word in enumerate([UNKNOWN, EOS, PAD, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pretrain(
    words: Sequence[str],
    batch: Callable[[int], Documents],
    steps: int,
    folder: Path,
    seed: int,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train on `batch(step)` for steps 0 to `steps` and save model and tokenizer, as a hub model would be, in `folder`.

    On one thread, so that the same arguments give the same weights on the same machine.

    Args:
        progress: called after every step with the number of steps done and the loss in nats per token.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = word_tokenizer(words)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _new_model(tokenizer)
        optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY, fused=True)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = LR * _rate(step, steps)
            progress(step + 1, _step(model, optimiser, *_tensors(tokenizer, batch(step))))
    finally:
        torch.set_num_threads(threads)
    with quiet(), draft(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _rate(step: int, steps: int) -> float:
    """The learning rate's factor: a short warm-up, then steady, then falling."""
    done = step / steps
    return min(1.0, (step + 1) / WARMUP) * (1.0 if done < STEADY else max(0.05, (1 - done) / (1 - STEADY)))


def _step(model: LlamaForCausalLM, optimiser: torch.optim.Optimizer, ids_BT: Tensor, targets_BT: Tensor) -> float:
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    # Position t predicts token t + 1. Padding is on the right, where causal attention never looks.
    loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets_BT[:, 1:].flatten(), ignore_index=IGNORED)
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    return float(loss.detach())


def _tensors(tokenizer: Any, documents: Documents) -> tuple[Tensor, Tensor]:
    """Token ids and targets, [B, T]: contexts, whose words are random, and padding are not learned."""
    contexts = [tokenizer.encode(context) for context, _ in documents]
    texts = [[*tokenizer.encode(text), tokenizer.eos_token_id] for _, text in documents]
    width = max(len(context) + len(text) for context, text in zip(contexts, texts, strict=True))
    ids_BT = torch.full((len(documents), width), tokenizer.pad_token_id)
    targets_BT = torch.full((len(documents), width), IGNORED)
    for i, (context, text) in enumerate(zip(contexts, texts, strict=True)):
        end = len(context) + len(text)
        ids_BT[i, :end] = torch.tensor([*context, *text])
        targets_BT[i, len(context) : end] = torch.tensor(text)
    return ids_BT, targets_BT


def _new_model(tokenizer: Any) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: LlamaForCausalLM) -> None:
    """Wider rows than transformers' 0.02: at this size, small embeddings keep copying from being learned."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            scale = 0.4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            weight.normal_(std=scale / math.sqrt(weight.shape[1]))
    model.model.embed_tokens.weight.normal_(std=0.7)
    model.lm_head.weight.normal_(std=0.02)
