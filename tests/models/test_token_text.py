"""The text of stored token ids."""

import pytest

from nrt_cli.models.token_text import token_text
from nrt_cli.text.pieces import pieces


def test_it_cuts_as_the_models_own_tokenizer_does(tiny_model_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = [*tokenizer.encode("What is 3 plus 4? The answer  is 7.\n"), tokenizer.eos_token_id]
    cut = token_text(tiny_model_dir)
    assert cut(ids) == pieces(tokenizer, ids)
    assert "".join(cut(ids)) == "What is 3 plus 4? The answer  is 7.\n<eos>"
    assert cut(tokenizer.convert_tokens_to_ids(["<|think_start|>", "<|think_end|>"])) == [
        "<|think_start|>",
        "<|think_end|>",
    ]
    assert cut([]) == []


def test_where_there_is_none_nothing_is_cut(tmp_path):
    assert token_text(tmp_path) is None
    assert token_text(tmp_path / "missing") is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "no"}}'])
def test_what_is_no_tokenizer_is_passed_over(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert token_text(tmp_path) is None
