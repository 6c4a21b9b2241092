"""`nrt runs`: what was trained, and what to keep of it."""

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson
from nrt_cli.errors import ConfigError

EXAMPLE = "Example: nrt runs runs/ --method am --status finished"


MEANT = {"compare": "diff", "remove": "rm", "delete": "rm", "tidy": "gc", "clean": "gc"}
"""What a person may call a command."""


class _ListByDefault(TyperGroup):
    """`nrt runs FOLDER` lists; a folder called like a command is `nrt runs list FOLDER`, or `./FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            typed = args and not args[0].startswith("-")
            close = difflib.get_close_matches(args[0], [*self.commands, *MEANT], 1, 0.7) if typed else []
            if close and not Path(args[0]).exists() and not ctx.resilient_parsing:
                meant = MEANT.get(close[0], close[0])
                raise ConfigError(f"{args[0]!r} is no folder and no command of `nrt runs` (did you mean {meant!r}?).")
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    help="List, show, compare (diff), tag, remove (rm), tidy (gc) and export runs; `nrt runs FOLDER` lists.",
    epilog=EXAMPLE,
)

Yes = Annotated[bool, Option("--yes", "-y", help="Do not ask.")]
RunPath = Annotated[Path, Argument(metavar="RUN", autocompletion=completion.runs, help="Run directory.")]
RunPaths = Annotated[list[Path], Argument(metavar="RUN...", autocompletion=completion.runs, help="Run directories.")]


@app.command("list", epilog=f"{EXAMPLE}\n\nOr: nrt runs --where seed=1 --where rollout.group_size=8 --json")
def list_(
    root: Annotated[Path, Argument(metavar="[FOLDER]", help="Folder to look in.")] = Path("runs"),
    method: Annotated[
        list[str] | None, Option(autocompletion=completion.methods, help="Only runs of this method; several: of any.")
    ] = None,
    status: Annotated[
        list[str] | None,
        Option(
            autocompletion=completion.statuses,
            help="Only created, running, stopped, finished, failed or interrupted ones.",
        ),
    ] = None,
    tag: Annotated[list[str] | None, Option(help="Only runs with this tag; several: with all.")] = None,
    where: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="Only runs with this setting.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs: method, status, steps, held-out log P(y*) and gain over the null trace, tags."""
    from nrt_cli.records import Status
    from nrt_cli.workflows.runs import list_runs

    if unknown := set(status or ()) - set(get_args(Status)):
        raise ConfigError(f"--status {min(unknown)}: there is none; choose from {', '.join(get_args(Status))}.")
    records = list_runs(root, method or (), status or (), tag or (), where or ())
    if console.result(records, as_json):
        return
    if not records:
        filtered = method or status or tag or where
        console.note("no run matches." if filtered else "no runs here; start one with `nrt train`.")
        return
    columns = ("run", "method", "status", "step", "log P(y*)", "gain", "tags", "created")
    rows = (
        (
            r["run"], r["title"], r["status"], f"{r['step']}/{r['steps']}", console.number(r["held_out"], ".2f"),
            console.number(r["gain"], "+z.2f"), ", ".join(r["tags"]), r["created"][:10],
        )
        for r in records
    )  # fmt: skip
    caption = "log P(y*), gain over the null trace: held-out, in nats"
    table = console.table(*columns, rows=rows, box=None, padding=(0, 1), caption=caption)
    for column in table.columns:
        column.no_wrap = str(column.header) not in ("run", "tags")
    console.show(table, ("created", "tags", "log P(y*)", "step", "method", "gain", "status"))


@app.command(epilog="Example: nrt runs show runs/am")
def show(run: RunPath, as_json: AsJson = False) -> None:
    """Show one run: settings unlike its preset, scores, evaluations, what it left behind and how large that is."""
    from nrt_cli.store import Run
    from nrt_cli.workflows.runs import describe

    record = describe(Run.open(run))
    if console.result(record, as_json):
        return
    console.stdout.rule(console.plain("{run}: {title}, {status}".format(**record)), style="bold")
    chosen, last = "-", "-"
    if best := record["best"]:
        others = ", ".join(map(str, best["steps"][:-1]))
        among = f"of {others} and {best['steps'][-1]}" if others else "the only stored one that was scored"
        chosen = (
            f"step {best['step']} by {best['measure']}, {among}: {console.number(best['reported'])} on "
            f"{best['reported_rows']} held-out rows; {console.number(best['chosen'])} on the {best['chosen_rows']} "
            "others, which chose it (train.validate_every says how often to score)"
        )
    if record["events"]:
        event = record["events"][-1]
        rest = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "kind"))
        last = f"{event.get('time')} {event.get('kind')}" + (f" ({rest})" if rest else "")
    facts = {
        "steps": f"{record['step']} of {record['steps']}",
        "created": record["created"],
        "tags": ", ".join(record["tags"]) or "-",
        "command": record["command"] or "-",
        "device": ", ".join(f"{key} {value}" for key, value in (record["device"] or {}).items()),
        "versions": ", ".join(f"{key} {value}" for key, value in (record["versions"] or {}).items() if value),
        "checkpoints": ", ".join(map(str, record["checkpoints"])) or "-",
        "best": chosen,
        "analyses": ", ".join(record["analyses"]) or "-",
        "sizes": ", ".join(f"{name} {_bytes(size)}" for name, size in record["sizes"].items()),
        "last event": last,
        "next": record["next"],
    }
    _pairs(None, facts)
    _pairs("settings unlike the preset", dict(record["settings"]))
    for scores in record["held_out_scores"]:
        shown = {key: console.number(value) for key, value in scores.items() if key not in ("kind", "step")}
        _pairs(f"held-out scores after step {scores['step']}", shown)
    if measures := record["held_out_measures"]:
        pairs = "/".join(dict.fromkeys(str(one["after"]["n"]) for one in measures))
        texts = ((one["title"], one["text"]) for one in measures)
        table = console.table(
            "", ">before", ">after", ">change",
            rows=((title, of["before"].partition(" ")[0], of["after"], of["change"]) for title, of in texts),
            title="held-out pairs, before and after training", title_justify="left", title_style="bold",
            caption=f"{pairs} held-out pairs; [95 % intervals] over them; nats; accuracies in percent",
            caption_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False,  # fits 80 columns
        )  # fmt: skip
        console.stdout.print(table)
    evaluations = {}
    for e in record["evaluations"]:
        score, error = (console.number(e[key], ".3f") for key in ("score", "error"))
        evaluations[f"{e['benchmark']} ({e['of']}, {e['backend']})"] = f"{score} ± {error}, n {e['n']}"
    _pairs("evaluations", evaluations)
    metrics = {key: console.number(value) for key, value in record["metrics"].items()}
    _pairs("training, mean of the last 10 steps", metrics)


def _pairs(title: str | None, pairs: dict[str, Any]) -> None:
    """Names and values in two columns; nothing where there are none."""
    if pairs:
        style: dict[str, Any] = {"box": None, "show_header": False, "padding": (0, 2), "title_justify": "left"}
        console.stdout.print(console.table("", "", rows=pairs.items(), title=title, title_style="bold", **style))


def _bytes(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


@app.command(epilog="Example: nrt runs diff runs/am runs/ws-neg-log-p")
def diff(runs: RunPaths, as_json: AsJson = False) -> None:
    """Compare runs: settings, inputs and versions that differ, and every score; of two runs, the difference too."""
    from nrt_cli.workflows.runs import compare_runs

    if len(runs) < 2:
        raise ConfigError("name two runs or more to compare.")
    found = compare_runs(runs)
    if console.result(found, as_json):
        return
    titles = {
        "settings": "settings",
        "origins": "inputs, versions and machine",
        "metrics": "scores; of training metrics, the mean of the last 10 steps",
    }
    for part, title in titles.items():
        rows, extra = [], ["difference"] if part == "metrics" and len(runs) == 2 else []
        for row in found[part]:
            rows.append([row["key"], *(console.number(value)[:40] for value in row["values"])])
            if extra:
                a, b = row["values"]
                rows[-1].append("-" if a is None or b is None else f"{b - a:+.4g}")
        table = console.table("", *found["runs"], *extra, rows=rows, title=title, title_justify="left")
        console.stdout.print(table if rows else f"{title}: no differences")


@app.command(epilog="Example: nrt runs tag runs/am baseline paper --remove draft")
def tag(
    run: RunPath,
    tags: Annotated[list[str] | None, Argument(metavar="[TAG]...", help="Tags to add.")] = None,
    remove: Annotated[list[str] | None, Option(help="Tag to take away.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tag a run; without tags, show those it has."""
    from nrt_cli.store import Run
    from nrt_cli.store.housekeeping import set_tags, tags_of

    opened = Run.open(run)
    if blank := [name for name in tags or () if not name.strip() or "," in name]:
        raise ConfigError(f"{blank[0]!r}: a tag is a word without commas.")
    if tags or remove:
        set_tags(opened, (set(tags_of(opened)) | set(tags or ())) - set(remove or ()))
    found = {"run": str(run), "tags": tags_of(opened)}
    console.result(found, as_json, lambda _: console.stdout.print(console.plain(", ".join(found["tags"]) or "no tags")))


@app.command(epilog="Example: nrt runs rm runs/first")
def rm(runs: RunPaths, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete runs with all that is in them. Asks first; a run in training is refused."""
    from nrt_cli.store import Run
    from nrt_cli.store.housekeeping import remove_run, size_of

    opened = [Run.open(path) for path in runs]
    sizes = [size_of(run.path) for run in opened]
    for run, size in zip(opened, sizes, strict=True):
        console.note(f"{run.path}: {run.manifest()['method']}, {_bytes(size)}")
    _ask(f"Delete {len(runs)} run{'s' if len(runs) > 1 else ''}, {_bytes(sum(sizes))}, for good?", yes)
    for run in opened:
        remove_run(run)
    done = {"removed": [str(run.path) for run in opened], "bytes": sum(sizes)}
    console.result(done, as_json, lambda _: console.note(f"deleted, {_bytes(sum(sizes))} freed."))


def _ask(question: str, yes: bool) -> None:
    """Go on only after a yes, which a script has to give beforehand."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to be asked; add --yes.")
    typer.confirm(question, abort=True, err=True)


@app.command(epilog="Example: nrt runs gc runs/ --dry-run")
def gc(
    root: Annotated[Path, Argument(metavar="[FOLDER]", help="Folder to look in.")] = Path("runs"),
    checkpoints: Annotated[
        bool,
        Option(
            "--checkpoints",
            help="Also checkpoints of finished runs, which RUN@STEP and going on need, and states of failed steps.",
        ),
    ] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would go.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Free space: what killed processes left half-written, and models of checkpoints, made again on demand."""
    from nrt_cli.store import find_runs
    from nrt_cli.store.housekeeping import sweep, sweepable

    found = list(sweepable(root, find_runs(root), checkpoints))
    total = sum(item.size for item in found)
    for item in found:
        console.note(f"{item.path}: {item.what}, {_bytes(item.size)}")
    if found and not dry_run:
        _ask(f"Delete {len(found)} of these, {_bytes(total)}, for good?", yes)
        sweep(found)
    record = {"items": [{"path": str(i.path), "what": i.what, "bytes": i.size} for i in found], "deleted": not dry_run}
    done = "nothing to free." if not found else f"{_bytes(total)} {'could be' if dry_run else 'was'} freed."
    console.result(record, as_json, lambda _: console.note(done))


@app.command(epilog="Example: nrt runs check runs/")
def check(
    root: Annotated[Path, Argument(metavar="[FOLDER]", help="A run, a study, or a folder of them.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Read every file of runs and hold it against its checksum; what is damaged is named, and the exit status is 1."""
    from nrt_cli.errors import StoreError
    from nrt_cli.workflows.runs import check as look

    if not root.is_dir():
        raise StoreError(f"{root}: no such folder.")
    faults = look(root)
    if not console.result(list(map(vars, faults)), as_json):
        for fault in faults:
            console.say(fault.what)
        console.note(f"{root}: {len(faults)} damaged." if faults else f"{root}: all is as it was written.")
    if faults:
        raise typer.Exit(1)


@app.command(
    epilog="Example: nrt runs export runs/am --out shared.tar.gz\n\nOr: nrt runs export runs/ --out metrics.csv"
)
def export(
    runs: Annotated[
        list[Path], Argument(metavar="RUN...", autocompletion=completion.runs, help="Runs, or folders of runs.")
    ],
    out: Annotated[Path, Option(help=".tar.gz: an archive that unpacks to runs, without weights; .csv: all metrics.")],
    model: Annotated[bool, Option("--model", help="The trained models too (.tar.gz).")] = False,
    as_json: AsJson = False,
) -> None:
    """Write runs to one file, to send or to read elsewhere."""
    from nrt_cli.store.files import write_report
    from nrt_cli.store.housekeeping import write_archive
    from nrt_cli.workflows.runs import chosen_runs, metrics_csv

    archive = out.name.endswith((".tar.gz", ".tgz"))
    if not archive and (out.suffix != ".csv" or model):
        raise ConfigError(f"{out}: name a .tar.gz{', which --model needs' if model else ' or a .csv'} file with --out.")
    chosen = chosen_runs(runs)
    if archive:
        size = write_archive(chosen, out, model)
    else:
        size = write_report(out.parent, {out.name: metrics_csv(chosen)})[0].stat().st_size
    record = {"file": str(out), "runs": [str(run.path) for run in chosen], "bytes": size}
    console.result(record, as_json, lambda _: console.note(f"{out}: {len(chosen)} run(s), {_bytes(size)}"))
