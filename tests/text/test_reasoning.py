"""Drafts: what comes after what, when a part is over, and what the reply says of it."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nrt_cli.records import Reply, Request
from nrt_cli.text.reasoning import Draft, Part, thinking
from nrt_cli.text.tokens import ThinkTokens

START, END, EOS, PAD = 1000, 1001, 1002, 1003
TOKENS = ThinkTokens(START, END, EOS, PAD)


@pytest.fixture(scope="module")
def tokenizer():
    """A token for every byte, and the specials."""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bare = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare)


def play(tokenizer, request, chosen, positions=None, tokens=TOKENS):
    """The draft after a model chose these, and what it was given to read: text is spelled byte by byte."""
    draft = Draft(request, tokens, tokenizer, positions)
    read = []
    for token in chosen:
        for one in tokenizer.encode(token) if isinstance(token, str) else [token]:
            assert not draft.done
            read.append(draft.take(one))
    return draft, read


def asks(**settings):
    caps = {"think": True, "max_trace_tokens": 10, "max_answer_tokens": 10}
    return Request("q", (1, 2), **(caps | settings))


@pytest.mark.parametrize("ended", ["end", "eos", "cap"])
def test_a_trace_ends_with_its_token_with_eos_or_at_its_cap(ended, tokenizer):
    last = {"end": END, "eos": EOS, "cap": tokenizer.encode("x")[0]}[ended]
    draft, read = play(tokenizer, asks(max_trace_tokens=2 + (ended != "cap")), ["ab", last])
    spelled = tokenizer.encode("ab")
    # In each of the three cases the model goes on from t_end.
    assert read == [*spelled, END]
    assert draft.context == [1, 2, START, *spelled, END]
    draft.take(EOS)
    assert draft.reply() == Reply("ab", "", 2, 0, ended, cut=False)
    assert draft.reply().forced == (ended != "end")


@pytest.mark.parametrize(
    ("settings", "chosen", "reply"),
    [
        ({"max_trace_tokens": 3}, ["ab", END, "c", EOS], Reply("ab", "c", 2, 1, "end")),  # ended in the last place
        ({"max_answer_tokens": 3}, [END, "abc"], Reply("", "abc", 0, 3, "end", cut=True)),
        ({"stop": ("\n",)}, ["a\nb", END, "c", EOS], Reply("a\nb", "c", 3, 1, "end")),  # means nothing in a trace
        ({"stop": ("\n",), "max_answer_tokens": 2}, [END, "a\n"], Reply("", "a", 0, 2, "end")),  # at the cap, no cut
    ],
)
def test_what_ends_a_part_and_what_is_cut(settings, chosen, reply, tokenizer):
    draft, _ = play(tokenizer, asks(**settings), chosen)
    assert draft.done
    assert draft.reply() == reply


def test_t_end_one_token_after_the_cap_is_too_late(tokenizer):
    draft, _ = play(tokenizer, asks(max_trace_tokens=2), ["ab", END, EOS])
    assert draft.stop == "cap"


def test_without_a_start_token_the_trace_follows_the_prompt(tokenizer):
    draft, _ = play(tokenizer, asks(), ["a", END], tokens=ThinkTokens(None, END, EOS, PAD))
    assert draft.context == [1, 2, *tokenizer.encode("a"), END]


def test_a_direct_answer_follows_the_prompt(tokenizer):
    draft = Draft(asks(think=False), TOKENS, tokenizer, None)
    assert (draft.context, draft.stop_ids) == ([1, 2], (EOS,))
    draft, _ = play(tokenizer, asks(think=False), ["ok", EOS])
    assert draft.reply() == Reply("", "ok", 0, 2, None)


@pytest.mark.parametrize(
    ("chosen", "answer"),
    [
        ("one\n\n", "one"),
        ("one. Question:", "one. "),
        ("Question:", ""),
        # The letter before the stop string has two bytes.
        ("é\n\n", "é"),
        ("one日日", "one"),
    ],
)
def test_an_answer_ends_before_a_stop_string(chosen, answer, tokenizer):
    request = asks(max_answer_tokens=99, stop=("Question:", "\n\n", "日日"))
    draft, _ = play(tokenizer, request, [END, chosen])
    assert draft.done
    assert draft.reply() == Reply("", answer, 0, len(chosen.encode()), "end")


def test_a_stop_string_far_into_an_answer_ends_it(tokenizer):
    draft, _ = play(tokenizer, asks(max_answer_tokens=999, stop=("stop",)), [END, "word " * 100, "st op sto stop"])
    assert draft.reply().answer == "word " * 100 + "st op sto "


def test_the_shortest_trace_is_asked_for(tokenizer):
    draft = Draft(asks(min_trace_tokens=1), TOKENS, tokenizer, None)
    assert draft.banned == (END, EOS, START)
    draft.take(5)
    assert draft.banned == ()
    draft.take(END)
    # The answer may be empty.
    assert EOS not in draft.banned
    assert Draft(asks(), TOKENS, tokenizer, None).banned == ()
    # A trace without room is closed at once: there is nothing to ban.
    assert Draft(asks(min_trace_tokens=1, max_trace_tokens=0), TOKENS, tokenizer, None).banned == ()


MORE = ThinkTokens(START, END, EOS, PAD, (7, EOS, 8))
"""A model with three tokens that end its answers, as Gemma, Phi and Llama 3 have several."""


@pytest.mark.parametrize("last", [EOS, 7, 8, START])
def test_what_may_not_stand_in_a_trace_ends_it(last, tokenizer):
    draft, read = play(tokenizer, asks(), ["ab", last], tokens=MORE)
    assert (draft.stop, draft.part, read[-1]) == ("eos", Part.answer, END)
    assert draft.trace_ids == tokenizer.encode("ab")
    assert last in Draft(asks(min_trace_tokens=1), MORE, tokenizer, None).banned


@pytest.mark.parametrize("last", [EOS, 7, 8])
@pytest.mark.parametrize("think", [True, False])
def test_whatever_ends_the_models_answers_ends_this_one(last, think, tokenizer):
    draft, _ = play(tokenizer, asks(think=think), [*([END] if think else []), "c", last], tokens=MORE)
    assert draft.done
    assert draft.reply() == Reply("", "c", 0, 1, "end" if think else None)


def test_an_answer_opens_no_trace(tokenizer):
    assert Draft(asks(think=False), TOKENS, tokenizer, None).banned == (START, END)
    assert Draft(asks(think=False), ThinkTokens(None, END, EOS, PAD), tokenizer, None).banned == (END,)


@pytest.mark.parametrize(
    ("positions", "trace", "answer"),
    # A prompt of 2 and the two think tokens take 4; the trace gets what the answer leaves, or half.
    [(None, 10, 10), (24, 10, 10), (23, 9, 10), (14, 5, 10), (13, 4, 9), (5, 0, 1)],
)
def test_caps_shrink_to_the_models_positions(positions, trace, answer, tokenizer):
    draft = Draft(asks(), TOKENS, tokenizer, positions)
    assert (draft.trace_cap, draft.answer_cap, draft.done) == (trace, answer, False)


def test_an_answer_has_what_the_trace_left(tokenizer):
    for trace, left in (("", 10), ("abc", 7), ("abcde", 5)):
        draft, _ = play(tokenizer, asks(), [trace, END], positions=14)
        assert (draft.answer_cap, draft.left) == (left, left)


def test_an_answer_may_have_a_given_beginning(tokenizer):
    begun = asks(prefill_ids=(8, 9))
    assert Draft(asks(think=False, prefill_ids=(8, 9)), TOKENS, tokenizer, None).context == [1, 2, 8, 9]
    draft, _ = play(tokenizer, begun, ["ab"])
    assert draft.context == [1, 2, START, *tokenizer.encode("ab")]
    draft, _ = play(tokenizer, begun, ["ab", END, "c"])
    assert draft.context == [1, 2, START, *tokenizer.encode("ab"), END, 8, 9, *tokenizer.encode("c")]
    assert draft.reply() == Reply("ab", "c", 2, 1, "end")  # the beginning is no part of what was said
    assert Draft(begun, TOKENS, tokenizer, 16).answer_cap == 10
    assert Draft(begun, TOKENS, tokenizer, 15).answer_cap == 9


def test_a_prompt_without_room_for_an_answer_gets_none(tokenizer):
    for positions in (4, 1):
        draft = Draft(asks(), TOKENS, tokenizer, positions)
        assert draft.done
        assert draft.reply() == Reply(cut=True)
    assert not Draft(asks(think=False), TOKENS, tokenizer, 3).done


def test_a_trace_without_room_is_forced(tokenizer):
    draft, read = play(tokenizer, asks(), ["x"], positions=5)
    assert (draft.stop, read, draft.part) == ("cap", [END], Part.answer)


def test_who_thinks():
    table = {(mode, trained): thinking(mode, trained) for mode in ("on", "off", "forced") for trained in (True, False)}
    assert table == {
        ("on", True): (True, 0),
        ("on", False): (False, 0),
        ("off", True): (False, 0),
        ("off", False): (False, 0),
        ("forced", True): (True, 1),
        ("forced", False): (True, 1),
    }


def test_an_engine_may_say_that_a_part_is_over(tokenizer):
    """Where it stopped, though no token of the draft's says so."""
    draft, _ = play(tokenizer, asks(), ["ab"])
    draft.close()
    assert draft.context == [1, 2, START, *tokenizer.encode("ab"), END]
    draft.take(tokenizer.encode("c")[0])
    draft.close()
    assert draft.reply() == Reply("ab", "c", 2, 1, "cap", cut=False)
