"""Texts that ask the same, and documents found in texts."""

import re

from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.text.questions import KnownDocuments, digest, normalised


@given(st.text())
def test_normalising_again_changes_nothing_and_neither_do_case_and_blanks(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(f"\t{text.casefold()}\n") == once


def test_documents_are_found_whole_and_only_whole() -> None:
    documents = [("What is 3 + 5?",), ("The whole passage.", "How long was it?"), ("Pi",), ("say it",), ("Say  it",)]
    known = KnownDocuments(documents)
    assert known.found_in("Q: what is 3+5 ?  (think)") == {0}
    assert known.found_in("What is 13 + 5?") == known.found_in("What is 3 + 55?") == set()
    assert known.found_in("What is 3 - 5?") == set()
    # A document of several parts is there when all of them are, in any order.
    assert known.found_in("How long was it? Read: THE WHOLE\npassage.") == {1}
    assert known.found_in("The whole passage. How wide was it?") == set()
    # One word, and what two documents say alike, tell nothing.
    assert known.found_in("Pi. Say it!") == set()
    assert KnownDocuments([]).found_in("What is 3 + 5?") == set()


words = st.lists(st.sampled_from("abc+12"), min_size=1, max_size=5)


@given(documents=st.lists(st.lists(words, min_size=1, max_size=2), max_size=6), text=st.lists(words, max_size=5))
def test_the_index_finds_what_looking_for_each_finds(documents: list[list[list[str]]], text: list[list[str]]) -> None:
    given_texts = [tuple(" ".join(part) for part in parts) for parts in documents]
    whole = " ".join(word for part in text for word in part)
    slow = {
        number
        for number, parts in enumerate(given_texts)
        if given_texts.count(parts) == 1
        and any(" " in part for part in parts)
        and all(re.search(rf"(?:^| ){re.escape(part)}(?: |$)", whole) for part in parts)
    }
    assert KnownDocuments(given_texts).found_in(whole) == slow


def test_a_digest_is_of_text_and_seed() -> None:
    assert digest("a") == digest("a") != digest("b") != digest("a", 1)
    assert 0 <= digest("a", 2**63 - 1) < 2**64
