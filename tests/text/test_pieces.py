"""Tokens as pieces of text, and the words and sentences they make up."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nrt_cli.records import Example, Request, Rollout, RolloutGroup
from nrt_cli.text.pieces import joined_spans, pieces, sentence_spans, text_within, word_spans, words
from nrt_cli.text.prompts import encode_within
from nrt_cli.text.reasoning import Draft
from nrt_cli.text.tokens import ThinkTokens
from nrt_cli.training.traces import trace_rows


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    """One token per byte, so that letters beyond ASCII are several tokens."""
    vocabulary = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_letter_belongs_to_the_token_that_completes_it(bytes_tokenizer: Any) -> None:
    ids = bytes_tokenizer.encode("aé中b")
    # é is two bytes in UTF-8, 中 is three.
    assert pieces(bytes_tokenizer, ids) == ["a", "", "é", "", "", "中", "b"]


def test_half_a_letter_at_the_end_is_shown_as_such(bytes_tokenizer: Any) -> None:
    ids = bytes_tokenizer.encode("a中")
    assert pieces(bytes_tokenizer, ids[:-1]) == ["a", "", "\ufffd"]


@given(text=st.text(max_size=30))
def test_pieces_of_bytes_are_the_whole_text(bytes_tokenizer: Any, text: str) -> None:
    encoded = text.encode("utf-8", errors="ignore").decode()
    ids = bytes_tokenizer.encode(encoded)
    found = pieces(bytes_tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == encoded


@given(ids=st.lists(st.integers(0, 255), max_size=30))
def test_pieces_of_any_bytes_are_what_decoding_says(bytes_tokenizer: Any, ids: list[int]) -> None:
    found = pieces(bytes_tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == bytes_tokenizer.decode(ids)


def marked(kind: str) -> Any:
    """A tokenizer that marks spaces with \u2581, in the ways that Llama 2's and Mistral's have been stored."""
    special = ["<unk>", "<s>", "</s>", "<|think_end|>"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)] + [*"\u2581abcr42", "\u2581\u2581", "\u2581a", "\u25814", "42"]
    merges = [("\u2581", "\u2581"), ("\u2581", "a"), ("\u2581", "4"), ("4", "2")]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    bare = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind in ("always", "first", "never"):
        bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    else:
        bare.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    if kind in ("first", "never"):
        bare.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=kind)])
    else:
        texts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        bare.decoder = decoders.Sequence([*texts, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, unk_token="<unk>", bos_token="<s>", eos_token="</s>", extra_special_tokens=special[3:]
    )


KINDS = {kind: marked(kind) for kind in ("always", "first", "never", "prepended")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_space_of_a_part_is_not_lost(kind: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.convert_tokens_to_ids(["\u2581\u2581", "\u2581a", "\u25814", "2", "</s>"])
    assert text_within(tokenizer, ids) == "   a 42</s>"
    assert text_within(tokenizer, ids, special=False) == "   a 42"
    assert pieces(tokenizer, ids) == ["  ", " a", " 4", "2", "</s>"]
    assert text_within(tokenizer, []) == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["    return", " 42", " a\n  b"])
def test_text_that_begins_with_a_space_comes_back_from_its_tokens(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    said = text_within(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    # Where a space is put before every text, one that begins with a space may have got one more.
    assert said == (" " if kind == "prepended" else "") + text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [" a", " 42", "    r", " a 42", " 中"])
def test_a_text_that_goes_on_from_another_gets_no_second_space(kind: str, text: str) -> None:
    assert text_within(KINDS[kind], encode_within(KINDS[kind], text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_table_shows_a_trace_and_an_answer_with_their_first_spaces(kind: str) -> None:
    tokenizer = KINDS[kind]
    trace, answer = (tuple(tokenizer.convert_tokens_to_ids(names)) for names in (["\u2581a", "b"], ["\u25814", "</s>"]))
    group = RolloutGroup(Example(0, "made", (1,), answer), (Rollout(trace, (-1.0, -1.0), "cap"),))
    (row,) = trace_rows(0, [group], None, tokenizer)
    assert (row.trace, row.answer) == (" ab", " 4</s>")
    request = Request("q", (1,), think=True, max_trace_tokens=2, max_answer_tokens=9)
    draft = Draft(request, ThinkTokens(None, 3, 2, 0), tokenizer, None)
    for token in (*trace, 3, *answer):
        draft.take(token)
    # What is generated reads like what it is compared with, token for token.
    assert (draft.reply().trace, draft.reply().answer) == (" ab", " 4")


def test_a_stop_string_is_found_among_letters_made_of_bytes() -> None:
    """Where the text looked at begins inside a letter, no byte after it is read."""
    tokenizer = KINDS["always"]
    stop = tokenizer.encode("中中", add_special_tokens=False)[1:]
    request = Request("q", (1,), think=False, max_answer_tokens=99, stop=("中中",))
    draft = Draft(request, ThinkTokens(None, 3, 2, 0), tokenizer, None)
    for token in [*tokenizer.encode("日本日本日本日本日本日本日", add_special_tokens=False), *stop]:
        assert not draft.done
        draft.take(token)
    assert draft.done


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_part_is_what_it_adds_to_what_comes_before_it(kind: str, data: st.DataObject) -> None:
    """Whatever that is, if it ends with a whole letter: t_end, t_start or text."""
    tokenizer = KINDS[kind]
    plain = st.sampled_from(tokenizer.convert_tokens_to_ids(["a", "\u2581a", "\u25814", "2", "\u2581\u2581"]))
    any_token = st.integers(0, len(tokenizer) - 1)
    before = [*data.draw(st.lists(plain, max_size=5)), tokenizer.convert_tokens_to_ids("<|think_end|>")]
    ids = data.draw(st.lists(any_token, max_size=12))
    whole, head = tokenizer.decode([*before, *ids]), tokenizer.decode(before)
    assert text_within(tokenizer, ids) == whole.removeprefix(head)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=12))
def test_pieces_of_marked_spaces_are_the_parts_text(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(text.encode("utf-8", errors="ignore").decode(), add_special_tokens=False)
    assert "".join(pieces(tokenizer, ids)) == text_within(tokenizer, ids)


def test_words_that_are_kept_without_spaces_have_none_before_the_first() -> None:
    bare = Tokenizer(models.WordLevel({"<unk>": 0, "3": 1, "+": 2}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>")
    assert text_within(tokenizer, [1, 2, 1]) == "3 + 3"
    assert pieces(tokenizer, [1, 2, 1]) == ["3", " +", " 3"]


def test_words() -> None:
    assert words("It costs $1,000.50, Anna!") == [("it", 0, 2), ("costs", 3, 8), ("1,000.50", 10, 18), ("anna", 20, 24)]
    assert [word for word, _, _ in words("答案是42 ไทย x2")] == ["答", "案", "是", "42", "ไ", "ท", "ย", "x", "2"]


@pytest.mark.parametrize(
    ("tokens", "spans"),
    [
        ([], []),
        (["Yes", "."], [(0, 2)]),
        (["Yes", ".", " No", "."], [(0, 2), (2, 4)]),
        (["It", " is", " 3", ".", "5", "."], [(0, 6)]),  # no sentence ends inside a number
        (["1", ".", " Add", ".", " 2", ".", " Stop"], [(0, 4), (4, 7)]),  # a list's numbers open sentences
        (["a", " b", "\n", "\n", "c"], [(0, 4), (4, 5)]),  # line ends close them, and stay with them
        (["a", "\nb"], [(0, 1), (1, 2)]),
        (["好", "。", "是"], [(0, 2), (2, 3)]),  # no space after a Chinese full stop
        (["So", '."', " He"], [(0, 2), (2, 3)]),
        (["\n", "a"], [(0, 2)]),
    ],
)
def test_sentences(tokens: list[str], spans: list[tuple[int, int]]) -> None:
    assert sentence_spans(tokens) == spans


@given(tokens=st.lists(st.sampled_from(["a", " b", ".", "!", "\n", " ", "", "1", "。"]), max_size=20))
def test_every_token_is_in_exactly_one_sentence(tokens: list[str]) -> None:
    spans = sentence_spans(tokens)
    assert [i for start, end in spans for i in range(start, end)] == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([], []),
        (["so", " 3", " +", " 4", " ="], ["so", " 3", " +", " 4", " ="]),
        (["12", "+30", "=", "4", "2", "."], ["12", "+30", "=", "42", "."]),  # a token is where its first mark is
        (["A", "nn", "a", " ", "is", "\n", "\n", "old", "!!"], ["Anna ", "is\n\n", "old", "!!"]),
        (["1", ",", "000", " and"], ["1,000", " and"]),
        (["答", "案", "是", "42"], ["答", "案", "是", "42"]),
    ],
)
def test_words_as_spans_of_tokens(tokens: list[str], found: list[str]) -> None:
    assert ["".join(tokens[start:end]) for start, end in word_spans(tokens)] == found


@given(
    tokens=st.lists(st.sampled_from(["a", " b", ".", "!", "\n", " ", "", "1", "。"]), max_size=20),
    most=st.integers(1, 9),
)
def test_every_token_is_in_exactly_one_word_also_of_joined_ones(tokens: list[str], most: int) -> None:
    spans = word_spans(tokens)
    joined = joined_spans(spans, most)
    for of in (spans, joined):
        assert [i for start, end in of for i in range(start, end)] == list(range(len(tokens)))
    assert len(joined) == min(most, len(spans))
    sizes = [sum(start <= span[0] and span[1] <= end for span in spans) for start, end in joined]
    assert not sizes or max(sizes) - min(sizes) <= 1
