"""What the studies of a report's runs planned, and what came of it."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from nrt_analysis.report.contents import RunCard
from nrt_cli.config import read_yaml
from nrt_cli.config.study import Planned, StudyConfig, Variant, parse_study, planned_runs
from nrt_cli.config.titles import run_title
from nrt_cli.errors import ConfigError
from nrt_cli.store.study import Study


def study_config(folder: Path) -> StudyConfig | None:
    """What a study asked for; None where that cannot be read."""
    return _read(folder, _changed(folder))[0]


def _planned(folder: Path) -> tuple[Planned, ...]:
    return _read(folder, _changed(folder))[1]


def _changed(folder: Path) -> int:
    """When the study's file was last written, so that what was read of it before is not taken for what it says now."""
    try:
        return Study(folder).config_path.stat().st_mtime_ns
    except OSError:
        return 0


@cache
def _read(folder: Path, _: int) -> tuple[StudyConfig | None, tuple[Planned, ...]]:
    try:
        study = parse_study(read_yaml(Study(folder).config_path), str(folder))
        return study, tuple(planned_runs(study, folder))
    except ConfigError:  # damaged, or of another version
        return None, ()


def study_title(folder: Path) -> str:
    """What a study is called: its title, or its folder's name where that cannot be read."""
    study = study_config(folder)
    return study.title if study else folder.name


def planned_title(folder: Path, run: str) -> str | None:
    """What a study calls one of its runs; None for a run that it did not plan."""
    study = study_config(folder)
    planned = next((one for one in _planned(folder) if one.name == run), None)
    if study is None or planned is None:
        return None
    variant = study.variants.get(planned.method, Variant())
    # Only a variant that names a method is another one than it is called.
    named = planned.method if "method" in variant.settings else ""
    return variant.title or run_title(planned.config.method, planned.config.model_dump(), named)


def unfinished(cards: Sequence[RunCard]) -> Iterator[tuple[Path, Planned, str]]:
    """Planned runs of the studies that are not finished, and why."""
    for folder in dict.fromkeys(card.study for card in cards if card.study):
        outcomes = Study(folder).outcomes()
        for planned in _planned(folder):
            outcome = outcomes.get(planned.name)
            if outcome is None:
                yield folder, planned, "not run yet"
            elif outcome.status != "finished":
                yield folder, planned, f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status
