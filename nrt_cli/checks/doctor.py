"""`nrt doctor`: what would go wrong in days, found in two minutes. Nothing is written."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nrt_cli.backends.machine import use_threads
from nrt_cli.checks.environment import ENVIRONMENT
from nrt_cli.checks.findings import Checks, Finding, of_error, ok, problem, warning
from nrt_cli.checks.interview import SAMPLE, interview_of
from nrt_cli.checks.preflight import Candidate, held_out, look
from nrt_cli.checks.trial import STEP, tried
from nrt_cli.config import RunConfig
from nrt_cli.data.examples import read_texts
from nrt_cli.models.loading import load_tokenizer, load_tokens, read_config
from nrt_cli.models.prepare import prompt_doubts, prompt_problems, token_problems
from nrt_cli.text.pieces import text_within
from nrt_cli.text.prompts import render_prompt
from nrt_cli.training import start
from nrt_cli.training.local import LocalTrainer

MODEL: Checks[RunConfig] = Checks()
ROWS: Checks[Candidate] = Checks()


def diagnose(config: RunConfig | None) -> Iterator[Finding]:
    """Every check of the environment and, with a config, of its model, data, engine and objective, one at a time.

    A check that fails never stops those that do not need it.
    """
    if config is not None:
        with contextlib.suppress(Exception):  # a device that is not there is found by the check of the device
            config = start.new_config(config)
        use_threads(config)
    yield from ENVIRONMENT.findings(config)
    if config is None:
        do = "name a config: `nrt doctor CONFIG --model DIR --data FILE`."
        yield Finding("model and data", "skipped", "no config was given", do)
        return
    if not config.model.path:
        do = "give --model a folder made by `nrt model prepare`."
        yield Finding("model", "skipped", "the config names no model", do)
        return
    run = Candidate(config)
    yield from MODEL.findings(config)
    engine, distributed = config.engine.name, config.backend.DISTRIBUTED
    if distributed:
        yield from (replace(finding, check=f"{engine}: {finding.check}") for finding in look(run)[0])
    if not config.data.train:
        do = "give --data a file made by `nrt data prepare`."
        yield Finding("data", "skipped", "the config names no data, so nothing was tried on rows", do)
        return
    try:
        inputs = run.inputs
    except Exception as error:
        yield of_error("data", error)
        return
    yield from ROWS.findings(run)
    if distributed:
        found = f"{engine} is not started here: no look at positions, underflow, log-probs, rollouts and the canary"
        do = "look at the same model and rows with --set engine.name=local."
        yield Finding("one step", "skipped", found, do)
        return
    try:
        trainer = LocalTrainer(config, 1)
    except Exception as error:
        yield of_error("engine", error)
        return
    # Questions first, since a step changes the weights.
    yield from SAMPLE.of("sample", lambda: interview_of(config, trainer, inputs).sampled())
    yield from STEP.of("one step", lambda: tried(config, trainer, inputs))


@MODEL.check("token ids")
def token_ids(config: RunConfig) -> Finding:
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
        return problem(f"{found}; {'; '.join(problems)}", do, shown)
    return ok(f"{found}; each survives encoding and decoding, pad is not eos", details=shown)


@ROWS.check("data")
def data(run: Candidate) -> Finding:
    """How much is left to train on, and whether anything is held out."""
    inputs, train = run.inputs, run.inputs.train
    dropped = sum(train.dropped.values())
    share = dropped / (len(train) + dropped)
    found = (
        f"{len(train)} examples, {dropped} dropped ({share:.0%}), longest {train.longest} tokens, {inputs.steps} steps"
    )
    found = "; ".join([found, *inputs.left_out()])
    details: dict[str, Any] = {"examples": len(train), "dropped": train.dropped, "steps": inputs.steps}
    if share > 0.2:
        mend = "mend the rows that cannot be read"
        if not train.unreadable:
            mend = "raise data.max_prompt_tokens or data.max_answer_tokens"
        return warning(found, f"{mend}, or accept what is left.", details)
    if not inputs.held_out:
        do = "give --validation a file, so that held-out log P(y*) is scored."
        return warning(f"{found}; no held-out pairs", do, details)
    return ok(f"{found}; {len(inputs.held_out)} held-out", details=details)


ROWS.check("held-out questions")(held_out)


@ROWS.check("template")
def template(run: Candidate) -> Finding:
    """A prompt and an answer to token ids and back."""
    tokenizer, example = load_tokenizer(run.config.model.path), run.inputs.train[0]
    question, answer = read_texts(Path(run.config.data.train), {example.index})[example.index]
    messages = [{"role": "user", "content": question}]
    head, tail = tokenizer.decode(list(example.prompt_ids[:8])), text_within(tokenizer, example.prompt_ids[-8:])
    found = f"example {example.index}: {len(example.prompt_ids)} prompt tokens, {head!r} ... {tail!r}"
    answer_text = text_within(tokenizer, example.answer_ids)
    details = {"prompt": tokenizer.decode(list(example.prompt_ids)), "answer": answer_text}
    if problems := list(prompt_problems(tokenizer, messages)):
        do = "give the model another chat template, and prepare it anew with `nrt model prepare`."
        return problem(f"{found}; {'; '.join(problems)}", do, details)
    if render_prompt(tokenizer, messages) != list(example.prompt_ids):
        return ok(f"{found}; of several turns, read them with --json", details=details)
    if doubts := list(prompt_doubts(tokenizer, messages, answer)):
        do = "read the rendered prompt (--json); if it is what you mean, go on."
        return warning(f"{found}; {'; '.join(doubts)}", do, details)
    return ok(f"{found}; there and back without loss", details=details)
