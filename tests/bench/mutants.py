"""Mutants of the objective and the trainer: faults put in one by one, and whether a test finds each.

    python tests/bench/mutants.py            all of them, some minutes
    python tests/bench/mutants.py 3 7        the third and the seventh

Each (`mutants.yaml`) is a change of one place in a copy of the project, on which the tests beside it are run; one that
lives is a test that is missing. Masks, shifts, denominators, temperatures and what is known of pi_old are where such
faults go unseen: the loss falls all the same.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """A change of one place in one file, and the tests that ought to see it."""

    fault: str
    file: str
    old: str
    new: str
    tests: list[str]


MUTANTS = [Mutant(**row) for row in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))]


def lives(mutant: Mutant, root: Path) -> bool:
    """Whether the tests pass on a copy of the project with the fault in it."""
    file = root / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.file}: has {text.count(mutant.old)} times, not once: {mutant.old}")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    path = os.pathsep.join([str(root), str(root / "analysis")])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not full", *mutant.tests]
    try:
        done = subprocess.run(
            command, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False
        )
    finally:
        file.write_text(text, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutant.fault}: the tests do not run.\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 0


def main() -> None:
    chosen = [int(number) - 1 for number in sys.argv[1:]] or range(len(MUTANTS))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "dist", "build")
        shutil.copytree(ROOT, root, ignore=ignored)
        alive = []
        for i in chosen:
            alive += [MUTANTS[i].fault] if lives(MUTANTS[i], root) else []
            print(f"{i + 1:>3} {'LIVES' if MUTANTS[i].fault in alive else 'dies '}  {MUTANTS[i].fault}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} died")
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
