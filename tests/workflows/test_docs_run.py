"""The commands of the documentation, run as a reader would, on small stand-ins for the files they name."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

TABLE = yaml.safe_load((Path(__file__).parent.parent / "docs_commands.yaml").read_text(encoding="utf-8"))
COPIES = {"gsm8k-sft": ["sft"], "gsm8k-am": ["am", "first"], "gsm8k-ws": ["ws", "ws-neg-log-p"]}
"""Runs that the documentation trains under one name and looks into under another."""


def arguments(text: str, how: dict) -> list[str]:
    words = [how.get("replace", {}).get(word, word) for word in shlex.split(text)]
    return [*words[1:], *shlex.split(how.get("add", ""))]


@pytest.fixture
def reader(nrt, make_tiny_source, make_tiny_tokenizer, monkeypatch):
    """A folder with pairs and a model, as the documentation supposes."""
    make_tiny_source(nrt.folder / "source", make_tiny_tokenizer())
    pairs = [
        {"question": f"What is {i} plus {j}?", "answer": f"{i} + {j} = {i + j}"} for i in range(8) for j in range(5)
    ]
    (nrt.folder / "gsm8k").mkdir()
    for name in ("qa.jsonl", "gsm8k/train.jsonl"):
        (nrt.folder / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (nrt.folder / "faq.csv").write_text("ask,reply\nWhy?,Because it is so.\n")
    reasoned = [{"ask": f"{i} + 1?", "reply": str(i + 1), "reasoning": f"one more than {i}"} for i in range(8)]
    (nrt.folder / "reasoned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reasoned))
    (nrt.folder / "more.jsonl").write_text(json.dumps({"ask": "Since when?", "reply": "For ever."}) + "\n")
    return nrt


def test_the_documented_commands_run(reader):
    for text, how in TABLE["run"].items():
        ended = reader(*arguments(text, how))
        assert ended.code == 0, f"{text}\n{ended.out[-500:]}\n{ended.err[-1500:]}"
        for name, copies in COPIES.items():
            trained = reader.folder / "runs" / name
            for copy in copies if (trained / "export").is_dir() else ():
                if not (trained.parent / copy).exists():
                    shutil.copytree(trained, trained.parent / copy)
    assert (reader.folder / "runs" / "mine" / "export").is_dir()
    assert list((reader.folder / "runs" / "profiled" / "profiles").iterdir())
