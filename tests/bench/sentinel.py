"""False alarms and misses of the collapse sentinel (nrt_cli/measures/collapse.py), on runs whose end is known.

    python tests/bench/sentinel.py train digits gm:0 am:1 gm/rate:0 ws-neg-log-p/answer:2 ...
    python tests/bench/sentinel.py judge digits

`train` makes a world's starting model and pairs, as the laptop study does, and trains runs with its recipe. A run is
METHOD:SEED, or METHOD/FAULT:SEED for one that is made to collapse (`FAULTS`). Every step's metrics, and the accuracy
along the way (greedy, on problems that nothing trained on), are kept in `.bench/sentinel`; what is there is not trained
again. `judge` shows each run to the sentinel, record by record, once with the accuracies and once without, and counts.

A run collapsed if its final accuracy is not clearly above chance and above the starting model's (95 %).
"""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch

from nrt_cli import config as configs
from nrt_cli.backends.reasoning import Reasoner
from nrt_cli.config import RunConfig
from nrt_cli.config.study import load_study, planned_runs
from nrt_cli.data import digits
from nrt_cli.errors import TrainingError
from nrt_cli.grading.numerals import last_number, same_number
from nrt_cli.measures.collapse import Sentinel, trace_health, watched
from nrt_cli.records import Request
from nrt_cli.text.prompts import render_prompt
from nrt_cli.training.start import load_inputs
from nrt_cli.training.trainer import LocalTrainer
from nrt_cli.workflows.study import make_inputs
from nrt_cli.workflows.train import batch_for

ROOT = Path(__file__).parents[2] / ".bench" / "sentinel"
FAULTS: dict[str, dict[str, Any]] = {
    "rate": {"optimiser": {"lr": 1e-2}},
    "entropy": {"objective": {"entropy_weight": 0.05}},
    # The answers' cross-entropy at full weight: it rehearses guesses before the trace can matter.
    "answer": {"objective": {"weights": {"answer": 1.0}}},
}
KEPT = (
    "step", "gain", "helpful_share", "answer_logprob", "null_logprob", "hardest_token_gain", "entropy", "trace_length",
    "distinct_ngrams", "truncated_share", "forced_share", "dead_groups", "reward", "reward_base", "grad_norm",
)  # fmt: skip
CHANCE, CLEAR = 0.1, 1.96
EVERY, ASKED_ALONG, ASKED_AT_ENDS = 20, 64, 200
STEPS = 80
"""Of the recipe `digits`."""
WORLDS = {"digits": 4, "terms3": 3}
"""How many digits are summed."""


def prepare(world: str) -> Path:
    """The starting model and the pairs of a world."""
    digits.TERMS = WORLDS[world]
    folder = ROOT / world
    make_inputs(folder, load_study("laptop", ["eval.benchmarks=[]"]), lambda share, what: None)
    return folder


def config_of(folder: Path, kind: str, seed: int) -> RunConfig:
    """The config of a run of a kind."""
    method, _, fault = kind.partition("/")
    study = load_study("laptop", [f"methods=[{method}]", f"seeds=[{seed}]", "eval.benchmarks=[]"])
    (planned,) = planned_runs(study, folder)
    layers = (
        [planned.config.model_dump(mode="json"), FAULTS[fault]] if fault else [planned.config.model_dump(mode="json")]
    )
    return configs.resolve(*layers, origin=kind)


def problems(count: int) -> list[tuple[int, ...]]:
    held_out = digits.held_out_problems()
    return random.Random(1).sample(held_out, min(count, len(held_out)))


def accuracy(engine: LocalTrainer, folder: Path, count: int) -> float:
    """Share of held-out problems that the model solves by thinking, greedily."""
    reasoner = Reasoner(folder, batch_rows=128)
    reasoner.model = engine.backend.policy.model
    asked = {str(i): problem for i, problem in enumerate(problems(count))}
    requests = [
        Request(
            key,
            tuple(render_prompt(reasoner.tokenizer, [{"role": "user", "content": digits.question(problem)}])),
            think=True,
            max_trace_tokens=40,
            max_answer_tokens=40,
        )
        for key, problem in asked.items()
    ]
    with torch.no_grad():
        replies = list(reasoner.run(requests))
    right = [same_number(last_number(reply.answer), str(sum(asked[r.key]) % 10)) for r, reply in replies]
    return sum(right) / len(right)


def train(world: str, kind: str, seed: int) -> None:
    """One run, unless it is there."""
    file = ROOT / world / "runs" / f"{kind.replace('/', '+')}-s{seed}.json"
    if file.is_file():
        return
    folder = prepare(world)
    config = config_of(folder, kind, seed)
    model = Path(config.model.path)
    inputs = load_inputs(config)
    engine = LocalTrainer(config, inputs.steps)
    start = ROOT / world / "start.json"
    if not start.is_file():
        start.write_text(json.dumps(accuracy(engine, model, ASKED_AT_ENDS)))
    curve = {0: json.loads(start.read_text())}
    metrics: list[dict[str, float]] = []
    try:
        for step in range(1, inputs.steps + 1):
            update, groups = engine.train_step(batch_for(inputs.train, config, step), step)
            found = {"step": step, **update.metrics, **trace_health(groups)}
            metrics.append({key: found[key] for key in KEPT if key in found})
            if step % EVERY == 0:
                curve[step] = accuracy(engine, model, ASKED_AT_ENDS if step == inputs.steps else ASKED_ALONG)
    except TrainingError as error:
        print(f"{kind}-s{seed}: {error}", file=sys.stderr)
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"world": world, "kind": kind, "seed": seed, "accuracy": curve, "metrics": metrics}
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(record))
    draft.replace(file)
    print(f"{world} {kind}-s{seed}: {' '.join(f'{v:.2f}' for v in curve.values())}", flush=True)


# --- verdicts --------------------------------------------------------------------------------------------------------


def collapsed(curve: dict[str, float]) -> bool:
    """Whether a run ended no better than it began, or than chance."""
    first, *_, last = curve.values()
    above_chance = last - CHANCE > CLEAR * math.sqrt(CHANCE * (1 - CHANCE) / ASKED_AT_ENDS)
    both = (first + last) / 2
    above_start = last - first > CLEAR * math.sqrt(2 * both * (1 - both) / ASKED_AT_ENDS)
    return not (above_chance and above_start)


def warning(run: dict[str, Any], with_accuracy: bool) -> str:
    """What the sentinel says first, and when; "" where it is silent."""
    held_out = [
        {"kind": "held_out", "step": int(step), "accuracy_thinking": share, "graded": ASKED_ALONG}
        for step, share in run["accuracy"].items()
    ]
    sentinel = Sentinel(STEPS)
    for record in watched(run["metrics"], held_out if with_accuracy else ()):
        if falls := sentinel.add(record):
            return f"{falls[0].sign} at {falls[0].step}"
    return ""


def judge(world: str) -> None:
    """Print a line for each run, and how many of which kind were warned of."""
    runs = [json.loads(file.read_text()) for file in sorted((ROOT / world / "runs").glob("*.json"))]
    rows: list[tuple[bool, str, str]] = []
    for run in sorted(runs, key=lambda run: (run["seed"], run["kind"])):
        said = warning(run, False), warning(run, True)
        rows.append((collapsed(run["accuracy"]), *said))
        shares = " ".join(f"{100 * share:3.0f}" for share in run["accuracy"].values())
        end = "collapsed" if rows[-1][0] else "learned"
        print(f"{run['kind']:24} seed {run['seed']}  {shares:20} {end:10} {said[0] or '-':24} {said[1] or '-'}")
    for name, column in (("without accuracies", 1), ("with accuracies", 2)):
        false = sum(bool(row[column]) and not row[0] for row in rows)
        missed = sum(not row[column] and row[0] for row in rows)
        fallen = sum(row[0] for row in rows)
        print(f"{name}: {false} false alarms in {len(rows) - fallen} runs that learned, {missed} misses in {fallen}")


if __name__ == "__main__":
    command, world, *runs = sys.argv[1:]
    if command == "judge":
        judge(world)
    else:
        torch.set_num_threads(1)
        for run in runs:
            kind, _, seed = run.partition(":")
            train(world, kind, int(seed))
