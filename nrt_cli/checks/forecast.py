"""`nrt doctor --forecast`: what other caps, groups, temperatures and schemes would make of the same questions.

The bank is sampled once for each temperature, in groups of the largest K and up to the largest cap. All else is cut out
of it: a trace under a smaller cap is the same trace's beginning, a smaller group some of its traces.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from nrt_cli import methods
from nrt_cli.backends.local.decoding import ROWS
from nrt_cli.backends.machine import use_processor
from nrt_cli.checks.interview import STEP, Prospects, SampledGroup, interview_of, prospects
from nrt_cli.commandline import settings
from nrt_cli.config import RunConfig
from nrt_cli.config.schema import EngineSection
from nrt_cli.errors import ConfigError
from nrt_cli.measures.statistics import mean
from nrt_cli.models.loading import positions
from nrt_cli.records import Rollout, RolloutGroup
from nrt_cli.training import start
from nrt_cli.training.trainer import TRAIN_STREAM, LocalTrainer


@dataclass(frozen=True)
class Cell:
    """Some settings, what the bank says of them, and what a step costs against the config's own, in tokens."""

    method: str
    temperature: float
    cap: int
    group_size: int
    found: Prospects
    cost: float

    @property
    def changes(self) -> dict[str, Any]:
        keys = ("method", "rollout.temperature", "rollout.max_trace_tokens", "rollout.group_size")
        return dict(zip(keys, (self.method, self.temperature, self.cap, self.group_size), strict=True))


@dataclass(frozen=True)
class Forecast:
    """Every cell, the config's own among them, what they say together, and what to paste."""

    questions: str
    own: Cell
    cells: tuple[Cell, ...]
    said: str
    settings: tuple[str, ...]
    """Words of a command that change the config to a cell with signal; none where its own has signal or no cell has."""

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        cells = [c.changes | {"mark": c.found.mark, "cost": c.cost, **asdict(c.found)} for c in self.cells]
        own = self.own.changes
        return {"questions": self.questions, "own": own, "cells": cells, "said": self.said, "set": [*self.settings]}


def forecast(config: RunConfig, count: int, say: Callable[[str], None]) -> Forecast:
    """Sample, score and answer a bank of `count` questions, then look at every cell; `say` is told how it goes."""
    config = start.new_config(config)
    if not config.samples or config.backend.DISTRIBUTED:
        raise ConfigError(
            "a forecast is of a method that samples traces, on this machine: name one with --method, and with "
            f"--set engine.name={EngineSection().name} where the config has another engine."
        )
    use_processor(config)
    inputs, rollout = start.load_inputs(config), config.rollout
    # Caps and group sizes of half, once and twice the config's, as far as positions reach; and beside its temperature
    # 0.7, or 1 where it is no higher itself.
    cap, size, limit = rollout.max_trace_tokens, rollout.group_size, positions(config.model.path)
    longest = inputs.train.longest_with(lambda _: 0)
    caps = [c for c in (cap // 2, cap, 2 * cap) if c and (c <= cap or limit is None or longest + c <= limit)]
    sizes = [k for k in (size // 2, size, 2 * size) if k > 1 or k == size]
    temperatures = [rollout.temperature, 0.7 if rollout.temperature > 0.7 else 1.0]
    most = {"max_trace_tokens": max(caps), "group_size": max(sizes)}
    largest = config.model_copy(update={"rollout": rollout.model_copy(update=most)})
    interview = interview_of(largest, LocalTrainer(largest, 1), inputs, count)
    backend, examples, pairs = interview.trainer.backend, interview.examples, interview.pairs
    assert backend.sampler is not None
    # The groups of all questions by temperature and cap, a few questions at a time.
    together = max(1, (rollout.batch_rows or ROWS) // max(sizes))
    parts = [*product(temperatures, range(0, len(examples), together))]
    traces = len(examples) * max(sizes) * len(temperatures)
    # Two products a weight and token: every trace is sampled once, and under each cap scored and answered.
    prompt, answer = (mean([len(getattr(e, key)) for e in examples]) for key in ("prompt_ids", "answer_ids"))
    tokens = max(caps) + sum(prompt + 2 * (each + answer) for each in caps)
    weights = sum(weight.numel() for weight in backend.policy.model.parameters())
    say(
        f"{traces} traces of up to {max(caps)} tokens, each answered and scored at {len(caps)} caps: about "
        f"{2 * weights * tokens * traces / backend.ceiling / 60:.1f} minutes at this machine's matmul rate if all run "
        f"to the cap; the first of {len(parts)} parts tells more (--questions asks fewer)"
    )
    banks: dict[tuple[float, int], list[SampledGroup]] = {key: [] for key in product(temperatures, caps)}
    started = time.perf_counter()
    for done, (temperature, first) in enumerate(parts, 1):
        some = slice(first, first + together)
        part = replace(interview, examples=examples[some], pairs=pairs[some], known={})
        backend.sampler.settings = largest.rollout.model_copy(update={"temperature": temperature})
        groups = backend.sampler.sample_groups(part.examples, max(sizes), (config.seed, TRAIN_STREAM, STEP))
        for each in caps:
            trace_cap = rollout.model_copy(update={"max_trace_tokens": each}).trace_cap
            banks[temperature, each] += part.looked_at([
                RolloutGroup(g.example, tuple(cut_to(r, trace_cap(len(g.example.answer_ids))) for r in g.rollouts))
                for g in groups
            ])  # fmt: skip
        if done < len(parts):
            left = (time.perf_counter() - started) / done * (len(parts) - done)
            say(f"part {done} of {len(parts)} is done, about {max(left / 60, 0.1):.1f} minutes left")
    own_method = {config.method: methods.of_answers(config.method, config.objective)}
    schemes = own_method | methods.schemes((), config.objective)
    found = {
        (name, *key, size): prospects(split(groups, size), method, config.objective)
        for name, method in schemes.items()
        for key, groups in banks.items()
        for size in sizes
    }
    own_key = (config.method, rollout.temperature, cap, size)
    cells = {key: Cell(*key, each, each.tokens / found[own_key].tokens) for key, each in found.items()}
    own = cells[own_key]

    def distance(cell: Cell) -> tuple[float, ...]:
        return sum(own.changes[key] != value for key, value in cell.changes.items()), cell.cost, -cell.found.agrees

    # Of the cells with signal the one that changes the fewest settings, of those the cheapest, then the surest.
    chosen = min((cell for cell in cells.values() if cell.found.mark == "signal"), key=distance, default=None)
    changed = {key: value for key, value in chosen.changes.items() if own.changes[key] != value} if chosen else {}
    asked = f"{len(examples)} {interview.whose}" + (f" ({interview.ungraded})" if interview.ungraded else "")
    # Where there is signal, what is dead, and what the config's own settings are.
    marks = Counter(cell.found.mark for cell in cells.values())
    said = f"Of {len(cells)} cells {marks['signal']} have signal, {marks['weak']} are weak and {marks['dead']} dead"
    where = []
    for key, name in zip(own.changes, ("", "temperature ", "cap ", "K "), strict=True):
        counts: dict[str, tuple[int, int]] = {}
        for value in dict.fromkeys(cell.changes[key] for cell in cells.values()):
            alike = [cell.found.mark == "signal" for cell in cells.values() if cell.changes[key] == value]
            counts[f"{name}{value}"] = (sum(alike), len(alike))
        if len(set(counts.values())) > 1:  # else it does not matter
            where.append(", ".join(f"{value} {some} of {all_}" for value, (some, all_) in counts.items()))
    said += f"; with signal: {'; '.join(where)}." if where else "."
    if chosen is None:
        said += " None has signal: other questions, another form of them (--suffix) or a larger model are needed."
    elif chosen is own:
        said += " The config's own settings have signal."
    else:
        said += f" The config's own settings are {own.found.mark}; the nearest that have signal:"
    return Forecast(asked, own, tuple(cells.values()), said, tuple(settings(changed)))


def cut_to(rollout: Rollout, cap: int) -> Rollout:
    """What the same random stream gives under a smaller cap: what stopped it counts if it is among the first tokens."""
    if len(rollout.trace_ids) < cap + (rollout.stop == "cap"):
        return rollout
    return Rollout(rollout.trace_ids[:cap], rollout.sampler_logprobs[:cap], "cap")


def split(groups: Sequence[SampledGroup], size: int) -> list[SampledGroup]:
    """Disjoint groups of `size` traces, in their order; what is left over is left out."""
    return [
        replace(group, traces=group.traces[start : start + size])
        for group in groups
        for start in range(0, len(group.traces) - size + 1, size)
    ]
