"""`nrt config`: show, check, compare and explain configurations."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.errors import ConfigError

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig

app = typer.Typer(help="Show, check, compare and explain configurations.", no_args_is_help=True)

Overrides = Annotated[
    list[str] | None,
    Option("--set", autocompletion=completion.settings, help="Override a key: --set rollout.group_size=4."),
]
CONFIG = Argument(autocompletion=completion.presets_and_configs, help="YAML file, shipped config or preset.")
AsJson = Annotated[bool, Option("--json", help="Print JSON for scripts.")]
TrainData = Annotated[
    str | None, Option("--data", autocompletion=completion.parquet, help="Parquet made by `nrt data prepare`.")
]
HeldOutData = Annotated[
    str | None, Option("--validation", autocompletion=completion.parquet, help="Parquet for held-out scores.")
]


def flags(**given: Any) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def section(name: str, /, **given: Any) -> dict[str, Any]:
    """The flags of one config section, nested under its name; nothing where none was given."""
    found = flags(**given)
    return {name: found} if found else {}


def no_effect(why: str, **given: Any) -> None:
    """Refuse options that nothing would read: those that were given. `why` follows their name."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect {why}; drop it.")


@app.command(epilog="Example: nrt config show train/quickstart --set rollout.group_size=4")
def show(name: Annotated[str | None, CONFIG] = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved configuration, preset, file and overrides put together, with a comment for every key."""
    from nrt_cli.config.explain import commented  # pydantic: a third of the time that `nrt --help` may take

    resolved = _load(name, overrides)
    console.result(resolved.model_dump(mode="json"), as_json, lambda _: console.write(commented(resolved)))


@app.command(epilog="Example: nrt config explain objective.token_signal")
def explain(
    key: Annotated[str, Argument(autocompletion=completion.keys, help="A key, such as train.steps, or a section.")],
    as_json: AsJson = False,
) -> None:
    """Say what a key is: what it does, what it may be, its default under each preset, and which modules read it."""
    from nrt_cli.config.explain import explain
    from nrt_cli.config.validation import written

    found = explain(key)
    if console.result(found, as_json):
        return
    console.stdout.print(console.plain(f"{found['key']}\n{found['sentence']}"), style="bold", soft_wrap=True)
    rows = list(found.get("keys", {}).items())
    if "value" in found:
        presets: dict[str, list[str]] = {}
        for preset, value in found["defaults"].items():
            presets.setdefault(written(value), []).append(preset)
        of = {text: f" ({', '.join(names)})" if len(presets) > 1 else "" for text, names in presets.items()}
        rows += [("value", found["value"]), *(("default", f"{text}{names}") for text, names in of.items())]
    rows += [("read by", ", ".join(found["read_by"]) or "no module")]
    table = console.table("", "", rows=rows, box=None, show_header=False, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    console.stdout.print(table)


@app.command(epilog="Example: nrt config check my-run.yaml")
def check(name: Annotated[str, CONFIG], overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say whether a configuration is valid; unknown keys and contradictions are errors."""
    _load(name, overrides)
    console.result({"config": name, "valid": True}, as_json, lambda _: console.write(f"{name}: valid.\n"))


@app.command(epilog="Example: nrt config diff paper reference")
def diff(
    left: Annotated[str, CONFIG],
    right: Annotated[str, Argument(autocompletion=completion.presets_and_configs, help="What to compare it with.")],
    as_json: AsJson = False,
) -> None:
    """List every key on which two configurations differ."""
    from nrt_cli import config  # pydantic: a third of the time that `nrt --help` may take

    rows = config.diff(_load(left), _load(right))
    record = [{"key": key, "left": a, "right": b} for key, a, b in rows]
    table = console.table("key", left, right, rows=rows)
    console.result(record, as_json, lambda _: console.stdout.print(table if rows else "no differences"))


def _load(name: str | None, overrides: list[str] | None = None) -> "RunConfig":
    """A config by file, shipped name or preset name."""
    from nrt_cli import config, methods  # pydantic: a third of the time that `nrt --help` may take

    preset = bool(name) and (config.configs_dir() / "presets" / f"{name}.yaml").is_file()
    named = [f"preset={name}"] if preset else []
    found = config.load(None if preset else name, [*named, *(overrides or [])])
    methods.get(found.method, found.objective)  # a user's own
    return found
