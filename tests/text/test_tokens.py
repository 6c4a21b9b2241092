"""Think tokens are one id each, known, and distinct from eos and pad."""

import pytest

from nrt_cli.errors import ModelError
from nrt_cli.text.tokens import ThinkTokens, think_tokens


@pytest.fixture
def ready(tiny_tokenizer):
    """The tiny tokenizer with think tokens and pad added by hand."""
    tiny_tokenizer.add_tokens(["<|think_start|>", "<|think_end|>"], special_tokens=True)
    tiny_tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tiny_tokenizer


def test_ids_are_those_of_the_vocabulary(ready):
    vocabulary = ready.get_vocab()
    assert think_tokens(ready, "<|think_start|>", "<|think_end|>") == ThinkTokens(
        vocabulary["<|think_start|>"], vocabulary["<|think_end|>"], vocabulary["<eos>"], vocabulary["<|pad|>"]
    )


def test_several_tokens_may_end_an_answer(ready):
    vocabulary = ready.get_vocab()
    tokens = think_tokens(ready, "<|think_start|>", "<|think_end|>", [5, vocabulary["<eos>"], 6])
    assert (tokens.eos_id, tokens.stop_ids) == (vocabulary["<eos>"], (vocabulary["<eos>"], 5, 6))
    assert tokens.trace_ends == (tokens.end_id, tokens.eos_id, 5, 6, tokens.start_id)
    assert think_tokens(ready, None, "<|think_end|>", [5]).trace_ends == (tokens.end_id, tokens.eos_id, 5)


@pytest.mark.parametrize("role", ["<|think_start|>", "<|think_end|>"])
def test_a_think_token_cannot_end_an_answer(role, ready):
    with pytest.raises(ModelError, match="ends this model's answers"):
        think_tokens(ready, "<|think_start|>", "<|think_end|>", [ready.convert_tokens_to_ids(role)])


def test_the_start_token_is_optional(ready):
    assert think_tokens(ready, None, "<|think_end|>").start_id is None


@pytest.mark.parametrize(
    ("start", "end", "named"),
    [
        ("<think>", "<|think_end|>", "'<think>' is"),  # several characters in this vocabulary
        ("<|think_start|>", "€", "'€' is unknown"),
        ("<|think_start|>", "<|think_start|>", "think_start and think_end are the same"),
        ("<eos>", "<|think_end|>", "think_start and eos are the same"),
        ("<|think_start|>", "<|pad|>", "think_end and pad are the same"),
    ],
)
def test_unusable_tokens_are_named_with_the_command_to_run(ready, start, end, named):
    with pytest.raises(ModelError) as error:
        think_tokens(ready, start, end)
    assert named in str(error.value)
    assert "nrt model prepare" in str(error.value)


def test_a_missing_pad_is_named(tiny_tokenizer):
    tiny_tokenizer.add_tokens(["<|think_end|>"], special_tokens=True)
    with pytest.raises(ModelError, match="no pad token"):
        think_tokens(tiny_tokenizer, None, "<|think_end|>")


def test_pad_must_not_be_eos(ready):
    ready.pad_token = ready.eos_token
    with pytest.raises(ModelError, match="eos and pad are the same"):
        think_tokens(ready, "<|think_start|>", "<|think_end|>")
