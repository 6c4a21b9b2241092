"""What the answer term may count: token signals and balances on three kinds of answers, and where each of them fails.

    python tests/bench/balance.py                                     every candidate on every kind, seed 0
    python tests/bench/balance.py --kinds long --candidates auto --seeds 0-2
    python tests/bench/balance.py --kinds digits --methods logp,gm,am,p,ws-inv-p,ws-neg-log-p
    python tests/bench/balance.py --norms                             shares of the gradient, two ways, without training

All start from the model that ships and train the quickstart's recipe on the same problems; kinds differ in what is
said of a problem (`KINDS`). Printed are held-out accuracy with thinking at each score and log P(y*) in nats, before and
after.
Runs are kept in `.bench/balance`; what is there is not trained again.
"""

import argparse
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nrt_cli import config as configs
from nrt_cli.data import digits
from nrt_cli.data.prepare import Settings, prepare
from nrt_cli.objective.losses import TERMS
from nrt_cli.objective.rows import Objective
from nrt_cli.progress import Progress
from nrt_cli.store import Run
from nrt_cli.training import locate
from nrt_cli.training.start import load_inputs
from nrt_cli.training.trainer import LocalTrainer
from nrt_cli.workflows.train import batch_for, train

ROOT = Path(__file__).parents[2] / ".bench" / "balance"
HELD_OUT = 128
ALIKE = ("objective.credit_eos=false",)
"""What all candidates have: the default when the page's table was measured."""


def far(rng: random.Random, problem: digits.Problem) -> str:
    """Five tokens that the model finds about as likely as e^-12 each: a habit to be learned before anything else."""
    return f"old river makes {sum(problem) % 10} bread"


def long(rng: random.Random, problem: digits.Problem) -> str:
    """Some 60 tokens of which one needs the trace; six words of the prose in between are anybody's guess."""
    said = digits.answer(problem)
    return f"{said} # {digits.sentences(rng, 1)} # {said} # {said}"


KINDS: dict[str, Callable[[random.Random, digits.Problem], str]] = {
    "digits": lambda _, problem: digits.answer(problem),
    "far": far,
    "long": long,
}
CANDIDATES: dict[str, tuple[str, ...]] = {
    "derived": ("objective.token_signal=derived", "objective.balance=off"),
    "fixed": ("objective.token_signal=fixed", "objective.balance=off"),
    "fixed-0.1": ("objective.token_signal=fixed", "objective.balance=off", "objective.weights.answer=0.1"),
    "shared": ("objective.token_signal=shared", "objective.balance=off"),
    "fixed-auto": ("objective.token_signal=fixed", "objective.balance=auto"),
    "auto": ("objective.token_signal=shared", "objective.balance=auto"),
}


class Silent(Progress):
    """Says nothing of steps and scores."""

    def note(self, message: str) -> None:
        pass


def data(kind: str) -> Path:
    """A kind's pairs, and others whose problems nothing trains on, prepared."""
    folder = ROOT / kind / "data"
    for name, draw, count in (("train", digits.draw, 12000), ("held-out", held_out, HELD_OUT)):
        if (folder / name / "train.parquet").is_file():
            continue
        rows = []
        for index in range(count):
            rng = random.Random(f"{kind}/{name}/{index}")
            problem = draw(rng)
            rows.append({"question": digits.question(problem), "answer": KINDS[kind](rng, problem)})
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepare([str(file)], folder / name, Settings(grader="number"))
    return folder


def held_out(rng: random.Random) -> digits.Problem:
    """A problem that nothing trains on."""
    while not digits.held_out(problem := tuple(rng.randrange(10) for _ in range(digits.TERMS))):
        pass
    return problem


def trained(kind: str, candidate: str, method: str, seed: int) -> Run:
    """A run, made unless it is there."""
    path, folder = ROOT / kind / f"{candidate}-{method}-s{seed}", data(kind)
    if not (path / "export").is_dir():
        files = [
            f"data.train={folder / 'train' / 'train.parquet'}",
            f"data.validation={folder / 'held-out' / 'train.parquet'}",
        ]
        overrides = [
            *files,
            "data.max_answer_tokens=96",
            f"train.validation_size={HELD_OUT}",
            "train.steps=60",
            "train.validate_every=20",
        ]
        config = configs.load("quickstart", [*overrides, *ALIKE, *CANDIDATES[candidate]], method=method, seed=seed)
        train(path, locate.locate_inputs(config), (path / "manifest.json").is_file(), Silent)
    return Run.open(path)


def line(run: Run) -> str:
    """A run's scores and what its answer term came to, first and last."""
    held_out, steps = list(run.metrics("held_out")), list(run.metrics())
    shares = " ".join(f"{record['accuracy_thinking']:4.0%}" for record in held_out)
    ends: list[dict[str, Any]] = [steps[0], steps[-1]]
    said = [
        f"log P {held_out[0]['answer_logprob']:.1f} to {held_out[-1]['answer_logprob']:.1f}",
        "answer's share " + " to ".join(f"{record['share_answer']:.1%}" for record in ends),
        "signal " + " to ".join(f"{record['token_signal']:.3g}" for record in ends),
        "trace tokens " + " to ".join(f"{record['trace_length']:.0f}" for record in ends),
    ]
    return f"{shares}   {', '.join(said)}"


def norms(kind: str, candidate: str) -> str:
    """Each term's share of the first step's gradient: as metrics have it, and by the norms of what each adds to it."""
    folder = data(kind)
    overrides = [f"data.train={folder / 'train' / 'train.parquet'}", "data.max_answer_tokens=96", "train.batch_size=16"]
    config = locate.locate_inputs(configs.load("quickstart", [*overrides, *ALIKE, *CANDIDATES[candidate]]))
    inputs = load_inputs(config)
    engine = LocalTrainer(config, inputs.steps)
    groups = engine.sample(batch_for(inputs.train, config, 1), 1)
    known = engine._known_before(groups, len(groups))
    pushes, sizes = {}, {}
    for term in TERMS:
        weight = getattr(config.objective.weights, term)
        only = config.objective.weights.model_copy(update=dict.fromkeys(TERMS, 0.0) | {term: weight})
        objective = config.objective.model_copy(update={"weights": only})
        engine.objective = Objective(config.model_copy(update={"objective": objective}), engine.backend.tokens)
        engine.backend.policy.model.zero_grad()
        traces = sum(len(group.rollouts) for group in groups)
        engine.backend.forward_backward(
            [engine.objective.of_group(*pair, traces) for pair in zip(groups, known, strict=True)]
        )
        scores, engine.backend.said = engine.backend.said, []
        pushes[term] = sum(float(getattr(score.loss, f"push_{term}")) for score in scores)
        sizes[term] = math.hypot(
            *(float(p.grad.norm()) for p in engine.backend.policy.model.parameters() if p.grad is not None)
        )
    said = [
        f"{term} {pushes[term] / sum(pushes.values()):4.0%} ({sizes[term] / sum(sizes.values()):4.0%} of the norms)"
        for term in TERMS
    ]
    return ", ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--candidates", default=",".join(CANDIDATES))
    parser.add_argument("--methods", default="ws-neg-log-p")
    parser.add_argument("--seeds", default="0-0", help="first-last")
    parser.add_argument("--norms", action="store_true")
    args = parser.parse_args()
    if args.norms:
        for kind in args.kinds.split(","):
            for candidate in args.candidates.split(","):
                print(f"{kind:7} {candidate:10} {norms(kind, candidate)}", flush=True)
        return
    first, last = map(int, args.seeds.split("-"))
    for seed in range(first, last + 1):
        for kind in args.kinds.split(","):
            for candidate in args.candidates.split(","):
                for method in args.methods.split(","):
                    run = trained(kind, candidate, method, seed)
                    print(f"{kind:7} {candidate:10} {method:13} seed {seed}  {line(run)}", flush=True)


if __name__ == "__main__":
    main()
