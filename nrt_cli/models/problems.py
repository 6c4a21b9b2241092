"""What a prepared model folder must hold to be trained: its special tokens and its chat template, as sentences."""

from collections.abc import Iterator, Sequence
from typing import Any

from nrt_cli.models.loading import declared_stops
from nrt_cli.text.prompts import encode_answer, prompt_text, render_prompt
from nrt_cli.text.tokens import think_tokens


def token_problems(tokenizer: Any, config: Any, start: str | None, end: str) -> Iterator[str]:
    """What is wrong with a model's think tokens, pad and eos; nothing where all is well.

    Args:
        config: the model's, as transformers reads it.

    Raises:
        ModelError: a token is missing, is several, or two of them are the same.
    """
    ids = think_tokens(tokenizer, start, end)
    for token, token_id in ((start, ids.start_id), (end, ids.end_id)):
        if token is None:
            continue
        if tokenizer.encode(f"Why?{token}So 1.", add_special_tokens=False).count(token_id) != 1:
            yield f"{token!r} is not one token inside text"
        if tokenizer.decode([token_id]) != token:
            yield f"{token!r} decodes to {tokenizer.decode([token_id])!r}"
    if config.pad_token_id != ids.pad_id or ids.eos_id not in declared_stops(config, None):
        yield "the config's pad or eos differs from the tokenizer's"
    highest, rows = max(ids.end_id, ids.eos_id, ids.pad_id, ids.start_id or 0), config.get_text_config().vocab_size
    if highest >= rows:
        yield f"token {highest} has no row in the embedding, which has {rows}"


def prompt_problems(tokenizer: Any, messages: Sequence[dict[str, str]]) -> Iterator[str]:
    """What is wrong with what the chat template makes of some messages."""
    ids = render_prompt(tokenizer, messages)
    if not ids or ids[:2] == [tokenizer.bos_token_id] * 2:
        yield "its chat template renders nothing, or two BOS tokens"


def prompt_doubts(tokenizer: Any, messages: Sequence[dict[str, str]], answer: str) -> Iterator[str]:
    """What is odd about a rendered prompt and its answer, though training works: loss of text, another turn's form."""
    # Text beside text: some tokenizers decode a space after BOS that nobody wrote.
    ids, text = render_prompt(tokenizer, messages), prompt_text(tokenizer, messages)
    if tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) != ids:
        yield "the prompt's text does not encode back to the prompt"
    if lost := [turn["content"] for turn in messages if turn["content"].strip() not in text]:
        yield f"the chat template changed or left out {lost[0][:60]!r}"
    answer_ids = encode_answer(tokenizer, answer)
    if answer.strip() not in tokenizer.decode(answer_ids):
        yield "the answer's text does not come back from its tokens"
    turns = [*messages, {"role": "assistant", "content": answer}]
    if not tokenizer.apply_chat_template(turns, tokenize=False).startswith(text):
        yield (
            "a whole conversation is rendered with another beginning of the assistant's turn than a prompt, so the "
            "model may meet both"
        )
