"""`nrt generate`: a question in, a trace and an answer out, streamed."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson, no_effect
from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from nrt_cli.workflows.generate import Part, ThinkMode

EXAMPLE = "Example: nrt generate runs/first 'What is 12 + 30 + 7?'"

Model = Annotated[
    str,
    Argument(
        metavar="RUN|MODEL",
        autocompletion=completion.models,
        help="A run directory, RUN@STEP, RUN@best, a model folder or builtin:NAME.",
    ),
]
Think = Annotated[bool | None, Option("--think/--no-think", help="Default: as the model was trained.")]
MaxTraceTokens = Annotated[
    int | None, Option(min=1, help="Cap on the trace; default 256, less where the model has less room.")
]
MaxAnswerTokens = Annotated[int | None, Option(min=1, help="Cap on the answer; default alike.")]
Temperature = Annotated[float, Option(min=0.0, help="0 decodes greedily.")]
Suffix = Annotated[
    bool,
    Option(
        "--suffix/--no-suffix", help="End questions in the line that `data prepare --suffix` gave those of training."
    ),
]
Seed = Annotated[int | None, Option(min=0, help="Seed of sampling; default: 0.")]


def generate(
    model: Model,
    question: Annotated[str, Argument(help="The question; - reads it from standard input.")],
    think: Think = None,
    max_trace_tokens: MaxTraceTokens = None,
    max_answer_tokens: MaxAnswerTokens = None,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    suffix: Suffix = True,
    as_json: AsJson = False,
) -> None:
    """Let a model think about a question and answer it."""
    if question == "-":
        question = typer.get_binary_stream("stdin").read().decode(sys.stdin.encoding or "utf-8", "replace").strip()
    if not question.strip():
        raise ConfigError("the question is empty; give one as text, or - to read it from standard input.")

    from nrt_cli.workflows.generate import Generator

    mode = think_mode(think, max_trace_tokens, temperature, seed)
    generator = Generator(model, suffix)
    said = generator.stream(question, mode, max_trace_tokens, max_answer_tokens, temperature, seed or 0)
    if as_json:
        console.result(generator.collect(question, mode, said), True, lambda _: None)
    else:
        show(said)


def think_mode(think: bool | None, max_trace_tokens: int | None, temperature: float, seed: int | None) -> "ThinkMode":
    """Raises ConfigError for a cap on the trace of a model that is not to think, and for a seed of greedy decoding."""
    if not temperature:
        no_effect("without --temperature", seed=seed)
    if think is False:
        no_effect("with --no-think", max_trace_tokens=max_trace_tokens)
        return "off"
    return "on" if think is None else "forced"


def show(pieces: "Iterable[tuple[Part, str]]") -> None:
    """Print a reply while it is decoded: the trace, dim, then the answer."""
    shown = ""
    for part, text in pieces:
        if part != shown:
            console.stdout.print(("\n" if shown else "") + f"[bold]{part}[/bold]")
            shown = part
        console.stdout.print(console.plain(text), end="", style="dim" if part == "trace" else "", soft_wrap=True)
    console.stdout.print()
