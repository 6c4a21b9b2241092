"""How a pushed model answers held-out questions from vLLM's own server, with and without the plug-in that it ships.

    nrt push RUN --out pushed
    python tests/bench/served.py pushed data/validation.parquet [--without-plug-in] [--temperature 0]

Starts the server that the model's card names, asks the first 32 questions of the file at once, and counts replies
without an answer (they ended in the trace) and answers that are right by the grader that the file names.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
from openai import APIConnectionError, OpenAI

from nrt_cli.grading import grading

QUESTIONS, MAX_TOKENS, WAIT = 32, 96, 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--without-plug-in", action="store_true")
    parser.add_argument("--temperature", type=float, help="default: as the model's generation_config.json says")
    asked = parser.parse_args()
    rows = pq.read_table(asked.data).slice(0, QUESTIONS).to_pylist()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(asked.folder)]
    server += [
        "--reasoning-parser",
        "qwen3",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        "model",
    ]
    server += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    if not asked.without_plug_in:
        server += ["--logits-processors", "nrt_vllm:TraceEnd"]
    settings = {"PYTHONPATH": str(asked.folder), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.Popen(server, env=os.environ | settings | {"VLLM_LOGGING_LEVEL": "WARNING"})
    try:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=WAIT)
        give_up = time.monotonic() + WAIT
        while True:
            if process.poll() is not None or time.monotonic() > give_up:
                sys.exit("the server did not start; what it said is above")
            try:
                client.models.list()
                break
            except APIConnectionError:
                time.sleep(1)
        extra = {} if asked.temperature is None else {"temperature": asked.temperature}

        def ask(row: dict) -> str:
            reply = client.chat.completions.create(
                model="model", messages=row["prompt"], max_tokens=MAX_TOKENS, **extra
            )
            return reply.choices[0].message.content or ""

        with ThreadPoolExecutor(QUESTIONS) as threads:
            answers = list(threads.map(ask, rows))
    finally:
        process.terminate()
        process.wait()
    references = [row["reward_model"]["ground_truth"] for row in rows]
    guessed = grading.guess(references)
    pairs = [
        grading.Pair(row["prompt"][-1]["content"], reference, row["reward_model"].get("grader") or guessed)
        for row, reference in zip(rows, references, strict=True)
    ]
    right = sum(grading.grade(pair, answer).score for pair, answer in zip(pairs, answers, strict=True))
    ended = sum(not answer.strip() for answer in answers)
    print(f"{len(rows)} replies: {ended} without an answer, {right:g} right")


if __name__ == "__main__":
    main()
