"""`nrt score`: what a trace does for each token of an answer, and what every scheme makes of it."""

import json
import math
from typing import Annotated, Any

from rich.padding import Padding
from rich.text import Text
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson

EXAMPLE = "Example: nrt score runs/am --question 'What is 12 + 30?' --answer '42' --samples 4"

TOKEN_ROWS = 40
STOPS = {"end": "ended by itself", "eos": "ended by eos or t_start", "cap": "cut at the cap", "given": "given"}


def score(
    models: Annotated[
        list[str],
        Argument(
            metavar="MODEL...",
            autocompletion=completion.models,
            help="RUN, RUN@STEP, RUN@best, folder or builtin:NAME.",
        ),
    ],
    question: Annotated[str, Option(help="The question x.")],
    answer: Annotated[str, Option(help="The reference answer y*.")],
    trace: Annotated[list[str] | None, Option(help="A trace z; several make a group.")] = None,
    samples: Annotated[
        int | None, Option(min=1, help="Else traces sampled by each model that thinks; default: its group size.")
    ] = None,
    tokens: Annotated[bool, Option("--tokens", help="Also show the numbers of each answer token.")] = False,
    scheme: Annotated[
        list[str] | None,
        Option(help="Methods, module:function or module:Class too; default: all built in, and the run's own."),
    ] = None,
    max_trace_tokens: Annotated[int | None, Option(min=1, help="Cap on traces; default: the run's own.")] = None,
    temperature: Annotated[float | None, Option(min=0.01, help="Of sampling; default: the run's own.")] = None,
    seed: Annotated[int | None, Option(min=0, help="Seed of sampling; default: 0.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score an answer given traces, token by token and under every scheme (Table 9)."""
    from nrt_cli.records import json_line
    from nrt_cli.workflows.scoring import score_answer

    how = (trace or (), samples, max_trace_tokens, temperature, seed, scheme or ())
    found = [score_answer(model, question, answer, *how) for model in models]
    # Through the line form, in which what is not finite is null.
    records = [json.loads(json_line(each)) for each in found]
    console.result(records, as_json, lambda _: _show(found, tokens))


def _show(records: list[dict[str, Any]], tokens: bool) -> None:
    from nrt_cli.measures.held_out import probability  # numpy

    out = console.stdout
    bare: dict[str, Any] = {"box": None, "padding": (0, 1, 0, 0), "header_style": "dim"}
    legend = Text("gain of each answer token in nats: ", style="dim")
    for gain in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0):
        legend.append(f" {gain:+.0f} ", style=_shade(gain))
    summary: list[tuple[str, ...]] = []
    for record in records:
        name = record["model"] + (f" ({record['title']})" if record["title"] else "")
        out.rule(console.plain(name), style="bold")
        if "direct" in record:
            out.print(_headline("answered directly", record["direct"]["logprob"]))
            summary.append((name, "none", probability(record["direct"]["logprob"]), "-"))
        if "traces" not in record:
            continue
        out.print(_headline("null trace", record["null"]["logprob"]))
        out.print(legend)
        for k, trace in enumerate(record["traces"], 1):
            schemes, gains, text = trace["schemes"], trace["gains"], trace["trace"]
            found = (probability(trace["logprob"]), console.number(trace["gain"], "+z.3f"))
            summary.append((name, " ".join(text.split()), *found))
            out.print()
            title = f"trace {k} of {len(record['traces'])} ({trace['trace_tokens']} tokens, {STOPS[trace['stop']]})"
            out.print(_headline(title, trace["logprob"], trace["gain"]))
            out.print(Padding(console.plain(text.strip() or "(empty)"), (0, 2)), style="cyan")
            shaded = Text()  # the answer; line ends are shown, since they are tokens too
            for token, gain in zip(record["tokens"], gains, strict=True):
                shown = console.plain(token.replace("\n", "⏎\n"))
                # A line's end has no ground of its own: shade what is visible of it.
                shown.stylize(_shade(gain), 0, len(shown.plain.rstrip("\n")))
                shaded.append_text(shown)
            out.print(Padding(shaded, (0, 2)))
            rows: list[Any] = []
            for scheme, of in schemes.items():
                advantage = "dead" if of["dead_group"] else console.number(of["advantage"], "+z.3f")
                rewards = map(console.number, (of["reward"], of["reward_base"], of["clipped"]))
                rows.append((scheme, *rewards, advantage))
            columns = ["scheme", ">R", ">R_base", ">R' clipped", ">advantage"]
            out.print(Padding(console.table(*columns, rows=rows, **bare), (1, 2)))
            if tokens:
                rest = len(gains) - TOKEN_ROWS
                which = f"; the {TOKEN_ROWS} with the largest gains or losses, --json has all" if rest > 0 else ""
                heading = f"  c, c_base, gain (nats) and token signal (df/dc) c of each answer token{which}"
                out.print(heading, style="bold")
                largest = sorted(range(len(gains)), key=lambda i: -_size(gains[i]))[:TOKEN_ROWS]
                rows = [
                    (
                        record["tokens"][i].replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥"),
                        console.number(trace["c"][i], ".4f"),
                        console.number(record["null"]["c"][i], ".4f"),
                        console.number(gains[i], "+z.2f"),
                        *(console.number(of["token_signals"][i], ".3g") for of in schemes.values()),
                    )
                    for i in sorted(largest)
                ]
                columns = ["token", ">c", ">c_base", ">gain", *(f">{scheme}" for scheme in schemes)]
                out.print(Padding(console.table(*columns, rows=rows, **bare), (0, 2, 1, 2)))
    if sum(len(record.get("traces", "-")) for record in records) > 1:
        # Table 9: model, trace, P(y* | x, z).
        columns = ["model", "trace z", ">P(y*)", ">gain"]
        table = console.table(*columns, rows=summary, title="P(y* | x, z)", title_justify="left")
        for column in table.columns[2:]:
            column.no_wrap = True
        out.print()
        out.print(table)


def _headline(title: str, logprob: float, gain: float = math.nan) -> Text:
    from nrt_cli.measures.held_out import probability  # numpy

    text = Text(title, style="bold")
    told = f"  P(y*) = {probability(logprob)}, log P(y*) = {console.number(logprob, '.3f')} nats"
    return text.append(told + (f", gain {gain:+.3f}" if math.isfinite(gain) else ""), style="not bold")


def _size(gain: float) -> float:
    """How large a gain or loss is; one that is no number is none."""
    return abs(gain) if math.isfinite(gain) else 0.0


def _shade(gain: float) -> str:
    """Green for a gain, red for a loss, white for neither; text stays dark on all of them."""
    # A full shade means 3 nats: the probability is 20 times, or a 20th of, that without a trace.
    share, target = min(1.0, _size(gain) / 3), (46, 139, 87) if gain > 0 else (200, 60, 50)
    red, green, blue = (round(255 + (channel - 255) * share) for channel in target)
    return f"rgb(0,0,0) on rgb({red},{green},{blue})"
