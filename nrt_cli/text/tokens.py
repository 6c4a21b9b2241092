"""The ids of the tokens that hold a sequence together: x t_start z t_end y* eos."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nrt_cli.errors import ModelError

PREPARE = "run `nrt model prepare` on this model first and train on the folder it writes"


@dataclass(frozen=True)
class ThinkTokens:
    """Token ids. `start_id` is None where a trace follows the prompt directly.

    Many models have several tokens that end an answer, such as <end_of_turn> and <eos>: `stop_ids` has all of them, and
    `eos_id`, always the first, is the one that closes y*.
    """

    start_id: int | None
    end_id: int
    eos_id: int
    pad_id: int
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_ids", tuple(dict.fromkeys((self.eos_id, *self.stop_ids))))

    @property
    def trace_ends(self) -> tuple[int, ...]:
        """What ends a trace once it is sampled: t_end; and what may not stand in one, for which t_end then stands in.

        Those are the tokens that end an answer, and t_start. They are not barred instead: a trace from which some
        tokens were barred is not the policy's own, so that its log-probabilities would be wrong (row 9).
        """
        opens = () if self.start_id is None else (self.start_id,)
        return (self.end_id, *self.stop_ids, *opens)


def think_tokens(tokenizer: Any, start: str | None, end: str, stop_ids: Iterable[int] = ()) -> ThinkTokens:
    """The ids of a transformers tokenizer's think tokens, eos and pad.

    Args:
        stop_ids: what ends the model's answers besides the tokenizer's eos; `loading.load_tokens` reads it.

    Raises ModelError where a token is missing, is more than one token or the unknown token, or where two of start, end,
    eos and pad are the same: padding that is eos would be masked out of y*, or scored where it is padding (row 15).
    """
    start_id = None if start is None else single_id(tokenizer, start)
    end_id, eos_id, pad_id = single_id(tokenizer, end), tokenizer.eos_token_id, tokenizer.pad_token_id
    for name, token_id in (("eos", eos_id), ("pad", pad_id)):
        if token_id is None:
            raise ModelError(f"The tokenizer has no {name} token; {PREPARE}.")
    seen: dict[int, str] = {}
    for name, token_id in (("think_start", start_id), ("think_end", end_id), ("eos", eos_id), ("pad", pad_id)):
        if token_id in seen:
            raise ModelError(f"The tokens for {seen[token_id]} and {name} are the same (id {token_id}); {PREPARE}.")
        if token_id is not None:
            seen[token_id] = name
    tokens = ThinkTokens(start_id, end_id, eos_id, pad_id, tuple(stop_ids))
    for token, token_id in ((start, start_id), (end, end_id)):
        if token_id in tokens.stop_ids:
            raise ModelError(f"{token!r} ends this model's answers, so it cannot be a think token; name another.")
    return tokens


def single_id(tokenizer: Any, token: str) -> int:
    """The one id that `token` encodes to. Raises ModelError where it is several, none or the unknown token."""
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise ModelError(f"{token!r} is {len(ids)} tokens in this tokenizer, not one; {PREPARE}.")
    if ids[0] == tokenizer.unk_token_id:
        raise ModelError(f"{token!r} is unknown to this tokenizer; {PREPARE}.")
    return int(ids[0])
