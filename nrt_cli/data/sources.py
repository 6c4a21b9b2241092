"""Where rows come from: files, folders, hub datasets and generators, all streamed as plain dicts.

A source is written the way the user types it:

    qa.jsonl  qa.json  qa.csv  qa.parquet     a file
    folder                                    every such file below it, hidden ones aside
    hub:owner/name?split=train&config=main    a hub dataset; `owner/name` alone where no such path exists
    generated:sums,shopping?size=2000&seed=0  our own generator
    reasoning-gym:chain_sum?size=2000&seed=0  PyPI's reasoning-gym

Nothing is read before `rows` is iterated.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from nrt_cli.data import generated
from nrt_cli.data.formats import READERS
from nrt_cli.errors import DataError, first_line
from nrt_cli.files import sha256
from nrt_cli.network import find_hub


@dataclass(frozen=True)
class Row:
    """One row as found. `where` is for people (`qa.jsonl:17`); `origin` names the data where no column does.

    `problem` says why there are no values, where the row could not be read.
    """

    where: str
    origin: str
    values: dict[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """Rows that can be read more than once. `fingerprint()` changes whenever the rows may have changed."""

    name: str
    fingerprint: Callable[[], str]
    rows: Callable[[], Iterator[Row]]


def open_sources(specs: Sequence[str]) -> list[Source]:
    """The sources a user named, in order. Raises DataError for one that does not exist or is named twice."""
    files: list[Path] = []
    others: list[Source] = []
    for spec in specs:
        kind, colon, rest = spec.partition(":")
        if os.path.exists(spec):  # unlike Path's, it is False for a name that is too long for a file
            files += _files(Path(spec))
        elif colon and kind in _KINDS:
            others.append(_KINDS[kind](rest))
        elif re.fullmatch(r"[\w.-]+/[\w.-]+(\?.*)?", spec) and Path(spec).suffix.lower() not in READERS:
            others.append(_hub(spec))
        else:
            raise DataError(f"{spec}: no such file or folder.")
    opened = _file_sources(files) + others
    names = [source.name for source in opened]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{twice} is given twice; name each source once.")
    return opened


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content. Raises DataError where it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def _files(path: Path) -> list[Path]:
    """The data files at a path: itself, or all below a folder, in the order of their names."""
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in READERS
            and file.is_file()
            # Copies that an editor or a file manager keeps for itself, such as .ipynb_checkpoints.
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not files:
            raise DataError(f"{path}: no {', '.join(READERS)} file in this folder.")
        return files
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: cannot tell the format; name it {', '.join(READERS)}.")
    return [path]


def _file_sources(paths: list[Path]) -> list[Source]:
    """One source a file, named by the shortest ends of the paths that tell the files apart.

    Names go into the output, so they must not depend on where the user's folders happen to lie.
    """
    # A name may hold bytes that are no text, which nothing could write.
    parts = [[os.fsencode(part).decode(errors="backslashreplace") for part in path.resolve().parts] for path in paths]
    names: list[str] = []
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return [
        Source(name, partial(file_sha256, path), partial(_file_rows, path, name))
        for path, name in zip(paths, names, strict=True)
    ]


def _file_rows(path: Path, name: str) -> Iterator[Row]:
    try:
        for where, found in READERS[path.suffix.lower()](path, name):
            yield Row(where, name, {}, found) if isinstance(found, str) else Row(where, name, found)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


# --- sources that are not files -----------------------------------------------------------------------------------


def _options(text: str, kind: str, defaults: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """`name?key=value&...` as the name and its options; a default's type is the option's type."""
    name, _, query = text.partition("?")
    options = dict(defaults)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in defaults:
            raise DataError(f"{kind}:{text}: unknown option {key!r}; known are {', '.join(defaults)}.")
        if isinstance(defaults[key], int) and not (value.isdecimal() and len(value) <= 18):
            raise DataError(f"{kind}:{text}: {key} must be a whole number of at most 18 digits, not {value!r}.")
        options[key] = int(value) if isinstance(defaults[key], int) else value
    return name, options


def _tasks(names: str, kind: str, known: Collection[str]) -> list[str]:
    tasks = names.split(",")
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=5, cutoff=0.4) or sorted(known)[:10]
            raise DataError(f"{kind}:{names}: no task {task!r}; there are {', '.join(near)}.")
        if tasks.count(task) > 1:
            raise DataError(f"{kind}:{names}: task {task!r} is named twice.")
    return tasks


def _per_task(tasks: Sequence[str], size: int) -> list[tuple[str, int]]:
    """`size` rows over the tasks, as evenly as can be; the first ones take what is left over."""
    share, rest = divmod(size, len(tasks))
    return [(task, share + (i < rest)) for i, task in enumerate(tasks)]


def _described(description: str) -> Callable[[], str]:
    """The fingerprint of rows that a description determines."""
    return lambda: hashlib.sha256(description.encode()).hexdigest()


def _generated(text: str) -> Source:
    names, options = _options(text, "generated", {"size": 2000, "seed": 0})
    tasks = _tasks(names, "generated", generated.TASKS)

    def rows() -> Iterator[Row]:
        for task, count in _per_task(tasks, options["size"]):
            origin = f"generated:{task}"
            for index in range(count):
                yield Row(f"{origin}:row {index + 1}", origin, generated.generate(task, index, options["seed"]))

    name = f"generated:{names}?size={options['size']}&seed={options['seed']}"
    versions = "".join(f" {generated.VERSIONS[task]}" for task in tasks if task in generated.VERSIONS)
    return Source(name, _described(f"{name} v{generated.VERSION}{versions}"), rows)


def _reasoning_gym(text: str) -> Source:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DataError(
            f"reasoning-gym:{text}: reasoning-gym is not installed ({error}); run `pip install 'nrt-cli[generate]'`, "
            "which may need a C compiler."
        ) from None
    names, options = _options(text, "reasoning-gym", {"size": 2000, "seed": 0})
    tasks = _tasks(names, "reasoning-gym", DATASETS)

    def rows() -> Iterator[Row]:
        for task, count in _per_task(tasks, options["size"]):
            origin = f"reasoning-gym:{task}"
            made = reasoning_gym.create_dataset(task, seed=options["seed"], size=count) if count else []
            for index in range(count):
                item = made[index]
                values = {"question": item["question"], "answer": item["answer"]}
                yield Row(f"{origin}:row {index + 1}", origin, values)

    name = f"reasoning-gym:{names}?size={options['size']}&seed={options['seed']}"
    return Source(name, _described(f"{name} {version('reasoning-gym')}"), rows)


def _hub(text: str) -> Source:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{text}: no such file or folder here; to read it as a hub dataset, run `pip install 'nrt-cli[hub]'`."
        ) from None
    name, options = _options(text, "hub", {"split": "train", "config": None, "revision": None})
    if not Path(name).is_dir():
        find_hub()

    def rows() -> Iterator[Row]:
        try:
            stream = datasets.load_dataset(
                name, options["config"], split=options["split"], revision=revision(), streaming=True
            )
            for number, values in enumerate(stream, 1):
                yield Row(f"{name}:row {number}", name, values)
        except DataError:
            raise
        except Exception as error:  # builders raise what they like; all of it is about this dataset
            raise _hub_error(name, error) from None

    def revision() -> str | None:
        return None if Path(name).is_dir() else _hub_commit(name, options["revision"])

    def fingerprint() -> str:
        content = revision() or "".join(file_sha256(file) for file in _files(Path(name)))
        return _described(f"{options['config']} {options['split']} {content}")()

    return Source(f"hub:{text}", fingerprint, rows)


@cache  # the commit that is fingerprinted is the one that is read
def _hub_commit(name: str, revision: str | None) -> str:
    """The commit that a branch or tag of a hub dataset points to now."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:
        raise _hub_error(name, error) from None


def _hub_error(name: str, error: Exception) -> DataError:
    offline = None if Path(name).is_dir() else find_hub()
    first = offline or first_line(error).rstrip(".")
    return DataError(
        f"{name}: no such path here, and as a hub dataset it cannot be read: {first}. Without a network, copy its "
        "files to this machine and name them."
    )


_KINDS: dict[str, Callable[[str], Source]] = {
    "hub": _hub,
    "generated": _generated,
    "reasoning-gym": _reasoning_gym,
}
