"""`nrt chat`: question after question to one model."""

import contextlib
import io
import json
import sys
from collections.abc import Iterator

from nrt_cli import console
from nrt_cli.commands import generate
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import NrtError

EXAMPLE = "Example: nrt chat runs/first\n\nOr: nrt chat runs/first --json < questions.txt"


def chat(
    model: generate.Model,
    think: generate.Think = None,
    max_trace_tokens: generate.MaxTraceTokens = None,
    max_answer_tokens: generate.MaxAnswerTokens = None,
    temperature: generate.Temperature = 0.0,
    seed: generate.Seed = None,
    suffix: generate.Suffix = True,
    as_json: AsJson = False,
) -> None:
    """Talk with a model: a trace, dim, then its answer, question after question, a line each.

    Of earlier replies it sees the answers, not the traces. Ctrl-C stops a reply, Ctrl-D ends the talk; questions may
    also be piped in. With --json each reply is a line of JSON.
    """
    from nrt_cli.workflows.generate import Conversation, Generator

    mode = generate.think_mode(think, max_trace_tokens, temperature, seed)
    caps = {"max_trace_tokens": max_trace_tokens, "max_answer_tokens": max_answer_tokens}
    talk = Conversation(Generator(model, suffix), mode, seed or 0, **caps, temperature=temperature)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    typed = sys.stdin.isatty()
    if typed:
        console.note("One question a line. Ctrl-C stops a reply, Ctrl-D ends the talk.")
        _ = talk.generator.reasoner.model  # loaded now, and not while the first question waits
    for question in _typed(as_json) if typed else filter(None, map(str.strip, sys.stdin)):
        try:
            with contextlib.closing(talk.ask(question)) as pieces:
                if as_json:
                    console.write(json.dumps(talk.generator.collect(question, talk.mode, pieces)) + "\n")
                else:
                    generate.show(pieces)
            console.stdout.file.flush()
        except KeyboardInterrupt:
            if not typed:
                raise
            console.note("\nStopped; this question is no part of the talk.")
        except NrtError as error:
            if not typed:
                raise
            console.warn(str(error))
        else:
            if talk.forgotten:
                what = "earliest question" if talk.forgotten == 1 else f"{talk.forgotten} earliest questions"
                positions = talk.generator.reasoner.positions
                console.note(f"The model's {positions} positions had no room for the {what} any more.")


def _typed(as_json: bool) -> Iterator[str]:
    """Questions from a terminal, until Ctrl-D, or Ctrl-C while none is answered."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited, and called back)
    prompt = "> "
    while True:
        if as_json or not console.stdout.is_terminal:  # stdout is for a program
            console.stderr.print(prompt, end="")
            prompt = ""
        try:
            question = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            console.note("")
            return
        if question:
            yield question
