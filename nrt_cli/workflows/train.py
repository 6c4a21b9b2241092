"""A training run from config to exported model: data, engine, store and display, joined."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nrt_cli import config as configs
from nrt_cli import console
from nrt_cli.backends.local.profiling import profiled, table
from nrt_cli.backends.machine import use_threads
from nrt_cli.checks import estimate, preflight
from nrt_cli.checks.overlap import overlap
from nrt_cli.commandline import resume, this_command
from nrt_cli.config import RunConfig
from nrt_cli.data.examples import ExampleSet
from nrt_cli.errors import ConfigError, Interrupted, NrtError, StoreError, TrainingError
from nrt_cli.grading import accuracies
from nrt_cli.grading.accuracies import Graded, Question
from nrt_cli.measures.collapse import WINDOW, Sentinel, trace_health, watched
from nrt_cli.measures.overlap import warnings
from nrt_cli.models.metadata import record_suffix
from nrt_cli.objective import balance
from nrt_cli.objective.metrics import GroupScore
from nrt_cli.progress import Progress
from nrt_cli.records import ACCURACIES, Example, RolloutGroup
from nrt_cli.store import Run, require_vacant
from nrt_cli.training import start
from nrt_cli.training.start import Inputs
from nrt_cli.training.traces import held_out_rows, trace_rows
from nrt_cli.training.tracking import Trackers, require_trackers
from nrt_cli.training.trainer import Backend, Trainer, Update

ORDER_STREAM = 2
"""First part of the key of the random streams that order the data (the engine's are 0 and 1)."""


WORTH_SAYING = 1e9
"""Bytes of disk from which on a run says what it will take."""


class Collapsed(NrtError):
    """The traces collapsed and `train.on_collapse` says to stop."""


@dataclass
class Session:
    """One process's work on a run."""

    run: Run
    config: RunConfig
    trainer: Trainer
    inputs: Inputs
    display: Progress
    trackers: Trackers
    sentinel: Sentinel
    profiled: int | None = None
    """The step whose profile was asked for."""
    enough: "Enough | None" = None


MakeDisplay = Callable[[int, int], Progress]
Enough = Callable[[Sequence[Mapping[str, Any]]], bool]
"""Whether a run is good enough to end, by its held-out records so far."""


class Watching(NamedTuple):
    """How a person follows a run."""

    make_display: MakeDisplay
    profile: bool
    enough: Enough | None


def train(
    run_path: Path,
    config: RunConfig | None,
    resume: bool,
    make_display: MakeDisplay,
    changes: Sequence[Mapping[str, Any]] = (),
    profile: bool = False,
    enough: Enough | None = None,
) -> dict[str, Any]:
    """Train, or continue training, the run at `run_path`; returns its summary.

    Args:
        config: the resolved config; None continues with the run's own, with `changes` on top.
        make_display: called with (steps, steps done) once both are known.
        profile: record where the time of one step goes: this process's second, or its only one.
        enough: asked after every held-out score; after the first yes there is no further step.
    """
    how = Watching(make_display, profile, enough)
    return _continue(run_path, config, how, changes) if resume else _begin(run_path, config, how)


def _begin(run_path: Path, config: RunConfig | None, how: Watching) -> dict[str, Any]:
    # Whatever can be refused is refused before a folder is made, so that the next try finds none in its way.
    config = start.new_config(config)
    require_vacant(run_path)
    require_trackers(config)
    use_threads(config)
    inputs = start.load_inputs(config)
    _look_first(config, run_path, inputs)
    opening = config.backend.opening(config, run_path, inputs.steps)
    found = overlap(config, inputs)
    run = Run.create(run_path, configs.to_yaml(configs.absolute(config)), start.manifest(config, inputs, found))
    with run.writing(), opening as backend:
        return _work(run, config, _trainer(config, backend, inputs), inputs, how, None, tuple(warnings(found)))


def _continue(
    run_path: Path, config: RunConfig | None, how: Watching, changes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    run = Run.open(run_path)
    config = start.resumed_config(run, config, changes)
    _announce_fewer(run, config)
    require_trackers(config)
    use_threads(config)
    with run.writing():
        inputs = start.load_inputs(config)
        start.same_inputs(run, inputs.fingerprints)
        if summary := start.done_already(run, inputs.steps):
            return summary
        _look_first(config, None, inputs)
        with config.backend.opening(config, run_path, inputs.steps) as backend:
            trainer = _trainer(config, backend, inputs)
            done = start.restore(run, trainer.load)
            run.update_config(configs.to_yaml(configs.absolute(config)))
            return _work(run, config, trainer, inputs, how, done)


def _trainer(config: RunConfig, backend: Backend, inputs: Inputs) -> Trainer:
    updates = config.train.batch_size // (config.train.minibatch_size or config.train.batch_size)
    return Trainer(config, backend, inputs.steps * updates)


def _announce_fewer(run: Run, config: RunConfig) -> None:
    """Say which checkpoints a lower `train.keep_checkpoints` will cost, while they can still be kept."""
    before, now = run.config().train.keep_checkpoints, config.train.keep_checkpoints
    # The next checkpoint is one of those that are kept.
    if now < before and (gone := run.checkpoint_steps()[: 1 - now or None]):
        console.note(
            f"train.keep_checkpoints is {now} now, and was {before}: when the next checkpoint is saved, those of step "
            f"{', '.join(map(str, gone))} are deleted, but for the best (`nrt runs show`)."
        )


def _look_first(config: RunConfig, run_path: Path | None, inputs: Inputs) -> None:
    """Say what this machine does not do; refuse what does not fit the disk and, before Ray starts, what cannot run."""
    for text in start.limits_here(config):
        console.note(text)
    if config.backend.DISTRIBUTED:
        for text in preflight.preflight(config, run_path, inputs.train):
            console.note(text)
    elif run_path is not None:
        plan = estimate.plan_for(config, inputs.train)
        preflight.disk(run_path, plan)
        if plan.disk >= WORTH_SAYING:
            console.note(f"disk: {estimate.disk_text(plan)}")


def _work(
    run: Run,
    config: RunConfig,
    trainer: Trainer,
    inputs: Inputs,
    how: Watching,
    done: int | None,
    doubts: Sequence[str] = (),
) -> dict[str, Any]:
    """All steps after `done` (None: a new run), and the export. `doubts` are what a person is warned of first."""
    kinds = ("train", "held_out")
    logged = {(kind, record["step"]) for kind in kinds for record in run.metrics(kind)}
    with (
        how.make_display(inputs.steps, done or 0) as display,
        Trackers(config, run.path, display.note, done, logged) as trackers,
    ):
        trainer.backend.tell(display.note)
        profiled = min((done or 0) + 2, inputs.steps) if how.profile else None
        session = Session(
            run,
            config,
            trainer,
            inputs,
            display,
            trackers,
            _sentinel(run, inputs.steps, done or 0),
            profiled,
            how.enough,
        )
        run.event("started" if done is None else "resumed", step=done or 0, command=this_command())
        run.update_manifest(status="running", steps=inputs.steps)
        _announce_drops(display, inputs)
        for doubt in doubts:
            display.warn(doubt)
        try:
            _loop(session, done or 0)
            return _finish(session)
        except (Interrupted, Collapsed):
            raise
        except KeyboardInterrupt:
            _record_end(run, "interrupted", "stopped at once")
            raise Interrupted(
                f"stopped at once; what was saved is kept, go on with `{resume(run.path)}`.",
                signal.SIGINT,
            ) from None
        except BaseException as error:
            _record_end(run, "failed", str(error) or type(error).__name__)
            raise


def _record_end(run: Run, status: str, why: str) -> None:
    """Note how a run ended, where the disk still takes it."""
    with contextlib.suppress(StoreError):
        run.event(status, why=why)
        run.update_manifest(status=status)


def _announce_drops(display: Progress, inputs: Inputs) -> None:
    for text in inputs.left_out():
        display.note(text)


# --- steps -----------------------------------------------------------------------------------------------------------


def _loop(session: Session, done: int) -> None:
    every, steps = session.config.train, session.inputs.steps
    saved = done
    with _stop_requests(session.display.note) as stop:
        if done == 0:
            _score_held_out(session, 0)
        for step in range(done + 1, steps + 1):
            if stop:
                _stop(session, step - 1, saved, stop[0])
            _one_step(session, step)
            last = step == steps
            # Before the checkpoint: a run killed in between takes the step again and misses no record.
            if last or (every.validate_every and step % every.validate_every == 0):
                _score_held_out(session, step)
                if not last and _is_enough(session, step):
                    session.inputs, last = replace(session.inputs, steps=step), True
            if last or step % every.checkpoint_every == 0:
                _save(session, step)
                saved = step
            if last:
                return


def _is_enough(session: Session, step: int) -> bool:
    # A run that was killed may have records of later steps, which it takes again.
    records = [record for record in session.run.metrics("held_out") if record["step"] <= step]
    return session.enough is not None and session.enough(records)


def _stop(session: Session, step: int, saved: int, number: int) -> None:
    """Leave after `step`, of which the checkpoint may be missing."""
    run = session.run
    if saved < step:
        _save(session, step)
    _record_end(run, "interrupted", f"signal {number}, after step {step}")
    raise Interrupted(
        f"stopped after step {step} of {session.inputs.steps}, everything saved; go on with `{resume(run.path)}`.",
        number,
    )


def _one_step(session: Session, step: int) -> None:
    examples = batch_for(session.inputs.train, session.config, step)
    try:
        update, groups = _take_step(session, step, examples)
    except TrainingError as error:
        _post_mortem(session, step, examples, error)
    except (MemoryError, torch.OutOfMemoryError):
        raise TrainingError(
            f"step {step} ran out of memory; what was saved is kept. Go on with --resume and, without changing the "
            "result, a lower train.micro_batch_tokens or rollout.batch_rows, or model.gradient_checkpointing=true."
        ) from None
    record = {"kind": "train", "step": step, **update.metrics, **trace_health(groups)}
    session.run.append_metrics(record)
    session.trackers.log(record)
    sample = _store_traces(session, step, groups, update.scores)
    session.display.step(record, sample)
    if step == 1 and groups:
        session.display.note(f"gradient by term: {balance.described(update.metrics)}")
        if doubt := balance.doubt(update.metrics, session.config.objective):
            session.display.warn(doubt)
    _watch(session, record)


def _take_step(session: Session, step: int, examples: Sequence[Example]) -> tuple[Update, list[RolloutGroup]]:
    """A step; the one that a profile was asked of takes longer."""
    if step != session.profiled:
        return session.trainer.train_step(examples, step)
    with profiled() as recorded:
        result = session.trainer.train_step(examples, step)
    folder = session.run.write_profile(step, recorded.export_chrome_trace, table(recorded))
    session.display.note(f"profile of step {step}: {folder / 'table.txt'}; Perfetto opens {folder / 'trace.json'}")
    return result


def _sentinel(run: Run, steps: int, done: int) -> Sentinel:
    """A sentinel that has seen what was recorded so far: it warns on, and does not repeat itself."""
    sentinel = Sentinel(steps)
    for record in watched(run.metrics(), run.metrics("held_out")):
        if record["step"] <= done:
            sentinel.add(record)
    return sentinel


def _watch(session: Session, record: Mapping[str, Any]) -> None:
    """Say and record what has collapsed with a step's metrics or held-out scores; stop where the config says so."""
    step, run = record["step"], session.run
    falls = session.sentinel.add(record)
    for fall in falls:
        run.event("collapse", **vars(fall))
        session.display.warn(f"collapse at step {step}: {fall}")
    # After the last step there is nothing left to stop.
    if falls and session.config.train.on_collapse == "stop" and step < session.inputs.steps:
        _record_end(run, "interrupted", f"collapse of {', '.join(fall.sign for fall in falls)}, after step {step}")
        # The window that fell began WINDOW steps ago: what was saved before is what to go back to.
        healthy = [saved for saved in run.checkpoint_steps() if saved <= step - WINDOW]
        back = f"{run.path}@{healthy[-1]} names the checkpoint" if healthy else "no checkpoint is left from"
        again = resume(run.path, "--set", "train.on_collapse=warn")
        raise Collapsed(
            f"step {step}: {' and '.join(map(str, falls))}. Stopped, since train.on_collapse=stop; {back} before these "
            f"{WINDOW} steps. `{again}` goes on all the same."
        )


def batch_for(examples: ExampleSet, config: RunConfig, step: int) -> list[Example]:
    """The examples of a step (from 1): a fresh shuffle each epoch, a function of seed and step alone.

    An epoch is as many whole batches as there are, so no batch holds an example twice.
    """
    size = config.train.batch_size
    epoch, batch = divmod(step - 1, len(examples) // size)
    order = np.random.default_rng((config.seed, ORDER_STREAM, epoch)).permutation(len(examples))
    return [examples[int(i)] for i in order[batch * size : (batch + 1) * size]]


def _store_traces(
    session: Session, step: int, groups: Sequence[RolloutGroup], scores: Sequence[GroupScore]
) -> dict[str, str] | None:
    """Store the first groups of a step; returns one trace to show."""
    kept = session.config.train.trace_groups
    if not groups or not kept:
        return None
    rows = trace_rows(step, groups[:kept], scores[:kept], session.trainer.backend.tokenizer)
    session.run.write_traces(f"step-{step:06d}", rows)
    return vars(rows[0])


def _score_held_out(session: Session, step: int) -> None:
    held_out = session.inputs.held_out
    if not held_out:
        return
    scores = session.trainer.held_out(held_out)
    answered = _answer_held_out(session, step)
    record = {"kind": "held_out", "step": step, "examples": len(held_out), **scores.metrics}
    if any(answered):
        found = accuracies.mean_scores(answered)
        record |= {"graded": sum(map(bool, answered)), **{f"accuracy_{kind}": found[kind] for kind in found}}
    rows = held_out_rows(step, held_out, scores, session.inputs.pairs, answered, session.trainer.backend.tokenizer)
    # Before the record: who reads that finds the rows behind it.
    session.run.write_traces(f"{'held-out' if scores.groups else 'direct'}-{step:06d}", rows)
    session.run.append_metrics(record)
    session.trackers.log(record)
    session.display.held_out(record)
    _watch(session, record)


def _answer_held_out(session: Session, step: int) -> list[dict[str, Graded]]:
    """Each held-out example's graded replies: all kinds before and after training, with thinking alone in between."""
    inputs, config, reasoner = session.inputs, session.config, session.trainer.backend.reasoner()
    ends = step in (0, inputs.steps)
    kinds = ["direct"] if not config.thinks else [*ACCURACIES] if ends else ["thinking"]
    graded = [i for i, pair in enumerate(inputs.pairs) if pair.grader != "none"] if reasoner else []
    questions = [Question(str(i), inputs.held_out[i].prompt_ids, inputs.pairs[i]) for i in graded]
    longest = max((len(example.answer_ids) for example in inputs.held_out), default=0)
    cap = accuracies.answer_cap(longest, config.longest_answer)
    try:
        found = accuracies.answer_all(reasoner, questions, kinds, config.rollout.max_trace_tokens, cap)
    except ConfigError as error:  # a grader of the user's own; training does not depend on it
        console.warn(f"held-out accuracy is not measured after step {step}: {error}")
        return [{} for _ in inputs.pairs]
    of_row = dict(zip(graded, found, strict=True))
    return [of_row.get(i, {}) for i in range(len(inputs.pairs))]


def _save(session: Session, step: int) -> None:
    backend = session.trainer.backend
    if name := backend.broken_weight():
        raise TrainingError(
            f"step {step} left weights that are not finite ({name}), which were not saved; a new run with a lower "
            "optimiser.lr is the usual remedy."
        )
    session.run.save_checkpoint(step, session.trainer.state(), backend.save(), session.config.train.keep_checkpoints)
    session.run.event("checkpoint", step=step)


def _post_mortem(session: Session, step: int, examples: Sequence[Example], error: TrainingError) -> None:
    """Save the weights that a step failed on, and say where they are."""
    trainer = session.trainer
    state = trainer.state() | {"error": str(error), "examples": [e.index for e in examples]}
    try:
        where = f"are in {session.run.save_post_mortem(step, state, trainer.backend.save())}"
    except (StoreError, TrainingError) as another:
        where = f"could not be saved ({another})"
    raise TrainingError(
        f"step {step} failed: {error}. The weights it failed on {where}; the checkpoints are untouched. A new run with "
        "a lower optimiser.lr, objective.weight_cap or model.dtype=float32 is the usual remedy."
    ) from None


@contextlib.contextmanager
def _stop_requests(say: Callable[[str], None]) -> Iterator[list[int]]:
    """A list that gets a signal's number when one asks to stop; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        # A handler may cut into a print of the same stream, which Python refuses.
        with contextlib.suppress(RuntimeError):
            say("stopping after this step; a second Ctrl-C stops at once, without saving it")

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def throughput(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by phase over all steps, and rates over the seconds that they are rates of."""
    phases = sorted({key for record in records for key in record if key.startswith("seconds")})
    total = {phase: sum(record.get(phase, 0.0) for record in records) for phase in phases}
    rates = {"tokens_per_second": "seconds", "rollout_tokens_per_second": "seconds_rollout", "mfu": "seconds_update"}
    return total | {
        # A rate times its seconds is an amount; amounts add up.
        rate: sum(record[rate] * record[phase] for record in records) / total[phase]
        for rate, phase in rates.items()
        if records and all(rate in record for record in records)
    }


def _finish(session: Session) -> dict[str, Any]:
    run = session.run
    last = run.checkpoint_path(session.inputs.steps)

    def export(folder: Path) -> None:
        session.trainer.backend.export(folder, last)
        record_suffix(folder, run.suffix())

    folder = run.write_export(export, session.inputs.steps)
    held_out = run.metrics("held_out")
    summary = {
        "run": str(run.path),
        "method": session.config.method,
        "steps": session.inputs.steps,
        "export": str(folder),
        "held_out_before": held_out[0] if held_out else None,
        "held_out_after": held_out[-1] if held_out else None,
        "seconds": sum(record["seconds"] for record in run.metrics()),
        "throughput": throughput(run.metrics()),
    }
    run.update_manifest(status="finished", summary=summary)
    run.event("finished", step=session.inputs.steps)
    return summary
