"""The typed configuration of a run: one schema (`schema.py`), two presets, one way to compose them. Imports no torch.

A run's config is `schema defaults <- preset <- YAML file <- --set`, later ones win. The schema's defaults are the
`paper` preset; `configs/presets/*.yaml` state the rest as differences.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nrt_cli.config.schema import (
    METHOD_ALIASES,
    SCHEMES,
    DataSection,
    EngineSection,
    LoraSection,
    ModelSection,
    ObjectiveSection,
    OptimiserSection,
    ParallelSection,
    RolloutSection,
    RunConfig,
    TokensSection,
    TrainSection,
    Weights,
    nearest,
    schema_keys,
)
from nrt_cli.errors import ConfigError

__all__ = [
    "METHOD_ALIASES",
    "SCHEMES",
    "DataSection",
    "EngineSection",
    "LoraSection",
    "ModelSection",
    "ObjectiveSection",
    "OptimiserSection",
    "ParallelSection",
    "RolloutSection",
    "RunConfig",
    "TokensSection",
    "TrainSection",
    "Weights",
    "configs_dir",
    "diff",
    "find_config",
    "flatten",
    "parse_override",
    "read_yaml",
    "resolve",
    "schema_keys",
    "to_yaml",
]


def configs_dir() -> Path:
    """The folder of shipped YAML files: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    packaged = package / "_configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is an error; plain YAML drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping. Raises ConfigError with file and line where it is not one."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text, so not a YAML config.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {_yaml_reason(error)}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, found {type(values).__name__}.")
    return values


def _yaml_reason(error: yaml.YAMLError) -> str:
    """What a YAML error says in one line."""
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)


def find_config(name: str) -> Path:
    """A YAML file by path, or a shipped one by its name under `configs/`, such as `train/quickstart`."""
    path = Path(name)
    if path.is_file():
        return path
    root = configs_dir()
    for candidate in (root / name, root / f"{name}.yaml", root / "train" / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.glob("train/*.yaml"))
    raise ConfigError(f"{name}: no such config file; shipped ones are {', '.join(shipped)}.")


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as nested mapping; c is YAML, so `null`, `3`, `[1, 2]` and `text` mean what they look like."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: write key=value, for example --set rollout.group_size=4.")
    try:
        nested: Any = yaml.safe_load(value)
        # YAML 1.1 reads 1e-5 as text; people who write it mean the number.
        if isinstance(nested, str) and (number := _as_float(nested)) is not None:
            nested = number
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML ({_yaml_reason(error)}).") from None
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, section by section."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def resolve(*layers: Mapping[str, Any], origin: str = "config", told: Sequence[str] = ()) -> RunConfig:
    """Preset, then layers in order, validated. Raises ConfigError naming the key, the reason and the nearest key.

    `origin` is where the layers come from, but for the keys `told` by `--set`.
    """
    asked: dict[str, Any] = {}
    for layer in layers:
        asked = merge(asked, layer)
    preset = asked.get("preset", "paper")
    presets = sorted(p.stem for p in (configs_dir() / "presets").glob("*.yaml"))
    if preset not in presets:
        said = _said("preset", told, origin)
        raise ConfigError(f"{said}: preset {preset!r} is unknown; choose one of {', '.join(presets)}.")
    values = merge(read_yaml(configs_dir() / "presets" / f"{preset}.yaml"), asked)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        at = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigError(_sentence(error, _said(at, told, origin))) from None


def _said(at: str, told: Sequence[str], origin: str) -> str:
    """Who gave the key at fault; a problem of no single key (`at` is empty) is the config's."""
    by_set = any(f"{at}.".startswith(f"{key}.") or key.startswith(f"{at}.") for key in told if at)
    return "--set" if by_set else origin


def load(name: str | None = None, overrides: Sequence[str] = (), **flags: Any) -> RunConfig:
    """The config of a YAML file (or none), then `--set` overrides, then command flags that are not None."""
    layers: list[Mapping[str, Any]] = [read_yaml(find_config(name))] if name else []
    layers += [parse_override(text) for text in overrides]
    layers.append({key: value for key, value in flags.items() if value is not None})
    return resolve(*layers, origin=name or "config", told=[text.partition("=")[0].strip() for text in overrides])


def _sentence(error: ValidationError, origin: str) -> str:
    """The first problem of a validation error, as one sentence that names the key."""
    problems, keys = error.errors(), schema_keys()
    first = problems[0]
    if first["type"] == "extra_forbidden":
        unknown = ".".join(map(str, first["loc"]))
        return f"{origin}: unknown key {unknown!r}{_nearest_key(unknown, keys)}."
    key = _known_prefix(first["loc"], keys)
    # A key with alternatives, such as `cap` or a number, has one problem for each.
    reasons = [p["msg"].removeprefix("Value error, ") for p in problems if _known_prefix(p["loc"], keys) == key]
    subject = f"{key}={first['input']!r}: " if key else ""
    return f"{origin}: {subject}{'; or '.join(reasons)}."


def _known_prefix(location: Sequence[int | str], keys: Sequence[str]) -> str:
    """The config key of a problem's location, without what pydantic adds for list items and alternatives."""
    prefixes = (".".join(map(str, location[:length])) for length in range(len(location), 0, -1))
    return next((prefix for prefix in prefixes if prefix in keys), "")


def _nearest_key(unknown: str, keys: Sequence[str]) -> str:
    """The nearest full key, by whole name or, where its section was left out or wrong, by last part."""
    leaf = unknown.rpartition(".")[2]
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    if same_leaf:
        closest = max(same_leaf, key=lambda key: difflib.SequenceMatcher(None, key, unknown).ratio())
        return f" (did you mean {closest!r}?)"
    if suggestion := nearest(unknown, keys):
        return suggestion
    leaves = {key.rpartition(".")[2]: key for key in keys}
    close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.5)
    return f" (did you mean {leaves[close[0]]!r}?)" if close else ""


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML, every key present, in schema order."""
    values = config.model_dump(mode="json")
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    # Left as it is, PyYAML writes a next-line character that it reads back as a blank.
    return text if yaml.safe_load(text) == values else yaml.safe_dump(values, sort_keys=False)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def diff(left: RunConfig, right: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, left value, right value) for every key on which two configs differ."""
    a, b = flatten(left.model_dump(mode="json")), flatten(right.model_dump(mode="json"))
    # Both may set verl keys that the other leaves alone.
    return [(key, a.get(key), b.get(key)) for key in dict.fromkeys((*a, *b)) if a.get(key) != b.get(key)]
