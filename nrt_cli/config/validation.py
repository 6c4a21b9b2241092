"""Values that people wrote against a schema: nothing is converted without a word, and a refusal says what to write."""

import contextlib
import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from nrt_cli.errors import ConfigError

S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """A part of the config. Unknown keys, inf and nan are errors; values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""torch takes no larger one."""


def _folder_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w .,:+=@-]{0,99}", text):
        raise ValueError(
            "it names a folder, so write up to 100 letters, digits and any of ._-+=:,@, a letter or a digit first"
        )
    return text


FolderName = Annotated[str, AfterValidator(_folder_name)]

_NEEDED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
}
"""What pydantic's error types begin with -> what the key needs."""

RENAMED: dict[str, str] = {}
"""Key that there was -> what it is called now, or a sentence that says what to write in its place."""


def validated(section: type[S], values: Mapping[str, Any], origin: Callable[[str], str]) -> S:
    """The values as a section of a config.

    A value must have its key's type: `true` is no number, `8.0` is no whole number and `"8"` is a text. Only a whole
    number may stand where any number may.

    Args:
        origin: a key -> who gave it, such as a file or `--set`; "" asks for a problem of no single key.

    Raises ConfigError for the first problem, naming the key, what was written and what to write.
    """
    try:
        # By way of JSON, where pydantic's strictness is right for lists and mappings too.
        return section.model_validate_json(json.dumps(values, default=_plain), strict=True)
    except ValidationError as error:
        problems, keys = error.errors(include_url=False), list(sentences(section))
        first = problems[0]
        at = ".".join(map(str, first["loc"]))
        said = origin(at)
        if first["type"] == "extra_forbidden" and (now := RENAMED.get(at)):
            told = f"there is no {at} any more: {f'it is called {now}' if now in keys else now}"
        elif first["type"] == "extra_forbidden":
            told = f"unknown key {at!r}{nearest_key(at, keys)}"
        elif first["type"] == "missing":
            told = f"{at} is missing"
        elif first["type"] == "json_invalid":
            told = "a text in it is not Unicode"
        else:
            key = _known_prefix(first["loc"], keys)
            # A key with alternatives, such as `cap` or a number, has one problem for each.
            reasons = [_reason(p, key, said) for p in problems if _known_prefix(p["loc"], keys) == key]
            told = (f"{key}={written(first['input'])}: " if key else "") + "; or ".join(dict.fromkeys(reasons))
        raise ConfigError(f"{said}: {told}.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin('')}: a value is none that a config can hold ({error}).") from None


def _plain(value: Any) -> Any:
    """What Python code hands over: paths, and numbers of numpy or torch."""
    if isinstance(value, Path):
        return str(value)
    if callable(item := getattr(value, "item", None)):
        return item()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def written(value: Any) -> str:
    """A value as people wrote it: `true`, `null`, `'text'`, `0.5`, `[1, 2]`."""
    bare = isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value))
    text = repr(value) if bare else json.dumps(value, ensure_ascii=False)
    longest = 300 if bare else 60
    return text if len(text) <= longest else f"{text[:longest]}..."


def _reason(problem: Mapping[str, Any], key: str, said: str) -> str:
    """What is wrong with a value, and what to write instead where that can be told from it."""
    kind, given = problem["type"].partition("_")[0], problem["input"]
    if kind not in _NEEDED or not problem["type"].endswith(("_type", "_from_float", "_parsing")):
        return str(problem["msg"]).removeprefix("Value error, ")
    instead = ""
    if kind == "string" and isinstance(given, bool | int | float):
        instead = f'"{written(given)}"'
        if said == "--set":
            instead = f"--set '{key}={instead}'"
    elif kind == "bool":
        words = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
        instead = words.get(str(given).lower(), "")
    elif kind == "tuple" and not isinstance(given, dict) and len(str(given)) < 100:
        instead = f"[{given if isinstance(given, str) else written(given)}]"
    elif kind in ("int", "float") and isinstance(given, str | float):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(given)  # takes `010`, `1_000` and numbers in quotes
            if kind == "int":
                instead = str(int(number)) if number == int(number) else ""
            elif math.isfinite(number):
                plain = not re.search(r"_|^[-+]?0[0-9]", str(given))
                instead = str(given).strip() if plain else repr(number).removesuffix(".0")
    return f"{_NEEDED[kind]} is needed" + (f", so write {instead}" if instead else "")


def _known_prefix(location: Sequence[int | str], keys: Sequence[str]) -> str:
    """The config key of a problem's location, without what pydantic adds for list items and alternatives."""
    prefixes = (".".join(map(str, location[:length])) for length in range(len(location), 0, -1))
    return next((prefix for prefix in prefixes if prefix in keys), "")


def nearest_key(unknown: str, keys: Sequence[str]) -> str:
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


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint at the most similar known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def schema_fields(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[BaseModel] | None]]:
    """All dotted keys of a config with their fields, in its order; of those that are sections, the class too."""
    for name, field in kind.model_fields.items():
        kinds = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
        inner = next((one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), None)
        yield prefix + name, field, inner
        if inner:
            yield from schema_fields(inner, f"{prefix}{name}.")


def sentences(section: type[BaseModel]) -> dict[str, str]:
    """What each key of a config is: its field's description, or what its section's class says of itself."""
    fields = schema_fields(section)
    return {key: field.description or ((inner and inner.__doc__) or "").strip() for key, field, inner in fields}
