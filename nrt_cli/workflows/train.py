"""A training run from config to exported model: data, trainer, store and display, joined."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nrt_cli import config as configs
from nrt_cli import console
from nrt_cli.backends.local.backend import ran_out
from nrt_cli.backends.local.throughput import longest_operators
from nrt_cli.backends.machine import use_processor
from nrt_cli.checks.preflight import overlap, preflight
from nrt_cli.commandline import resume as resuming
from nrt_cli.commandline import this_command
from nrt_cli.config import RunConfig
from nrt_cli.data.examples import ExampleSet
from nrt_cli.errors import ConfigError, Interrupted, NrtError, StoreError, TrainingError
from nrt_cli.grading import accuracies
from nrt_cli.grading.accuracies import Graded, Question
from nrt_cli.measures.collapse import WINDOW, Sentinel, trace_health, watched
from nrt_cli.measures.held_out import overlap_warnings
from nrt_cli.models.metadata import record_suffix
from nrt_cli.objective.losses import balance_described, balance_doubt
from nrt_cli.progress import Progress
from nrt_cli.records import ACCURACIES, Example
from nrt_cli.store import Run, require_vacant
from nrt_cli.text.prompts import question_of
from nrt_cli.training import start
from nrt_cli.training.start import Inputs
from nrt_cli.training.traces import held_out_rows, trace_rows
from nrt_cli.training.tracking import Trackers, require_trackers
from nrt_cli.training.trainer import Backend, Trainer

ORDER_STREAM = 2
"""First part of the key of the random streams that order the data (the trainer's are 0 and 1)."""


MakeDisplay = Callable[[int, int], Progress]
Enough = Callable[[Sequence[Mapping[str, Any]]], bool]
"""Whether a run is good enough to end, by its held-out records so far."""


class Collapsed(NrtError):
    """The traces collapsed and `train.on_collapse` says to stop."""


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
    session = _Session(make_display, profile, enough)
    if not resume:
        # Whatever can be refused is refused before a folder is made, so that the next try finds none in its way.
        config = start.new_config(config)
        require_vacant(run_path)
        require_trackers(config)
        use_processor(config)
        inputs = start.load_inputs(config)
        _look_first(config, run_path, inputs)
        opening = config.backend.opening(config, run_path, inputs.steps)
        found = overlap(config, inputs)
        run = Run.create(run_path, configs.to_yaml(configs.absolute(config)), start.manifest(config, inputs, found))
        with run.writing(), opening as backend:
            return session.work(run, config, inputs, backend, None, tuple(overlap_warnings(found)))
    run = Run.open(run_path)
    config = start.resumed_config(run, config, changes)
    before, now = run.config().train.keep_checkpoints, config.train.keep_checkpoints
    # The next checkpoint is one of those that are kept; which the lower number will cost is said while they are there.
    if now < before and (gone := run.checkpoint_steps()[: 1 - now or None]):
        console.note(
            f"train.keep_checkpoints is {now} now, and was {before}: when the next checkpoint is saved, those of step "
            f"{', '.join(map(str, gone))} are deleted, but for the best (`nrt runs show`)."
        )
    require_trackers(config)
    use_processor(config)
    with run.writing():
        inputs = start.load_inputs(config)
        start.same_inputs(run, inputs.fingerprints)
        if summary := start.done_already(run, inputs.steps):
            return summary
        _look_first(config, None, inputs)
        doubts = start.changed_method(run, config.method)
        with config.backend.opening(config, run_path, inputs.steps) as backend:
            return session.work(run, config, inputs, backend, lambda trainer: start.restore(run, trainer.load), doubts)


def _look_first(config: RunConfig, run_path: Path | None, inputs: Inputs) -> None:
    """Say what this machine does not do; refuse what does not fit the disk and, before Ray starts, what cannot run."""
    for text in (*start.limits_here(config), *preflight(config, run_path, inputs)):
        console.note(text)


def batch_for(examples: ExampleSet, config: RunConfig, step: int) -> list[Example]:
    """The examples of a step (from 1): a fresh shuffle each epoch, a function of seed and step alone.

    An epoch is as many whole batches as there are, so no batch holds an example twice.
    """
    size = config.train.batch_size
    epoch, batch = divmod(step - 1, len(examples) // size)
    order = np.random.default_rng((config.seed, ORDER_STREAM, epoch)).permutation(len(examples))
    return [examples[int(i)] for i in order[batch * size : (batch + 1) * size]]


class _Session:
    """One process's work on a run."""

    def __init__(self, make_display: MakeDisplay, profile: bool, enough: Enough | None) -> None:
        self.make_display, self.profile, self.enough = make_display, profile, enough

    def work(
        self,
        run: Run,
        config: RunConfig,
        inputs: Inputs,
        backend: Backend,
        restore: Callable[[Trainer], int] | None,
        doubts: Sequence[str] = (),
    ) -> dict[str, Any]:
        """All steps that are not done, and the export; the run's summary.

        Args:
            restore: gives the trainer the newest checkpoint and says the step to go on after; None: a new run.
            doubts: what a person is warned of first.
        """
        self.run, self.config, self.inputs, self.last = run, config, inputs, inputs.steps
        updates = config.train.batch_size // (config.train.minibatch_size or config.train.batch_size)
        verifier = inputs.verifying(backend.tokenizer, backend.tokens)
        self.trainer = Trainer(config, backend, inputs.steps * updates, verifier=verifier)
        done = restore(self.trainer) if restore else None
        if restore:
            # A kill between a checkpoint and the removal of an older one leaves both.
            run.drop_checkpoints(done or 0, config.train.keep_checkpoints)
            run.update_config(configs.to_yaml(configs.absolute(config)))
        logged = {(kind, record["step"]) for kind in ("train", "held_out") for record in run.metrics(kind)}
        with (
            self.make_display(inputs.steps, done or 0) as self.display,
            Trackers(config, run.path, self.display.note, done, logged) as self.trackers,
        ):
            backend.tell(self.display.note)
            # It has seen what was recorded so far: it warns on, and does not repeat itself.
            self.sentinel = Sentinel(inputs.steps)
            for record in watched(run.metrics(), run.metrics("held_out")):
                if record["step"] <= (done or 0):
                    self.sentinel.add(record)
            run.event("started" if done is None else "resumed", step=done or 0, command=this_command())
            run.update_manifest(status="running", steps=inputs.steps, stored={})
            for text in inputs.left_out():
                self.display.note(text)
            for doubt in doubts:
                self.display.warn(doubt)
            try:
                self.loop(done or 0)
                return self.finish()
            except (Interrupted, Collapsed):
                raise
            except KeyboardInterrupt as asked:
                self.record_end("interrupted", "stopped at once")
                raise Interrupted(
                    f"stopped at once; what was saved is kept, go on with `{resuming(run.path)}`.",
                    asked.args[0] if asked.args else signal.SIGINT,
                ) from None
            except BaseException as error:
                self.record_end("failed", str(error) or type(error).__name__)
                raise

    def record_end(self, status: str, why: str) -> None:
        """Note how the run ended, where the disk still takes it."""
        with contextlib.suppress(StoreError):
            self.run.event(status, why=why)
            self.run.update_manifest(status=status)

    def loop(self, done: int) -> None:
        """Every step after `done`, with the scores and checkpoints that come between."""
        every, saved = self.config.train, done
        profiled_step = min(done + 2, self.inputs.steps) if self.profile else None
        begun: list[int] = []
        with _stop_requests(self.display.note, begun) as stop:
            if done == 0:
                if held_out := self.inputs.held_out:
                    self.display.note(f"scoring the model on {len(held_out)} held-out examples before its first step")
                self.score_held_out(0, self.inputs.steps == 0)
            for step in range(done + 1, self.inputs.steps + 1):
                begun.append(step)
                if stop:
                    if saved < step - 1:
                        self.save(step - 1)
                    self.record_end("interrupted", f"signal {stop[0]}, after step {step - 1}")
                    raise Interrupted(
                        f"stopped after step {step - 1} of {self.inputs.steps}, everything saved; go on with "
                        f"`{resuming(self.run.path)}`.",
                        stop[0],
                    )
                self.step(step, step == profiled_step)
                last = step == self.inputs.steps
                # Before the checkpoint: a run killed in between takes the step again and misses no record.
                if last or (every.validate_every and step % every.validate_every == 0):
                    self.score_held_out(step, last)
                    # A run that was killed may have records of later steps, which it takes again.
                    records = [record for record in self.run.metrics("held_out") if record["step"] <= step]
                    last = last or (self.enough is not None and self.enough(records))
                if last or step % every.checkpoint_every == 0:
                    self.save(step)
                    saved = step
                if last:
                    self.last = step
                    return

    def step(self, step: int, profile: bool) -> None:
        """One step, what it is recorded as and what is shown of it; one that a profile is asked of takes longer."""
        examples = batch_for(self.inputs.train, self.config, step)
        try:
            with torch.profiler.profile() if profile else contextlib.nullcontext() as recorded:
                update, groups = self.trainer.train_step(examples, step)
            self.trainer.require_own_samples(update)
        except TrainingError as error:  # the weights that the step failed on are saved
            state = self.trainer.state() | {"error": str(error), "examples": [e.index for e in examples]}
            try:
                where = f"are in {self.run.save_post_mortem(step, state, self.trainer.backend.save())}"
            except (StoreError, TrainingError) as another:
                where = f"could not be saved ({another})"
            raise TrainingError(
                f"step {step} failed: {error}. The weights it failed on {where}; the checkpoints are untouched. "
                f"{error.remedy}"
            ) from None
        except Exception as error:
            if not ran_out(error):
                raise
            raise TrainingError(
                f"step {step} ran out of memory; what was saved is kept. Go on with --resume and, without changing "
                "the result, a lower train.micro_batch_tokens or rollout.batch_rows, or "
                "model.gradient_checkpointing=true."
            ) from None
        if recorded is not None:
            folder = self.run.write_profile(step, recorded.export_chrome_trace, longest_operators(recorded))
            self.display.note(f"profile of step {step}: {folder / 'table.txt'}; Perfetto opens {folder / 'trace.json'}")
        record = {"kind": "train", "step": step, **update.metrics, **trace_health(groups)}
        self.run.append_metrics(record)
        self.trackers.log(record)
        sample = None
        if groups and (kept := self.config.train.trace_groups):
            rows = trace_rows(step, groups[:kept], update.scores[:kept], self.trainer.backend.tokenizer)
            self.run.write_traces(f"step-{step:06d}", rows)
            sample = vars(rows[0]) | {"prompt": question_of(self.trainer.backend.tokenizer, rows[0].prompt or "")}
        self.display.step(record, sample)
        if step == 1 and groups:
            self.display.note(f"gradient by term: {balance_described(update.metrics)}")
            if doubt := balance_doubt(update.metrics, self.config.objective):
                self.display.warn(doubt)
        self.watch(record)

    def watch(self, record: Mapping[str, Any]) -> None:
        """Say and record what has collapsed with a step's metrics or held-out scores; stop where the config says so."""
        step, falls = record["step"], self.sentinel.add(record)
        for fall in falls:
            self.run.event("collapse", **vars(fall))
            self.display.warn(f"collapse at step {step}: {fall}")
        # After the last step there is nothing left to stop.
        if falls and self.config.train.on_collapse == "stop" and step < self.inputs.steps:
            self.record_end("interrupted", f"collapse of {', '.join(fall.sign for fall in falls)}, after step {step}")
            # The window that fell began WINDOW steps ago: what was saved before is what to go back to.
            healthy = [saved for saved in self.run.checkpoint_steps() if saved <= step - WINDOW]
            back = f"{self.run.path}@{healthy[-1]} names the checkpoint" if healthy else "no checkpoint is left from"
            again = resuming(self.run.path, "--set", "train.on_collapse=warn")
            raise Collapsed(
                f"step {step}: {' and '.join(map(str, falls))}. Stopped, since train.on_collapse=stop; {back} before "
                f"these {WINDOW} steps. `{again}` goes on all the same."
            )

    def score_held_out(self, step: int, last: bool) -> None:
        """Held-out log-probabilities and accuracies, as a record and as rows."""
        held_out = self.inputs.held_out
        if not held_out:
            return
        inputs, config, scores = self.inputs, self.config, self.trainer.held_out(held_out)
        # Each example's graded replies: of all kinds at both ends, with thinking alone in between.
        kinds = ["direct"] if not config.thinks else [*ACCURACIES] if last or step == 0 else ["thinking"]
        reasoner = self.trainer.backend.reasoner()
        graded = [i for i, pair in enumerate(inputs.pairs) if pair.grader != "none"] if reasoner else []
        questions = [Question(str(i), held_out[i].prompt_ids, inputs.pairs[i]) for i in graded]
        cap = accuracies.answer_cap(max(len(example.answer_ids) for example in held_out), config.longest_answer)
        answered: list[dict[str, Graded]] = [{} for _ in inputs.pairs]
        try:
            found = accuracies.answer_all(reasoner, questions, kinds, config.rollout.max_trace_tokens, cap)
            for i, replies in zip(graded, found, strict=True):
                answered[i] = replies
        except ConfigError as error:  # a grader of the user's own; training does not depend on it
            console.warn(f"held-out accuracy is not measured after step {step}: {error}")
        record = {"kind": "held_out", "step": step, "examples": len(held_out), **scores.metrics}
        if any(answered):
            means = accuracies.mean_scores(answered)
            record |= {"graded": sum(map(bool, answered)), **{f"accuracy_{kind}": means[kind] for kind in means}}
        rows = held_out_rows(step, held_out, scores, inputs.pairs, answered, self.trainer.backend.tokenizer)
        # Before the record: who reads that finds the rows behind it.
        self.run.write_traces(f"{'held-out' if scores.groups else 'direct'}-{step:06d}", rows)
        self.run.append_metrics(record)
        self.trackers.log(record)
        self.display.held_out(record)
        self.watch(record)

    def save(self, step: int) -> None:
        """A checkpoint; weights that are not finite take no good one's place."""
        backend = self.trainer.backend
        if name := backend.broken_weight():
            raise TrainingError(
                f"step {step} left weights that are not finite ({name}), which were not saved; a new run with a lower "
                "optimiser.lr is the usual remedy."
            )
        self.run.save_checkpoint(step, self.trainer.state(), backend.save(), self.config.train.keep_checkpoints)
        self.run.event("checkpoint", step=step)

    def finish(self) -> dict[str, Any]:
        """Export the policy; the summary."""
        run, steps = self.run, self.last

        def export(folder: Path) -> None:
            self.trainer.backend.export(folder, run.checkpoint_path(steps))
            record_suffix(folder, run.suffix())

        folder = run.write_model(steps, export, export=True)
        held_out = run.metrics("held_out")
        summary = {
            "run": str(run.path),
            "method": self.config.method,
            "steps": steps,
            "export": str(folder),
            "held_out_before": held_out[0] if held_out else None,
            "held_out_after": held_out[-1] if held_out else None,
            "seconds": sum(record["seconds"] for record in run.metrics()),
            "throughput": throughput(run.metrics()),
        }
        run.event("finished", step=steps)  # which a run whose manifest says so is known to have
        run.update_manifest(status="finished", summary=summary, stored=run.stored())
        return summary


@contextlib.contextmanager
def _stop_requests(say: Callable[[str], None], begun: Sequence[int]) -> Iterator[list[int]]:
    """A list that gets a signal's number when one asks to stop; a second one stops at once, as does the first before a
    step has `begun`: there is nothing to save."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        if asked or not begun:
            raise KeyboardInterrupt(number)
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
