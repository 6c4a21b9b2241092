"""Time and peak memory of `nrt analyze tokens`' scoring, for N and for twice N examples.

    python tests/bench/token_scores.py --baseline runs/sft --run runs/am --data gsm8k/train.parquet [--n 100]

Each row is a process of its own that scores the examples with the baseline and with one run. CPU seconds say what a
machine that is busy with other things would have needed alone; the bounds for SmolLM2-135M are 10 minutes and 4 GB.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GB = 10**9


def score(baseline: str, run: str, data: str, count: int) -> None:
    """In the fresh process: score, then print wall seconds, CPU seconds and peak resident bytes."""
    from nrt_cli.workflows.scoring import score_tokens

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        score_tokens(baseline, [run], Path(folder), lambda *_: None, Path(data), count)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main(baseline: str, run: str, data: str, n: int) -> None:
    print(f"{'examples':>8} {'seconds':>8} {'CPU s':>8} {'peak GB':>8}")
    for count in (n, 2 * n):
        command = [sys.executable, __file__, "--child", baseline, run, data, str(count)]
        seconds, cpu, peak = map(float, subprocess.check_output(command, text=True).split())
        print(f"{count:>8} {seconds:>8.0f} {cpu:>8.0f} {peak / GB:>8.2f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        baseline, run, data, count = sys.argv[2:6]
        score(baseline, run, data, int(count))
    else:
        parser = argparse.ArgumentParser()
        for name in ("--baseline", "--run", "--data"):
            parser.add_argument(name, required=True)
        parser.add_argument("--n", type=int, default=100)
        main(**vars(parser.parse_args()))
