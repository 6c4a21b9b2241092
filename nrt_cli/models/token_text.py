"""The text of stored token ids, from a model folder's tokenizer and without its model, torch or transformers."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nrt_cli.text.pieces import pieces


class _Decoder:
    """What `pieces` asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self._tokenizer.id_to_token(token)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool, **_: Any) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def token_text(folder: Path) -> Callable[[Sequence[int]], list[str]] | None:
    """Cuts token ids into the texts they stand for (see `nrt_cli.text.pieces`); None where no tokenizer is there."""
    try:
        decoder = _decoder((folder / "tokenizer.json").read_bytes())
    except Exception:  # tokenizers raises nothing narrower; a tokenizer that cannot be read shows nothing
        return None
    return lambda ids: pieces(decoder, ids)


@lru_cache(maxsize=4)
def _decoder(content: bytes) -> _Decoder:
    """By content: the runs of a study each have a copy of one tokenizer, and reading one takes long."""
    return _Decoder(Tokenizer.from_buffer(content))
