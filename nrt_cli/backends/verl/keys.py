"""What verl's own config has: composed from the YAML that it ships, without importing verl, which takes long."""

import dataclasses
import difflib
import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from nrt_cli.config import flatten
from nrt_cli.errors import ConfigError

INSTALL = "pip install -c constraints.txt 'nrt-cli[verl]'"
RAY = "ray_kwargs.ray_init"


def shipped(trainer: str) -> Any:
    """One of verl's own configs as it ships. Raises ConfigError where verl is not installed."""
    found = importlib.util.find_spec("verl")
    if not found or not found.submodule_search_locations:
        raise ConfigError(f"engine.name=verl needs verl, which is not installed; {INSTALL}.")
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    folder = Path(next(iter(found.submodule_search_locations)), "trainer", "config")
    with initialize_config_dir(str(folder), version_base=None):
        composed = hydra_compose(trainer)
    # The SFT trainer's has none, as it leaves starting Ray to others.
    OmegaConf.update(composed, RAY, OmegaConf.select(composed, RAY) or {}, force_add=True)
    return composed


PASSED_ON = (RAY,)
"""Mappings that verl hands on as keyword arguments, so that they may have more keys than it lists."""


def require_known(composed: Any, users: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first key that verl does not have, or a value that it cannot take."""
    for key, value in users.items():
        node, leaf = _parent(composed, key)
        if node is None:
            raise ConfigError(f"verl.{key}: verl {_version()} has no such setting{_nearest(composed, key)}.")
        _require_kind(key, node.get(leaf) if leaf in node else None, value)


def _parent(composed: Any, key: str) -> tuple[Any, str]:
    """The mapping that holds a key, and the key's last part; None for the mapping where verl has no such key."""
    from omegaconf import DictConfig, OmegaConf

    node, path = composed, ""
    *above, leaf = key.split(".")
    for part in above:
        path = f"{path}.{part}".lstrip(".")
        inner = None if part not in node or OmegaConf.is_missing(node, part) else node[part]
        if path in PASSED_ON or inner == {} or (inner is None and "dict" in _fields(node).get(part, "")):
            return {}, leaf  # keys that verl hands on and does not list
        if not isinstance(inner, DictConfig):
            return None, leaf
        node = inner
    return (node, leaf) if leaf in node or leaf in _fields(node) else (None, leaf)


def _fields(node: Any) -> dict[str, str]:
    """Keys, with their types, of the dataclass that verl makes of a mapping: more than are written in its YAML.

    Looking them up imports verl, which takes a while, so only rare keys do.
    """
    from hydra.utils import get_class

    target = node.get("_target_")
    return {field.name: str(field.type) for field in dataclasses.fields(get_class(target))} if target else {}


def _require_kind(key: str, shipped: Any, value: Any) -> None:
    """Raises ConfigError where a value cannot be what verl has there: a word for a number, say."""
    from omegaconf import DictConfig

    if isinstance(shipped, DictConfig):
        if shipped:
            raise ConfigError(f"verl.{key} is a section of verl's config; name one of {', '.join(map(str, shipped))}.")
        return
    kinds = {bool: "true or false", int: "a number", float: "a number"}
    expected = kinds.get(type(shipped))
    if expected and value is not None and kinds.get(type(value)) != expected:
        raise ConfigError(f"verl.{key}={value!r}: verl has {shipped!r} there, so give {expected}.")


def _nearest(composed: Any, key: str) -> str:
    from omegaconf import OmegaConf

    known: Any = OmegaConf.to_container(composed, resolve=False)
    close = difflib.get_close_matches(key, flatten(known), n=1, cutoff=0.5)
    return f" (did you mean 'verl.{close[0]}'?)" if close else ""


def _version() -> str:
    return metadata.version("verl")
