"""The methods: what is learned. Found in the files here; from their facts come choices, tables, plans and documents.

Imports no torch: what computes is a function of tensors that it is given.
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from nrt_cli.errors import ConfigError
from nrt_cli.methods.method import (
    ASKS,
    Formula,
    Formulas,
    Group,
    Method,
    Rowwise,
    Signals,
    place,
    prove,
    reward,
    slopes,
)
from nrt_cli.renamed import moved

if TYPE_CHECKING:
    from nrt_cli.config import ObjectiveSection


def _found() -> dict[str, Method]:
    """An instance of every class that a file here gives a name of its own, in their places."""
    classes = []
    for file in pkgutil.iter_modules(__path__, f"{__name__}."):
        found = vars(importlib.import_module(file.name)).values()
        kinds = (kind for kind in found if isinstance(kind, type) and issubclass(kind, Method))
        classes += [kind for kind in kinds if kind.__module__ == file.name and vars(kind).get("name")]
    names = [name for kind in classes for name in {kind.name, *vars(kind).get("aliases", ())}]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"two methods are called {twice.pop()!r}; a name or alias is one method's.")
    return {kind.name: kind() for kind in sorted(classes, key=lambda kind: (kind.place, kind.name))}


METHODS = _found()
"""By name, in the order of tables."""

SCHEMES = tuple(name for name, method in METHODS.items() if method.samples and method.policy_gradient)
"""Those that reward traces."""

PAPER = tuple(name for name in SCHEMES if METHODS[name].paper)
"""Those that the paper compares."""

CONTROL = next(method for method in METHODS.values() if method.samples and not method.policy_gradient)
"""Whose traces are sampled and not trained; any method with `objective.weights.trace` 0 is this one too."""

SUPERVISED = next(method for method in METHODS.values() if not method.samples)
"""Which samples nothing."""

MIXED = next(name for name, method in METHODS.items() if "verdicts" in method.asks and not method.every_row)
"""Which rewards verdicts, and something else where a row has no verifier."""

DEFAULT = next(name for name, method in METHODS.items() if vars(type(method)).get("default"))
"""What a config has that names no method."""

FORMULAS = {
    method.name: method.formulas
    for method in sorted(METHODS.values(), key=lambda method: method.formulas.place if method.formulas else 0)
    if method.formulas
}
"""By method, in the order of Table 1."""

ALIASES = {alias: name for name, method in METHODS.items() for alias in method.aliases}


def own_name(method: str) -> str:
    """A built-in method's name, also where another of its names was given; other names as they are."""
    lower = method.lower()
    return lower if lower in METHODS else ALIASES.get(lower, method)


def facts(name: str) -> Method:
    """A method's facts, without importing a user's: theirs samples traces."""
    return METHODS.get(name) or Method()


def get(name: str, settings: "ObjectiveSection | None" = None) -> Method:
    """A method by name, or a user's own as `module:function` or `module:Class`, proved. Raises ConfigError.

    Args:
        settings: the objective that a user's own is proved under; None: the defaults.
    """
    found = loaded(name)
    if ":" in name:
        if settings is None:
            from nrt_cli.config import ObjectiveSection

            settings = ObjectiveSection()
        prove(found, name, settings)
    return found


def loaded(name: str) -> Method:
    """A method by name, a user's own imported and not proved. Raises ConfigError."""
    if ":" not in name:
        if name not in METHODS:
            raise ConfigError(f"method {name!r} is unknown; choose one of {', '.join(METHODS)} or module:function.")
        return METHODS[name]
    found = load_hook(name, "method", ("method", "reward"))
    if isinstance(found, type):
        if not issubclass(found, Method):
            raise ConfigError(f"method {name!r} is a class, but no nrt_cli.Method; derive it from that.")
        called = "" if found.__module__.startswith(__name__) else vars(found).get("name")
        if called in METHODS or called in ALIASES:
            raise ConfigError(f"method {name!r}: its class's name {called!r} is a built-in method's; leave it out.")
        try:
            found = found()
        except Exception as error:
            where = place(error, __file__)
            raise ConfigError(f"method {name!r} cannot be made without arguments{where} ({error}).") from None
    if not isinstance(found, Method):
        if not callable(found):
            raise ConfigError(f"method {name!r} is neither a function nor a class.")
        found = reward(found)
    if not (found.samples and found.policy_gradient):
        raise ConfigError(f"method {name!r}: yours samples traces and trains them; objective.weights.trace=0 does not.")
    if unknown := sorted(found.asks - ASKS.keys()):
        raise ConfigError(f"method {name!r} asks for {unknown[0]!r}; a method may ask for {', '.join(ASKS)}.")
    return found


def of_answers(name: str, settings: "ObjectiveSection | None" = None, given: frozenset[str] = frozenset()) -> Method:
    """A method that needs nothing but log c, and what of `ASKS` is `given`, as `get`. Raises ConfigError for others."""
    found = get(name, settings)
    if not found.asks <= given:
        raise ConfigError(f"method {name!r} needs more than log-probs of answers: {asked(found)}.")
    return found


def asked(method: Method) -> str:
    """What a method asks for, in words."""
    return " and ".join(ASKS[each] for each in ASKS if each in method.asks)


def source(name: str) -> str:
    """The SHA-256 of the file of a user's method; empty for a built-in one."""
    import hashlib  # not at the top: what it loads takes as long as all methods together

    file = importlib.import_module(name.partition(":")[0]).__file__ if ":" in name else None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def schemes(
    names: Sequence[str], settings: "ObjectiveSection", own: str = "", given: frozenset[str] = frozenset()
) -> dict[str, Method]:
    """The methods of these names, each once, all of which reward traces by log c alone, and what of `ASKS` is `given`;
    of none, all such that are built in and the run's `own`."""
    known = names or [*(name for name in SCHEMES if METHODS[name].asks <= given), *[own] * (":" in own)]
    found = {name: of_answers(name, settings, given) for name in map(own_name, known)}
    if silent := next((name for name, method in found.items() if not method.samples), None):
        raise ConfigError(f"method {silent!r} rewards no traces, so it is no scheme; name one of {', '.join(SCHEMES)}.")
    return found


# --- a user's own function or class, named in a setting as `module:attribute`, and what it was registered as ----------

F = TypeVar("F", bound=Callable[..., Any])


def grader(function: F) -> F:
    """Register a function of (row, reply) as a grader of answers: a score in [0, 1], True or False, or a `Grade`."""
    function.hook = "grader"  # type: ignore[attr-defined]
    return function


def load_hook(name: str, setting: str, kinds: tuple[str, ...]) -> Any:
    """What `module:attribute` names; the module may stand in the working directory.

    Args:
        setting: where the name was given, for the error.
        kinds: what it may be registered as; what is not registered is tried by the caller.

    Raises ConfigError where it cannot be imported or was registered as something else.
    """

    def refuse(why: str) -> NoReturn:
        raise ConfigError(f"{setting} {name!r} cannot be imported: {why}.") from None

    module, _, attribute = name.partition(":")
    dotted = module.removesuffix(".py").replace("/", ".")
    if dotted != module:
        refuse(f"a module is written with dots and without .py; write {dotted}:{attribute}")
    if "" not in sys.path:
        # The working directory, which a console script lacks. Last, so that it shadows nothing.
        sys.path.append("")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            refuse(
                f"no {error.name} is in {os.getcwd()}, on PYTHONPATH or installed; go to its folder, or name that there"
            )
        lost = (error.name or "").partition(".")[0]
        hint = f"; {where}" if lost == "analysis" and (where := moved(lost)) else ""
        refuse(f"{error}{place(error, __file__)}{hint}")
    except SystemExit as error:
        refuse(f"it ends Python{place(error, __file__)}; put what it runs below `if __name__ == '__main__':`")
    except Exception as error:  # a module can fail in any way while it is imported
        refuse(f"it fails{place(error, __file__)} ({type(error).__name__}: {error})")
    if not hasattr(loaded, attribute):
        from nrt_cli.config.validation import nearest  # late: a config's choices are the methods

        refuse(f"it has no {attribute!r}{nearest(attribute, [*vars(loaded)])}")
    found = getattr(loaded, attribute)
    kind = getattr(found, "hook", None)
    if isinstance(kind, str) and kind not in kinds:
        raise ConfigError(f"{setting} {name!r} is registered as a {kind}, and {setting} takes a {' or '.join(kinds)}.")
    return found
