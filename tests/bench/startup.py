"""How long a command takes to begin: `nrt --help`, `import nrt_cli`, and the first step of training a real model.

    python tests/bench/startup.py [--rounds 9] [--quick]

Wall time of a process of its own each, beside what Python and Typer cost alone. The training is `nrt train laptop` of
the prepared SmolLM2-135M on made-up pairs, without held-out scores before it: until the first step begins, when all is
loaded and checked, and until it ends, when its metrics are written.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import common
from common import NAN, WORK, Job, Side, Turn, against
from workload import model_folder

GOALS = {"nrt --help": 0.3, "import nrt_cli": 0.1, "first step begins": 10.0}
NRT = [sys.executable, "-m", "nrt_cli"]
COMMANDS = {
    "python, nothing else": [sys.executable, "-c", "pass"],
    "import nrt_cli": [sys.executable, "-c", "import nrt_cli"],
    "import typer, rich, pydantic, yaml": [sys.executable, "-c", "import typer, rich.console, pydantic, yaml"],
    "nrt --help": [*NRT, "--help"],
    "nrt train --help": [*NRT, "train", "--help"],
    "nrt config show": [*NRT, "config", "show"],
}
HEADER = ("what", "seconds")


def command(job: Job, turn: Turn, words: Sequence[str]) -> None:
    seconds = 0.0
    while True:
        turn({"seconds": seconds})
        start = time.perf_counter()
        subprocess.run(words, check=True, capture_output=True)
        seconds = time.perf_counter() - start


def first_step(job: Job, turn: Turn) -> None:
    """The step's own seconds are in its record; what comes before it is the start."""
    figures: dict[str, float] = {"seconds": 0.0, "begins": 0.0}
    while True:
        turn(figures)
        with TemporaryDirectory() as folder:
            run, start = Path(folder, "run"), time.perf_counter()
            words = [*NRT, "train", "laptop", "--model", job["model"], "--data", job["data"], "--run", str(run)]
            words += [
                "--set",
                "train.steps=2",
                "--set",
                f"train.threads={job['threads']}",
                "--set",
                f"model.dtype={job['dtype']}",
            ]
            metrics = run / "metrics.jsonl"
            with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
                while not (metrics.is_file() and metrics.read_text().endswith("\n")):
                    if process.poll() is not None:
                        raise RuntimeError("nrt train ended before its first step")
                    time.sleep(0.02)
                seconds = time.perf_counter() - start
                process.kill()
            record = json.loads(metrics.read_text().splitlines()[0])
            figures = {"seconds": seconds, "begins": seconds - record["seconds"]}


def main() -> None:
    parser = common.parser(__doc__, rounds=9)
    args = parser.parse_args()
    # Under glibc's own malloc settings, since that is how a user starts it: huge pages cost a short command a third.
    job = common.start(args) | {"model": str(model_folder()), "data": str(WORK / "shopping" / "train.parquet")}
    del os.environ["GLIBC_TUNABLES"]
    prepare = [
        *NRT,
        "data",
        "prepare",
        "generated:shopping",
        "--out",
        str(WORK / "shopping"),
        "--size",
        "64",
        "--overwrite",
    ]
    subprocess.run(prepare, check=True, capture_output=True)
    sides: dict[str, Side] = {name: partial(command, words=words) for name, words in COMMANDS.items()}
    # Apart, since a command right after a training, which used all memory, is slower.
    figures = common.part("startup", sides, job, args) | common.part("first-step", {"ends": first_step}, job, args)
    figures["first step ends"] = ended = figures.pop("ends")
    figures["first step begins"] = ended | {"seconds": ended["begins"]}
    rows = [[name, against(of["seconds"], GOALS.get(name, NAN), of, below=True)] for name, of in figures.items()]
    common.report("Start-up", args, common.table(HEADER, rows), list(figures.values()))


if __name__ == "__main__":
    main()
