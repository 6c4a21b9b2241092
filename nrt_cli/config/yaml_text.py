"""YAML in and out, for every file that people write: the core schema of YAML 1.2, and no key twice.

PyYAML by itself follows YAML 1.1, where `010` is 8, `1_000` is 1000, `12:30` is 750, `off` is false, `2026-01-01` is a
date and `1e-5` is text. Here a number is written as in JSON (or 0x1f, 0o17, .5, .inf, .nan), only true and false are
true and false, and all else is text; what a key can be is for the schema to say.
"""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

from nrt_cli.errors import ConfigError
from nrt_cli.files import unsealed

_TAG = "tag:yaml.org,2002:"
_CORE = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    "float": (
        re.compile(
            r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        list("-+0123456789."),
    ),
    "merge": (re.compile(r"<<"), ["<"]),
}
"""What a bare word means -> how it is written, and what it begins with. The first that fits wins: int before float."""


MOST, DEEPEST = 100_000, 100
"""Values in a file, and brackets within brackets: more is no config, and takes for ever or all memory."""


class _Reader(yaml.SafeLoader):
    """The values of JSON and nothing else: no dates, sets or bytes, whatever tag asks for them."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, f"{_TAG}null", f"{_TAG}bool", f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map")
    }

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _values(node, {}) > MOST:
            raise ConstructorError(problem=f"it has more than {MOST:,} values, its aliases written out")
        return node

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        if self.flow_level == DEEPEST:
            raise ConstructorError(problem="nested too deeply", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(kind)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                written = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise ConstructorError(
                    problem=f"a key is a text, found {written}; quote it", problem_mark=key.start_mark
                )
            if key.value in seen:
                raise ConstructorError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> int | float:
        """An int or a float, also where a tag asks for one."""
        kind, text = node.tag.removeprefix(_TAG), str(self.construct_scalar(node))
        if not _CORE[kind][0].fullmatch(text):
            raise ConstructorError(problem=f"{text!r} is no {kind}", problem_mark=node.start_mark)
        try:
            return int(text, 0) if kind == "int" else float(re.sub(r"\.(?=[in])", "", text.lower()))
        except ValueError:  # Python reads no integer of more than 4,300 digits
            raise ConstructorError(
                problem=f"a number of {len(text):,} digits is too long", problem_mark=node.start_mark
            ) from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, where an alias counts as often as it is named."""
    if id(node) not in known:
        known[id(node)] = MOST + 1  # what stands in itself has no end
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = isinstance(node, yaml.MappingNode)
        known[id(node)] = 1 + sum(_values(one, known) for each in inner for one in (each if pairs else (each,)))
    return known[id(node)]


class _Writer(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else, so that any reader reads it back."""


_Reader.yaml_implicit_resolvers = {}  # else the core schema would be added to YAML 1.1's
for _kind, (_pattern, _first) in _CORE.items():
    for _class in (_Reader, _Writer):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern.pattern})$"), _first)
for _kind in ("int", "float"):
    _Reader.add_constructor(_TAG + _kind, _Reader.number)


def load_yaml(text: str, origin: str) -> Any:
    """The value of one YAML document. Raises ConfigError with where it is from and its line."""
    try:
        return yaml.load(text, Loader=_Reader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        reason = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
        raise ConfigError(f"{origin}{where}: not valid YAML: {reason}.") from None
    except RecursionError:
        raise ConfigError(f"{origin}: not valid YAML: nested too deeply.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """One YAML mapping. Raises ConfigError with file and line where it is not one."""
    try:
        values = load_yaml(unsealed(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text, so not a YAML config.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, found {type(values).__name__}.")
    return values


def parse_override(text: str, option: str = "--set") -> dict[str, Any]:
    """`a.b=c` as nested mapping; c is YAML, so `null`, `3`, `[1, 2]` and `text` mean what they look like.

    Args:
        option: what it was given to, for the error.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{option} {text!r}: write key=value, for example {option} rollout.group_size=4.")
    if not value:
        raise ConfigError(f"{option} {text!r}: no value is given; write {option} {key}=null for none.")
    nested = load_yaml(value, f"{option} {text!r}")
    node = yaml.compose(value, Loader=_Reader)
    # In a file the rest of a line after # is a comment; here nobody means one, and half a path would be taken.
    if "#" in value and (node is None or node.end_mark.index < len(value)):
        raise ConfigError(
            f"{option} {text!r}: YAML takes # for the start of a comment; write {option} '{key}=\"{value}\"'."
        )
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def dump_yaml(values: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its order, which reads back as the same."""
    text: str = yaml.dump(values, Dumper=_Writer, sort_keys=False, allow_unicode=True)
    # Left as it is, PyYAML writes marks of direction, and a next-line character that it reads back as a blank.
    plain = text.replace("\n", "").isprintable() and yaml.load(text, Loader=_Reader) == values
    return text if plain else yaml.dump(values, Dumper=_Writer, sort_keys=False)
