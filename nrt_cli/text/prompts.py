"""From messages to the prompt's token ids, and from an answer's text to y*."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from nrt_cli.errors import DataError, ModelError
from nrt_cli.text.rendering import rendered
from nrt_cli.text.tokens import PREPARE

# Tulu's format: plain text marks, so it needs no tokens of its own. BOS is written here and nowhere else, because
# a chat template is tokenised without added special tokens. The prompt ends right after the line of `<|assistant|>`.
DEFAULT_CHAT_TEMPLATE = (
    "{%- if bos_token is defined and bos_token -%}{{ bos_token }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{%- if message['role'] == 'assistant' -%}{{ message['content'] + eos_token + '\n' }}"
    "{%- else -%}{{ message['content'] + '\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
)

TAIL = 32
"""Characters of a text that decide how another goes on from it."""

BARE_PROMPT = "bare_prompt"
"""Set by us: a template that opens a trace by itself (`thinking_template`) is to leave that to whoever samples it."""


# What a client sends back of earlier turns may still have its traces; training never showed them.
_WITHOUT_TRACES = (
    "{%- set kept = namespace(turns=[]) -%}{%- for turn in messages -%}"
    "{%- if turn['role'] == 'assistant' and turn['content'] is string and END in turn['content'] -%}"
    "{%- set kept.turns = kept.turns + [{'role': 'assistant', 'content': turn['content'].split(END)[-1]}] -%}"
    "{%- else -%}{%- set kept.turns = kept.turns + [turn] -%}{%- endif -%}{%- endfor -%}"
    "{%- set messages = kept.turns -%}"
)


def thinking_template(template: str, start: str | None, end: str) -> str:
    """A chat template whose prompt ends in t_start, so that whatever reads it thinks.

    `enable_thinking=False`, as the field calls it, gives the null trace instead: t_start t_end. Of an earlier reply
    that still has its trace only the answer is rendered.
    """
    if BARE_PROMPT in template:
        return template
    opening, null = start or "", (start or "") + end
    thinks = f"{null!r} if enable_thinking is defined and not enable_thinking else {opening!r}"
    return (
        _WITHOUT_TRACES.replace("END", repr(end))
        # Jinja drops one line end at the end of a template, which is no longer the end.
        + template.removesuffix("\n")
        + f"{{{{ ({thinks}) if add_generation_prompt and not {BARE_PROMPT} is defined else '' }}}}"
    )


def render_prompt(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """x: the token ids of `prompt_text`."""
    return list(tokenizer.encode(prompt_text(tokenizer, messages), add_special_tokens=False))


def prompt_text(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    """The messages through the tokenizer's chat template, up to where the assistant turn begins.

    Adds nothing that the template does not: no system prompt, no second BOS. Raises ModelError where the tokenizer
    has no template and DataError where the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise ModelError(f"The tokenizer has no chat template; {PREPARE}.")
    return rendered(tokenizer, messages, add_generation_prompt=True, **{BARE_PROMPT: True})


def question_of(tokenizer: Any, prompt: str) -> str:
    """What a prompt of one turn asks, without what the chat template puts around it; another prompt as it is."""
    mark = "\ue000"  # which no template writes
    before, _, after = prompt_text(tokenizer, [{"role": "user", "content": mark}]).rpartition(mark)
    inside = prompt.startswith(before) and prompt.endswith(after) and len(prompt) >= len(before) + len(after)
    return prompt[len(before) : len(prompt) - len(after)] if inside else prompt


def encode_within(tokenizer: Any, text: str, after: str = "", plain: bool = False) -> list[int]:
    """The ids of a text that goes on from another. Where it begins with a blank, it gets none put before it.

    Some tokenizers put a space before every text (Llama 2 as first stored): alone, " A" has two and a line end one.

    Args:
        after: what it goes on from, where that is known: then it gets none in any case.
        plain: special tokens that are spelled out stay text.
    """
    encode = partial(tokenizer.encode, add_special_tokens=False, split_special_tokens=plain)
    after = after[-TAIL:] or "a" * text[:1].isspace()
    before, whole = encode(after), encode(after + text)
    if whole[: len(before)] == before:
        return list(whole[len(before) :])
    return list(encode(text))


def closing_id(tokenizer: Any, stop_ids: Sequence[int]) -> int:
    """Which of the tokens that end an answer the chat template closes the assistant's turn with.

    The tokenizer's eos where the template closes it with none of them, or refuses to show.
    """
    answer = "Hello"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    try:
        _, found, after = rendered(tokenizer, turns).rpartition(answer)
    except DataError:
        found, after = "", ""
    closing = (i for i in tokenizer.encode(after, add_special_tokens=False) if found and i in stop_ids)
    return int(next(closing, tokenizer.eos_token_id))


def encode_answer(tokenizer: Any, text: str) -> list[int]:
    """y*: the answer's ids and one closing eos, without BOS; an eos already written at its end is not doubled.

    `nrt model prepare` has made eos the token that the chat template closes the assistant's turn with.
    Special tokens spelled out inside the text stay text, so that no data can end an answer early or open a trace.
    """
    return [*encode_plain(tokenizer, text.removesuffix(tokenizer.eos_token)), tokenizer.eos_token_id]


def encode_plain(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text in which special tokens that are spelled out stay text."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def encode_span(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """x and y* of plain text: the ids of a context, after the BOS of a tokenizer that begins every text with one, and
    of what follows it there, which has no eos, since the text goes on."""
    begins = [token for token in tokenizer.encode("") if token == tokenizer.bos_token_id]
    x = encode_within(tokenizer, context, plain=True)
    return [*begins[:1], *x], encode_within(tokenizer, continuation, context, plain=True)
