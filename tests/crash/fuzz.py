"""Gives every command words, numbers, settings and files that nobody meant it to get."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nursery import Nrt
from world import SMALL

WORDS = (
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "nan",
    "inf",
    "1e999",
    "9" * 400,
    "x" * 300,
    "../../escape",
    "/dev/null",
    "/dev/zero",
    "a\x07b",
    "\u202etxt.exe",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    "run@",
    "run@-1",
    "run@99999999999999999999",
    "run@1-",
    "run@best@best",
    "[red]x[/]",
    "{{ 1 }}",
    "%s%n",
    "null",
    "2024-01-01",
    "a: b: c",
    "*alias",
    "!!python/object:os.system",
    "\\",
    "'",
    '"',
    "run,run",
    "file.bin",
    "deep.json",
    "deep.yaml",
    "laughs.yaml",
    "nested.parquet",
    "date.parquet",
    "bom.jsonl",
    "list.jsonl",
    "latin.csv",
    "loop",
)
KEYS = (
    "train.steps",
    "optimiser.lr",
    "rollout.group_size",
    "model.path",
    "data.train",
    "method",
    "judge.prices",
    "verl",
)
BASES: tuple[tuple[str, ...], ...] = (
    ("data", "prepare", "pairs.jsonl", "--out", "made", "--validation", "2"),
    ("model", "prepare", "source", "--out", "made-model"),
    ("train", "--model", "model", "--data", "data/train.parquet", "--steps", "1", "--run", "second", "--dry-run"),
    ("config", "show", "laptop"),
    ("config", "check", "laptop"),
    ("config", "explain", "train.steps"),
    ("config", "diff", "paper", "nrt"),
    ("runs", "list", "."),
    ("runs", "show", "run"),
    ("runs", "diff", "run", "run"),
    ("runs", "tag", "run", "good"),
    ("runs", "gc", ".", "--dry-run"),
    ("runs", "export", "run", "--out", "run.tar.gz"),
    ("runs", "check", "run"),
    ("generate", "run", "What?", "--max-trace-tokens", "2", "--max-answer-tokens", "2", "--seed", "1"),
    ("score", "run", "--question", "What?", "--answer", "3", "--trace", "1 + 2", "--scheme", "am"),
    ("judge", "run", "--n", "2", "--judge", "j", "--dry-run", "--template", "template.yaml"),
    ("eval", "--model", "run", "--benchmarks", "gsm8k", "--limit", "1", "--set", "eval.data_dir=benchmarks"),
    ("eval", "compare", "run", "run"),
    ("eval", "import", "imported", "--model", "m"),
    ("report", "run", "--format", "md", "--out", "report"),
    ("push", "run", "--out", "shared2"),
    ("analyze", "dynamics", "run"),
    ("analyze", "vocab", "run", "--top", "3"),
    ("analyze", "cases", "run", "--n", "1"),
    ("analyze", "xray", "run", "--limit", "2", "--max-steps", "3"),
    ("analyze", "schemes", "run", "--n", "2"),
    ("reproduce", "laptop", "--out", "study", "--dry-run"),
    ("speedrun", "--table"),
    ("help", "data"),
    ("doctor", "--model", "model", "--data", "data/train.parquet", "--questions", "1",
     *(w for t in SMALL for w in ("--set", t))),
)  # fmt: skip

LAUGHS = "{a: &a [x,x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], \
d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c], e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d], f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e], \
g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f], h: [*g,*g,*g,*g,*g,*g,*g,*g,*g]}"
VALUES = (
    "2024-01-01", "9" * 400, "9" * 5000, "0x" + "f" * 300, "-1", "0", "1.5", "1e999", ".nan", ".inf", "-.inf", "null",
    "true", "''", "' '", "[]", "{}", "[null]", "[1, two, {a: []}]", "{a: {b: c}}", "{<<: 1}", "[" * 5000 + "]" * 5000,
    "&a [*a]", "&a {a: *a}", "*nobody", "!!python/object:os.system x", "!!binary aGk=", "!!set {a, b}",
    "!!timestamp 2024-01-01", "'../../escape'", "'/dev/zero'", "'\\u202e\\a'", '"\\u202e\\a\\0"', "x" * 300,
    "x" * 100_000, "'{{ 1 // 0 }}'", "'%'", LAUGHS,
)  # fmt: skip
"""What a value of a YAML file may become."""
BENCHMARK = {
    "title": "Mine",
    "files": ["mine.jsonl"],
    "columns": ["question", "answer"],
    "question": ["question"],
    "prompt": "Question: {{question}}\nAnswer:",
    "generation": {"max_tokens": 4, "stop": ["\n\n"]},
    "grader": "number",
}
CONFIG: dict[str, Any] = {
    "method": "am",
    "model": {"path": "model", "dtype": "float32", "lora": {"rank": 2}},
    "data": {"train": "data/train.parquet", "validation": "data/validation.parquet"},
    "rollout": {"group_size": 2, "max_trace_tokens": 4},
    "optimiser": {"lr": 1e-3, "betas": [0.9, 0.99]},
    "objective": {"weights": {"trace": 1.0}},
    "train": {"steps": 1, "batch_size": 4},
    "judge": {"models": ["j"], "prices": {"j": [1, 1]}},
}
STUDY: dict[str, Any] = {
    "title": "t",
    "model": {"name": "m", "source": "model"},
    "data": {"sources": ["pairs.jsonl"], "validation": 2},
    "run": {"train": {"steps": 1}},
    "variants": {"fast": {"optimiser": {"lr": 1.0}}},
    "methods": ["sft", "am"],
    "seeds": [0, 1],
    "eval": {"benchmarks": ["gsm8k"], "limit": 1},
    "analysis": {"tokens": 1, "judge": {"n": 2}, "judge_max_cost": 0},
}
TEMPLATE = {"prompt": "{{ problem }} {{ reasoning }} {{ ground_truth }}", "repair": "{{ reason }}"}
MUTANTS: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = (
    (CONFIG, ("train", "mutant.yaml", "--run", "third", "--dry-run")),
    (CONFIG, ("config", "show", "mutant.yaml")),
    (CONFIG, ("config", "diff", "mutant.yaml", "paper")),
    (TEMPLATE, ("judge", "run", "--n", "2", "--judge", "j", "--dry-run", "--template", "mutant.yaml")),
    (BENCHMARK, ("eval", "--model", "run", "--benchmarks", "mutant.yaml", "--limit", "1")),
    (BENCHMARK, ("doctor", "--data", "data/train.parquet", "--benchmarks", "mutant.yaml")),
    (STUDY, ("reproduce", "mutant.yaml", "--out", "study3", "--dry-run")),
    ({"question": "q", "answer": "1"}, ("data", "prepare", "mutant.jsonl", "--out", "made2", "--overwrite")),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
     ("data", "prepare", "mutant.jsonl", "--out", "made3", "--overwrite")),
    ({}, ("data", "prepare", "mutant.parquet", "--out", "made4", "--overwrite")),
)  # fmt: skip
"""A file and the command that reads it."""


@dataclass(frozen=True)
class Try:
    """What came of one: `harm` is empty where the command did what was asked or said in a sentence why not."""

    command: str
    harm: str
    what: str = ""


def strange_files(folder: Path) -> None:
    """Files that are not what their names say, or more than they look."""
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "pairs.jsonl").write_text("".join(f'{{"question": "q{n}", "answer": "{n}"}}\n' for n in range(8)))
    (folder / "template.yaml").write_text("prompt: '{{ problem }} {{ reasoning }} {{ ground_truth }}'\n")
    (folder / "file.bin").write_bytes(bytes(range(256)))
    (folder / "deep.json").write_text("[" * 10_000 + "]" * 10_000)
    (folder / "deep.yaml").write_text("[" * 10_000 + "]" * 10_000)
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (folder / "laughs.yaml").write_text("\n".join(laughs) + "\n")
    pq.write_table(pa.table({"question": [{"a": [1]}], "answer": [[1, 2]]}), folder / "nested.parquet")
    day = datetime.date(2024, 1, 1)
    pq.write_table(pa.table({"question": [day], "answer": [day]}), folder / "date.parquet")
    (folder / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"question": "q", "answer": "a"}\n')
    (folder / "list.jsonl").write_text('["question", "answer"]\n1\n')
    (folder / "latin.csv").write_bytes("question,answer\ncaf\xe9,1\n".encode("latin-1"))
    (folder / "loop").symlink_to("loop")


def mutated(values: Any, chance: random.Random) -> str:
    """A JSON text, which is YAML too, with one value that is another, or a key that is missing, twice or renamed."""
    places = list(_places(values))
    holder, key = chance.choice(places)
    kind = chance.random()
    whole = json.loads(json.dumps(values))
    inner = whole
    for step in holder:
        inner = inner[step]
    if kind < 0.8 or not isinstance(inner, dict):
        inner[key] = "@@"
        return json.dumps(whole).replace('"@@"', chance.choice(VALUES))
    if kind < 0.9:
        inner[chance.choice(WORDS)] = inner.pop(key)
        return json.dumps(whole)
    return json.dumps(whole).replace(f'"{key}"', f'"{key}": 1, "{key}"', 1)


def _places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of nested mappings and lists: what holds it, and its key there."""
    keys = values.keys() if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    for key in keys:
        yield at, key
        yield from _places(values[key], (*at, key))


def strange_table(chance: random.Random) -> Any:
    """A table of pairs whose columns have types that text does not."""
    import datetime
    import decimal

    import pyarrow as pa

    now = datetime.datetime(2024, 1, 1)
    columns = (
        pa.array([{"a": [1]}, None]), pa.array([[1], [2]]), pa.array([now.date()] * 2), pa.array([now] * 2),
        pa.array([decimal.Decimal("1.5")] * 2), pa.array([b"\xff\xfe"] * 2), pa.array([None, None]),
        pa.array(["a", "b"]).dictionary_encode(), pa.array([2**63 - 1] * 2), pa.array([float("nan"), 1e308]),
        pa.array([datetime.timedelta(1)] * 2), pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
        pa.array([[{"role": "user", "content": 1}], []]), pa.array([True, False]), pa.array(["a", None]),
        pa.array([[["deep"]], [[]]]), pa.array([now.time()] * 2), pa.array(["x", "y"], pa.large_string()),
    )  # fmt: skip
    names = chance.choice(
        (("question", "answer"), ("messages", "id"), ("prompt", "completion"), ("question", "question"))
    )
    return pa.Table.from_arrays([chance.choice(columns) for _ in names], names=list(names))


def try_all(base: Path, nrt_in: Callable[[Path], Nrt], count: int, seed: int) -> Iterator[Try]:
    """`count` command lines, every command in turn, each with one or two words exchanged, a setting added, or, every
    second one, a file of its own that is not what it should be."""
    import pyarrow.parquet as pq

    chance = random.Random(seed)
    strange_files(base)
    nrt = nrt_in(base)
    for index in range(count):
        words = list(BASES[index // 2 % len(BASES)])
        if index % 2:
            values, command = MUTANTS[index // 2 % len(MUTANTS)]
            words = list(command)
            pq.write_table(strange_table(chance), base / "mutant.parquet")
            text = mutated(values, chance) if values else ""
            (base / "mutant.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
            (base / "mutant.jsonl").write_text(f"{text}\n" * 3, encoding="utf-8", errors="surrogatepass")
        for _ in range(0 if index % 2 else chance.choice((1, 1, 2))):
            word = chance.choice(WORDS)
            if chance.random() < 0.25:
                words += ["--set", f"{chance.choice(KEYS)}={word}"]
            else:
                words[chance.randrange(1, len(words))] = word
        ended = nrt(*(word.replace("\0", "") for word in words), seconds=60)
        harm = ""
        if "Traceback" in ended.err or (ended.code < 0 and ended.code != -14):
            harm = "traceback"
        elif ended.code == -14:
            harm = "hang"
        elif ended.code > 0 and not ended.err.strip():
            harm = "silent"
        said = f" of {text[:300]}" if index % 2 else ""
        yield Try(" ".join(map(repr, words)) + said, harm, " ".join(ended.err.split())[-200:] if harm else "")
