"""What the harness works on: a tiny model, its data, a run, its evaluation and judgements, all made by commands."""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from nursery import Ended, Nrt

SMALL = (
    "rollout.group_size=2",
    "rollout.max_trace_tokens=4",
    "train.batch_size=4",
    "train.minibatch_size=null",
    "train.checkpoint_every=1",
    "train.validate_every=1",
    "train.validation_size=4",
    "model.dtype=float32",
    "model.device=cpu",
    "train.threads=1",
)
DATA = ("data", "prepare", "generated:sums?size=48&seed=0", "--out", "data", "--validation", "8")
MODEL = ("model", "prepare", "source", "--out", "model", "--dtype", "float32")
TRAIN = (
    *("train", "--model", "model", "--data", "data/train.parquet", "--validation", "data/validation.parquet"),
    *("--method", "am", "--steps", "3", "--run", "run"),
    *(word for text in SMALL for word in ("--set", text)),
)
RESUME = ("train", "--run", "run", "--resume")
EVAL = (
    *("eval", "--model", "run", "--benchmarks", "gsm8k", "--limit", "6"),
    *("--set", "eval.data_dir=benchmarks", "--set", "eval.max_trace_tokens=4", "--set", "eval.max_answer_tokens=6"),
)
JUDGE = ("judge", "run", "--n", "4", "--judge", "j", "--max-cost", "1", "--set", "judge.prices={j: [1, 1]}")
PUSH = ("push", "run", "--out", "shared")
STUDY = (
    *("reproduce", "laptop", "--out", "study"),
    *(
        word
        for text in (
            "model.pretrain.steps=2",
            "data.sources=['generated:digits?size=200']",
            "data.validation=4",
            "run={rollout: {max_trace_tokens: 4}, train: {steps: 2, checkpoint_every: 1, validate_every: 2}}",
            "methods=[sft, am]",
            "variants={sft: {train: {batch_size: 16}}}",
            "seeds=[0]",
            "eval.limit=4",
            "analysis={tokens: 4, questions: 1, judge_max_cost: 0}",
        )
        for word in ("--set", text)
    ),
)

CLOCK = re.compile(
    r"checksum|crc32|stored|cached|second|time|created|finished|mfu|cost|latency|pid|host|command|version|resumed|sessions|elapsed|per_"
)
"""Names of what may differ between two ways to the same end: the clock's and what is over it, and who did it."""


DATED = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+Z|^# checksum \w+$|\btook [\d.:]+ \w+", re.MULTILINE)


def make_source(folder: Path) -> None:
    """A tiny Llama as others leave it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from nrt_cli.text.prompts import DEFAULT_CHAT_TEMPLATE

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=140, initial_alphabet=letters, special_tokens=["<unk>", "<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(["What is 3 plus 4? The answer is 7."] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.chat_template = DEFAULT_CHAT_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=fast.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def make(nrt: Nrt) -> None:
    """All of it, in the folder where `nrt` runs its commands. Raises RuntimeError where a command fails."""
    make_source(nrt.folder / "source")
    documents = nrt.folder / "benchmarks" / "gsm8k" / "test.jsonl"
    documents.parent.mkdir(parents=True)
    rows = [{"question": f"What is {a} plus {a + 1}?", "answer": f"#### {2 * a + 1}"} for a in range(8)]
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    look = ("report", "run", "--format", "md,csv", "--out", "report")
    for command in (DATA, MODEL, TRAIN, EVAL, JUDGE, PUSH, look):
        ended = nrt(*command)
        if ended.code:
            raise RuntimeError(f"nrt {' '.join(command)}: {ended}")
    shutil.rmtree(nrt.folder / "report")


@contextmanager
def judge() -> Iterator[None]:
    """An OpenAI-compatible endpoint on this machine, whose score depends on the question alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name http.server wants
            asked = self.rfile.read(int(self.headers["content-length"]))
            score = int(hashlib.sha256(json.dumps(json.loads(asked)["messages"]).encode()).hexdigest()[:4], 16) / 65535
            verdict = json.dumps({"score": score, "justification": "It holds together.", "flags": []})
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": verdict}}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            body = {"id": "1", "object": "chat.completion", "created": 1, "model": "j", "choices": [choice]}
            sent = json.dumps({**body, "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1", "OPENAI_API_KEY": "none"}
    try:
        yield
    finally:
        server.shutdown()


def content(folder: Path) -> dict[str, str]:
    """File by file a digest of what it says, without the clock: two ways to the same end give the same.

    Of a record that was written twice, as a step's that was taken again, the last one counts.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name in (".lock", "events.jsonl") or path.suffix in (".log", ".out", ".err"):
            continue
        if path.suffix == ".parquet":
            said: Any = [_timeless(row) for row in pq.read_table(path).to_pylist()]
        elif path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text().splitlines() if _whole(line)]
            keyed = {json.dumps([r.get(k) for k in ("kind", "step", "hash", "key", "id")]): r for r in records}
            said = sorted(json.dumps(_timeless(record), sort_keys=True) for record in keyed.values())
        elif path.suffix == ".json":
            said = _timeless(json.loads(path.read_text()))
        elif path.suffix in (".md", ".html", ".yaml"):
            said = DATED.sub("", path.read_text())
        else:
            said = hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return found


def _whole(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not CLOCK.search(key)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def sentence(ended: Ended) -> bool:
    """Whether a command that failed said why, and no more than a person wants to read."""
    return ended.code > 0 and "Traceback" not in ended.err and bool(ended.err.strip())
