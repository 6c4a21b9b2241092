"""The typed configuration of a run: one schema (`schema.py`), presets, one way to compose them. Imports no torch.

A run's config is `schema defaults <- preset paper <- preset <- method's own <- YAML file <- --set`, later ones win: a
preset states how it differs from the paper's, and `nrt` is the one that nobody has to name; a method may have settings
that belong to it as published. Under `variants` a file says what it sets for one method alone. A default of the schema
is what runs did before there was the key.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nrt_cli import methods
from nrt_cli.config.schema import (
    DataSection,
    LoraSection,
    ModelSection,
    ObjectiveSection,
    OptimiserSection,
    RolloutSection,
    RunConfig,
    RunSettings,
    TokensSection,
    Weights,
    idle,
)
from nrt_cli.config.validation import Section, sentences, validated, written
from nrt_cli.config.yaml_text import dump_yaml, load_yaml, parse_override, read_yaml
from nrt_cli.errors import ConfigError
from nrt_cli.methods import own_name

S = TypeVar("S", bound=Section)


def configs_dir() -> Path:
    """The folder of shipped YAML files: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    packaged = package / "_configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


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


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Layers one upon the other, section by section. Raises ConfigError for a key with a value and keys below it."""
    merged: dict[str, Any] = {}
    for key, value in (pair for layer in layers for pair in layer.items()):
        old = merged.get(key)
        if isinstance(value, Mapping) and not (old is None or isinstance(old, Mapping)):
            below = next(iter(value), "...")
            raise ConfigError(f"{key}: is set to {old!r}, and so is {key}.{below} below it; leave {old!r} out.")
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def resolve(*layers: Mapping[str, Any], origin: str = "config", told: Sequence[str] = ()) -> RunConfig:
    """Preset, then layers in order, validated. Raises ConfigError naming the key, the reason and the nearest key.

    `origin` is where the layers come from, but for the keys `told` by `--set`.
    """

    def said(at: str) -> str:
        """Who gave the key at fault; a problem of no single key (`at` is empty) is the config's."""
        by_set = any(f"{at}.".startswith(f"{key}.") or key.startswith(f"{at}.") for key in told if at)
        return "--set" if by_set else origin

    together = merge(*layers)
    method, variants = own_name(str(together.get("method", RunConfig().method))), together.get("variants", {})
    if not (isinstance(variants, Mapping) and all(isinstance(settings, Mapping) for settings in variants.values())):
        raise ConfigError(f"{said('variants')}: variants: methods are needed, each with a mapping of keys to values.")
    asked: dict[str, Any] = {}
    for layer in layers:
        rest, own = dict(layer), {own_name(str(name)): its for name, its in layer.get("variants", {}).items()}
        rest.pop("variants", None)
        asked = merge(asked, rest, own.get(method, {}))
    preset, presets = asked.get("preset", "nrt"), configs_dir() / "presets"
    if preset not in (known := sorted(path.stem for path in presets.glob("*.yaml"))):
        raise ConfigError(f"{said('preset')}: preset {preset!r} is unknown; choose one of {', '.join(known)}.")
    below = [read_yaml(presets / f"{name}.yaml") for name in ("paper", preset)]
    asked = merge(*below, published(method), asked)
    # What is wrong for another method is not to be found only when that is used.
    for name, settings in variants.items():
        recorded(asked, settings, {"method": name}, origin=f"{origin}: variants.{name}")
    config = validated(RunConfig, asked, said)
    for key, why in idle(config):
        if any(f"{one}.".startswith(f"{key}.") for one in told):
            raise ConfigError(f"--set: {key} has no effect {why}; remove it.")
    return config


def published(method: str) -> Mapping[str, Any]:
    """The settings that belong to a method, as published; none of a user's that cannot be imported."""
    try:
        return methods.loaded(method).defaults
    except ConfigError:
        return {}


def departures(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, the method's own, the run's) where a run's settings are not its method's own."""
    own = flatten(config.model_dump(mode="json"))
    theirs = flatten(json.loads(json.dumps(published(config.method))))
    return [(key, value, own[key]) for key, value in theirs.items() if own[key] != value]


def departs(config: RunConfig) -> str:
    """The same in words; "" for a run that trains its method under its own settings, or one that has none."""
    changed = [f"{key}={written(now)} and not {written(then)}" for key, then, now in departures(config)]
    return f"method {config.method!r} is not under its own settings: {', '.join(changed)}" if changed else ""


def recorded(values: Mapping[str, Any], *changes: Mapping[str, Any], origin: str) -> RunConfig:
    """The config that a run has kept, and changes. What it is older than is as it was then: no preset adds to it."""
    return validated(RunConfig, merge(values, *changes), lambda _: origin)


def as_old(given: S, old: S) -> S:
    """The given config, but that keys which the old one was not given keep what they mean there."""
    kept: dict[str, Any] = {}
    for name in type(given).model_fields:
        ours, theirs = getattr(given, name), getattr(old, name)
        if name not in old.model_fields_set:
            kept[name] = theirs
        elif isinstance(ours, Section):
            kept[name] = as_old(ours, theirs)
    return given.model_copy(update=kept)


def load(name: str | None = None, overrides: Sequence[str] = (), **flags: Any) -> RunConfig:
    """The config of a YAML file (or none), then `--set` overrides, then command flags that are not None."""
    layers: list[Mapping[str, Any]] = [read_yaml(find_config(name))] if name else []
    layers += [parse_override(text) for text in overrides]
    layers.append({key: value for key, value in flags.items() if value is not None})
    return resolve(*layers, origin=name or "config", told=[text.partition("=")[0].strip() for text in overrides])


PATHS = ("model.path", "data.train", "data.validation", "eval.data_dir", "eval.olmes.python", "judge.template")
"""Keys that name a file or folder, or something else that is neither."""


def map_paths(values: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Nested values in which each path of `PATHS` is what `change` makes of it."""
    mapped = dict(values)
    for key in PATHS:
        section, _, rest = key.partition(".")
        if path := flatten(values.get(section) or {}).get(rest):
            nested: Any = change(path)
            for part in reversed(key.split(".")):
                nested = {part: nested}
            mapped = merge(mapped, nested)
    return mapped


def absolute(config: RunConfig) -> RunConfig:
    """The config as it is to be kept: what it names that is there means the same from any folder."""
    return RunConfig.model_validate(map_paths(config.model_dump(), absolute_path))


def absolute_path(text: str) -> str:
    """A file's or folder's absolute path; what is neither, such as a name, stays as it is."""
    return os.path.abspath(text) if os.path.exists(text) else text


def to_yaml(config: Section) -> str:
    """A resolved config as YAML, every key present, in schema order."""
    return dump_yaml(config.model_dump(mode="json"))


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
