"""Gives every command words, numbers, settings and files that nobody meant it to get."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
    ("analyze", "leakage", "run", "--n", "2", "--span", "3"),
    ("analyze", "schemes", "run", "--n", "2"),
    ("reproduce", "laptop", "--out", "study", "--dry-run"),
    ("speedrun", "--table"),
    ("help", "data"),
    ("doctor", "--model", "model", "--data", "data/train.parquet", "--questions", "1",
     *(w for t in SMALL for w in ("--set", t))),
)  # fmt: skip


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


def try_all(base: Path, nrt_in: Callable[[Path], Nrt], count: int, seed: int) -> Iterator[Try]:
    """`count` command lines, every command in turn, each with one or two words exchanged, or a setting added."""
    chance = random.Random(seed)
    strange_files(base)
    nrt = nrt_in(base)
    for index in range(count):
        words = list(BASES[index % len(BASES)])
        for _ in range(chance.choice((1, 1, 2))):
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
        yield Try(" ".join(map(repr, words)), harm, " ".join(ended.err.split())[-200:] if harm else "")
