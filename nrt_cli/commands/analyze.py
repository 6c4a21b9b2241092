"""`nrt analyze`: what happened in runs, as a table, its figure and their files: a report of one section."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson, no_effect
from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from nrt_analysis.document import Document

app = typer.Typer(help="Tables and figures of what runs left behind.", no_args_is_help=True)

Out = Annotated[Path | None, Option(help="Folder for the files; by default analysis/NAME in the (first) run.")]
Seed = Annotated[int, Option(min=0, help="Seed of the choice of examples and of sampling.")]


def deliver(document: "Document", out: Path | None, first: Path, as_json: bool) -> None:
    """Store a section and print it: its table and its notes, or all of it as JSON."""
    from nrt_analysis.formats import write

    from nrt_cli.commands.report import show_document

    written = write(document, out or first / "analysis" / document.section, ("csv", "md"))
    record = document.record() | {"files": [str(path) for path in written]}
    said = f"Written to {written[0].parent}: {', '.join(path.name for path in written)}"
    console.result(record, as_json, lambda _: show_document(document, document.tables, said))


@app.command(epilog="Example: nrt analyze dynamics runs/am runs/ws-neg-log-p")
def dynamics(
    runs: Annotated[list[Path], Argument(metavar="RUN...", autocompletion=completion.runs, help="Run directories.")],
    window: Annotated[int, Option(min=1, help="Steps that the thick lines average.")] = 10,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Trace entropy, length, repetition, forced ends, gain and dead groups by step (Fig. 2a-d); where they collapse."""
    from nrt_analysis.dynamics_report import dynamics as find
    from nrt_analysis.frames import open_runs

    deliver(find(open_runs(runs), window), out, runs[0], as_json)


@app.command(epilog="Example: nrt analyze vocab runs/ws-neg-log-p@400-500")
def vocab(
    run: Annotated[
        str,
        Argument(
            metavar="RUN[@STEPS]", autocompletion=completion.runs, help="A run; @30, @0,30 or @10-20 are its steps."
        ),
    ],
    held_out: Annotated[bool, Option("--held-out", help="Held-out traces instead of training's.")] = False,
    stop_words: Annotated[Path | None, Option(help="File of stop words, one a line; default: English ones.")] = None,
    top: Annotated[int, Option(min=1, max=30, help="Words ranked in each direction.")] = 12,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Words that traces use more and less than the reference answers, and two word clouds (Fig. 4)."""
    from nrt_analysis import vocabulary_report as room
    from nrt_analysis.frames import HELD_OUT, STEP

    from nrt_cli.store import Reference

    reference = Reference.parse(run)
    stop = room.STOPWORDS
    if stop_words:
        try:
            stop = set(stop_words.read_text(encoding="utf-8").lower().split())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{stop_words}: no stop words can be read there ({error}).") from None
    found = room.vocabulary(reference, HELD_OUT if held_out else STEP, stop, top)
    deliver(found, out, reference.path, as_json)


@app.command(epilog="Example: nrt analyze cases runs/sft runs/am runs/ws-neg-log-p --generate --n 2")
def cases(
    runs: Annotated[
        list[str], Argument(metavar="RUN[@STEP]...", autocompletion=completion.runs, help="Runs to compare.")
    ],
    n: Annotated[int | None, Option("--n", min=1, help="Questions; default: 3.")] = None,
    training: Annotated[bool, Option("--training", help="Training's traces instead of held-out ones.")] = False,
    generate: Annotated[bool, Option("--generate", help="Let the models think and answer now, greedily.")] = False,
    question: Annotated[list[str] | None, Option(help="Ask this instead; implies --generate.")] = None,
    max_tokens: Annotated[int | None, Option(min=1, help="Cap on a generated trace and answer; default: 256.")] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The same questions across runs, side by side (Table 10): stored traces, or traces and answers made now."""
    from nrt_analysis import case_report as room
    from nrt_analysis.frames import HELD_OUT, STEP, labels_of

    from nrt_cli.store import Reference

    references = [Reference.parse(run) for run in runs]
    kind = STEP if training else HELD_OUT
    if question and (n or training):
        raise ConfigError("--n and --training have no effect with --question, which says what to ask.")
    if not (generate or question):
        if max_tokens:
            raise ConfigError("--max-tokens has no effect on stored traces; add --generate.")
        deliver(room.stored_cases(references, kind, n or 3), out, references[0].path, as_json)
        return
    from nrt_cli.workflows.generate import generate_cases

    asked = question or room.stored_questions(references, n or 3, kind)
    models = dict(zip(labels_of(references), runs, strict=True))
    cap = max_tokens or 256
    rows = generate_cases(models, asked, cap, cap, console.note)
    how = f"generated greedily, at most {cap} tokens of trace and of answer"
    deliver(room.generated_cases(rows, how), out, references[0].path, as_json)


@app.command(epilog="Example: nrt analyze tokens --baseline runs/sft --runs runs/am runs/ws-neg-log-p")
def tokens(
    more: Annotated[
        list[str] | None, Argument(metavar="[RUN]...", autocompletion=completion.runs, help="More of --runs.")
    ] = None,
    baseline: Annotated[str, Option(help="An SFT run: RUN, RUN@STEP or a model folder.")] = "",
    runs: Annotated[list[str] | None, Option(help="Runs to compare with it.")] = None,
    data: Annotated[Path | None, Option(help="Pairs to score; default: held-out ones of the baseline.")] = None,
    n: Annotated[int, Option("--n", min=1, help="Examples scored, at random.")] = 200,
    max_trace_tokens: Annotated[int | None, Option(min=1, help="Cap on traces; default: each run's own.")] = None,
    width: Annotated[float, Option(min=0.01, help="Width of a bin of H_SFT, in nats.")] = 0.5,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Probability of ground-truth tokens against the SFT model's entropy (Fig. 3, Sec. 4.4)."""
    if not baseline:
        raise ConfigError("name the SFT run that the others are compared with: --baseline RUN.")
    from nrt_analysis.token_report import token_report

    from nrt_cli.progress import counted
    from nrt_cli.workflows.scoring import default_folder, score_tokens

    folder = out or default_folder(baseline, "tokens")
    with counted("examples") as report:
        scored = score_tokens(baseline, [*(runs or []), *(more or [])], folder, report, data, n, seed, max_trace_tokens)
    deliver(token_report(scored, width), folder, folder, as_json)


@app.command(epilog="Example: nrt analyze xray runs/am")
def xray(
    model: Annotated[
        str,
        Argument(metavar="RUN|MODEL", autocompletion=completion.models, help="RUN, RUN@STEP, folder or builtin:NAME."),
    ],
    traces: Annotated[
        str | None, Option(help="Trace table of the run; default: the held-out traces of each checkpoint kept.")
    ] = None,
    data: Annotated[Path | None, Option(help="Pairs that the model samples traces for instead.")] = None,
    question: Annotated[str | None, Option(help="A single question x, with --answer.")] = None,
    answer: Annotated[str | None, Option(help="Its reference answer y*.")] = None,
    trace: Annotated[list[str] | None, Option(help="A trace z of it; without any, the model samples some.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Traces of each table, or pairs; default: 100.")] = None,
    unit: Annotated[
        Literal["sentence", "word"] | None,
        Option(help="What a step is; default: a sentence, a word where most traces are one sentence."),
    ] = None,
    max_steps: Annotated[int, Option(min=2, help="A trace of more has neighbours joined.")] = 32,
    samples: Annotated[
        int | None, Option(min=1, help="Traces sampled of a question; default: 1, of --question the group size.")
    ] = None,
    max_trace_tokens: Annotated[
        int | None, Option(min=1, help="Cap on sampled traces; default: the run's own.")
    ] = None,
    temperature: Annotated[float | None, Option(min=0.01, help="Of sampling; default: the run's own.")] = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Which steps of a trace the answer needs, when it is decided, and whether it was computed or smuggled in."""
    if (question is None) != (answer is None):
        raise ConfigError("a single question needs both: --question and --answer.")
    sampling: dict[str, Any] = {"samples": samples, "max_trace_tokens": max_trace_tokens, "temperature": temperature}
    if question is None:
        no_effect("without --question", trace=trace or None)
    else:
        no_effect("with --question", data=data, limit=limit)
    if data is not None or question is not None:
        no_effect("where traces are sampled or given", traces=traces)
    if trace or (data is None and question is None):
        no_effect("on traces that are there; --data FILE, or --question without --trace, samples some", **sampling)
    from nrt_analysis.xray_report import xray_report

    from nrt_cli.progress import counted
    from nrt_cli.workflows.scoring import default_folder
    from nrt_cli.workflows.xray import xray as look

    folder = out or default_folder(model, "xray")
    asked = None if question is None or answer is None else (question, answer, trace or ())
    with counted("traces") as report:
        found = look(model, folder, report, traces, data, asked, limit or 100, unit, max_steps, seed, **sampling)
    deliver(xray_report(found), folder, folder, as_json)


@app.command(epilog="Example: nrt analyze schemes runs/am --scheme gm --scheme my_rewards:median")
def schemes(
    bank: Annotated[
        Path,
        Argument(metavar="RUN|BANK", autocompletion=completion.runs, help="A run, a trace table or a folder of them."),
    ],
    scheme: Annotated[
        list[str] | None,
        Option(
            help="Methods, two at least, module:function or module:Class too; default: all built in, and the run's."
        ),
    ] = None,
    n: Annotated[int, Option("--n", min=1, help="Groups used, evenly spaced.")] = 500,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Every scheme on one stored bank of rollouts: what each would reward, before paying for training."""
    from nrt_analysis.scheme_report import scheme_report

    from nrt_cli.progress import counted
    from nrt_cli.workflows.scoring import score_schemes

    with counted("tables") as report:
        rows, method = score_schemes(bank, report, scheme or (), n)
    home = bank if bank.is_dir() else bank.parent
    deliver(scheme_report(rows, str(bank), method), out, home, as_json)
