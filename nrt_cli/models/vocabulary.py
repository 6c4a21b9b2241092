"""The new tokens of a prepared model: names, ids, rows.

Shapes: W_VD a matrix of embedding or head rows, V rows, D hidden size.

What transformers would do by itself and this does not:
- New rows are ours to set. `resize_token_embeddings` draws them from a fitted Gaussian, leaves untouched the padding
  rows that new ids may land in, and treats input and output rows alike whatever was asked.
- A think token starts as a separator that the model knows: a paragraph's end for t_start, a line's end for t_end. From
  the mean of all rows, SmolLM2-135M gives t_end a probability of about 1e-8 per token and reads t_start as noise; from
  one and the same row, t_start is sampled inside traces as often as t_end ends them.
- Any tokenizer has such rows, by one rule (`start_ids`): the rows of what the separator is tokenised to within a text.
  Where both separators are the same (Llama 2's and Mistral's bytes), t_start's lies halfway to the mean of all rows. On
  SmolLM2-135M with one token for both, that took its probability within traces from 6e-3, t_end's own, to 2e-5, and log
  P(y*) after the null trace from -178.9 to -172.7 (-181.0 from the mean; six GSM8K pairs).
- The vocabulary grows by exactly the new tokens. Rounding up would add ids without a token that sampling could draw.
- The generation config keeps token ids only. A model's own top_p or temperature would quietly change the
  distribution that traces are sampled from, and with it the policy gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import GenerationConfig

from nrt_cli.errors import ModelError
from nrt_cli.text.prompts import DEFAULT_CHAT_TEMPLATE, closing_id, encode_within
from nrt_cli.text.tokens import single_id

# Names under which families reserve a padding token; the first that a vocabulary has is used before one is added.
PAD_NAMES = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|vision_pad|>")
NEW_PAD = "<|pad|>"
MEAN = "mean"
HALFWAY = " and the mean, since think_end starts there"


@dataclass(frozen=True)
class Settings:
    """What was asked for. Two preparations with equal settings and source give the same folder."""

    think_start: str | None
    think_end: str
    init_start: str
    init_end: str
    noise: float
    dtype: str
    seed: int


def row_starts(tokenizer: Any, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Each think token that the tokenizer lacks, with the tokens whose rows its own starts from (`start_ids`)."""
    wanted = {settings.think_start: settings.init_start, settings.think_end: settings.init_end}
    return {
        token: start_ids(tokenizer, text)
        for token, text in wanted.items()
        if token is not None and not _is_single(tokenizer, token)
    }


def extend_tokenizer(tokenizer: Any, settings: Settings, stop_ids: Sequence[int]) -> None:
    """Add what is missing of think tokens, pad and chat template; eos becomes what closes the assistant's turn.

    Args:
        stop_ids: what ends the model's answers.
    """
    for token in row_starts(tokenizer, settings):
        tokenizer.add_tokens(AddedToken(token, special=True, normalized=False), special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": _choose_pad(tokenizer, settings, stop_ids)})
    if not tokenizer.chat_template:
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    closing = tokenizer.convert_ids_to_tokens(closing_id(tokenizer, stop_ids))
    if closing != tokenizer.eos_token:
        if isinstance(tokenizer.chat_template, str):
            # A template that also writes eos, such as Phi's at a conversation's end, means the one it was written for.
            keep = f"{{%- set eos_token = {tokenizer.eos_token!r} -%}}"
            tokenizer.chat_template = keep + tokenizer.chat_template
        tokenizer.eos_token = closing


def _is_single(tokenizer: Any, token: str) -> bool:
    try:
        single_id(tokenizer, token)
    except ModelError:
        return False
    return True


def _choose_pad(tokenizer: Any, settings: Settings, stop_ids: Sequence[int]) -> str:
    """The tokenizer's own pad where that is no other token too, else one its family reserves, else a new one."""
    taken = {tokenizer.eos_token, tokenizer.bos_token, settings.think_start, settings.think_end}
    taken |= set(tokenizer.convert_ids_to_tokens(list(stop_ids)))
    vocabulary = tokenizer.get_vocab()
    for token in (tokenizer.pad_token, *PAD_NAMES):
        if token in vocabulary and token not in taken:
            return token
    return NEW_PAD


def start_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens whose mean row a new row starts from; none stand for the mean of all rows.

    They are what `text` is tokenised to within a text: of line ends, one token with Llama 3, <0x0A> once or twice with
    Llama 2 and Mistral, nothing where a tokenizer drops them or does not know them. What no text is tokenised to alone,
    such as <0x0A> itself, is named as the vocabulary has it.
    """
    if text == MEAN:
        return ()
    ids = tuple(int(i) for i in encode_within(tokenizer, text) if i != tokenizer.unk_token_id)
    if len(ids) != 1 and text in (vocabulary := tokenizer.get_vocab()):
        return (int(vocabulary[text]),)
    return ids


def same_start(starts: Sequence[Sequence[Any]]) -> bool:
    """Whether both think tokens are new and would start from one and the same token's row."""
    return len(starts) == 2 and len({token for ids in starts for token in ids}) == 1 and all(starts)


def start_text(asked: str, names: Sequence[str]) -> str:
    """What a new row starts from, in words.

    Args:
        asked: the text that was asked for.
        names: the tokens that it is, as the vocabulary has them.
    """
    if asked == MEAN:
        return repr(MEAN)
    if not names:
        return f"{MEAN!r}: {asked!r} is no token of this tokenizer"
    return repr(asked) if [asked] == list(names) else f"{asked!r} ({' '.join(names)})"


def extend_rows(
    model: Any, real_ids: list[int], starts: dict[int, tuple[int, ...]], halfway: int | None, settings: Settings
) -> None:
    """Give every new id a row, in the input embedding and in the head, growing them where ids lie beyond their end."""
    if not starts:
        return
    if max(starts) >= count_rows(model):
        model.resize_token_embeddings(max(starts) + 1, mean_resizing=False)
    generator = torch.Generator().manual_seed(settings.seed)
    head = model.get_output_embeddings()
    matrices = [model.get_input_embeddings().weight]
    if not is_tied(model):
        matrices.append(head.weight)
    if getattr(head, "bias", None) is not None:
        matrices.append(head.bias.unsqueeze(1))
    for W_VD in matrices:
        init_rows(W_VD, real_ids, starts, halfway, settings.noise, generator)


@torch.no_grad()
def init_rows(
    W_VD: Tensor,
    real_ids: list[int],
    starts: dict[int, tuple[int, ...]],
    halfway: int | None,
    noise: float,
    generator: torch.Generator,
) -> None:
    """Set each row in `starts` in place to the mean of the rows it names (of `real_ids` for none), plus noise.

    The row `halfway` lies between the two.

    The noise is `noise` times each coordinate's standard deviation over the real rows. It only has to tell apart
    tokens that start from one row, which would otherwise stay one and the same as input.
    """
    real_RD = W_VD[real_ids].float()
    mean_D, std_D = real_RD.mean(0), real_RD.std(0, correction=0)
    for new_id, ids in starts.items():
        centre_D = W_VD[list(ids)].float().mean(0) if ids else mean_D
        if new_id == halfway:
            centre_D = (centre_D + mean_D) / 2
        noise_D = noise * std_D * torch.randn(W_VD.shape[1], generator=generator)
        W_VD[new_id] = (centre_D + noise_D).to(W_VD.dtype)


def set_token_ids(model: Any, tokenizer: Any, stop_ids: Sequence[int]) -> None:
    """Make config and generation config agree with the tokenizer; whatever else ends the model's answers is kept."""
    ids: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ids["bos_token_id"] = tokenizer.bos_token_id
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.update(ids)
    stops = list(dict.fromkeys((tokenizer.eos_token_id, *stop_ids)))
    model.generation_config = GenerationConfig(**ids | {"eos_token_id": stops})


def is_tied(model: Any) -> bool:
    """Whether the head is the input embedding itself."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def count_rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
