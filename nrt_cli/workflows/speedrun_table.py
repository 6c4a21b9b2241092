"""The table of speedruns: entries of one program, settings and set-up are a row, the rows of one machine a table."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from nrt_cli.commandline import pasted, settings
from nrt_cli.config.speedrun import TRACKS, Entry


@dataclass(frozen=True)
class Standing:
    """What one program, with one set of settings, needs on one machine: an entry for each seed."""

    track: str
    machine: str
    entries: tuple[Entry, ...]

    @property
    def minutes(self) -> float:
        """The median over the seeds; one that never got there took for ever."""
        return median(math.inf if entry.minutes is None else entry.minutes for entry in self.entries)


def standings(entries: Sequence[Entry]) -> list[Standing]:
    """Rows by track and machine, the quickest first."""

    def row(entry: Entry) -> tuple[str, ...]:
        told = json.dumps(entry.settings, sort_keys=True)
        return (
            entry.track,
            entry.machine.name,
            entry.machine.setup,
            str(entry.commit),
            str(entry.clean),
            told,
            entry.note,
        )

    found = []
    for (track, machine, *_), same in groupby(sorted(entries, key=row), row):
        found.append(Standing(track, machine, tuple(sorted(same, key=lambda entry: entry.seed))))
    order = list(TRACKS)
    return sorted(found, key=lambda row: (order.index(row.track), row.machine, row.minutes, -len(row.entries)))


def markdown(rows: Sequence[Standing]) -> str:
    """All tables, or a sentence where there is no entry."""
    return "\n".join(_lines(rows)) or "No entry yet.\n"


def _lines(rows: Sequence[Standing]) -> Iterator[str]:
    for (name, machine), group in groupby(rows, lambda row: (row.track, row.machine)):
        track = TRACKS[name]
        yield f"**{name}**, {track.threshold:.0%} of {track.questions} held-out questions, on {machine}:\n"
        yield "| minutes | steps | seeds | what | set-up | load | commit | date |"
        yield "|---|---|---|---|---|---|---|---|"
        for standing in group:
            yield "| " + " | ".join(text.replace("|", "\\|") for text in _cells(standing)) + " |"
        yield ""


def _cells(row: Standing) -> tuple[str, ...]:
    first = row.entries[0]
    changed = f"`{pasted(settings(first.settings))}`" if first.settings else "" if first.note else "the shipped recipe"
    commit = (first.commit or "none")[:9] + ("" if first.clean else " and changes")
    loads = sorted({f"{entry.machine.load:.1f}" for entry in row.entries})
    return (
        _minutes(row),
        ", ".join("-" if entry.steps is None else str(entry.steps) for entry in row.entries),
        ", ".join(str(entry.seed) for entry in row.entries),
        ": ".join(filter(None, (first.note, changed))),
        first.machine.setup,
        " to ".join(dict.fromkeys((loads[0], loads[-1]))),
        commit,
        max(entry.date for entry in row.entries),
    )


def _minutes(row: Standing) -> str:
    each = [entry.minutes for entry in row.entries if entry.minutes is not None]
    if math.isinf(row.minutes):
        seeds = f" by {len(row.entries) - len(each)} of {len(row.entries)}" if len(row.entries) > 1 else ""
        return f"not reached{seeds} (best {max(entry.best for entry in row.entries):.0%})"
    return f"{row.minutes:.2f}" + (f" ({min(each):.2f} to {max(each):.2f})" if len(row.entries) > 1 else "")
