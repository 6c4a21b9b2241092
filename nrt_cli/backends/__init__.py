"""Where a policy is computed: a folder for each backend, found here by its `facts`. Imports no torch."""

import importlib
import importlib.util
import pkgutil
from typing import cast

from nrt_cli.backends.facts import Facts

BACKENDS = {
    folder.name: cast(Facts, importlib.import_module(f"{__name__}.{folder.name}.facts"))
    for folder in pkgutil.iter_modules(__path__)
    if folder.ispkg and importlib.util.find_spec(f"{__name__}.{folder.name}.facts")
}
"""By the name of their folder."""
