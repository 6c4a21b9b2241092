"""`nrt generate`: a question in, a trace and an answer out, streamed."""

import sys
from typing import Annotated

import typer

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import ConfigError

EXAMPLE = "Example: nrt generate runs/first 'What is 12 + 30 + 7?'"


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            autocompletion=completion.models,
            help="A run directory, RUN@STEP, a model folder or builtin:NAME.",
        ),
    ],
    question: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    think: Annotated[bool | None, typer.Option("--think/--no-think", help="Default: as the model was trained.")] = None,
    max_trace_tokens: Annotated[
        int | None, typer.Option(min=1, help="Cap on the trace; default 256, less where the model has less room.")
    ] = None,
    max_answer_tokens: Annotated[int | None, typer.Option(min=1, help="Cap on the answer; default alike.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 decodes greedily.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Let a model think about a question and answer it."""
    if question == "-":
        question = typer.get_binary_stream("stdin").read().decode(sys.stdin.encoding or "utf-8", "replace").strip()
    if not question.strip():
        raise ConfigError("the question is empty; give one as text, or - to read it from standard input.")

    from nrt_cli.workflows.generate import Part, ThinkMode, open_generator

    generator = open_generator(model)
    mode: ThinkMode = "on" if think is None else "forced" if think else "off"
    asked = (question, mode, max_trace_tokens, max_answer_tokens, temperature, seed)
    if as_json:
        console.result(generator.answer(*asked), True, lambda _: None)
        return
    shown = ""
    for part, text in generator.stream(*asked):
        if part != shown:
            console.stdout.print(("\n" if shown else "") + f"[bold]{part}[/bold]")
            shown = part
        console.stdout.print(console.plain(text), end="", style="cyan" if part == Part.trace else "", soft_wrap=True)
    console.stdout.print()
