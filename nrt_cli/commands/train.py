"""`nrt train`: one run from a config, or one continued; with --dry-run, what would stop it and what it will take."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.backends import BACKENDS
from nrt_cli.commandline import nrt
from nrt_cli.commands import completion
from nrt_cli.commands.config import HeldOutData, Overrides, TrainData, flags, no_effect, section
from nrt_cli.commands.view import beside
from nrt_cli.errors import ConfigError
from nrt_cli.methods import METHODS

METHODS_HELP = (
    "What is learned. "
    + " ".join(f"{name}: {method.summary}." for name, method in METHODS.items())
    + " Or a paper's name of one, module:function or module:Class (`nrt help methods`)."
)
BACKENDS_HELP = " ".join(f"{name}: {facts.SUMMARY}." for name, facts in BACKENDS.items())

EXAMPLE = "Example: nrt train gsm8k-smollm2 --method am --run runs/gsm8k-am"


def train(
    name: Annotated[
        str | None, Argument(metavar="CONFIG", autocompletion=completion.configs, help="YAML file or shipped config.")
    ] = None,
    run: Annotated[
        Path | None, Option(autocompletion=completion.runs, help="Run directory; default runs/CONFIG-METHOD-SEED.")
    ] = None,
    method: Annotated[str | None, Option(autocompletion=completion.methods, help=METHODS_HELP)] = None,
    model: Annotated[
        str | None,
        Option(autocompletion=completion.models, help="Folder made by `nrt model prepare`, or a run to begin from."),
    ] = None,
    data: TrainData = None,
    validation: HeldOutData = None,
    steps: Annotated[int | None, Option(help="Training steps; default: the config's epochs.")] = None,
    seed: Annotated[int | None, Option(min=0, help="Seed of data order and sampling.")] = None,
    engine: Annotated[str | None, Option(autocompletion=completion.engines, help=BACKENDS_HELP)] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, Option("--resume", help="Continue the run at --run, with its own settings, from its last checkpoint.")
    ] = False,
    profile: Annotated[
        bool, Option("--profile", help="Record where one step's time goes: a table and a trace in RUN/profiles.")
    ] = False,
    view: Annotated[bool, Option("--view", help="Show it in the browser while it trains (`nrt view`).")] = False,
    dry: Annotated[
        bool, Option("--dry-run", help="Check and plan only: GPUs, steps, tokens, memory, hours, disk.")
    ] = False,
    as_json: Annotated[
        bool, Option("--json", help="JSON lines on stdout: kind train or held_out per score, at last kind summary.")
    ] = False,
) -> None:
    """Train a model to reason. Ctrl-C finishes the step, saves and exits; --resume goes on exactly there."""
    from nrt_cli import config
    from nrt_cli.progress import choose, describe_held_out, print_json_line
    from nrt_cli.workflows.train import train as run_training

    given = flags(method=method, seed=seed)
    given |= section("model", path=model) | section("data", train=data, validation=validation)
    given |= section("train", steps=steps) | section("engine", name=engine)
    set_here = [config.parse_override(text) for text in overrides or []]
    resolved = config.load(name, overrides or [], **given) if name or not resume else None
    if run:
        path = run
    elif resolved:
        path = Path("runs") / f"{Path(name or 'run').stem}-{resolved.method.replace(':', '.')}-{resolved.seed}"
    else:
        raise ConfigError("--resume needs --run RUN, the directory to go on with.")
    if dry:
        unused = {"resume": resume and resolved is not None, "profile": profile, "view": view}
        no_effect("on a plan, which is of a new run", **unused)
        if resolved is None:
            raise ConfigError("--dry-run plans a new run; name its config and leave --resume out.")
        from nrt_cli.checks.estimate import describe
        from nrt_cli.checks.preflight import Candidate, look
        from nrt_cli.training import locate

        # Nothing but the cache is written, and no process started; what failed first is raised once all is printed.
        findings, plan = look(Candidate(locate.locate_inputs(resolved), path))
        passed = {"ok": True, "problem": False}  # else it may turn out either way, or could not be seen here
        record = [
            {"name": one.check, "ok": passed.get(one.verdict), "verdict": one.verdict, "text": one.text}
            for one in findings
        ]
        if not console.result({"checks": record, "plan": dataclasses.asdict(plan) if plan else None}, as_json):
            table, rows = (Table(box=None, show_header=False, padding=(0, 1)) for _ in range(2))
            marks = {"problem": "no", "skipped": "?"}
            for one in findings:
                table.add_row(marks.get(one.verdict, one.verdict), one.check, console.plain(one.text))
            for what, how_much in describe(plan) if plan else []:
                rows.add_row(what, console.plain(how_much))
            for part in (table, "", rows):
                console.stdout.print(part)
        if failed := [one.text for one in findings if one.verdict == "problem"]:
            raise ConfigError(f"would not start here: {failed[0]}")
        return

    if resume and name:
        console.note(f"{path} goes on with its own settings, not with those of {name}; --set changes one.")
    with beside(path) if view else contextlib.nullcontext():
        summary = run_training(
            path,
            None if resume else resolved,
            resume,
            lambda total, done: choose(as_json, total, done),
            [*set_here, given],
            profile,
        )
    if as_json:
        print_json_line({"kind": "summary", **summary})
        return
    console.note(f"trained {summary['steps']} steps of {summary['method']} in {summary['seconds']:.0f} s")
    rates = summary["throughput"]
    share = "" if math.isnan(rates["mfu"]) else f" at {rates['mfu']:.0%} of this machine's matmul rate"
    parts = [f"update {rates['seconds_update']:.0f} s{share}"]
    if rollout := rates.get("seconds_rollout", 0.0):
        parts.insert(0, f"rollouts {rollout:.0f} s at {rates['rollout_tokens_per_second']:.0f} tokens/s")
    console.note(f"{rates['tokens_per_second']:.0f} tokens/s: {', '.join(parts)}")
    for when in ("held_out_before", "held_out_after"):
        if summary[when]:
            console.note("held-out " + describe_held_out(summary[when]))
    following = nrt("generate", Path(summary["run"]), "your question")
    console.say(f"run:   {summary['run']}\nmodel: {summary['export']}\nnext:  {following}")
