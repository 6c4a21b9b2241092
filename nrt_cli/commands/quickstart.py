"""`nrt quickstart`: watch a model learn to think, beside two that do not, in minutes and with nothing prepared."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commandline import nrt
from nrt_cli.commands.config import AsJson, Overrides
from nrt_cli.commands.view import has_screen
from nrt_cli.errors import ConfigError
from nrt_cli.methods import METHODS, PAPER

EXAMPLE = "Example: nrt quickstart"

QUESTION = "Q : 2 + 7 + 5 + 8 ?"
QUESTION_REAL = "Mia buys 3 pens at 4 dollars each and 5 cups at 6 dollars each. How much does she pay in dollars?"

NEXT = """What to try next
  {generate}
                                                       let it think about a sum of yours
  {scheme}
                                                       the same with another scheme ({title})
  nrt reproduce laptop                                 all schemes, three seeds each
The same with a real language model
  nrt quickstart --real                                says first what it takes; any hub id, folder or GGUF file does
With your own questions and answers
  nrt data prepare QA.jsonl --out data/mine --validation 64
  nrt model prepare builtin:smollm2-135m --out models/smollm2      or a hub id, a folder, a GGUF file
  nrt doctor laptop --model models/smollm2 --data data/mine/train.parquet
  nrt train laptop --model models/smollm2 --data data/mine/train.parquet --run runs/mine"""

NEXT_REAL = """What to try next
  {generate}
  {chat}
{more}  nrt reproduce real --dry-run                         all methods, three seeds each: what that takes
With your own questions and answers
  nrt data prepare QA.jsonl --out data/mine --validation 64 --suffix 'Answer with one short sentence.'
  {train}"""


def quickstart(
    model: Annotated[
        str | None,
        Argument(
            help="With --real: a hub id, folder, GGUF file or built-in model in place of Qwen2.5-Coder-0.5B-Instruct."
        ),
    ] = None,
    real: Annotated[bool, Option("--real", help="A real language model, on word problems.")] = False,
    arms: Annotated[str | None, Option(help="Some of sft,control,nrt; default: all, with --real nrt.")] = None,
    folder: Annotated[
        Path | None, Option(help="Where runs and page go; default: quickstart, or quickstart-real.")
    ] = None,
    overrides: Overrides = None,
    show: Annotated[
        bool, Option("--open/--no-open", help="Open the page in a browser, where there is a screen.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Train a model in up to three ways and show what thinking adds. An interrupted one goes on.

    SFT learns the answers, the control thinks without being rewarded for it, and NRT finds out from questions and
    answers alone that working helps. A tiny model adds four digits, of which the last counts; with --real, a language
    model works word problems out.
    """
    from nrt_cli.checks.estimate import in_bytes
    from nrt_cli.commands.report import make_report, require_packages
    from nrt_cli.progress import Race, print_json_line
    from nrt_cli.workflows import quickstart as workflow

    if model is not None and not real:
        raise ConfigError(f"{model}: a model is named with --real: `{nrt('quickstart', '--real', model)}`.")
    require_packages()
    folder = folder or Path("quickstart-real" if real else "quickstart")
    names = [name.strip() for name in (arms or "").split(",") if name.strip()]
    recipe = workflow.REAL if real else workflow.DIGITS
    start = workflow.choose(recipe, folder, overrides or (), model, names)
    if real and (expected := workflow.expect(start)):
        if as_json:
            print_json_line({"kind": "expected", **expected})
        else:
            fetch = f"{in_bytes(expected['fetch'])} to fetch" if expected["fetch"] else "nothing to fetch"
            console.note(
                f"{expected['model']}: {expected['parameters'] / 1e6:,.0f} million parameters, {fetch}; "
                f"{in_bytes(expected['disk'])} of disk ({in_bytes(expected['free_disk'])} free), about "
                f"{in_bytes(expected['memory'])} of memory ({in_bytes(expected['free_memory'])} free), computed in "
                f"{expected['dtype']}"
            )
            if expected["memory"] > expected["free_memory"]:
                console.warn(
                    "that may be more than the memory that is free; a smaller model or --set "
                    "train.micro_batch_tokens=1024 takes less."
                )
            each = [
                f"{title} {training:.0f} minutes of training"
                + (f" and {scores:.0f} of held-out scores" if scores == scores else "")
                for title, training, scores in expected["arms"]
                if training == training
            ]
            if each:
                console.note(
                    f"about {'; '.join(each)}, estimated from {expected['rate'] / 1e9:,.0f} GFLOP/s of this machine's "
                    "matrix products; measured after two steps. Ctrl-C saves, the same command goes on."
                )
    outcome = workflow.quickstart(start, partial(Race, as_json))
    page = make_report(outcome["runs"], folder / "report", ["html"])[1][0]
    if as_json:
        runs = [str(run) for run in outcome["runs"]]
        print_json_line({"kind": "summary", **outcome, "runs": runs, "report": str(page)})
        return
    # The table, in pairs what thinking adds, and one question's traces.
    rows = [(row["title"], *map(_percent, row["accuracies"])) for row in outcome["rows"]]
    style: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "pad_edge": False, "title_style": "bold"}
    title = "Held-out questions answered right, in percent [95 % intervals]"
    columns = [f">{measure.title.removeprefix('accuracy, ')}" for measure in workflow.KINDS]
    console.stdout.print(console.table("", *columns, rows=rows, title=title, title_justify="left", **style))
    guessed = "" if recipe.chance is None else f"; chance is {100 * recipe.chance:.0f}"
    console.say(
        f"n = {outcome['questions']} held-out questions, greedy answers, one seed{guessed}.\n"
        "Without a trace an answer may be longer by a trace, so what learned to work may do so there; another row's "
        "trace leaves it no room."
    )
    added = [
        f"{measure.title.removeprefix('thinking - ')} {_percent(found, '+')}"
        for measure, found in zip(workflow.MORE, outcome["rows"][-1]["more"], strict=True)
        if found
    ]
    title = outcome["rows"][-1]["title"]
    if added:
        console.say(
            f"{title}, thinking less than the same model with another or no trace, question by question: "
            f"{'; '.join(added)}."
        )
    console.say(f"Training took {outcome['seconds'] / 60:.1f} minutes, scoring aside.")
    if outcome["traces"]:
        console.stdout.print(f"\n[bold]What {title} thinks of the first held-out question[/bold] (not chosen)")
        console.say(f"  {outcome['question'].strip()}   reference: {outcome['reference'].strip()}")
        for said in outcome["traces"]:
            line = console.plain(f"  step {said['step']:>3}  {' '.join(said['trace'].split()) or '(nothing)'}")
            line.stylize("cyan" if said["right"] else "dim")
            line.append(f"  -> {' '.join(said['reply'].split())} {'(right)' if said['right'] else '(wrong)'}")
            console.stdout.print(line, soft_wrap=True)
    console.say(f"\nAll of it as a page: {page}")
    if show and has_screen():
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    last = start.arms[-1]
    if not real:
        other = METHODS[next(name for name in PAPER[2:] if name != last.config.method)]
        beside = folder.with_name(f"{folder.name}-{other.name}")
        another = nrt("quickstart", "--folder", beside, "--set", f"method={other.name}")
        console.say(
            "\n"
            + NEXT.format(generate=nrt("generate", outcome["runs"][-1], QUESTION), scheme=another, title=other.title)
        )
        return
    missing = nrt("quickstart", "--real", "--folder", folder, "--arms", ",".join(recipe.arms))
    mine = ("--data", "data/mine/train.parquet", "--validation", "data/mine/validation.parquet", "--run", "runs/mine")
    following = NEXT_REAL.format(
        generate=nrt("generate", last.path, QUESTION_REAL),
        chat=nrt("chat", last.path),
        more="" if {arm.name for arm in start.arms} >= set(recipe.arms) else f"  {missing}\n",
        train=nrt("train", "real", "--model", Path(last.config.model.path), *mine),
    )
    console.say(f"\n{following}")


def _percent(found: Any, sign: str = "") -> str:
    """A share with its interval; a dash where it was not measured."""
    if found is None:
        return "-"
    value, low, high = (format(100 * found[key], f"{sign}.0f") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
