"""The `nrt` command: registers the commands and is the one error boundary.

Command modules import engines and workflows inside their functions, so that `nrt --help` stays fast.
"""

import os
import sys

import typer

from nrt_cli import __version__, console
from nrt_cli.commands import (
    analyze,
    analyze_scored,
    config,
    data,
    doctor,
    eval,
    generate,
    judge,
    model,
    push,
    quickstart,
    report,
    reproduce,
    runs,
    score,
    train,
)
from nrt_cli.errors import NrtError

app = typer.Typer(
    name="nrt",
    help="Teach a language model to reason from plain question-answer pairs.",
    epilog="Example: nrt quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(name="quickstart", epilog=quickstart.EXAMPLE)(quickstart.quickstart)
app.add_typer(analyze.app, name="analyze")
analyze.app.command(name="tokens", epilog=analyze_scored.TOKENS)(analyze_scored.tokens)
analyze.app.command(name="leakage", epilog=analyze_scored.LEAKAGE)(analyze_scored.leakage)
analyze.app.command(name="schemes", epilog=analyze_scored.SCHEMES)(analyze_scored.schemes)
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.command(name="doctor", epilog=doctor.EXAMPLE)(doctor.doctor)
app.add_typer(eval.app, name="eval")
app.add_typer(model.app, name="model")
app.command(name="train", epilog=train.EXAMPLE)(train.train)
app.command(name="generate", epilog=generate.EXAMPLE)(generate.generate)
app.command(name="judge", epilog=judge.EXAMPLE)(judge.judge)
app.command(name="report", epilog=report.EXAMPLE)(report.report)
app.command(name="reproduce", epilog=reproduce.EXAMPLE)(reproduce.reproduce)
app.command(name="push", epilog=push.EXAMPLE)(push.push)
app.add_typer(runs.app, name="runs")
app.command(name="score", epilog=score.EXAMPLE)(score.score)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nrt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Teach a language model to reason from plain question-answer pairs."""


def main() -> None:
    """Run the app; turn what the user can fix into one sentence and a non-zero exit."""
    # Tokenizers' own threads complain when a process that used them forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except NrtError as error:
        console.stderr.print(console.plain(f"nrt: {error}"), style="red", soft_wrap=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader went away (`nrt ... | head`): not an error. Point stdout elsewhere so that exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
