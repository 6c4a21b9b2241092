"""`nrt doctor --forecast`: what other caps, groups, temperatures and schemes would make of the same questions.

The bank is sampled once for each temperature, in groups of the largest K and up to the largest cap. All else is cut out
of it: a trace under a smaller cap is the beginning of the same trace, a smaller group some of the same traces, and a
scheme a function of log-probabilities that are there.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from nrt_cli import methods
from nrt_cli.backends.machine import use_threads
from nrt_cli.checks.doctor_sample import STEP, Interview, interview_of
from nrt_cli.checks.prospects import Prospects, SampledGroup, cut_to, prospects, split
from nrt_cli.commandline import settings
from nrt_cli.config import RunConfig
from nrt_cli.errors import ConfigError
from nrt_cli.measures.statistics import mean
from nrt_cli.methods import SCHEMES
from nrt_cli.models.loading import positions
from nrt_cli.records import RolloutGroup
from nrt_cli.training import start
from nrt_cli.training.local import LocalTrainer
from nrt_cli.training.trainer import TRAIN_STREAM

COOLER, USUAL = 0.7, 1.0
"""The other temperature that is tried: 0.7, or 1 where that is the config's own or below it."""


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
        """By the keys of a config."""
        return {
            "method": self.method,
            "rollout.temperature": self.temperature,
            "rollout.max_trace_tokens": self.cap,
            "rollout.group_size": self.group_size,
        }


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
        cells = [
            cell.changes | {"mark": cell.found.mark, "cost": cell.cost, **asdict(cell.found)} for cell in self.cells
        ]
        own = self.own.changes
        return {"questions": self.questions, "own": own, "cells": cells, "said": self.said, "set": [*self.settings]}


def forecast(config: RunConfig, count: int, say: Callable[[str], None]) -> Forecast:
    """Sample, score and answer the bank, then look at every cell.

    Args:
        count: questions.
        say: told what is being done and how long it will take.
    """
    config = start.new_config(config)
    if config.method == "sft" or config.engine.name != "local":
        raise ConfigError(
            "a forecast is of a method that samples traces, on this machine: name one with --method, and with "
            "--set engine.name=local where the config has another engine."
        )
    use_threads(config)
    inputs = start.load_inputs(config)
    caps, sizes, temperatures = _grid(config, inputs.train.longest_with(lambda _: 0))
    rollout = config.rollout.model_copy(update={"max_trace_tokens": max(caps), "group_size": max(sizes)})
    largest = config.model_copy(update={"rollout": rollout})
    interview = interview_of(largest, LocalTrainer(largest, 1), inputs, count)
    banks = _banks(interview, caps, temperatures, say)
    named = dict.fromkeys((config.method, *SCHEMES))
    found = {
        (method, temperature, cap, size): prospects(
            split(groups, size),
            methods.get(method),
            config.objective,
        )
        for method in named
        for (temperature, cap), groups in banks.items()
        for size in sizes
    }
    own_key = (config.method, config.rollout.temperature, config.rollout.max_trace_tokens, config.rollout.group_size)
    own_tokens = found[own_key].tokens
    cells = {key: Cell(*key, each, each.tokens / own_tokens) for key, each in found.items()}
    own = cells[own_key]
    chosen = _nearest(own, [cell for cell in cells.values() if cell.found.mark == "signal"])
    changed = {key: value for key, value in chosen.changes.items() if own.changes[key] != value} if chosen else {}
    asked = f"{len(interview.examples)} {interview.whose}" + (f" ({interview.ungraded})" if interview.ungraded else "")
    return Forecast(asked, own, tuple(cells.values()), _said(own, chosen, [*cells.values()]), tuple(settings(changed)))


def _grid(config: RunConfig, longest: int) -> tuple[list[int], list[int], list[float]]:
    """Caps and group sizes of half, once and twice the config's, as far as positions reach; two temperatures."""
    rollout, limit = config.rollout, positions(config.model.path)
    cap, size = rollout.max_trace_tokens, rollout.group_size
    caps = [c for c in (cap // 2, cap, 2 * cap) if c and (c <= cap or limit is None or longest + c <= limit)]
    sizes = [k for k in (size // 2, size, 2 * size) if k > 1 or k == size]
    other = COOLER if rollout.temperature > COOLER else USUAL
    return caps, sizes, [rollout.temperature, other]


def _banks(
    interview: Interview, caps: Sequence[int], temperatures: Sequence[float], say: Callable[[str], None]
) -> dict[tuple[float, int], list[SampledGroup]]:
    """The groups of all questions by temperature and cap, a few questions at a time."""
    config, engine, examples, pairs = interview.config, interview.engine, interview.examples, interview.pairs
    assert engine.backend.sampler is not None
    together = max(1, config.rollout.batch_rows // config.rollout.group_size)
    parts = [*product(temperatures, range(0, len(examples), together))]
    traces = len(examples) * config.rollout.group_size * len(temperatures)
    say(
        f"{traces} traces of up to {max(caps)} tokens, each answered and scored at {len(caps)} caps: about "
        f"{_minutes(interview, caps, traces):.1f} minutes at this machine's matmul rate if all run to the cap; the "
        f"first of {len(parts)} parts tells more (--questions asks fewer)"
    )
    banks: dict[tuple[float, int], list[SampledGroup]] = {key: [] for key in product(temperatures, caps)}
    started = time.perf_counter()
    for done, (temperature, first) in enumerate(parts, 1):
        part = replace(
            interview, examples=examples[first : first + together], pairs=pairs[first : first + together], known={}
        )
        engine.backend.sampler.settings = config.rollout.model_copy(update={"temperature": temperature})
        groups = engine.backend.sampler.sample_groups(
            part.examples, config.rollout.group_size, (config.seed, TRAIN_STREAM, STEP)
        )
        for cap in caps:
            shorter = config.rollout.model_copy(update={"max_trace_tokens": cap})
            banks[temperature, cap] += part.looked_at([_cut(group, shorter.trace_cap) for group in groups])
        if done < len(parts):
            left = (time.perf_counter() - started) / done * (len(parts) - done)
            say(f"part {done} of {len(parts)} is done, about {max(left / 60, 0.1):.1f} minutes left")
    return banks


def _minutes(interview: Interview, caps: Sequence[int], traces: int) -> float:
    """From two products a weight and token: every trace is sampled once, and under each cap scored and answered."""
    engine, examples = interview.engine, interview.examples
    prompt = mean([len(example.prompt_ids) for example in examples])
    answer = mean([len(example.answer_ids) for example in examples])
    tokens = max(caps) + sum(prompt + 2 * (cap + answer) for cap in caps)
    weights = sum(weight.numel() for weight in engine.backend.policy.model.parameters())
    return 2 * weights * tokens * traces / engine.backend.ceiling / 60


def _cut(group: RolloutGroup, trace_cap: Callable[[int], int]) -> RolloutGroup:
    """A group as a smaller cap would have sampled it."""
    cap = trace_cap(len(group.example.answer_ids))
    return RolloutGroup(group.example, tuple(cut_to(rollout, cap) for rollout in group.rollouts))


# --- what it says ----------------------------------------------------------------------------------------------------


def _nearest(own: Cell, with_signal: Sequence[Cell]) -> Cell | None:
    """Of the cells with signal the one that changes the fewest settings, and of those the cheapest, then the surest."""

    def order(cell: Cell) -> tuple[float, ...]:
        changed = sum(own.changes[key] != value for key, value in cell.changes.items())
        return changed, cell.cost, -cell.found.agrees

    return min(with_signal, key=order, default=None)


def _said(own: Cell, chosen: Cell | None, cells: Sequence[Cell]) -> str:
    """Where there is signal, what is dead, and what the config's own settings are."""
    marks = Counter(cell.found.mark for cell in cells)
    said = f"Of {len(cells)} cells {marks['signal']} have signal, {marks['weak']} are weak and {marks['dead']} dead"
    where = []
    for key, name in zip(own.changes, ("", "temperature ", "cap ", "K "), strict=True):
        counts = {}
        for value in dict.fromkeys(cell.changes[key] for cell in cells):
            alike = [cell.found.mark == "signal" for cell in cells if cell.changes[key] == value]
            counts[f"{name}{value}"] = (sum(alike), len(alike))
        if len(set(counts.values())) > 1:  # else it does not matter
            where.append(", ".join(f"{value} {some} of {all_}" for value, (some, all_) in counts.items()))
    said += f"; with signal: {'; '.join(where)}." if where else "."
    if chosen is None:
        return f"{said} None has signal: other questions, another form of them (--suffix) or a larger model are needed."
    if chosen is own:
        return f"{said} The config's own settings have signal."
    return f"{said} The config's own settings are {own.found.mark}; the nearest that have signal:"
