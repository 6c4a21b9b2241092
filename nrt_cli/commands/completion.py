"""Values that a shell completes with Tab: configs, runs, methods, benchmarks and settings. All light to import."""

import glob
import os
from collections.abc import Iterable
from importlib.resources import files


def configs(incomplete: str) -> list[str]:
    """Shipped training configs, and YAML files."""
    from nrt_cli.config import configs_dir

    shipped = (path.stem for path in configs_dir().glob("train/*.yaml"))
    return [*_begun(shipped, incomplete), *_files(incomplete, "*.yaml")]


def presets_and_configs(incomplete: str) -> list[str]:
    from nrt_cli.config import configs_dir

    return [*_begun((path.stem for path in configs_dir().glob("presets/*.yaml")), incomplete), *configs(incomplete)]


def studies(incomplete: str) -> list[str]:
    from nrt_cli.config import configs_dir

    shipped = (path.stem for path in configs_dir().glob("study/*.yaml"))
    return [*_begun(shipped, incomplete), *_files(incomplete, "*.yaml")]


def speedruns(incomplete: str) -> list[str]:
    from nrt_cli.workflows.speedrun import TRACKS

    return _begun(TRACKS, incomplete)


def entries(incomplete: str) -> list[str]:
    """Shipped entries of speedruns, and YAML files."""
    from nrt_cli.workflows.speedrun import entry_files

    return [*_begun((path.stem for path in entry_files()), incomplete), *_files(incomplete, "*.yaml")]


def runs(incomplete: str) -> list[str]:
    """Folders of runs, up to three folders deeper than what is typed; after an @, the steps of a run's checkpoints."""
    path, at, step = incomplete.rpartition("@")
    if at:
        steps = (os.path.basename(folder) for folder in glob.glob(f"{glob.escape(path)}/checkpoints/step-*"))
        numbers = sorted(int(name.removeprefix("step-")) for name in steps if name.removeprefix("step-").isdigit())
        return [f"{path}@{number}" for number in numbers if str(number).startswith(step)]
    found = {
        os.path.dirname(file)
        for depth in ("*", "*/*", "*/*/*")
        for file in glob.glob(f"{glob.escape(incomplete)}{depth}/manifest.json")
    }
    return sorted(found)


def models(incomplete: str) -> list[str]:
    """Runs, and folders of models."""
    folders = {
        os.path.dirname(file)
        for depth in ("*", "*/*")
        for file in glob.glob(f"{glob.escape(incomplete)}{depth}/nrt.json")
        if os.path.basename(os.path.dirname(file)) != "export"  # the run's name stands for it
    }
    return sorted({*runs(incomplete), *folders, *_begun(("builtin:smollm2-135m", "builtin:tiny"), incomplete)})


def parquet(incomplete: str) -> list[str]:
    return [file for depth in ("*", "*/*", "*/*/*") for file in _files(incomplete, f"{depth}.parquet")]


def methods(incomplete: str) -> list[str]:
    from nrt_cli.methods import METHODS

    return _begun(METHODS, incomplete)


def statuses(incomplete: str) -> list[str]:
    return _begun(("finished", "running", "stopped", "interrupted", "failed", "created"), incomplete)


def engines(incomplete: str) -> list[str]:
    from nrt_cli.backends import BACKENDS

    return _begun(BACKENDS, incomplete)


def benchmarks(incomplete: str) -> list[str]:
    """Benchmarks and categories; what is typed before the last comma stays."""
    from nrt_cli.config.suite import NAMES, categories

    before, comma, last = incomplete.rpartition(",")
    known = ("all", *NAMES, *(f"category:{category}" for category in categories()))
    return [f"{before}{comma}{name}" for name in _begun(known, last)]


def topics(incomplete: str) -> list[str]:
    """Pages that `nrt help` prints."""
    pages = (file.name for file in (files("nrt_cli") / "help").iterdir())
    return sorted(_begun((name.removesuffix(".md") for name in pages if name.endswith(".md")), incomplete))


def settings(incomplete: str) -> list[str]:
    """Keys of `--set`, each with its equals sign."""
    from nrt_cli.config import RunConfig, schema_keys

    return _begun((f"{key}=" for key in schema_keys(RunConfig)), incomplete)


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _files(incomplete: str, pattern: str) -> list[str]:
    return sorted(glob.glob(f"{glob.escape(incomplete)}{pattern}"))
