"""Kills, damages and fuzzes the commands, and counts what was lost, wrong in silence, a traceback or a hang.

    python tests/crash/harness.py                                     two minutes' worth of each
    python tests/crash/harness.py --kills 500 --corruptions 1000 --commands 1000

It prints a line for each harm, and in the end a table. Exits 1 where there was any. The same seed tries the same.
"""

import argparse
import functools
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corruptions
import fuzz
import kills
import world
from nursery import Nrt, opened

HARMS = ("lost", "wrong", "left", "missed", "silent", "traceback", "hang")


def main() -> int:
    """Run it; the number of kinds of trying in which there was harm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=14)
    parser.add_argument("--corruptions", type=int, default=40)
    parser.add_argument("--commands", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, world.judge(), opened() as ask:
        base, scratch, nrt_in = Path(folder, "base"), Path(folder), functools.partial(Nrt, ask)
        base.mkdir()
        world.make(nrt_in(base))
        parts: dict[str, Iterator[Any]] = {
            "kills and full disks": kills.try_all(base, scratch, nrt_in, asked.kills, asked.seed),
            "corruptions": corruptions.try_all(base, scratch, nrt_in, asked.corruptions, asked.seed),
            "command lines": fuzz.try_all(base, nrt_in, asked.commands, asked.seed),
        }
        rows = []
        for title, tries in parts.items():
            counted, total = Counter[str](), 0
            for one in tries:
                total += 1
                counted[one.harm] += 1
                if one.harm:
                    print(one, flush=True)
                if total % 50 == 0:
                    print(f"{title}: {total}", file=sys.stderr, flush=True)
            rows.append(f"| {title} | {total} | {' | '.join(str(counted[harm]) for harm in HARMS)} |")
    print(f"\n| what | tried | {' | '.join(HARMS)} |\n|{'---|' * (len(HARMS) + 2)}", *rows, sep="\n")
    return int(any(cell.strip(" 0") for row in rows for cell in row.split("|")[3:-1]))


if __name__ == "__main__":
    sys.exit(main())
