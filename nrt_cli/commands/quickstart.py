"""`nrt quickstart`: watch a real pretrained model learn, in minutes, with nothing prepared."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nrt_cli import console
from nrt_cli.commandline import nrt
from nrt_cli.commands.config import AsJson, Overrides
from nrt_cli.commands.runs import measures_table

EXAMPLE = "Example: nrt quickstart"

NEXT = """What to try next
  {generate}
                                                       let it think about a question of yours
  nrt quickstart --folder control --set objective.weights.trace=0
                                                       the control: the same without policy gradient
  nrt quickstart --folder am --set method=am           the same with another scheme (RLPR)
  nrt config diff paper reference                      where the paper and its released code differ
  nrt data prepare QA.jsonl --out data/mine            your own questions and answers; then: nrt train --help"""


def quickstart(
    folder: Annotated[Path, typer.Option(help="Where data, model and run go.")] = Path("quickstart"),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train SmolLM2-135M to think about small sums, and show what it learned. An interrupted one goes on."""
    from nrt_cli.commands.report import make_report, require_packages
    from nrt_cli.progress import choose, print_json_line
    from nrt_cli.workflows.quickstart import quickstart as run_quickstart

    require_packages()
    outcome = run_quickstart(
        folder, console.note, lambda steps, done: choose(as_json, steps, done), tuple(overrides or ())
    )
    page = make_report([folder / "run"], folder / "report", ["html"])[1][0]
    if as_json:
        print_json_line({"kind": "summary", **outcome, "report": str(page)})
    else:
        _show(outcome, folder)
        console.stdout.print(console.plain(f"\nThe whole run as a page, to open in a browser: {page}"), soft_wrap=True)


def _show(data: dict[str, Any], folder: Path) -> None:
    console.stdout.print(measures_table(data["held_out"], "What was learned"))
    examples = data["held_out_after"]["examples"]
    console.stdout.print(f"{data['steps']} steps in {data['seconds'] / 60:.1f} minutes; {examples} questions held out.")
    # There are only 225 sums (`test_quickstart` counts them).
    console.stdout.print("Training has none of these questions, but asks for the same sums in other words.")
    if data["samples"]:
        console.stdout.print("\n[bold]Three held-out questions after training[/bold] (the first three, not chosen)")
    for sample in data["samples"]:
        for name, style in (("question", "dim"), ("trace", "cyan"), ("reference", "green")):
            line = console.plain(f"  {name:<11}{' '.join(sample[name].split())}")
            line.stylize(style)
            console.stdout.print(line)
        console.stdout.print()
    generate = nrt("generate", folder / "run", "What is 9 + 14?")
    console.stdout.print(console.plain(NEXT.format(generate=generate)), soft_wrap=True)
