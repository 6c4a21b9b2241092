"""Benchmarks from documents to scores: where documents come from, which are asked and how, what is said on failure."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("lm_eval")

from nrt_cli.config.suite import AS_PAIRS, NAMES, select
from nrt_cli.errors import ConfigError, DataError, EvalError
from nrt_cli.evaluation import benchmark as engine
from nrt_cli.evaluation.benchmark import Benchmark, load_suite
from nrt_cli.grading import sandbox
from nrt_cli.grading.grading import GRADERS
from nrt_cli.store.evals import document_hash, settings_hash

OWN_ROWS = Path(__file__).parent.parent / "eval_data"
SHARED_ROWS = Path(__file__).parent.parent.parent.parent / "shared" / "data"


def opened(name: str) -> Any:
    return load_suite([name])[0]


def write(path: Path, *content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def questions(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(count)]


# Documents


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])  # whose rows a study writes
def test_every_benchmark_reads_local_rows(name: str) -> None:
    benchmark = opened(name)
    documents = benchmark.documents(OWN_ROWS)
    assert {document.subset for document in documents} == set(benchmark.spec.subsets or ("",))
    assert len({document.id for document in documents}) == len(documents) >= 2
    for document in documents:
        assert document.messages[-1]["role"] == "user"
        assert document.gold not in (None, "", [])


@pytest.mark.parametrize("name", ["bbh", "drop", "popqa", "truthfulqa", "gsm8k", "ifeval", "humaneval"])
def test_real_rows(name: str) -> None:
    if not SHARED_ROWS.is_dir():
        pytest.skip("no shared/data beside this repository")
    documents = opened(name).documents(SHARED_ROWS, limit=8)
    assert len(documents) == 8
    assert all(document.gold not in (None, "", []) for document in documents)


def test_parquet_and_json_read_like_jsonl(tmp_path: Path) -> None:
    content = questions(3)
    write(tmp_path / "a" / "gsm8k" / "test.jsonl", *content)
    (tmp_path / "b" / "gsm8k").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(content), tmp_path / "b" / "gsm8k" / "test.parquet")
    (tmp_path / "c" / "gsm8k").mkdir(parents=True)
    (tmp_path / "c" / "gsm8k" / "test.json").write_text(json.dumps(content))
    a, b, c = (opened("gsm8k").documents(tmp_path / folder) for folder in "abc")
    assert a == b == c
    assert [document.gold for document in a] == ["0", "2", "4"]


def test_a_subset_may_have_a_file_of_its_own_or_share_one(tmp_path: Path) -> None:
    shared = [json.loads(line) for line in (OWN_ROWS / "math" / "test.jsonl").read_text().splitlines()]
    for row in shared:
        path = tmp_path / "math" / "_".join(row["type"].lower().replace("&", "and").split()) / "test.jsonl"
        write(path, *[other for other in shared if other["type"] == row["type"]])
    assert opened("math").documents(tmp_path) == opened("math").documents(OWN_ROWS)


@pytest.mark.parametrize(("name", "limit"), [("gsm8k", 3), ("math", 5), ("bbh", 8), ("mmlu", 20)])
def test_a_limit_is_a_seeded_sample_spread_over_subsets(name: str, limit: int) -> None:
    benchmark = opened(name)
    everything = [document.id for document in benchmark.documents(OWN_ROWS)]
    some = benchmark.documents(OWN_ROWS, limit, seed=1)
    ids = [document.id for document in some]
    assert len(ids) == limit
    assert ids == sorted(ids, key=everything.index)
    assert ids == [document.id for document in opened(name).documents(OWN_ROWS, limit, seed=1)]
    fewer = {document.id for document in benchmark.documents(OWN_ROWS, limit - 1, seed=1)}
    assert fewer < set(ids)
    others = [[document.id for document in benchmark.documents(OWN_ROWS, limit, seed=seed)] for seed in range(2, 6)]
    assert any(other != ids for other in others)
    if benchmark.spec.subsets:
        assert len({document.subset for document in some}) == min(limit, len(benchmark.spec.subsets))


def test_drop_is_a_sample_of_a_thousand_without_a_limit(tmp_path: Path) -> None:
    row = {"passage": "p", "question": "q", "answers": [["1"]]}
    write(tmp_path / "drop" / "validation.jsonl", *[{**row, "query_id": str(i)} for i in range(1100)])
    assert len(opened("drop").documents(tmp_path)) == 1000


def test_ids_stay_unique_where_the_data_repeats_one(tmp_path: Path) -> None:
    row = {"passage": "p", "question": "q", "answers": [["1"]], "query_id": "twice"}
    write(tmp_path / "drop" / "validation.jsonl", row, {**row, "question": "r"})
    assert len({document.id for document in opened("drop").documents(tmp_path)}) == 2


def test_humaneval_comes_with_its_package() -> None:
    assert len(opened("humaneval").documents(None)) == 164


# What is said when something is missing


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("gsm8k", lambda folder: None, "gsm8k has no documents; put rows of gsm8k there (test.jsonl"),
        ("gsm8k", lambda folder: write(folder / "gsm8k" / "test.jsonl"), "has no documents"),
        (
            "math",
            lambda folder: write(folder / "math" / "algebra.jsonl", {"problem": "p", "solution": "s"}),
            "6 of its 7",
        ),
    ],
    ids=["no folder", "empty", "some subsets"],
)
def test_missing_data_is_one_sentence(tmp_path: Path, name: str, make: Any, said: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError) as caught:
        opened(name).check(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gsm8k", "digits"])
def test_without_a_hub_the_remedy_is_a_folder(name: str) -> None:
    with pytest.raises(DataError, match=r"\A.*eval\.data_dir.*\Z"):
        opened(name).check(None)


@pytest.mark.parametrize(("name", "package"), [("math", "math_verify"), ("ifeval", "langdetect"), ("bbh", "lm_eval")])
def test_a_missing_scorer_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    there = engine.find_spec
    monkeypatch.setattr(engine, "find_spec", lambda asked: None if asked == package else there(asked))
    with pytest.raises(EvalError) as caught:
        opened(name).check(OWN_ROWS)
    assert f"{name} needs {package.replace('_', '-')}" in str(caught.value)
    assert "pip install 'nrt-cli[eval]'" in str(caught.value)


def test_a_sandbox_with_holes_needs_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda: ("no network",))
    with pytest.raises(EvalError, match=r"cannot enforce: no network; .*--allow-unsafe-code"):
        opened("humaneval").check(OWN_ROWS)
    assert "without: no network" in opened("humaneval").check(OWN_ROWS, allow_unsafe_code=True)[0]


# Prompts and requests


def test_prompts_of_the_zero_shot_benchmarks() -> None:
    gsm8k, math = opened("gsm8k").documents(OWN_ROWS)[2], opened("math").documents(OWN_ROWS)[0]
    assert gsm8k.messages == (
        {
            "role": "user",
            "content": "Question: Mia reads 20 pages a day. How many days does a book of 180 pages take?\nAnswer:",
        },
    )
    assert math.messages[0]["content"] == (
        "Solve $2x + 6 = 0$ for $x$.\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
    )
    mmlu = opened("mmlu").documents(OWN_ROWS)[0].messages[0]["content"]
    assert mmlu.startswith("Answer the following multiple-choice question by giving the correct answer letter in")
    assert "is one of (A), (B), (C), (D).\n\nQuestion: A class on abstract algebra has 26 students" in mmlu
    assert "\n (A) 54\n (B) 55\n (C) 53\n (D) 64\n\nAnswer the above question and REMEMBER to finish" in mmlu
    assert mmlu.endswith("is one of (A), (B), (C), (D).")


def test_bbh_has_three_worked_examples_in_turns() -> None:
    turns = opened("bbh").documents(OWN_ROWS)[0].messages
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3 + ["user"]
    assert turns[0]["content"] == (
        "Evaluate the result of a random Boolean expression.\n\nQ: not ( ( not not True ) ) is\n"
        "A: Let's think step by step."
    )
    assert turns[1]["content"].endswith("= not True = False. So the answer is False.")
    assert turns[-1]["content"] == "Q: not ( False ) and True is\nA: Let's think step by step."


def test_humaneval_begins_the_answer(tiny_tokenizer: Any) -> None:
    benchmark = opened("humaneval")
    document = benchmark.documents(None)[0]
    (turn,) = document.messages
    begun = "Here is the completed function:\n\n```python\n"
    assert turn["content"].startswith("from typing import List\n\n\ndef has_close_elements(")
    assert turn["content"].endswith(
        f'    False\n    >>> has_close_elements([1.0, 2.8, 3.0, 4.0, 5.0, 2.0], 0.3)\n    True\n    """\n{begun}'
    )
    for think in (True, False):
        request = benchmark.requests(document, tiny_tokenizer, think, 64, 0)[0]
        assert tiny_tokenizer.decode(request.prefill_ids) == begun
    assert (
        opened("gsm8k").requests(opened("gsm8k").documents(OWN_ROWS)[0], tiny_tokenizer, True, 9, 0)[0].prefill_ids
        == ()
    )


def test_popqa_has_fifteen_examples_in_turns_of_their_own() -> None:
    turns = opened("popqa").documents(OWN_ROWS)[0].messages
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 15 + ["user"]
    assert turns[-3:] == (
        {"role": "user", "content": "Q: Who is the mother of Terry Fox? A:"},
        {"role": "assistant", "content": "Betty Fox"},
        {"role": "user", "content": "Q: What is the capital of Norway? A:"},
    )


def test_truthfulqa_scores_each_choice_after_six_examples(tiny_tokenizer: Any) -> None:
    benchmark = opened("truthfulqa")
    document = benchmark.documents(OWN_ROWS)[0]
    assert len(document.messages) == 1
    assert len(re.findall(r"^Q: ", document.messages[0]["content"], re.MULTILINE)) == 7
    requests = benchmark.requests(document, tiny_tokenizer, True, 99, 0)
    assert {request.mode for request in requests} == {"loglikelihood"}
    assert not any(request.think for request in requests)
    texts = [tiny_tokenizer.decode(request.continuation_ids) for request in requests]
    assert texts == [
        "No, it cannot be seen from the Moon.",
        "It is far too narrow to be seen from there.",
        "Yes, easily.",
        "Only at night.",
    ]


def test_requests_carry_the_suites_settings(tiny_tokenizer: Any) -> None:
    benchmark = opened("humaneval")
    document = benchmark.documents(OWN_ROWS)[0]
    requests = benchmark.requests(document, tiny_tokenizer, True, 64, seed=5)
    assert len(requests) == 20
    assert len({request.key for request in requests}) == len({request.seed_key for request in requests}) == 20
    assert {(r.temperature, r.top_p, r.max_answer_tokens, r.max_trace_tokens, r.think) for r in requests} == {
        (0.8, 0.95, 999999, 64, True)
    }
    direct = benchmark.requests(document, tiny_tokenizer, False, 64, seed=5, max_answer_tokens=10)[0]
    assert (direct.think, direct.max_trace_tokens, direct.max_answer_tokens) == (False, 0, 10)
    assert direct.seed_key == requests[0].seed_key
    assert benchmark.requests(document, tiny_tokenizer, True, 64, seed=6)[0].seed_key != requests[0].seed_key


def test_settings_are_json_and_tell_gradings_apart() -> None:
    for benchmark in load_suite():
        assert json.loads(json.dumps(benchmark.settings)) == benchmark.settings
        assert benchmark.settings["suite"]["prompt"] == benchmark.spec.prompt
        # A version of lm-eval's is part of what it asks or grades alone.
        read = benchmark.name in ("bbh", "drop", "math", "ifeval")
        assert ("lm_eval" in benchmark.settings["versions"]) == read


# What was stored is found again

AS_STORED = {
    "mmlu": ("f0768cecafc20b1d", "11385554e023faab", "6b584bf0dea2bd9f"),
    "bbh": ("a98fd012fd0d7b0b", "25747c9d19055b2e", "3ef5a38b77fac0fc"),
    "drop": ("251438abcc43c461", "9e41eb434e80d795", "0438e545d943a417"),
    "popqa": ("a05d16f9b5aefb7e", "5fca6883b2cde806", "638a67ccf7e62f75"),
    "truthfulqa": ("11d83427093d20d1", "9c3af4fec0de8459", "151eef164717dce3"),
    "gsm8k": ("5551581ac9f1e6b7", "b58ad0601f440294", "ab41a082251351b1"),
    "math": ("e494f96687808361", "811396a88e8248e3", "e866ea1ec2441417"),
    "humaneval": ("3b2af7779bf0a3e8", "e9d791d46872c0ca", "b1cbf35108178bdc"),
    "ifeval": ("3f0479bfba265d58", "91e32efc61bcdd5a", "71d8beb472365135"),
}
"""Digests of settings (but for the version), documents and requests: who changes them raises the version."""


@pytest.mark.parametrize("name", AS_STORED)
def test_what_was_asked_and_stored_before_is_asked_alike(name: str, tiny_tokenizer: Any) -> None:
    benchmark = opened(name)
    documents = benchmark.documents(OWN_ROWS)
    told = [
        [
            *(r.key, *map(tiny_tokenizer.decode, (r.prompt_ids, r.continuation_ids)), r.mode, r.seed_key),
            *(r.think, r.max_trace_tokens, r.max_answer_tokens, r.stop, r.temperature, r.top_p, list(r.prefill_ids)),
        ]
        for document in documents
        for r in benchmark.requests(document, tiny_tokenizer, True, 64, 5)
    ]
    settings = {**benchmark.settings, "versions": sorted(benchmark.settings["versions"])}
    del settings["grading"]
    settings.pop("sentences", None)  # what this machine splits sentences with
    each = (settings, {"all": list(map(document_hash, documents))}, {"all": told})
    assert tuple(settings_hash(part)[:16] for part in each) == AS_STORED[name]


def test_graders_of_pairs_are_those_that_users_benchmarks_may_name() -> None:
    """But for programs, of which a benchmark has a grader of its own."""
    assert {*AS_PAIRS, "none", "code"} == set(GRADERS)


def test_a_shipped_benchmark_has_no_grader_of_pairs() -> None:
    with pytest.raises(ConfigError, match=r"grader='exact' is unknown; choose one of choice, number(?!.*exact)"):
        Benchmark(select(["gsm8k"])[0].model_copy(update={"grader": "exact"}))


def test_a_changed_grader_voids_its_own_benchmark_alone() -> None:
    before = {benchmark.name: benchmark.settings for benchmark in load_suite()}
    changed = {
        spec.name: spec.model_copy(update={"version": spec.version + (spec.name == "gsm8k")})
        for spec in select(["all"])
    }
    after = {name: Benchmark(spec).settings for name, spec in changed.items()}
    assert [name for name in before if before[name] != after[name]] == ["gsm8k"]
