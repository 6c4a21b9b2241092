"""`nrt analyze tokens | leakage | schemes`: analyses that score answers."""

from pathlib import Path
from typing import Annotated

import typer

from nrt_cli.commands import completion
from nrt_cli.commands.analyze import Out, deliver
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import ConfigError

Seed = Annotated[int, typer.Option(min=0, help="Seed of the choice of examples and of sampling.")]


TOKENS = "Example: nrt analyze tokens --baseline runs/sft --runs runs/am runs/ws-neg-log-p"
LEAKAGE = "Example: nrt analyze leakage runs/am"
SCHEMES = "Example: nrt analyze schemes runs/am --scheme gm --scheme my_rewards:median"


def tokens(
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", autocompletion=completion.runs, help="More of --runs.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="An SFT run: RUN, RUN@STEP or a model folder.")] = "",
    runs: Annotated[list[str] | None, typer.Option(help="Runs to compare with it.")] = None,
    data: Annotated[Path | None, typer.Option(help="Pairs to score; default: held-out ones of the baseline.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Examples scored, at random.")] = 200,
    max_trace_tokens: Annotated[int | None, typer.Option(min=1, help="Cap on traces; default: each run's own.")] = None,
    width: Annotated[float, typer.Option(min=0.01, help="Width of a bin of H_SFT, in nats.")] = 0.5,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Probability of ground-truth tokens against the SFT model's entropy (Fig. 3, Sec. 4.4)."""
    if not baseline:
        raise ConfigError("name the SFT run that the others are compared with: --baseline RUN.")
    from nrt_analysis.tokens import token_report

    from nrt_cli.progress import counted
    from nrt_cli.workflows.scoring import default_folder
    from nrt_cli.workflows.tokens import score_tokens

    folder = out or default_folder(baseline, "tokens")
    with counted("examples") as report:
        scored = score_tokens(baseline, [*(runs or []), *(more or [])], folder, report, data, n, seed, max_trace_tokens)
    sft, *others = scored
    tables = {model.label: model.table for model in others}
    deliver(token_report(sft.table, tables, sft.parts, width), folder, folder, as_json)


def leakage(
    run: Annotated[str, typer.Argument(metavar="RUN", autocompletion=completion.runs, help="A run, or RUN@STEP.")],
    traces: Annotated[str | None, typer.Option(help="Trace table; default: the held-out traces of the step.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Traces scored.")] = 200,
    span: Annotated[int, typer.Option(min=1, help="Words in a row that count as copied where they are masked.")] = 1,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Does a trace reason, or smuggle the answer in? Copied n-grams, and the reward of traces tampered with."""
    from nrt_analysis.leakage import leakage_report

    from nrt_cli.progress import counted
    from nrt_cli.workflows.leakage import score_controls
    from nrt_cli.workflows.scoring import default_folder

    folder = out or default_folder(run, "leakage")
    with counted("traces") as report:
        found = score_controls(run, folder, report, traces, n, span, seed)
    deliver(leakage_report(found.table, found.parts, found.method, found.traces, found.span), folder, folder, as_json)


def schemes(
    bank: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|BANK", autocompletion=completion.runs, help="A run, a trace table or a folder of them."
        ),
    ],
    scheme: Annotated[
        list[str] | None, typer.Option(help="Schemes beside each other, module:function too; default: all built in.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Groups used, evenly spaced.")] = 500,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Every scheme on one stored bank of rollouts: what each would reward, before paying for training."""
    from nrt_analysis.schemes import scheme_report

    from nrt_cli.methods import SCHEMES as BUILT_IN
    from nrt_cli.progress import counted
    from nrt_cli.workflows.schemes import open_bank, score_schemes

    opened = open_bank(bank)
    with counted("tables") as report:
        rows = list(score_schemes(opened, report, scheme or BUILT_IN, n))
    home = bank if bank.is_dir() else bank.parent
    deliver(scheme_report(rows, str(bank), opened.method), out, home, as_json)
