"""A user's own function or class, named in a setting as `module:attribute`, and what it was registered as."""

import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from nrt_cli.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def grader(function: F) -> F:
    """Register a function of (row, reply) as a grader of answers: a score in [0, 1], True or False, or a `Grade`."""
    function.hook = "grader"  # type: ignore[attr-defined]
    return function


def load_hook(name: str, setting: str, kinds: tuple[str, ...]) -> Any:
    """What `module:attribute` names; the module may stand in the working directory.

    Args:
        setting: where the name was given, for the error.
        kinds: what it may be registered as; what is not registered is taken for what the setting needs.

    Raises:
        ConfigError: it cannot be imported, or was registered as something else.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        # The working directory, which a console script lacks. Last, so that it shadows nothing.
        sys.path.append("")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module can fail in any way while it is imported
        moved = getattr(error, "name", None) or ""
        hint = "; what stood there has moved, see Upgrading in the changelog" if moved.startswith("nrt_cli.") else ""
        raise ConfigError(f"{setting} {name!r} cannot be imported: {error}{hint}.") from None
    kind = getattr(found, "hook", None)
    if isinstance(kind, str) and kind not in kinds:
        raise ConfigError(f"{setting} {name!r} is registered as a {kind}, and {setting} takes a {' or '.join(kinds)}.")
    return found
