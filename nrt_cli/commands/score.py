"""`nrt score`: what a trace does for each token of an answer, and what every scheme makes of it."""

import json
import math
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson

EXAMPLE = "Example: nrt score runs/am --question 'What is 12 + 30?' --answer '42' --samples 4 --sentences"

FULL_SHADE = 3.0
"""Nats of gain at which a token has the full shade: its probability is 20 times, or a 20th of, that without a trace."""

GAIN, LOSS = (46, 139, 87), (200, 60, 50)
TOKEN_ROWS = 40


def score(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            autocompletion=completion.models,
            help="RUN, RUN@STEP, RUN@best, folder or builtin:NAME.",
        ),
    ],
    question: Annotated[str, typer.Option(help="The question x.")],
    answer: Annotated[str, typer.Option(help="The reference answer y*.")],
    trace: Annotated[list[str] | None, typer.Option(help="A trace z; several make a group.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Else traces sampled by each model that thinks; default: its group size.")
    ] = None,
    sentences: Annotated[bool, typer.Option("--sentences", help="The gain of each sentence, by removing it.")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also show the numbers of each answer token.")] = False,
    scheme: Annotated[
        list[str] | None, typer.Option(help="Schemes, module:function too; default: all built in.")
    ] = None,
    max_trace_tokens: Annotated[int | None, typer.Option(min=1, help="Cap on traces; default: the run's own.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Of sampling; default: the run's own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score an answer given traces, token by token and under every scheme (Table 9)."""
    from nrt_cli.methods import SCHEMES
    from nrt_cli.records import json_line
    from nrt_cli.workflows.score import Question, score_answer

    asked = Question(
        question, answer, tuple(trace or ()), samples, max_trace_tokens, temperature, seed, sentences,
        tuple(scheme or SCHEMES),
    )  # fmt: skip
    # Through the line form, in which what is not finite is null.
    records = [json.loads(json_line(score_answer(model, asked))) for model in models]
    console.result(records, as_json, lambda _: _show(records, tokens))


def _show(records: list[dict[str, Any]], tokens: bool) -> None:
    for record in records:
        _show_model(record, tokens)
    if sum(len(record.get("traces", [0])) for record in records) > 1:
        _show_summary(records)


def _show_model(record: dict[str, Any], tokens: bool) -> None:
    out = console.stdout
    out.rule(console.plain(_name(record)), style="bold")
    if "direct" in record:
        out.print(_headline("answered directly", record["direct"]))
    if "null" not in record:
        return
    out.print(_headline("null trace", record["null"]))
    out.print(_legend())
    for k, trace in enumerate(record["traces"], 1):
        out.print()
        title = f"trace {k} of {len(record['traces'])} ({trace['trace_tokens']} tokens, {_stop(trace['stop'])})"
        out.print(_headline(title, trace, trace["gain"]))
        out.print(Padding(console.plain(trace["trace"].strip() or "(empty)"), (0, 2)), style="cyan")
        out.print(Padding(_shaded(record["tokens"], trace["gains"]), (0, 2)))
        out.print(_schemes_table(trace["schemes"]))
        if tokens:
            rest = len(trace["gains"]) - TOKEN_ROWS
            which = f"; the {TOKEN_ROWS} with the largest gains or losses, --json has all" if rest > 0 else ""
            out.print(f"  c, c_base, gain (nats) and token signal (df/dc) c of each answer token{which}", style="bold")
            out.print(_tokens_table(record, trace))
        if "sentences" in trace:
            out.print("  gain of each sentence: log P(y*) given all - given all but it, in nats", style="bold")
            out.print(_sentences_table(trace["sentences"]))


def _name(record: dict[str, Any]) -> str:
    return record["model"] + (f" ({record['title']})" if record["title"] else "")


def _stop(stop: str) -> str:
    return {"end": "ended by itself", "eos": "ended by eos or t_start", "cap": "cut at the cap", "given": "given"}[stop]


def _headline(title: str, answer: dict[str, Any], gain: float | None = None) -> Text:
    text = Text(title, style="bold")
    probability, logprob = _probability(answer["logprob"]), _number(answer["logprob"], ".3f")
    text.append(f"  P(y*) = {probability}, log P(y*) = {logprob} nats", style="not bold")
    if gain is not None:
        text.append(f", gain {gain:+.3f}", style="not bold")
    return text


def _probability(logprob: float | None) -> str:
    """A probability to 4 digits, also where it is below what a float holds; `-` where it is no number."""
    if logprob is None:
        return "-"
    if logprob > math.log(1e-4):
        return f"{math.exp(logprob):.4f}"
    exponent = math.floor(logprob / math.log(10))
    return f"{math.exp(logprob - exponent * math.log(10)):.2f}e{exponent}"


# --- shades ----------------------------------------------------------------------------------------------------------


def _shade(gain: float | None) -> str:
    """Green for a gain, red for a loss, white for neither; text stays dark on all of them."""
    gain = gain or 0.0
    share = min(1.0, abs(gain) / FULL_SHADE)
    target = GAIN if gain > 0 else LOSS
    red, green, blue = (round(255 + (channel - 255) * share) for channel in target)
    return f"rgb(0,0,0) on rgb({red},{green},{blue})"


def _shaded(tokens: list[str], gains: list[float | None]) -> Text:
    """The answer, each token on its shade. Line ends are shown, since they are tokens too."""
    text = Text()
    for token, gain in zip(tokens, gains, strict=True):
        shown = console.plain(token.replace("\n", "⏎\n"))
        # A line's end has no ground of its own: shade what is visible of it.
        shown.stylize(_shade(gain), 0, len(shown.plain.rstrip("\n")))
        text.append_text(shown)
    return text


def _legend() -> Text:
    text = Text("gain of each answer token in nats: ", style="dim")
    for gain in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0):
        text.append(f" {gain:+.0f} ", style=_shade(gain))
    return text


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(first: str, *numbers: str) -> Table:
    """A bare table: words, then numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(first, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _number(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None else format(value, form)


def _schemes_table(schemes: dict[str, dict[str, Any]]) -> Padding:
    table = _table("scheme", "R", "R_base", "R' clipped", "advantage")
    for name, found in schemes.items():
        advantage = "dead" if found["dead_group"] else _number(found["advantage"], "+.3f")
        numbers = [_number(found[key]) for key in ("reward", "reward_base", "clipped")]
        table.add_row(console.plain(name), *numbers, advantage)
    return Padding(table, (1, 2))


def _tokens_table(record: dict[str, Any], trace: dict[str, Any]) -> Padding:
    """c, c_base, gain and the token signal under each scheme; of a long answer, the tokens with the largest gains."""
    schemes, gains = trace["schemes"], trace["gains"]
    table = _table("token", "c", "c_base", "gain", *schemes)
    largest = sorted(range(len(gains)), key=lambda i: -abs(gains[i] or 0.0))[:TOKEN_ROWS]
    for i in sorted(largest):
        c, c_base = (_number(of["c"][i], ".4f") for of in (trace, record["null"]))
        cells = [c, c_base, _number(gains[i], "+.2f")]
        signals = [_number(found["token_signals"][i], ".3g") for found in schemes.values()]
        table.add_row(_token(record["tokens"][i]), *cells, *signals)
    return Padding(table, (0, 2, 1, 2))


def _token(token: str) -> Text:
    """A token with its white space made visible."""
    return console.plain(token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥"))


def _sentences_table(sentences: list[dict[str, Any]]) -> Padding:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("sentence")
    for found in sentences:
        shown = console.plain(" ".join(found["sentence"].split()))
        table.add_row(Text(_number(found["gain"], "+.3f"), style=_shade(found["gain"])), shown)
    return Padding(table, (0, 2, 1, 2))


def _show_summary(records: list[dict[str, Any]]) -> None:
    """Table 9: model, trace, P(y* | x, z)."""
    console.stdout.print()
    table = Table("model", "trace z", title="P(y* | x, z)", title_justify="left")
    table.add_column("P(y*)", justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    for record in records:
        if "direct" in record:
            table.add_row(console.plain(_name(record)), "none", _probability(record["direct"]["logprob"]), "-")
        for trace in record.get("traces", []):
            cells = (_probability(trace["logprob"]), _number(trace["gain"], "+.3f"))
            table.add_row(console.plain(_name(record)), console.plain(" ".join(trace["trace"].split())), *cells)
    console.stdout.print(table)
