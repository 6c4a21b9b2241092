"""`nrt train`: one run from a config, or one continued."""

import math
from pathlib import Path
from typing import Annotated

import typer

from nrt_cli import console
from nrt_cli.backends import BACKENDS
from nrt_cli.commandline import nrt
from nrt_cli.commands import completion
from nrt_cli.commands.config import HeldOutData, Overrides, TrainData, flags, no_effect, section
from nrt_cli.commands.plan import dry_run
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
        str | None,
        typer.Argument(metavar="CONFIG", autocompletion=completion.configs, help="YAML file or shipped config."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(autocompletion=completion.runs, help="Run directory; default runs/CONFIG-METHOD-SEED."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(autocompletion=completion.methods, help=METHODS_HELP),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            autocompletion=completion.models, help="Folder made by `nrt model prepare`, or a run to begin from."
        ),
    ] = None,
    data: TrainData = None,
    validation: HeldOutData = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; default: the config's epochs.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of data order and sampling.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(autocompletion=completion.engines, help=BACKENDS_HELP),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run at --run, with its own settings, from its last checkpoint."),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record where one step's time goes: a table and a trace in RUN/profiles.")
    ] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Check and plan only: GPUs, steps, tokens, memory, hours, disk.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="JSON lines on stdout: kind train or held_out per score, at last kind summary."),
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
        no_effect("on a plan, which is of a new run", resume=resume and resolved is not None, profile=profile)
        return dry_run(resolved, path, as_json)

    if resume and name:
        console.note(f"{path} goes on with its own settings, not with those of {name}; --set changes one.")
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
