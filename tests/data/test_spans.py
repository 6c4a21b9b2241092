"""`nrt data prepare --spans`: plain text cut by tokens, and read again as it was cut."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_cli.data.examples import load_examples
from nrt_cli.data.prepare import Settings, Tokenizer, prepare
from nrt_cli.data.sources import Row, Source
from nrt_cli.data.spans import SECTION, Spans, cut
from nrt_cli.errors import DataError
from nrt_cli.text.prompts import encode_plain

TEXT = "\n\n".join(
    f"Chapter {i}. Tom has {i} apples and eats {i % 7}. How many are left? It is {i * i}." for i in range(60)
)


def made(folder: Path, tokenizer: Any, spans: str, texts: dict[str, str], **settings: Any) -> dict[str, Any]:
    for name, text in texts.items():
        (folder / name).write_text(text)
    files = [str(folder / name) for name in texts]
    manifest, _ = prepare(files, folder / "out", Settings(spans=spans, **settings), Tokenizer(tokenizer, "made"))
    return manifest


def test_contexts_and_continuations_are_the_documents_tokens(tmp_path: Path, make_tiny_tokenizer: Any) -> None:
    tokenizer = make_tiny_tokenizer()
    manifest = made(tmp_path, tokenizer, "24:8:32", {"book.txt": TEXT})
    ids = encode_plain(tokenizer, TEXT)
    assert manifest["counts"]["read"] == manifest["counts"]["train"] == len(ids) // 32
    examples = load_examples(tmp_path / "out" / "train.parquet", tokenizer, 4096, 4096)
    assert examples.spans == len(examples)
    places = []
    for i in range(len(examples)):
        example = examples[i]
        # Neither a chat template nor an eos; together they stand in the book, token by token.
        window = (*example.prompt_ids, *example.answer_ids)
        at = [a for a in range(len(ids) - len(window) + 1) if tuple(ids[a : a + len(window)]) == window]
        assert at
        places.append(at[0])
        assert 24 - 16 <= len(example.prompt_ids) <= 24
        assert 0 < len(example.answer_ids) <= 8
    starts = sorted(places)
    assert all(later - earlier >= 16 for earlier, later in itertools.pairwise(starts))
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert {row["reward_model"]["style"] for row in rows} == {"span"}
    assert set(manifest["graders"].values()) == {"none"}


def test_a_tokenizer_that_begins_with_bos_begins_contexts_with_it(tmp_path: Path, make_tiny_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tiny_tokenizer(bos_token="<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    made(tmp_path, tokenizer, "24:8", {"book.txt": TEXT})
    examples = load_examples(tmp_path / "out" / "train.parquet", tokenizer, 4096, 4096)
    assert {examples[i].prompt_ids[0] for i in range(len(examples))} == {tokenizer.bos_token_id}
    assert {examples[i].prompt_ids.count(tokenizer.bos_token_id) for i in range(len(examples))} == {1}


def test_windows_that_overlap_are_on_one_side_of_the_split(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """No held-out continuation stands in a text that is trained on."""
    manifest = made(tmp_path, tiny_tokenizer, "24:8:4", {"book.txt": TEXT}, validation=2)
    assert manifest["questions"]["validation"] == 2
    each = 1 + (SECTION * 32 - 32) // 4
    assert manifest["counts"]["validation"] == 2 * each
    where = {
        split: [row["extra_info"]["where"] for row in pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist()]
        for split in ("train", "validation")
    }
    at = {split: {int(w.rpartition(" ")[2].replace(",", "")) for w in found} for split, found in where.items()}
    assert not {a // (SECTION * 32) for a in at["train"]} & {a // (SECTION * 32) for a in at["validation"]}


def test_documents_of_jsonl_and_what_cannot_be_cut(tmp_path: Path, tiny_tokenizer: Any) -> None:
    lines = [{"text": TEXT[:400]}, {"text": "short"}, {"question": "q", "answer": "a"}, {"text": 3}]
    manifest = made(tmp_path, tiny_tokenizer, "24:8", {"all.jsonl": "\n".join(map(json.dumps, lines))})
    assert manifest["counts"]["dropped"] == {"unreadable": 3}
    told = " ".join(manifest["unreadable"])
    for part in ("all.jsonl:2: ", "fewer than the 32", "no column `text`", "'question', 'answer'"):
        assert part in told


def test_prepared_spans_stay_spans_when_they_are_prepared_again(tmp_path: Path, tiny_tokenizer: Any) -> None:
    made(tmp_path, tiny_tokenizer, "24:8:32", {"book.txt": TEXT})
    prepare([str(tmp_path / "out" / "train.parquet")], tmp_path / "again", Settings(size=5))
    again = load_examples(tmp_path / "again" / "train.parquet", tiny_tokenizer, 4096, 4096)
    assert again.spans == len(again) == 5


@pytest.mark.parametrize("text", ["", "24", "24:0", "0:8", "24:8:0", "a:b", "24:8:4:2", "24 : 8"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="CONTEXT:CONTINUATION"):
        Spans.parse(text)


@pytest.mark.parametrize(
    ("option", "value"), [("suffix", "Go on."), ("grader", "exact"), ("mapping", {"question": "q", "answer": "a"})]
)
def test_options_about_pairs_are_refused(option: str, value: Any) -> None:
    with pytest.raises(DataError, match="--spans cuts plain text"):
        Settings(spans="24:8", **{option: value})


def test_plain_text_without_spans_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(TEXT)
    with pytest.raises(DataError, match="--spans"):
        prepare([str(tmp_path / "book.txt")], tmp_path / "out", Settings())
    with pytest.raises(DataError, match="--tokenizer"):
        prepare([str(tmp_path / "book.txt")], tmp_path / "out", Settings(spans="24:8"))
    assert not (tmp_path / "out").exists()


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 80), st.integers(0, 700))
def test_windows_fill_sections_that_none_crosses(context: int, continuation: int, stride: int, tokens: int) -> None:
    spans = Spans(context, continuation, stride)
    found = list(spans.windows(tokens))
    assert all(at + spans.window <= tokens for at, _ in found)
    for at, section in found:
        assert section * spans.section <= at
        assert at + spans.window <= (section + 1) * spans.section
    assert (tokens >= spans.window) == bool(found)
    starts = [at for at, _ in found]
    assert starts == sorted(set(starts))
    of_first = [at for at, section in found if section == 0]
    assert of_first == list(range(0, min(tokens, spans.section) - spans.window + 1, stride))


def test_a_text_of_special_tokens_stays_text(tiny_tokenizer: Any) -> None:
    text = "<eos> in a book " * 20
    source = Source("made", lambda: "", lambda: iter([Row("made:1", "made", {"text": text})]))
    rows = list(cut(source, Spans(16, 8, 24), tiny_tokenizer).rows())
    assert rows
    assert not any(row.problem for row in rows)
