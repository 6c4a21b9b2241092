"""Make the model that `builtin:digits` is, as `nrt reproduce laptop` makes its own, and say how.

    python tests/bench/shipped_model.py           # pretrains it anew (about two minutes) and compares the weights
    python tests/bench/shipped_model.py --write   # and puts it in the package's place

Weights differ from machine to machine by rounding, so `made.json` names the machine on which these were made.
"""

import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from nrt_cli.backends.machine import cpu_name
from nrt_cli.config.study import load_study
from nrt_cli.files import sha256
from nrt_cli.models.sources import DIGITS
from nrt_cli.workflows.study import make_inputs

WEIGHTS, MADE, ABOUT = "model.safetensors", "made.json", "nrt.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        study = load_study("laptop", ["eval.benchmarks=[]", "analysis.tokens=0", "analysis.questions=0"])
        make_inputs(Path(folder), study, lambda share, what: print(f"{share:4.0%} {what}", end="\r", file=sys.stderr))
        model = Path(folder) / "models" / study.model.name
        found = {
            "command": "python tests/bench/shipped_model.py --write",
            "sha256": sha256(model / WEIGHTS),
            "cpu": cpu_name(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        if "--write" in sys.argv[1:]:
            shutil.copytree(model, DIGITS, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ABOUT))
            (DIGITS / MADE).write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    same = sha256(DIGITS / WEIGHTS) == found["sha256"]
    print("the shipped weights are these" if same else "the shipped weights are others, made elsewhere or before")


if __name__ == "__main__":
    main()
