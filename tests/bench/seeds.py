"""How many seeds of the quickstart's NRT arm learn: those that answer 90 % of the held-out questions in the end.

    python tests/bench/seeds.py                                   seeds 0 to 19 of the shipped recipe
    python tests/bench/seeds.py --seeds 40-59 --set method=gm     others, and another setting

Runs are kept in `.bench/seeds`, a folder for each set of settings; what is there is not trained again.
"""

import argparse
import hashlib
from pathlib import Path

from nrt_cli import config as configs
from nrt_cli.measures.statistics import share_over_rows
from nrt_cli.progress import Progress
from nrt_cli.store import Run
from nrt_cli.workflows.train import train

ROOT = Path(__file__).parents[2] / ".bench" / "seeds"
SOLVED = 0.9


class Silent(Progress):
    """Says nothing of steps and scores."""

    def note(self, message: str) -> None:
        pass


def curve(run: Run) -> list[float]:
    """Held-out accuracy with thinking, score by score."""
    return [record["accuracy_thinking"] for record in run.metrics("held_out")]


def trained(folder: Path, seed: int, overrides: list[str]) -> Run:
    """A seed's run, made unless it is there."""
    path = folder / f"s{seed}"
    if not (path / "export").is_dir():
        config = configs.load("quickstart", overrides, seed=seed)
        train(path, config, (path / "manifest.json").is_file(), Silent)
    return Run.open(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-19", help="first-last")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    first, last = map(int, args.seeds.split("-"))
    settled = configs.to_yaml(configs.load("quickstart", args.overrides, seed=0))
    folder = ROOT / hashlib.sha256(settled.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(settled)
    solved = []
    for seed in range(first, last + 1):
        run = trained(folder, seed, args.overrides)
        shares = curve(run)
        solved.append(float(shares[-1] >= SOLVED))
        seconds = sum(record["seconds"] for record in run.metrics())
        print(f"seed {seed:>3}  {seconds:5.1f} s  {' '.join(f'{share:4.0%}' for share in shares)}", flush=True)
    rate = share_over_rows(solved)
    print(
        f"{sum(solved):.0f} of {len(solved)} seeds end at {SOLVED:.0%} or more: {rate.value:.0%} [{rate.low:.0%}, "
        f"{rate.high:.0%}] ({' '.join(args.overrides) or 'the shipped recipe'}; {folder})"
    )


if __name__ == "__main__":
    main()
