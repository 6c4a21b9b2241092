"""How long `nrt --help` takes, beside what Python and Typer cost on their own.

    python tests/bench/startup.py [--runs 9]

Prints the median and the fastest wall time of each, and the median of the processor time, which a busy machine does not
stretch. The aim is a median wall time below 0.5 s for `nrt --help` on an idle machine.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python, nothing else": [sys.executable, "-c", "pass"],
    "import typer, rich, pydantic, yaml": [sys.executable, "-c", "import typer, rich.console, pydantic, yaml"],
    "nrt --help": [sys.executable, "-m", "nrt_cli", "--help"],
    "nrt train --help": [sys.executable, "-m", "nrt_cli", "train", "--help"],
    "nrt config show": [sys.executable, "-m", "nrt_cli", "config", "show"],
}


def measure(command: list[str], runs: int) -> tuple[list[float], list[float]]:
    """Wall and processor seconds of each run, after one that fills the file cache and byte-compiles."""
    subprocess.run(command, check=True, capture_output=True)
    wall, processor = [], []
    for _ in range(runs):
        start, used = time.perf_counter(), child_seconds()
        subprocess.run(command, check=True, capture_output=True)
        wall.append(time.perf_counter() - start)
        processor.append(child_seconds() - used)
    return wall, processor


def child_seconds() -> float:
    """Processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    print(f"{f'seconds, {runs} runs':36}{'median':>9}{'fastest':>9}{'processor':>11}")
    for name, command in COMMANDS.items():
        try:
            wall, processor = measure(command, runs)
        except subprocess.CalledProcessError as error:
            print(f"{name:36}   failed: {error.stderr.decode().strip().splitlines()[-1]}")
            continue
        print(f"{name:36}{statistics.median(wall):9.3f}{min(wall):9.3f}{statistics.median(processor):11.3f}")


if __name__ == "__main__":
    main()
