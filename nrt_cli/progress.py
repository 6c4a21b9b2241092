"""What a person or a script sees while training runs: a live panel, plain lines, or JSON lines.

All three take the same events, so the training loop does not know which one is watching.
"""

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from rich import progress as widgets
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nrt_cli import console, methods
from nrt_cli.records import ACCURACIES, measured

COLUMNS = {
    "loss": ("loss", "loss", "{:.3f}"),
    "reward": ("reward", "reward", "{:.4g}"),
    "gain": ("gain over the null trace (nats)", "gain", "{:+.3f}"),
    "answer_logprob": ("log P(y*) with trace (nats)", "logp", "{:.2f}"),
    "answer_logprob_per_token": ("log P per answer token", "logp/token", "{:.3f}"),
    "trace_length": ("trace length (tokens)", "length", "{:.1f}"),
    "entropy": ("trace entropy (nats)", "entropy", "{:.2f}"),
    "dead_groups": ("dead groups", "dead", "{:.0%}"),
    "forced_share": ("forced ends", "forced", "{:.0%}"),
    "sampler_gap": ("sampler gap (nats)", "gap", "{:.1e}"),
    "tokens_per_second": ("tokens per second", "tok/s", "{:.0f}"),
    "mfu": ("share of the matmul rate", "mfu", "{:.0%}"),
}
"""Metrics worth a person's attention, in reading order: titles on the panel, short names in a line, and how shown."""

WINDOW = 10
"""Steps over which the panel averages: one step's numbers jump with its prompts."""


class Display:
    """What a person sees of some work, while the `with` block lasts."""

    screen: Live | widgets.Progress | None = None
    """What redraws in place, on a terminal."""

    def __enter__(self) -> Self:
        if self.screen:
            self.screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.screen:
            self.screen.stop()

    def note(self, message: str) -> None:
        """Anything else worth saying; one line, however long, so that a log has one line per event."""
        console.note(message)

    def warn(self, message: str) -> None:
        console.warn(message)


class Progress(Display):
    """Plain lines on stderr: for logs, pipes and CI. The other displays override what they show differently."""

    def __init__(self, steps: int, done: int = 0) -> None:
        self.steps, self.done = steps, done
        self.started, self.start_step = time.monotonic(), done

    def step(self, record: dict[str, Any], sample: dict[str, str] | None) -> None:
        """A finished step and one of its traces (prompt, trace, answer), if there is one."""
        self.done = record["step"]
        metrics = ((name, form.format(record[key])) for key, (_, name, form) in COLUMNS.items() if key in record)
        shown = "  ".join(map(" ".join, metrics))
        self.note(f"step {self.done}/{self.steps}  {shown}  eta {self.eta()}")

    def held_out(self, record: dict[str, Any]) -> None:
        # Scoring before the first step says nothing about the pace.
        if self.done == self.start_step:
            self.started = time.monotonic()
        self.show_score("held-out " + describe_held_out(record))

    def show_score(self, text: str) -> None:
        self.note(text)

    def eta(self) -> str:
        taken = self.done - self.start_step
        if not taken:
            return "-"
        return hours((time.monotonic() - self.started) / taken * (self.steps - self.done))


class JsonProgress(Progress):
    """One JSON object per line on stdout; notes go to stderr."""

    def step(self, record: dict[str, Any], sample: dict[str, str] | None = None) -> None:
        print_json_line(record)

    held_out = step


class LiveProgress(Progress):
    """A panel that redraws in place, on a terminal."""

    def __init__(self, steps: int, done: int = 0) -> None:
        super().__init__(steps, done)
        self.first: dict[str, Any] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=WINDOW)
        self.sample: dict[str, str] | None = None
        self.scores: list[str] = []
        self.warnings: list[str] = []
        self.message = "scoring held-out examples, then step 1" if not done else f"going on after step {done}"
        # What others print is shown above the panel, unless it has a file to go to.
        others: Any = dict.fromkeys(("redirect_stdout", "redirect_stderr"), not console.is_quiet())
        self.screen = Live(console=console.stderr, refresh_per_second=4, get_renderable=self._panel, **others)

    def step(self, record: dict[str, Any], sample: dict[str, str] | None) -> None:
        self.done, self.sample = record["step"], sample
        self.first = self.first or record
        self.recent.append(record)
        if self.message.startswith(("scoring", "going on")):
            self.message = ""

    def show_score(self, text: str) -> None:
        # The first stays for comparison.
        self.scores = [*self.scores[:1], text]

    def note(self, message: str) -> None:
        self.message = message

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def _panel(self) -> Panel:
        bar, eta = Table.grid(padding=(0, 1)), "" if self.done == self.steps else f"eta {self.eta()}"
        bar.add_row(f"step {self.done}/{self.steps}", ProgressBar(self.steps, self.done, width=40), eta)
        parts: list[Any] = [bar]
        if recent := list(self.recent):
            rows = []
            for key, (title, _, form) in COLUMNS.items():
                if key in self.first:
                    last = [record[key] for record in recent]
                    rows.append((title, *map(form.format, (self.first[key], sum(last) / len(last), last[-1]))))
            titles = ("", ">first", f">mean of {len(recent)}", ">now")
            parts += [Text(), console.table(*titles, rows=rows, box=None, padding=(0, 3, 0, 0))]
        warned = [Text("warning: ", "yellow").append_text(console.plain(warning)) for warning in self.warnings]
        for said in ([*map(console.plain, self.scores)], warned, [console.plain(self.message)] if self.message else []):
            parts += [Text(), *said] if said else []
        if self.sample:
            parts.append(Text())
            for name, style in (("prompt", "dim"), ("trace", "cyan"), ("answer", "green")):
                parts.append(_Clipped(name, self.sample[name], style))
        return Panel(Group(*parts), title="nrt train")


class _Clipped:
    """Untrusted text after its name, in at most 3 lines of whatever width there is."""

    def __init__(self, name: str, text: str, style: str) -> None:
        self.name, self.text, self.style = name, text, style

    def __rich_console__(self, target: Any, options: Any) -> Any:
        # Newlines are shown as a sign: a trace of blank lines must not push the rest off the screen.
        shown = console.plain(" ".join(self.text.strip().replace("\n", " ⏎ ").split()))
        shown.stylize(self.style)
        lines = list(Text(f"{self.name}: ", style="bold").append_text(shown).wrap(target, options.max_width))
        if len(lines) > 3:
            lines = lines[:3]
            lines[-1].truncate(options.max_width - 4)
            lines[-1].append(" ...", style="dim")
        yield from lines


def describe_held_out(record: dict[str, Any]) -> str:
    text = f"log P(y*) {record['answer_logprob']:.3f}"
    if "null_logprob" in record:
        text += f" with a trace, {record['null_logprob']:.3f} without (gain {record['gain']:+.3f})"
    titles = {f"accuracy_{kind}": title for kind, title in ACCURACIES.items()}
    right = ", ".join(f"{title} {record[key]:.0%}" for key, title in titles.items() if key in record)
    if not right and "perplexity" in record:  # plain text, or answers that nobody grades
        text += f"; perplexity {record['perplexity']:.2f}"
        text += f", {record['null_perplexity']:.2f} without a trace" if "null_perplexity" in record else ""
    return f"after step {record['step']}: {text}" + (f"; right: {right}" if right else "")


def print_json_line(record: Mapping[str, Any]) -> None:
    console.stdout.file.write(json.dumps(measured(record), default=float) + "\n")
    console.stdout.file.flush()


def choose(as_json: bool, steps: int, done: int) -> Progress:
    """JSON for scripts, a live panel on a terminal, plain lines elsewhere."""
    kind = JsonProgress if as_json else LiveProgress if console.stderr.is_terminal else Progress
    return kind(steps, done)


class Race(Display):
    """What a person sees of several runs that are compared, one after another: JSON lines for scripts; on a terminal
    each run's accuracy against time, and a trace of the newest step; elsewhere a line for each score.

    Time is that of a run's own training steps, scoring excluded.
    """

    def __init__(self, as_json: bool, titles: Mapping[str, str], chance: float | None) -> None:
        self.as_json, self.titles, self.chance = as_json, titles, chance
        self.curves: dict[str, list[tuple[float, float]]] = {name: [] for name in titles}
        """By run: seconds of training and held-out accuracy."""
        self.seconds = dict.fromkeys(titles, 0.0)
        self.sample: dict[str, str] | None = None
        self.now, self.pace, self.warnings = "", "", dict[str, None]()
        if console.stderr.is_terminal and not as_json:
            self.screen = Live(console=console.stderr, refresh_per_second=4, get_renderable=self._panel)

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """A record of a run, of this process or of one before."""
        self.seconds[name] += record["seconds"] if record["kind"] == "train" else 0.0
        if (accuracy := _accuracy(record)) is not None:
            self.curves[name].append((self.seconds[name], accuracy))

    def note(self, message: str) -> None:
        if self.screen:
            self.now = message
        else:
            console.note(message)

    def warn(self, message: str) -> None:
        if self.screen:
            self.warnings[message] = None
        else:
            console.warn(message)

    def _panel(self) -> Panel:
        parts: list[Any] = [*map(Text, plot(self.curves, self.chance)), Text()]
        for name, title in self.titles.items():
            curve = self.curves[name]
            parts.append(Text(f"{MARKS.get(name, '*')} {title:<8} " + (f"{curve[-1][1]:4.0%}" if curve else "   -")))
        parts += [Text(), console.plain(self.now), *([console.plain(self.pace)] if self.pace else [])]
        parts += [Text("warning: ", "yellow").append_text(console.plain(warning)) for warning in self.warnings]
        if self.sample:
            parts += [_Clipped("prompt", self.sample["prompt"], "dim"), _Clipped("trace", self.sample["trace"], "cyan")]
        return Panel(Group(*parts), title="nrt quickstart: held-out questions right, by seconds of training")


class RaceProgress(Progress):
    """One run of a race."""

    def __init__(self, race: Race, name: str, steps: int, done: int) -> None:
        super().__init__(steps, done)
        self.race, self.name, self.title, self.scored = race, name, race.titles[name], 0.0
        self.before = race.seconds[name]

    def step(self, record: dict[str, Any], sample: dict[str, str] | None) -> None:
        self.done = record["step"]
        self.race.add(self.name, record)
        self.race.sample = sample
        self._tell(record)
        left, pace = self.steps - self.done, self.race.seconds[self.name] - self.before
        pace /= max(1, self.done - self.start_step)
        if self.done - self.start_step == 2 and left * pace >= 60:  # after two steps, where a minute or more is left
            score = f" (the first took {self.scored / 60:.0f})" if self.scored else ""
            self.race.pace = (
                f"{self.title}: {pace:.0f} s a step as measured, about {left * pace / 60:.0f} minutes for the other "
                f"{left} steps; held-out scores are besides{score}"
            )
            if not self.race.screen:
                console.note(self.race.pace)

    def held_out(self, record: dict[str, Any]) -> None:
        if self.done == self.start_step:
            self.scored = time.monotonic() - self.started
        self.race.add(self.name, record)
        if (accuracy := _accuracy(record)) is not None:
            chance = "" if self.race.chance is None else f" (chance {self.race.chance:.0%})"
            when = f"{self.title:<8} {self.race.seconds[self.name]:5.1f} s of training, step {record['step']:>3}"
            self._tell(record, f"{when}: {accuracy:4.0%} of the held-out questions right{chance}")

    def _tell(self, record: dict[str, Any], line: str = "") -> None:
        if self.race.as_json:
            print_json_line({"arm": self.name, **record})
        elif self.race.screen:
            self.race.now = f"{self.title}, step {record['step']}"
        elif line:
            console.note(line)

    def note(self, message: str) -> None:
        self.race.note(message)

    def warn(self, message: str) -> None:
        self.race.warn(f"{self.title}: {message}")


def _accuracy(record: Mapping[str, Any]) -> float | None:
    """Of what does not think, how it answers."""
    return record.get("accuracy_thinking", record.get("accuracy_direct"))


MARKS = {methods.SUPERVISED.name: "s", methods.CONTROL.name: "c"}
"""What draws the line of each run of a race."""


def plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], chance: float | None, width: int = 60, height: int = 11
) -> list[str]:
    """Shares against time as lines of text, one mark for each curve and, where it is known, a dotted line at chance."""
    longest = max((curve[-1][0] for curve in curves.values() if curve), default=0.0) or 1.0

    def row(share: float) -> int:
        return height - 1 - round(share * (height - 1))

    cells = [[" "] * width for _ in range(height)]
    dotted = None if chance is None else row(chance)
    if dotted is not None:
        cells[dotted] = ["."] * width
    for name, curve in curves.items():
        for (start, low), (end, high) in zip(curve, curve[1:] or curve, strict=False):
            first, last = (round(at / longest * (width - 1)) for at in (start, end))
            for column in range(first, last + 1):
                part = (column - first) / (last - first) if last > first else 1.0
                cells[row(low + part * (high - low))][column] = MARKS.get(name, "*")
    lines = []
    for i, line in enumerate(cells):
        share = f"{1 - i / (height - 1):.0%}" if i % 5 == 0 else ""
        lines.append(f"{share:>5} |{''.join(line)}{' chance' if i == dotted else ''}")
    seconds = f"{longest:.0f} s"
    return [*lines, f"{'':>5} +{'-' * width}", f"{'':>5}  0{seconds:>{width - 1}}"]


def _bars(*columns: widgets.ProgressColumn | str, transient: bool = False) -> widgets.Progress | None:
    """Bars on a terminal, on stderr; None elsewhere, where lines are printed."""
    terminal = console.stderr
    return widgets.Progress(*columns, console=terminal, transient=transient) if terminal.is_terminal else None


class EvalProgress(Display):
    """What a person sees while benchmarks are evaluated: a bar for each, or a few lines."""

    bars: widgets.Progress | None = None

    def __init__(self) -> None:
        counts = (widgets.BarColumn(), widgets.MofNCompleteColumn(), widgets.TimeElapsedColumn())
        left = ("eta", widgets.TimeRemainingColumn())
        self.screen = self.bars = _bars("{task.description:<12}", *counts, *left, "{task.fields[score]}")

    def begin(self, benchmark: str, total: int, done: int) -> None:
        """A benchmark of `total` documents, of which `done` are in the store."""
        self.benchmark, self.total, self.done = benchmark, total, done
        if self.bars:
            self.bar = self.bars.add_task(benchmark, total=total, completed=done, score="")
        elif done == total:
            self.note(f"{benchmark}: all {total} documents are in the store")
        else:
            self.note(f"{benchmark}: {total} documents" + (f", {done} of them in the store" if done else ""))

    def advance(self) -> None:
        """One more document is answered and stored."""
        self.done += 1
        if self.bars:
            self.bars.advance(self.bar)
        # About ten lines for each benchmark, however large it is.
        elif self.done % max(1, self.total // 10) == 0:
            self.note(f"{self.benchmark}: {self.done}/{self.total}")

    def end(self, row: Mapping[str, Any]) -> None:
        score = f"{row['metric']} {100 * row['score']:.1f}"
        if self.bars:
            self.bars.update(self.bar, score=score)
        else:
            self.note(f"{row['benchmark']}: {score} of {row['n']} documents")


@contextlib.contextmanager
def counted(unit: str) -> Iterator[Callable[..., None]]:
    """For work that is counted: call what this gives with what is done, how much of it and, if known, of how much.

    A bar on a terminal, on stderr; elsewhere a line for each tenth, or every ten seconds.
    """
    columns = (widgets.BarColumn(), widgets.MofNCompleteColumn(), widgets.TextColumn(unit))
    bars = _bars(widgets.TextColumn("{task.description}"), *columns, widgets.TimeRemainingColumn(), transient=True)
    started, tasks, tenths = time.monotonic(), dict[str, widgets.TaskID](), dict[str, int]()

    def told(what: str, done: int, total: int | None = None) -> None:
        if bars:
            if what not in tasks:
                tasks[what] = bars.add_task(escape(what), total=total)
            bars.update(tasks[what], completed=done)
            return
        tenth = int(time.monotonic() - started) // 10 if total is None else done * 10 // max(1, total)
        if tenths.get(what, 0 if total is None else -1) != tenth:
            tenths[what] = tenth
            console.note(f"{what}: {done:,} {unit}" if total is None else f"{what}: {done:,} of {total:,} {unit}")

    with bars or contextlib.nullcontext():
        yield told


class StudyProgress(Display):
    """What a person sees of a study's tasks: a bar for each and one for all, or a line for each tenth of all."""

    def __init__(self) -> None:
        texts = ("{task.description:<15}", "{task.percentage:>3.0f} %", "{task.fields[what]}")
        name, share, what = (widgets.TextColumn(text, markup=False) for text in texts)
        self.screen = self.bars = _bars(name, widgets.BarColumn(), share, what)
        self.tasks: dict[str, widgets.TaskID] = {}

    def begin(self, work: Mapping[str, float]) -> None:
        """These tasks come next, each with how much work it is beside the others."""
        self.work, self.shares = work, dict.fromkeys(work, 0.0)
        self.started, self.tenths = time.monotonic(), 0
        if self.bars:
            for task in self.bars.task_ids:
                self.bars.remove_task(task)
            self.tasks = {"": self.bars.add_task(f"{len(work)} tasks" if len(work) > 1 else "", total=1.0, what="")}

    def progress(self, name: str, share: float, what: str) -> None:
        """A task says how much of it is done, and what it does now."""
        self.shares[name] = share
        if self.bars:
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(name, total=1.0, what="")
            self.bars.update(self.tasks[name], completed=share, what=what)
            self.bars.update(self.tasks[""], completed=self._done(), what=f"eta {self.eta()}")
        elif (tenths := int(10 * self._done())) > self.tenths:
            self.tenths = tenths
            self.note(f"{tenths}0 % done, eta {self.eta()}; {name}: {what}")

    def ended(self, name: str, status: str, text: str) -> None:
        self.shares[name] = 1.0
        (self.note if status == "finished" else self.warn)(f"{name}: {status}{': ' if text else ''}{text}")
        if self.bars and name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))

    def eta(self) -> str:
        done = self._done()
        return hours((time.monotonic() - self.started) * (1 - done) / done) if done else "-"

    def _done(self) -> float:
        return sum(self.work[name] * share for name, share in self.shares.items()) / (sum(self.work.values()) or 1.0)


def hours(seconds: float) -> str:
    left = int(seconds)
    return f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}"
