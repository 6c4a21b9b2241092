"""Peak memory of scoring a [8 x 4096]-token batch with a vocabulary of 131,072, over what the scorer was given.

    python tests/bench/score_memory.py [--hidden 64] [--positions 32768] [--dtype float32]

Each row is measured in a process of its own: resident memory before `selected_logprobs` (hidden states and head are
there, the libraries are warm) against the highest during it. `returned` is what a caller gets and keeps: log-probs and
entropies, after a backward pass also the gradients of hidden states and head, which belong to activations and model.
The bound is on the rest: less than 1 GB. `naive` is computed, not run: logits and their log-softmax in float32, and in
a backward pass the gradient of both.
"""

import argparse
import resource
import subprocess
import sys
import time

import psutil

VOCABULARY = 131_072
MB = 10**6


def score(backward: bool, positions: int, hidden: int, dtype_name: str) -> None:
    """In the fresh process: score, then print seconds and growth in bytes."""
    import torch

    from nrt_cli.objective.logprobs import selected_logprobs

    def run(positions: int, vocabulary: int) -> tuple[float, int]:
        dtype = getattr(torch, dtype_name)
        hidden_ND = torch.empty(positions, hidden, dtype=dtype).normal_().requires_grad_(backward)
        head_VD = torch.empty(vocabulary, hidden, dtype=dtype).normal_(std=hidden**-0.5).requires_grad_(backward)
        targets_N = torch.arange(positions) % vocabulary
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        logprobs_N, entropies_N = selected_logprobs(hidden_ND, head_VD, targets_N)
        if backward:
            (logprobs_N.sum() + entropies_N.sum()).backward()
        seconds = time.perf_counter() - start
        return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before

    run(8, 1000)
    print(*run(positions, VOCABULARY))


def main(positions: int, hidden: int, dtype: str) -> None:
    width = 2 if dtype == "bfloat16" else 4
    print(f"{positions:,} positions, vocabulary {VOCABULARY:,}, hidden size {hidden}, {dtype}; MB are 10^6 bytes")
    print(f"{'pass':<18} {'seconds':>8} {'growth MB':>10} {'returned MB':>12} {'rest MB':>8} {'naive MB':>9}")
    for backward in (False, True):
        command = [sys.executable, __file__, "--child", str(int(backward)), str(positions), str(hidden), dtype]
        seconds, growth = map(float, subprocess.check_output(command, text=True).split())
        returned = 2 * 4 * positions + backward * width * hidden * (positions + VOCABULARY)
        naive = (4 if backward else 2) * 4 * positions * VOCABULARY
        print(
            f"{'forward, backward' if backward else 'forward':<18} {seconds:>8.1f} {growth / MB:>10.0f} "
            f"{returned / MB:>12.0f} {(growth - returned) / MB:>8.0f} {naive / MB:>9,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        score(sys.argv[2] == "1", int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        parser = argparse.ArgumentParser()
        parser.add_argument("--positions", type=int, default=8 * 4096)
        parser.add_argument("--hidden", type=int, default=64)
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
        main(**vars(parser.parse_args()))
