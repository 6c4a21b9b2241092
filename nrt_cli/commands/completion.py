"""Values that a shell completes with Tab: configs, runs, methods, benchmarks and settings. All light to import."""

import glob
import os
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import get_args


def _one_of(names: Callable[[], Iterable[str]], pattern: str | None = None) -> Callable[[str], list[str]]:
    """Completes one of the names, or a file of this pattern; what has to be imported for them is so when asked."""

    def complete(incomplete: str) -> list[str]:
        begun = [name for name in names() if name.startswith(incomplete)]
        return begun + (sorted(glob.glob(f"{glob.escape(incomplete)}{pattern}")) if pattern else [])

    return complete


def _shipped(*folders: str) -> list[str]:
    """Names of the YAML files in folders of `configs`."""
    root = import_module("nrt_cli.config").configs_dir()
    return [path.stem for folder in folders for path in sorted(root.glob(f"{folder}/*.yaml"))]


def _keys() -> list[str]:
    config = import_module("nrt_cli.config")
    return list(config.sentences(config.RunConfig))


configs = _one_of(lambda: _shipped("train"), "*.yaml")
presets_and_configs = _one_of(lambda: _shipped("presets", "train"), "*.yaml")
studies = _one_of(lambda: _shipped("study"), "*.yaml")
entries = _one_of(lambda: _shipped("speedrun"), "*.yaml")
speedruns = _one_of(lambda: import_module("nrt_cli.workflows.speedrun").TRACKS)
methods = _one_of(lambda: import_module("nrt_cli.methods").METHODS)
engines = _one_of(lambda: import_module("nrt_cli.backends").BACKENDS)
statuses = _one_of(lambda: get_args(import_module("nrt_cli.records").Status))
keys = _one_of(_keys)
settings = _one_of(lambda: (f"{key}=" for key in _keys()))
topics = _one_of(lambda: sorted(file.name[:-3] for file in (Path(__file__).parents[1] / "help").iterdir()))


def benchmarks(incomplete: str) -> list[str]:
    """Benchmarks and categories; what is typed before the last comma stays."""
    from nrt_cli.config.suite import NAMES, categories

    before, comma, last = incomplete.rpartition(",")
    known = ("all", *NAMES, *(f"category:{category}" for category in categories()))
    return [f"{before}{comma}{name}" for name in known if name.startswith(last)]


def runs(incomplete: str) -> list[str]:
    """Folders of runs, up to three folders deeper than what is typed; after an @, the steps of a run's checkpoints."""
    path, at, step = incomplete.rpartition("@")
    if at:
        steps = (os.path.basename(folder) for folder in glob.glob(f"{glob.escape(path)}/checkpoints/step-*"))
        numbers = sorted(int(name.removeprefix("step-")) for name in steps if name.removeprefix("step-").isdigit())
        return [f"{path}@{number}" for number in numbers if str(number).startswith(step)]
    return sorted(map(os.path.dirname, _below(incomplete, 3, "/manifest.json")))


def models(incomplete: str) -> list[str]:
    """Runs, and folders of models."""
    folders = map(os.path.dirname, _below(incomplete, 2, "/nrt.json"))
    own = (folder for folder in folders if os.path.basename(folder) != "export")  # of a run, whose name stands for it
    builtin = (name for name in ("builtin:smollm2-135m", "builtin:tiny") if name.startswith(incomplete))
    return sorted({*runs(incomplete), *own, *builtin})


def parquet(incomplete: str) -> list[str]:
    return _below(incomplete, 3, ".parquet")


def _below(incomplete: str, deep: int, end: str) -> list[str]:
    """Files that are called so, in the folder that is typed and at most so deep below it."""
    depths = ("*", "*/*", "*/*/*")[:deep]
    return [file for depth in depths for file in sorted(glob.glob(f"{glob.escape(incomplete)}{depth}{end}"))]
