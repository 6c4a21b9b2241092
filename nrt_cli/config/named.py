"""Functions of a user's own, named in a setting as `module:function`."""

import importlib
import sys
from typing import Any

from nrt_cli.errors import ConfigError


def load_named(name: str, kind: str) -> Any:
    """What `module:attribute` names; the module may stand in the working directory. `kind` is for the error."""
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        # The working directory, which a console script lacks. Last, so that it shadows nothing.
        sys.path.append("")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module can fail in any way while it is imported
        raise ConfigError(f"{kind} {name!r} cannot be imported: {error}.") from None
