"""Filters, selection, the output folder: through `prepare`, on files written here."""

import copy
import json
import math
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nrt_cli.data import prepare as room
from nrt_cli.data.prepare import Settings, Tokenizer, prepare, quotas, take
from nrt_cli.errors import DataError, NrtError
from nrt_cli.text.questions import normalised

GSM8K = Path("../shared/data/gsm8k/train.jsonl")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int, **extra: Any) -> list[dict[str, Any]]:
    return [{"question": f"question {i}", "answer": f"answer {i}", **extra} for i in range(count)]


def make(folder: Path, rows: list[dict[str, Any]], out: str = "out", **settings: Any) -> dict[str, Any]:
    manifest, _ = prepare([str(write(folder / "qa.jsonl", rows))], folder / out, Settings(**settings))
    return manifest


def table(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def answers(folder: Path, split: str = "train") -> list[str]:
    return [row["reward_model"]["ground_truth"] for row in table(folder, split)]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "qa.jsonl")


def test_the_rows_that_training_and_verl_read(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    chat = {"messages": [*talk, {"role": "assistant", "content": "c"}]}
    make(tmp_path, [{"question": " a? ", "answer": "b\n"}, chat])
    assert table(tmp_path / "out") == [
        {
            "data_source": "qa.jsonl",
            "prompt": [{"role": "user", "content": " a? "}],
            "reward_model": {"style": "nrt", "ground_truth": "b\n", "grader": "choice"},
            "extra_info": {"index": 0, "split": "train", "where": "qa.jsonl:1"},
        },
        {
            "data_source": "qa.jsonl",
            "prompt": talk,
            "reward_model": {"style": "nrt", "ground_truth": "c", "grader": "choice"},
            "extra_info": {"index": 1, "split": "train", "where": "qa.jsonl:2"},
        },
    ]


def test_what_is_dropped_is_counted_and_told(tmp_path: Path) -> None:
    user = {"role": "user", "content": "q"}
    rows = [
        {"question": "q", "answer": "a"},
        {"question": " \n", "answer": "a"},
        {"question": "q", "answer": " "},
        {"question": "q", "answer": "a"},  # again
        {"question": "q", "answer": "b"},  # not again: another answer
        {"messages": [user]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": [user, {"role": "assistant", "content": "a"}]},  # again, in another shape
    ]
    manifest = make(tmp_path, rows)
    assert manifest["counts"] == {
        "read": 8,
        "dropped": {"no-assistant-turn": 1, "empty-question": 2, "empty-answer": 1, "duplicate": 2},
        "kept": 2,
        "train": 2,
        "validation": 0,
    }
    told = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [(row["where"], row["reason"]) for row in told] == [
        ("qa.jsonl:2", "empty-question"),
        ("qa.jsonl:3", "empty-answer"),
        ("qa.jsonl:6", "no-assistant-turn"),
        ("qa.jsonl:7", "empty-question"),
        ("qa.jsonl:4", "duplicate"),
        ("qa.jsonl:8", "duplicate"),
    ]
    assert told[0] == {"where": "qa.jsonl:2", "reason": "empty-question", "prompt_chars": 2, "answer_chars": 1}


def test_limits_in_tokens_count_the_template_and_the_eos(tmp_path: Path, tiny_tokenizer: Any) -> None:
    rows = [{"question": "?" * n, "answer": "!" * m} for n, m in ((10, 5), (11, 5), (10, 6))]
    path = write(tmp_path / "qa.jsonl", rows)
    rendered = f"<|user|>\n{'?' * 10}\n<|assistant|>\n"
    longest = len(tiny_tokenizer.encode(rendered, add_special_tokens=False))
    limits = Settings(max_prompt_tokens=longest, max_answer_tokens=5 + 1)
    manifest, _ = prepare([str(path)], tmp_path / "out", limits, Tokenizer(tiny_tokenizer, "f"))
    assert manifest["counts"]["dropped"] == {"long-prompt": 1, "long-answer": 1}
    assert answers(tmp_path / "out") == ["!" * 5]
    told = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [(row["prompt_tokens"], row["answer_tokens"]) for row in told] == [(longest + 1, 6), (longest, 7)]


def test_stratified_subset_and_composition_by_hand(tmp_path: Path) -> None:
    # 10 of 60 + 30 + 10 in proportion: 6, 3, 1. Of those, 5 held out: 3, 1.5, 0.5; the one left goes to the first name.
    rows = [{**row, "source": "big"} for row in pairs(60)]
    rows += [{"question": f"m{i}", "answer": "a", "source": "mid"} for i in range(30)]
    rows += [{"question": f"s{i}", "answer": "a", "source": "small"} for i in range(10)]
    manifest = make(tmp_path, rows, size=10, stratify=True, validation=0.5)
    assert manifest["composition"] == [
        {"source": "big", "count": 6, "percentage": 60.0, "train": 3, "validation": 3},
        {"source": "mid", "count": 3, "percentage": 30.0, "train": 1, "validation": 2},
        {"source": "small", "count": 1, "percentage": 10.0, "train": 1, "validation": 0},
    ]


def test_quotas_by_hand() -> None:
    # 10 * (5, 3, 2) / 10; then 7 * (5, 3, 2) / 10 = 3.5, 2.1, 1.4 -> 3, 2, 1 and the one left to the first.
    assert quotas([5, 3, 2], 10, "abc") == [5, 3, 2]
    assert quotas([5, 3, 2], 7, "abc") == [4, 2, 1]
    assert quotas([1, 1, 1], 2, "cab") == [0, 1, 1]


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), data=st.data())
def test_quotas_add_up_and_stay_within_one_of_proportion(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(counts)))
    got = quotas(counts, total, [str(i) for i in range(len(counts))])
    assert sum(got) == total
    assert all(0 <= q <= c and abs(q - c * total / sum(counts)) < 1 for q, c in zip(got, counts, strict=True))
    ids = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    order = np.random.default_rng(0).permutation(len(ids))
    taken = take(order, ids, total, [str(i) for i in range(len(counts))])
    assert np.bincount(ids[taken], minlength=len(counts)).tolist() == got
    assert len(set(taken.tolist())) == total


@hypothesis_settings(deadline=None, max_examples=30)  # files and a busy machine
@given(
    count=st.integers(2, 40), group=st.integers(1, 9), seed=st.integers(0, 3), stratify=st.booleans(), data=st.data()
)
def test_what_is_chosen_depends_on_content_and_seed_only(
    tmp_path_factory: pytest.TempPathFactory, count: int, group: int, seed: int, stratify: bool, data: st.DataObject
) -> None:
    """Not on the order of rows, on row groups, or on how the rows are spread over files."""
    folder = tmp_path_factory.mktemp("chosen")
    rows = [{**row, "source": "ab"[i % 3 == 0]} for i, row in enumerate(pairs(count))]
    size = data.draw(st.integers(2, count))
    settings = Settings(size=size, validation=data.draw(st.integers(1, size - 1)), seed=seed, stratify=stratify)
    prepare([str(write(folder / "all.jsonl", rows))], folder / "one", settings)
    shuffled = random.Random(data.draw(st.integers(0, 99))).sample(rows, count)
    cut = data.draw(st.integers(0, count))
    files = [write(folder / "x.jsonl", shuffled[:cut]), write(folder / "y.jsonl", shuffled[cut:])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_GROUP_ROWS", group)
        prepare([str(file) for file in files], folder / "two", settings)
    for split in ("train", "validation"):
        assert sorted(answers(folder / "one", split)) == sorted(answers(folder / "two", split))
    assert len(answers(folder / "one")) + len(answers(folder / "one", "validation")) == size
    assert not set(answers(folder / "one")) & set(answers(folder / "one", "validation"))


def test_row_groups_keep_order_and_number_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_GROUP_ROWS", 7)
    make(tmp_path, pairs(50), size=30, validation=9)
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups == 3
    for split, count in (("train", 21), ("validation", 9)):
        rows = table(tmp_path / "out", split)
        assert [row["extra_info"]["index"] for row in rows] == list(range(count))
        lines = [int(row["extra_info"]["where"].partition(":")[2]) for row in rows]
        assert lines == sorted(lines)
        assert {row["extra_info"]["split"] for row in rows} == {split}


def test_a_larger_subset_keeps_the_smaller_and_its_validation_rows(tmp_path: Path) -> None:
    make(tmp_path, pairs(100), out="small", size=20, validation=5)
    make(tmp_path, pairs(100), out="large", size=60, validation=5)
    assert set(answers(tmp_path / "small")) < set(answers(tmp_path / "large"))
    assert answers(tmp_path / "small", "validation") == answers(tmp_path / "large", "validation")
    make(tmp_path, pairs(100), out="other", size=20, validation=5, seed=1)
    assert set(answers(tmp_path / "other")) != set(answers(tmp_path / "small"))


def test_the_same_again_writes_nothing_and_the_same_elsewhere_is_the_same(tmp_path: Path) -> None:
    first = make(tmp_path, pairs(20), size=10)
    before = (tmp_path / "out" / "train.parquet").stat()
    path = str(tmp_path / "qa.jsonl")
    again, unchanged = prepare([path], tmp_path / "out", Settings(size=10))
    assert (again, unchanged) == (first, True)
    assert (tmp_path / "out" / "train.parquet").stat() == before
    elsewhere, unchanged = prepare([path], tmp_path / "elsewhere", Settings(size=10))
    assert (elsewhere, unchanged) == (first, False)  # the outputs' sha256 included


def test_another_recipe_needs_overwrite_and_says_what_changed(tmp_path: Path) -> None:
    make(tmp_path, pairs(20), size=10)
    path = str(tmp_path / "qa.jsonl")
    with pytest.raises(DataError, match=r"made with other size \(10, now 12\); choose another --out"):
        prepare([path], tmp_path / "out", Settings(size=12))
    write(tmp_path / "qa.jsonl", pairs(21))
    with pytest.raises(DataError, match="made with other inputs"):
        prepare([path], tmp_path / "out", Settings(size=10))
    assert len(answers(tmp_path / "out")) == 10
    prepare([path], tmp_path / "out", Settings(size=12), overwrite=True)
    assert len(answers(tmp_path / "out")) == 12
    assert leftovers(tmp_path) == ["out"]
    (tmp_path / "out" / "train.parquet").write_bytes(b"cut")
    with pytest.raises(DataError, match="was changed since it was made"):
        prepare([path], tmp_path / "out", Settings(size=12))


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    path = str(write(tmp_path / "qa.jsonl", pairs(5)))
    with pytest.raises(DataError, match="was not made by `nrt data prepare`"):
        prepare([path], tmp_path / "out", Settings(), overwrite=True)
    make(tmp_path, pairs(5), out="ours")
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds notes\.txt, which --overwrite would delete"):
        prepare([path], tmp_path / "ours", Settings(seed=1), overwrite=True)
    assert (tmp_path / "ours" / "notes.txt").read_text() == "mine"


BAD: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([], {}, r"no rows, so no question-answer pair\.$"),
    ([{"question": "", "answer": "a"}] * 3, {}, r"left of 3 rows \(dropped: 3 empty-question\)"),
    (pairs(5), {"size": 6}, r"--size 6 asks for more than the 5 pairs"),
    (pairs(5), {"validation": 5}, r"--validation 5 would hold out 5 of 5 questions"),
    (pairs(5), {"validation": 0.01}, r"--validation 0\.01 would hold out 0 of 5 questions"),
    ([{"question": "q"}], {}, r"^qa\.jsonl:1: no question and answer .* found 'question'; accepted"),
    ([{"q": "q"}] * 3, {}, r"^qa\.jsonl: none of its 3 rows can be read; one of them: qa\.jsonl:3: no question and"),
    ([{"question": "\ud800", "answer": "a"}], {}, r"^qa\.jsonl:1: the text has half of a surrogate pair"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "settings", "message"), BAD)
def test_a_failure_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(tmp_path, rows, **settings)
    assert leftovers(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(stage: str, rows: int) -> None:
        raise KeyboardInterrupt

    path = write(tmp_path / "qa.jsonl", pairs(5))
    with pytest.raises(KeyboardInterrupt):
        prepare([str(path)], tmp_path / "out", Settings(), progress=interrupt)
    assert leftovers(tmp_path) == []


def test_a_kill_leaves_nothing_at_the_target_and_the_next_try_works(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.jsonl", pairs(5))
    code = (
        "import os, sys, pathlib; from nrt_cli.data.prepare import *\n"
        "kill = lambda stage, rows: stage == 'writing' and os.kill(os.getpid(), 9)\n"
        "prepare([sys.argv[1]], pathlib.Path(sys.argv[2]), Settings(), progress=kill)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "out")])
    assert ran.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    prepare([str(path)], tmp_path / "out", Settings())
    assert len(answers(tmp_path / "out")) == 5


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = write(tmp_path / "qa.jsonl", pairs(5))
    with pytest.raises(DataError, match=r"out: cannot be written \(Not a directory\)"):
        prepare([str(path)], tmp_path / "file" / "out", Settings())


def test_a_full_disk_is_one_sentence_and_the_old_output_stays(tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk: writing fails in the same place, with EFBIG for ENOSPC."""
    make(tmp_path, pairs(5))
    rows = [{"question": random.Random(i).randbytes(500).hex(), "answer": str(i)} for i in range(2000)]
    path = write(tmp_path / "big.jsonl", rows)
    code = (
        "import sys, pathlib; from nrt_cli.data.prepare import *; from nrt_cli.errors import DataError\n"
        "try: prepare([sys.argv[1]], pathlib.Path(sys.argv[2]), Settings(), overwrite=True)\n"
        "except DataError as error: print(error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert "out: cannot be written" in ran.stdout
    assert ran.stderr == ""
    assert len(answers(tmp_path / "out")) == 5
    assert leftovers(tmp_path) == ["big.jsonl", "out"]


@pytest.mark.skipif(not GSM8K.exists(), reason="shared/data/gsm8k is not beside this checkout")
def test_gsm8k_is_recognised(tmp_path: Path) -> None:
    manifest, _ = prepare([str(GSM8K)], tmp_path / "out", Settings(validation=100))
    assert manifest["counts"] == {"read": 2000, "dropped": {}, "kept": 2000, "train": 1900, "validation": 100}
    original = Counter(json.loads(line)["answer"] for line in GSM8K.open(encoding="utf-8"))
    assert Counter(answers(tmp_path / "out") + answers(tmp_path / "out", "validation")) == original


# --- the split is one of questions -----------------------------------------------------------------------------------


def questions_of(folder: Path, split: str) -> list[str]:
    return [row["prompt"][-1]["content"] for row in table(folder, split)]


def test_all_answers_to_a_question_are_on_one_side(tmp_path: Path) -> None:
    rows = [{"question": f"question {i % 50}", "answer": f"answer {i}"} for i in range(200)]
    for validation in (20, 0.4):
        manifest = make(tmp_path, rows, f"out-{validation}", validation=validation)
        held_out, trained = (questions_of(tmp_path / f"out-{validation}", s) for s in ("validation", "train"))
        assert (len(held_out), len(set(held_out)), len(trained)) == (80, 20, 120)
        assert not set(held_out) & set(trained)
        assert manifest["questions"] == {"train": 30, "validation": 20}
        assert (manifest["counts"]["train"], manifest["counts"]["validation"]) == (120, 80)
    with pytest.raises(DataError, match="--validation 50 would hold out 50 of 50 questions"):
        make(tmp_path, rows, validation=50)


SAME = ["What is Pi?", "what  is\tpi?", " WHAT IS PI?\n", "Ｗｈａｔ is Pi？", "What is\u00a0P\u200bi?"]


def test_case_width_and_spacing_make_no_other_question() -> None:
    assert {normalised(text) for text in SAME} == {"what is pi?"}
    assert normalised("Straße, ﬁve") == normalised("STRASSE, Five")
    assert normalised("3 + 5") != normalised("3 - 5")


@hypothesis_settings(deadline=None, max_examples=30)  # files and a busy machine
@given(
    asked=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(range(4)), st.integers(0, 5)), min_size=2, unique=True),
    seed=st.integers(0, 3),
    stratify=st.booleans(),
    data=st.data(),
)
def test_no_question_is_on_both_sides_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory,
    asked: list[tuple[int, int, int]],
    seed: int,
    stratify: bool,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("split")
    ways = (str, str.upper, lambda text: text.replace(" ", "  "), lambda text: f" {text}\n")
    rows = [
        {"question": ways[way](f"which ﬁgure is {number}?"), "answer": f"{answer}", "source": "ab"[answer % 2]}
        for number, way, answer in asked
    ]
    distinct = len({number for number, _, _ in asked})
    assume(distinct > 1)
    held_out = data.draw(st.integers(1, distinct - 1))
    manifest = make(folder, rows, validation=held_out, seed=seed, stratify=stratify)
    sides = [{normalised(q) for q in questions_of(folder / "out", split)} for split in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [distinct - held_out, held_out]
    assert manifest["questions"] == {"train": distinct - held_out, "validation": held_out}


def test_every_turn_of_a_conversation_is_part_of_its_question(tmp_path: Path) -> None:
    """A system turn may hold all that is asked, and so may what was said before `go on`."""
    rows = [
        {"messages": [{"role": "system", "content": f"Sum {i}"}, {"role": "user", "content": "Go on"},
                      {"role": "assistant", "content": f"{a}"}]}
        for i in range(10) for a in range(2)
    ]  # fmt: skip
    assert make(tmp_path, rows, validation=3)["questions"] == {"train": 7, "validation": 3}


UNIQUE = [{"question": f"question {i}", "answer": f"answer {i}", "source": "ab"[i % 3 == 0]} for i in range(30)]
TALKS = [
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"q {i}"},
                  {"role": "assistant", "content": f"answer {i}"}]}
    for i in range(30)
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "settings", "held_out", "used"),
    [
        (UNIQUE, {"validation": 7}, [3, 5, 13, 17, 20, 21, 22], range(30)),
        (UNIQUE, {"validation": 0.25, "size": 20, "seed": 3}, [1, 3, 11, 19, 29],
         [1, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 16, 19, 20, 21, 22, 23, 24, 26, 29]),
        (UNIQUE, {"validation": 7, "stratify": True}, [3, 5, 13, 17, 20, 21, 22], range(30)),
        (UNIQUE, {"validation": 5, "size": 18, "stratify": True, "seed": 1}, [3, 7, 12, 19, 22],
         [0, 3, 5, 6, 7, 9, 10, 11, 12, 13, 17, 19, 20, 22, 23, 26, 27, 29]),
        (TALKS, {"validation": 6}, [0, 6, 12, 13, 14, 24], range(30)),
    ],
)  # fmt: skip
def test_where_every_question_is_asked_once_the_split_is_what_it_always_was(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], held_out: list[int], used: Sequence[int]
) -> None:
    """As printed by the version that split by row."""
    make(tmp_path, rows, **settings)
    numbers = [[int(a.split()[1]) for a in answers(tmp_path / "out", s)] for s in ("validation", "train")]
    assert numbers == [held_out, [i for i in used if i not in held_out]]


# --- rows that cannot be read ----------------------------------------------------------------------------------------


def mixed(folder: Path, kind: str) -> Path:
    """Three rows, of which the second cannot be read, in each format."""
    good = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(2)]
    path = folder / f"qa.{kind}"
    if kind == "jsonl":
        path.write_text(f"{json.dumps(good[0])}\n{{broken\n{json.dumps(good[1])}\n")
    elif kind == "json":
        path.write_text(json.dumps([good[0], {"question": "q", "answer": [1]}, good[1]]))
    elif kind == "csv":
        path.write_bytes(b"question,answer\nq0,a0\ncaf\xe9,a\nq1,a1\n")
    else:
        turns = [[{"role": "user", "content": f"q{i}"}] for i in range(2)]
        verl = [{"prompt": turns[i], "reward_model": {"ground_truth": f"a{i}"}} for i in range(2)]
        pq.write_table(pa.Table.from_pylist([verl[0], {"prompt": turns[0], "reward_model": None}, verl[1]]), path)
    return path


@pytest.mark.parametrize(
    ("kind", "where", "why"),
    [
        ("jsonl", "qa.jsonl:2", "not valid JSON"),
        ("json", "qa.json:row 2", "column 'answer' must be text, found list"),
        ("csv", "qa.csv:3", "bytes that are not UTF-8"),
        ("parquet", "qa.parquet:row 2", "reward_model has no ground_truth"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_and_told(tmp_path: Path, kind: str, where: str, why: str) -> None:
    path = mixed(tmp_path, kind)
    manifest, _ = prepare([str(path)], tmp_path / "out", Settings())
    assert answers(tmp_path / "out") == ["a0", "a1"]
    assert (manifest["counts"]["read"], manifest["counts"]["dropped"]) == (3, {"unreadable": 1})
    (told,) = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert (told["where"], told["reason"]) == (where, "unreadable")
    assert why in told["why"]
    assert where not in told["why"]
    assert manifest["unreadable"] == [f"{where}: {told['why']}"]
    with pytest.raises(DataError, match=f"^{where}: .*{why}"):
        prepare([str(path)], tmp_path / "strict", Settings(), strict=True)
    assert not (tmp_path / "strict").exists()


def test_a_file_of_which_nothing_can_be_read_is_refused_beside_others(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", pairs(3))
    (tmp_path / "bad.csv").write_text("q;a\n1;2\n3;4\n")
    with pytest.raises(DataError, match=r"^bad\.csv: none of its 2 rows can be read; .* found 'q;a'"):
        prepare([str(good), str(tmp_path / "bad.csv")], tmp_path / "out", Settings())


def test_a_row_that_the_chat_template_refuses_is_left_out(tmp_path: Path, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{{ raise_exception('no system') if messages[0].role == 'system' }}" + tokenizer.chat_template
    )
    path = write(tmp_path / "qa.jsonl", [*pairs(2), TALKS[0]])
    manifest, _ = prepare([str(path)], tmp_path / "out", Settings(max_prompt_tokens=99), Tokenizer(tokenizer, "f"))
    assert manifest["counts"]["dropped"] == {"unreadable": 1}
    assert "qa.jsonl:3: The model's chat template refused" in manifest["unreadable"][0]


# --- whatever is in a file, an error is one of ours ------------------------------------------------------------------

odd_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("7" * 5000),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "type", "tool_calls"]), inner, max_size=3
        )
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool", "gpt"]), "content": inner})
    ),
    max_leaves=8,
)
odd_rows = st.dictionaries(
    st.sampled_from(
        ("question", "answer", "messages", "conversations", "prompt", "completion", "instruction", "output")
    ),
    odd_values,
    max_size=4,
)


@hypothesis_settings(deadline=None, max_examples=150)  # files and a busy machine
@given(rows=st.lists(odd_rows, max_size=6), whole=st.integers(0, 3), kind=st.sampled_from(["jsonl", "json"]))
def test_no_row_however_odd_ends_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], whole: int, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    texts = [json.dumps(row) for row in [*pairs(whole), *rows]]
    (folder / f"qa.{kind}").write_text("\n".join(texts) if kind == "jsonl" else f"[{','.join(texts)}]")
    manifest, problem = tried(folder / f"qa.{kind}")
    if manifest is None:
        assert not whole, problem
        return
    counts = manifest["counts"]
    assert counts["read"] == len(texts) == counts["kept"] + sum(counts["dropped"].values())
    assert counts["kept"] >= whole


@hypothesis_settings(deadline=None, max_examples=150)
@given(
    content=st.binary(max_size=60) | st.text("\"',\\\n\r[]{}:a1 \x00\ufeff\xe9", max_size=60).map(str.encode),
    kind=st.sampled_from(["jsonl", "json", "csv", "parquet"]),
)
def test_no_file_however_broken_ends_it_otherwise_than_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    head = b"question,answer\nq,a\n" if kind == "csv" else b""
    (folder / f"qa.{kind}").write_bytes(head + content)
    _, problem = tried(folder / f"qa.{kind}")
    assert not problem or f"qa.{kind}" in problem


def tried(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The manifest of a file, or the sentence that says why there is none."""
    try:
        return prepare([str(path)], path.parent / "out", Settings())[0], ""
    except DataError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return None, str(error)


# --- graders ---------------------------------------------------------------------------------------------------------


def graders(folder: Path) -> dict[str, str]:
    return {row["data_source"]: row["reward_model"]["grader"] for row in table(folder)}


def test_how_answers_are_graded_is_guessed_for_each_source_and_kept(tmp_path: Path) -> None:
    rows = [{"question": f"sum {i}", "answer": str(i), "source": "sums"} for i in range(9)]
    rows += [{"question": f"pick {i}", "answer": "ABCD"[i % 4], "source": "options"} for i in range(9)]
    rows += [{"question": f"tell {i}", "answer": "Once upon a time. " * i, "source": "tales"} for i in range(1, 9)]
    want = {"sums": "number", "options": "choice", "tales": "none"}
    assert make(tmp_path, rows)["graders"] == want
    assert graders(tmp_path / "out") == want


def test_a_grader_that_is_named_is_kept_also_through_another_preparation(tmp_path: Path) -> None:
    make(tmp_path, pairs(9), grader="math")
    assert graders(tmp_path / "out") == {"qa.jsonl": "math"}
    prepare([str(tmp_path / "out" / "train.parquet")], tmp_path / "less", Settings(size=5))
    assert graders(tmp_path / "less") == {"qa.jsonl": "math"}
    prepare([str(tmp_path / "out" / "train.parquet")], tmp_path / "other", Settings(grader="exact"))
    assert graders(tmp_path / "other") == {"qa.jsonl": "exact"}
    with pytest.raises(NrtError, match="grader 'sums' is unknown"):
        make(tmp_path, pairs(9), "wrong", grader="sums")
    assert not (tmp_path / "wrong").exists()


def test_a_guess_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": str(i) if i < 300 else "a long tale " * 9} for i in range(400)]
    for name, ordered in (("one", rows), ("two", rows[::-1])):
        (tmp_path / name).mkdir()
        make(tmp_path / name, ordered)
    assert graders(tmp_path / "one" / "out") == graders(tmp_path / "two" / "out") == {"qa.jsonl": "none"}


COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "whole numbers": (pa.int64(), [1, None]),
    "decimals": (pa.decimal128(38, 2), [Decimal("1E2"), None]),
    "floats": (pa.float64(), [math.nan, 1.5]),
    "truth": (pa.bool_(), [True, None]),
    "large text": (pa.large_string(), ["x", None]),
    "coded text": (pa.dictionary(pa.int8(), pa.string()), ["x", "y"]),
    "bytes": (pa.binary(), [b"x", b"\xff"]),
    "dates": (pa.date32(), [0, 2**30]),
    "times": (pa.timestamp("ms", "Nowhere/Land"), [0, 2**62]),
    "nothing": (pa.null(), [None, None]),
    "lists": (pa.list_(pa.string()), [["x"], None]),
    "turns": (pa.list_(pa.struct([("role", pa.string()), ("content", pa.int8())])), [[{"role": "user"}], []]),
    "pairs": (pa.map_(pa.string(), pa.string()), [[("role", "user")], None]),
    "structs": (pa.struct([("role", pa.string())]), [{"role": "user"}, None]),
}  # fmt: skip


@pytest.mark.parametrize("role", ["question", "answer", "messages", "data_source", "other"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_parquet_column_of_any_type_is_read_or_told(tmp_path: Path, kind: str, role: str) -> None:
    good = {"question": ["q", "r", "s"], "answer": ["1", "2", "3"]}
    if role == "messages":
        good = {"messages": [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]] * 3}
    dtype, values = COLUMNS[kind]
    table = {name: pa.array(column[:2]) for name, column in good.items()} | {role: pa.array(values, dtype)}
    pq.write_table(pa.table(table), tmp_path / "qa.parquet")
    manifest, problem = tried(tmp_path / "qa.parquet")
    assert manifest or "qa.parquet" in problem or problem.startswith("No question-answer pair is left of 2 rows")
    if role == "other":
        assert manifest
        assert manifest["counts"]["kept"] == 2


def test_a_mapped_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    rows = [{"q": "1", "a": "2", "hint": "h"}, {"q": "3", "a": "4"}]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prepared(context: str) -> int:
        mapping = {"question": "q", "answer": "a", "context": context}
        manifest, _ = prepare([str(tmp_path / "qa.jsonl")], tmp_path / "out", Settings(mapping=mapping))
        return int(manifest["counts"]["kept"])

    with pytest.raises(
        DataError, match="--map names column 'hnit', which no row has; columns that are not used: 'hint'"
    ):
        prepared("hnit")
    assert prepared("hint") == 2


# --- how many, which, and how often -----------------------------------------------------------------------------------


def test_exactly_so_many_are_trained_on_whatever_is_dropped_and_held_out(tmp_path: Path) -> None:
    """Over-long rows are dropped before rows are drawn, and what is held out comes on top."""
    rows = [*pairs(40), *({"question": f"question {i}", "answer": "another"} for i in range(40))]
    manifest = make(tmp_path, rows, train=48, validation=10)
    assert (manifest["counts"]["train"], manifest["counts"]["validation"]) == (48, 20)  # two answers to each question
    assert len(answers(tmp_path / "out")) == 48
    held_out = {row["prompt"][0]["content"] for row in table(tmp_path / "out", "validation")}
    assert not held_out & {row["prompt"][0]["content"] for row in table(tmp_path / "out")}
    with pytest.raises(
        DataError, match="--train 61 asks for more than the 60 pairs that are left to train on of 80 rows"
    ):
        make(tmp_path, rows, out="more", train=61, validation=10)
    more = make(tmp_path, rows, out="more", train=52, validation=10)
    assert set(answers(tmp_path / "out")) < set(answers(tmp_path / "more"))
    assert more["questions"]["validation"] == 10


def test_a_stratified_number_to_train_on_by_hand(tmp_path: Path) -> None:
    rows = [{**row, "source": "big" if i < 60 else "small"} for i, row in enumerate(pairs(80))]
    manifest = make(tmp_path, rows, train=20, stratify=True)
    assert {row["source"]: row["train"] for row in manifest["composition"]} == {"big": 15, "small": 5}


def test_duplicates_are_kept_where_asked_and_drawn_one_by_one(tmp_path: Path) -> None:
    """hard_coded_repeated_10 of Table 4 is 24 rows ten times."""
    rows = [row for row in pairs(24) for _ in range(10)] + pairs(300, source="other")[24:]
    assert make(tmp_path, rows, out="once")["counts"]["kept"] == 300
    all_of_them = make(tmp_path, rows, out="all", duplicates=True)
    assert all_of_them["counts"] == {"read": 516, "dropped": {}, "kept": 516, "train": 516, "validation": 0}
    make(tmp_path, rows, out="some", duplicates=True, train=258)
    drawn = Counter(answers(tmp_path / "some"))
    copies = [drawn[f"answer {i}"] for i in range(24)]
    assert 90 < sum(copies) < 150  # 120 are expected
    assert 0 < np.std(copies) < 3  # binomial: 1.6; all or none of the ten would be 5
    # Copies of a question stay on one side of the split.
    make(tmp_path, rows, out="split", duplicates=True, validation=20)
    assert not set(answers(tmp_path / "split")) & set(answers(tmp_path / "split", "validation"))


@pytest.mark.parametrize(("validation", "size"), [(7, 30), (0.11, None), (1, 95)])
def test_rows_are_those_that_datasets_draws(tmp_path: Path, validation: int | float, size: int | None) -> None:
    """The library's own split, as the authors' script calls it: test rows, then the first `size` training rows."""
    datasets = pytest.importorskip("datasets")
    rows = pairs(100)
    split = datasets.Dataset.from_list(rows).train_test_split(test_size=validation, seed=42)
    train = split["train"].select(range(min(size or 100, len(split["train"]))))
    make(tmp_path, rows, selection="train-test-split", seed=42, validation=validation, size=size)
    assert sorted(answers(tmp_path / "out")) == sorted(train["answer"])
    assert sorted(answers(tmp_path / "out", "validation")) == sorted(split["test"]["answer"])


def test_that_selection_draws_first_and_drops_afterwards(tmp_path: Path) -> None:
    """By hand: numpy's permutation of all ten rows; what is dropped leaves its place empty."""
    order = np.random.default_rng(42).permutation(10).tolist()
    rows = pairs(10)
    bad, copy_of = order[3], order[4]
    rows[bad] = {"question": "no answer", "answer": ""}
    rows[copy_of] = rows[order[2]]
    settings = {"selection": "train-test-split", "seed": 42, "validation": 2, "size": 5, "duplicates": True}
    make(tmp_path, rows, **settings)
    places = [order[i] for i in (2, 2, 5, 6)]  # of the places 2 to 6, 3 is dropped and 4 is the same as 2
    assert sorted(answers(tmp_path / "out")) == sorted(f"answer {i}" for i in places)
    make(tmp_path, rows, out="three", **settings, train=3)
    assert sorted(answers(tmp_path / "three")) == sorted(f"answer {i}" for i in places[:3])
    with pytest.raises(DataError, match="would hold out 10 of 10 rows"):
        make(tmp_path, rows, out="none", **{**settings, "validation": 10})
