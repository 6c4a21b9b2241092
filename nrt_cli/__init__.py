"""Native Reasoning Training: teach a language model to reason from plain question-answer pairs.

`nrt_cli.api` says what can be called from Python; its names are here too, imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nrt_cli.api import analyze as analyze
    from nrt_cli.api import doctor as doctor
    from nrt_cli.api import evaluate as evaluate
    from nrt_cli.api import generate as generate
    from nrt_cli.api import list_runs as list_runs
    from nrt_cli.api import load_config as load_config
    from nrt_cli.api import open_run as open_run
    from nrt_cli.api import prepare_data as prepare_data
    from nrt_cli.api import prepare_model as prepare_model
    from nrt_cli.api import push as push
    from nrt_cli.api import score as score
    from nrt_cli.api import train as train


def __getattr__(name: str) -> Any:
    # Not `from nrt_cli import api`, which would ask here for the name `api` again.
    from importlib import import_module

    if not name.startswith("_"):
        api = import_module("nrt_cli.api")
        if name in api.__all__:
            return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from importlib import import_module

    return [*globals(), *import_module("nrt_cli.api").__all__]
