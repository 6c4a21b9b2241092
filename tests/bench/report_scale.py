"""Time, peak memory and size of `nrt report` over a large store: 7 methods x 3 models, each run with 9 benchmarks and
50 checkpoints of 10,000 traces.

    python tests/bench/report_scale.py [--traces 10000] [--checkpoints 50] [--keep FOLDER]

Files that would hold the same rows are hard links to one, so that the store fits on a laptop; they are read as if they
were files of their own. The report is made by the command in a process of its own, in all formats.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from nrt_cli.config import resolve, to_yaml
from nrt_cli.config.suite import ORDER, benchmark
from nrt_cli.records import Document, Reply, TraceRow
from nrt_cli.store import Run
from nrt_cli.store.evals import DOCUMENTS, Evaluation

MODELS = ("Llama-3.2-3B", "Mistral-7B-v0.3", "Llama-3.1-8B")
METHODS = ("sft", "logp", "p", "am", "gm", "ws-inv-p", "ws-neg-log-p")
STEPS, TRACE, ANSWER = 800, 120, 80
LOGGED = ("entropy", "gain", "reward", "reward_base", "dead_groups", "token_signal", "forced_share", "distinct_ngrams")
WORDS = [f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}" for i in range(600)]


def make_store(root: Path, checkpoints: int, traces: int) -> None:
    """The whole store; the rows of traces and documents are made once."""
    rng = random.Random(0)
    shared = Run.create(root / "shared", "{}", {"method": "am"})
    shared.write_traces("step-000001", [TraceRow(**_trace(rng, example)) for example in range(traces)])
    for model in MODELS:
        for method in METHODS:
            run = _run(root, model, method, rng)
            (run.path / "traces").mkdir()
            for number in range(1, checkpoints + 1) if method != "sft" else ():
                for kind in ("step", "held-out"):
                    name = f"{kind}-{number * STEPS // checkpoints:06d}.parquet"
                    os.link(shared.path / "traces" / "step-000001.parquet", run.path / "traces" / name)
            for name in ORDER:
                _evaluation(root, run, name, rng)
    shutil.rmtree(shared.path)


def _trace(rng: random.Random, example: int) -> dict[str, Any]:
    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    def numbers(count: int) -> list[float]:
        return [-rng.random() for _ in range(count)]

    return {
        "step": 1, "example": example, "source": "test", "k": 0, "stop": "end",
        "prompt": f"<|im_start|>user\n{text(60)}?<|im_end|>\n<|im_start|>assistant\n",
        "trace": text(TRACE), "answer": f"{text(ANSWER)}<|im_end|>",
        "prompt_ids": [1] * 60, "trace_ids": [rng.randrange(30000) for _ in range(TRACE)], "answer_ids": [2] * ANSWER,
        "sampler_logprobs": numbers(TRACE + 1), "trace_logprobs": numbers(TRACE + 1),
        "trace_entropies": numbers(TRACE + 1), "sampled": [True] * (TRACE + 1),
        "answer_logprobs": numbers(ANSWER), "null_logprobs": numbers(ANSWER), "token_signals": numbers(ANSWER),
        "gain": rng.random(), "reward": 0.5, "reward_base": 0.4, "reward_scaled": 1.0, "reward_base_scaled": 0.8,
        "reward_log_scale": 0.0, "advantage": 0.0, "dead_group": False,
    }  # fmt: skip


def _run(root: Path, model: str, method: str, rng: random.Random) -> Run:
    config = resolve({"method": method, "model": {"path": f"models/{model}"}})
    prints = {"train": "same", "validation": "same", "model": model}
    manifest = {"method": method, "status": "finished", "steps": STEPS, "fingerprints": prints, "versions": {}}
    run = Run.create(root / "runs" / f"{model}-{method}", to_yaml(config), manifest)
    records = []
    for step in range(1, STEPS + 1):
        logged = {name: rng.random() for name in LOGGED} | {"trace_length": 200 + 50 * rng.random()}
        records.append({"kind": "train", "step": step, "loss": 1.0, **(logged if method != "sft" else {})})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def _evaluation(root: Path, run: Run, name: str, rng: random.Random) -> None:
    spec = benchmark(name)
    settings = {"benchmark": {"suite": spec.model_dump(mode="json")}, "model": run.path.name, "limit": None}
    evaluation = Evaluation.create(run.path / "evals" / "export", name, settings, {"model": {"name": run.path.name}})
    score = rng.uniform(0.2, 0.8)
    evaluation.write_scores(
        {
            "benchmark": name,
            "title": spec.title,
            "score": score,
            "n": spec.instances,
            "error": (score * (1 - score) / spec.instances) ** 0.5,
            "truncated_share": 0.01,
            "backend": "lm-eval",
        }
    )
    shared = root / "shared" / f"{name}.jsonl"
    if not shared.exists():
        first = Evaluation.create(root / "shared", name, {}, {})
        for number in range(2000):
            turn = {"role": "user", "content": " ".join(rng.choices(WORDS, k=80))}
            reply = Reply(trace=" ".join(rng.choices(WORDS, k=TRACE)), answer="42", stop="end")
            first.append(Document(name, "", str(number), (turn,), "42", (reply,), ("42",), {spec.metric: 1.0}))
        (first.path / DOCUMENTS).rename(shared)
    os.link(shared, evaluation.path / DOCUMENTS)


def measure(root: Path) -> None:
    """Run the command; print what it cost."""
    code = "from nrt_cli.cli import main; main()"
    out = root / "report"
    command = [sys.executable, "-c", code, "report", str(root / "runs"), "--out", str(out)]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([*command, "--format", "html,md,latex,csv,pdf"], stdout=subprocess.DEVNULL) as child:
        watched = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
    if child.returncode:
        sys.exit(f"nrt report failed with {child.returncode}")
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    print(f"{time.perf_counter() - start:.1f} s, peak {peak / 2**20:.0f} MiB")
    for name, size in sizes.items():
        print(f"{name}: {size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=10_000, help="per checkpoint")
    parser.add_argument("--checkpoints", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="make the store here, or use the one that is there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = asked.keep or Path(temporary)
        if not (root / "runs").is_dir():
            make_store(root, asked.checkpoints, asked.traces)
        measure(root)


if __name__ == "__main__":
    main()
