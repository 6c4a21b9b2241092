"""Think tokens start from separators that any tokenizer has, whatever it makes of line ends."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from nrt_cli.models.prepare import HALFWAY, planned_rows, prepare_model, same_start, start_ids, start_text
from nrt_cli.text.prompts import DEFAULT_CHAT_TEMPLATE

LETTERS = [chr(code) for code in range(33, 127)]
LINE, PARAGRAPH = "\n", "\n\n"


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.chat_template = DEFAULT_CHAT_TEMPLATE
    return fast


def sentencepiece(prepend: str = "▁") -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: a space before every text, and bytes for what the vocabulary lacks."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    merges = [("▁", letter) for letter in LETTERS]
    vocabulary = {name: i for i, name in enumerate([*names, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(prepend), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrapped(tokenizer)


def byte_level(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """As GPT-2's, of which Ċ is the line end; with or without a token of two of them."""
    names = ["<unk>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(tokenizer)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's, which drops blanks of every kind."""
    names = ["<unk>", "</s>", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return wrapped(tokenizer)


def unigram(blank: str) -> PreTrainedTokenizerFast:
    """As T5's, which reads a line end as a space; or, where `blank` is another, keeps it and does not know it."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Replace(Regex(blank), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return wrapped(tokenizer)


def words() -> PreTrainedTokenizerFast:
    """Of words alone."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "so": 2, "then": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(tokenizer)


KINDS = {
    "SentencePiece with bytes": (sentencepiece(), ["<0x0A>", "<0x0A>"], ["<0x0A>"]),
    "the same, nothing put before": (sentencepiece(""), ["<0x0A>", "<0x0A>"], ["<0x0A>"]),
    "byte-level": (byte_level(), ["Ċ", "Ċ"], ["Ċ"]),
    "byte-level with a paragraph": (byte_level(("Ċ", "Ċ")), ["ĊĊ"], ["Ċ"]),
    "WordPiece": (word_piece(), [], []),
    "Unigram, line ends are spaces": (unigram(r"\s+"), ["▁"], ["▁"]),
    "Unigram, line ends unknown": (unigram(r" +"), [], []),
    "words": (words(), [], []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_separator_is_what_it_is_tokenised_to_within_a_text(kind: str) -> None:
    tokenizer, paragraph, line = KINDS[kind]
    assert tokenizer.convert_ids_to_tokens(list(start_ids(tokenizer, PARAGRAPH))) == paragraph
    assert tokenizer.convert_ids_to_tokens(list(start_ids(tokenizer, LINE))) == line
    assert start_ids(tokenizer, "mean") == ()


def test_a_piece_that_no_text_is_tokenised_to_is_named_as_the_vocabulary_has_it() -> None:
    tokenizer, *_ = KINDS["SentencePiece with bytes"]
    assert start_ids(tokenizer, "<0x0A>") == (tokenizer.convert_tokens_to_ids("<0x0A>"),)


def test_what_was_chosen_is_said() -> None:
    assert start_text(LINE, ["<0x0A>"]) == r"'\n' (<0x0A>)"
    assert start_text(PARAGRAPH, ["<0x0A>", "<0x0A>"]) == r"'\n\n' (<0x0A> <0x0A>)"
    assert start_text("#", ["#"]) == "'#'"
    assert start_text(LINE, []) == r"'mean': '\n' is no token of this tokenizer"
    assert start_text("mean", []) == "'mean'"


@pytest.mark.parametrize("kind", KINDS)
def test_any_tokenizer_is_prepared_and_its_new_rows_are_those_means(
    kind: str, tmp_path: Path, make_tiny_source: Callable[..., Path]
) -> None:
    tokenizer, *names = KINDS[kind]
    source = make_tiny_source(tmp_path / "source", tokenizer)
    before = AutoModelForCausalLM.from_pretrained(source).get_input_embeddings().weight
    metadata = prepare_model(str(source), tmp_path / "out", noise=0.0).metadata
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight
    assert list(metadata["new_rows"].values()) == names
    for role, tokens in zip(("think_start", "think_end"), names, strict=True):
        row = before[tokenizer.convert_tokens_to_ids(tokens)].mean(0) if tokens else before.mean(0)
        if role == "think_start" and tokens and {*names[0]} == {*names[1]}:
            row = (row + before.mean(0)) / 2  # else it would be sampled in traces as often as t_end
        torch.testing.assert_close(after[metadata["tokens"][role]["id"]], row)


def test_think_tokens_that_would_start_alike_are_told_apart() -> None:
    assert same_start([(7, 7), (7,)])
    assert not same_start([(8,), (7,)])
    assert not same_start([(), ()])  # both from the mean, as asked or for want of a token: the noise alone differs
    assert not same_start([(7,)])  # the other is there already


def test_the_mean_of_several_different_tokens(tmp_path: Path, make_tiny_source: Callable[..., Path]) -> None:
    tokenizer = byte_level()
    source = make_tiny_source(tmp_path / "source", tokenizer)
    before = AutoModelForCausalLM.from_pretrained(source).get_input_embeddings().weight
    metadata = prepare_model(str(source), tmp_path / "out", init_start="ab", noise=0.0).metadata
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    torch.testing.assert_close(after[metadata["tokens"]["think_start"]["id"]], (before[a] + before[b]) / 2)


def test_the_command_says_what_rows_start_from(tmp_path: Path, make_tiny_source: Callable[..., Path]) -> None:
    from nrt_cli.commands.model import app

    source = make_tiny_source(tmp_path / "source", sentencepiece())
    command = ["prepare", str(source), "--out", str(tmp_path / "out")]
    for _ in range(2):  # made, and there already
        told = CliRunner().invoke(app, command)
        assert told.exit_code == 0, told.output
        assert (
            f"think_start from '\\n\\n' (<0x0A> <0x0A>){HALFWAY}, think_end from '\\n' (<0x0A>), pad from 'mean'"
            in told.stdout
        )
    # A folder of an earlier version does not record them.
    file = tmp_path / "out" / "nrt.json"
    file.write_text(
        json.dumps(
            {key: value for key, value in json.loads(file.read_text()).items() if key not in ("new_rows", "checksum")}
        )
    )
    assert r"think_start from '\n\n', think_end from '\n', pad" in CliRunner().invoke(app, command).stdout


def test_a_plan_sees_them_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    sentencepiece().save_pretrained(folder)  # a tokenizer is enough: no weights are read
    before = sorted(tmp_path.rglob("*"))
    said = planned_rows(str(folder), PARAGRAPH, LINE)
    assert said == f"think_start from '\\n\\n' (<0x0A> <0x0A>){HALFWAY}, think_end from '\\n' (<0x0A>)"
    assert planned_rows("somebody/unseen", "mean", LINE).endswith(
        "the tokenizer of somebody/unseen is not on this machine, so it is not known which tokens"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_names_no_row_that_is_there_already(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|think_end|>"]})
    tokenizer.save_pretrained(tmp_path)
    assert planned_rows(str(tmp_path), PARAGRAPH, LINE) == r"think_start from '\n\n' (<0x0A> <0x0A>)"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|think_start|>", "<|think_end|>"]})
    tokenizer.save_pretrained(tmp_path)
    assert planned_rows(str(tmp_path), PARAGRAPH, LINE) == "none: the model has both think tokens"


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("mistral_common") and find_spec("sentencepiece")), reason="needs mistral-common")
def test_mistrals_own_vocabulary() -> None:
    said = planned_rows("mistralai/Mistral-7B-v0.3", PARAGRAPH, LINE)
    assert said == f"think_start from '\\n\\n' (<0x0A> <0x0A>){HALFWAY}, think_end from '\\n' (<0x0A>)"
