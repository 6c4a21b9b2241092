"""`nrt doctor`: what would go wrong in days, found in two minutes. Nothing is written."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nrt_cli.backends.machine import use_threads
from nrt_cli.checks import doctor_model, doctor_sample
from nrt_cli.checks.doctor_environment import environment
from nrt_cli.checks.findings import Finding, advised, guarded, of_error
from nrt_cli.checks.overlap import overlap
from nrt_cli.checks.prediction import predict
from nrt_cli.config import RunConfig
from nrt_cli.data.examples import read_texts
from nrt_cli.measures.overlap import described, warnings
from nrt_cli.models.loading import load_tokenizer, load_tokens, read_config
from nrt_cli.models.problems import prompt_doubts, prompt_problems, token_problems
from nrt_cli.text.pieces import text_within
from nrt_cli.text.prompts import render_prompt
from nrt_cli.training import start
from nrt_cli.training.local import LocalTrainer
from nrt_cli.training.start import Inputs


def diagnose(config: RunConfig | None) -> Iterator[Finding]:
    """Every check of the environment and, with a config, of its model, data, engine and objective, one at a time.

    A check that fails never stops those that do not need it.
    """
    if config is not None:
        config = _resolved(config)
        use_threads(config)
    yield from environment(config)
    if config is None:
        do = "name a config: `nrt doctor CONFIG --model DIR --data FILE`."
        yield Finding("model and data", "skipped", "no config was given", do)
        return
    if not config.model.path:
        do = "give --model a folder made by `nrt model prepare`."
        yield Finding("model", "skipped", "the config names no model", do)
        return
    yield from guarded("token ids", lambda: _token_ids(config))
    if config.engine.name == "verl":
        yield from guarded("verl", lambda: _verl(config))
    yield from _with_data(config)


def _resolved(config: RunConfig) -> RunConfig:
    """`auto` as what it means here; a device that is not there is found by the check of the device."""
    try:
        return start.new_config(config)
    except Exception:
        return config


def _token_ids(config: RunConfig) -> Iterator[Finding]:
    start.require_think_tokens(config)
    names = config.tokens
    tokenizer, ids = load_tokens(config.model.path, names.think_start, names.think_end)
    problems = list(token_problems(tokenizer, read_config(config.model.path), names.think_start, names.think_end))
    shown = {"t_start": ids.start_id, "t_end": ids.end_id, "eos": ids.eos_id, "pad": ids.pad_id}
    shown |= {f"stop {number}": i for number, i in enumerate(ids.stop_ids[1:], 2)}
    found = ", ".join(
        f"{role} {tokenizer.convert_ids_to_tokens(i)} = {i}" for role, i in shown.items() if i is not None
    )
    if problems:
        do = "prepare the model anew: `nrt model prepare SOURCE --out DIR`."
        yield Finding("token ids", "problem", f"{found}; {'; '.join(problems)}", do, shown)
    else:
        yield Finding("token ids", "ok", f"{found}; each survives encoding and decoding, pad is not eos", details=shown)


def _with_data(config: RunConfig) -> Iterator[Finding]:
    """The checks that need rows; without data, one finding that says so."""
    if not config.data.train:
        do = "give --data a file made by `nrt data prepare`."
        yield Finding("data", "skipped", "the config names no data, so nothing was tried on rows", do)
        return
    try:
        inputs = start.load_inputs(config)
    except Exception as error:
        yield of_error("data", error)
        return
    yield _data(config, inputs)
    yield from guarded("held-out questions", lambda: _held_out(config, inputs))
    yield from guarded("template", lambda: _template(config, inputs))
    if config.engine.name == "local":
        yield from _on_rows(config, inputs)
    else:
        found = "verl is not started here: no look at positions, underflow, log-probs, rollouts and the canary"
        yield Finding("one step", "skipped", found, "look at the same model and rows with --set engine.name=local.")


def _data(config: RunConfig, inputs: Inputs) -> Finding:
    train = inputs.train
    dropped = sum(train.dropped.values())
    share = dropped / (len(train) + dropped)
    found = (
        f"{len(train)} examples, {dropped} dropped ({share:.0%}), longest {train.longest} tokens, {inputs.steps} steps"
    )
    found = "; ".join([found, *inputs.left_out()])
    details: dict[str, Any] = {"examples": len(train), "dropped": train.dropped, "steps": inputs.steps}
    if share > 0.2:
        mend = "mend the rows that cannot be read" if train.unreadable else "raise data.max_prompt_tokens or "
        mend += "" if train.unreadable else "data.max_answer_tokens"
        do = f"{mend}, or accept what is left."
        return Finding("data", "warning", found, do, details)
    if not inputs.held_out:
        do = "give --validation a file, so that held-out log P(y*) is scored."
        return Finding("data", "warning", f"{found}; no held-out pairs", do, details)
    return Finding("data", "ok", f"{found}; {len(inputs.held_out)} held-out", details=details)


def _held_out(config: RunConfig, inputs: Inputs) -> Finding:
    """Whether what is asked later is trained on."""
    found = overlap(config, inputs)
    if doubts := list(warnings(found)):
        return Finding("held-out questions", "warning", *advised(" ".join(doubts)), details=asdict(found))
    return Finding("held-out questions", "ok", described(found), details=asdict(found))


def _template(config: RunConfig, inputs: Inputs) -> Iterator[Finding]:
    """A prompt and an answer to token ids and back."""
    tokenizer, example = load_tokenizer(config.model.path), inputs.train[0]
    question, answer = read_texts(Path(config.data.train), {example.index})[example.index]
    messages = [{"role": "user", "content": question}]
    head, tail = tokenizer.decode(list(example.prompt_ids[:8])), text_within(tokenizer, example.prompt_ids[-8:])
    found = f"example {example.index}: {len(example.prompt_ids)} prompt tokens, {head!r} ... {tail!r}"
    answer_text = text_within(tokenizer, example.answer_ids)
    details = {"prompt": tokenizer.decode(list(example.prompt_ids)), "answer": answer_text}
    if problems := list(prompt_problems(tokenizer, messages)):
        do = "give the model another chat template, and prepare it anew with `nrt model prepare`."
        yield Finding("template", "problem", f"{found}; {'; '.join(problems)}", do, details)
    elif render_prompt(tokenizer, messages) != list(example.prompt_ids):
        yield Finding("template", "ok", f"{found}; of several turns, read them with --json", details=details)
    elif doubts := list(prompt_doubts(tokenizer, messages, answer)):
        do = "read the rendered prompt (--json); if it is what you mean, go on."
        yield Finding("template", "warning", f"{found}; {'; '.join(doubts)}", do, details)
    else:
        yield Finding("template", "ok", f"{found}; there and back without loss", details=details)


def _verl(config: RunConfig) -> Iterator[Finding]:
    """What the engine for many GPUs looks at before a run; its prediction of memory, time and disk included."""
    from nrt_cli.checks.preflight import check

    for found in check(config)[0]:
        name = f"verl: {found.name}"
        if found.ok:
            yield Finding(name, "ok", found.text)
        elif found.ok is None:
            yield Finding(name, "skipped", found.text, "nothing now: it is looked at again before the run begins.")
        else:
            yield Finding(name, "problem", *advised(found.text))


def _on_rows(config: RunConfig, inputs: Inputs) -> Iterator[Finding]:
    """The run's engine: eight questions as they would be sampled, then a small step, looked at from all sides."""
    try:
        engine = LocalTrainer(config, 1)
    except Exception as error:
        yield of_error("engine", error)
        return
    # First, since a step changes the weights.
    yield from guarded("sample", lambda: doctor_sample.sample(doctor_sample.interview_of(config, engine, inputs)))
    try:
        trial = doctor_model.tried(config, engine, inputs.train)
    except Exception as error:
        yield of_error("one step", error)
        return
    thinks = config.method != "sft"
    checks = {"fused against plain log-probs": doctor_model.fused}
    if thinks:
        checks = {
            "positions": doctor_model.positions,
            **checks,
            "rollout against trainer log-probs": doctor_model.rollouts,
        }
        checks["underflow"] = doctor_model.underflow
        checks["gradient"] = doctor_model.gradient
    for name, check in checks.items():
        yield from guarded(name, partial(check, trial))
    yield from guarded("prediction", lambda: predict(config, inputs, trial))
    if thinks:
        # Last, since it changes the weights.
        yield from guarded("stale-weight canary", lambda: doctor_model.stale(trial))


def summary(findings: list[Finding]) -> dict[str, int]:
    """How many findings of each verdict there are."""
    return {verdict: sum(f.verdict == verdict for f in findings) for verdict in ("problem", "warning", "skipped", "ok")}
