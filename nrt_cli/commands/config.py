"""`nrt config`: show, check and compare configurations."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nrt_cli import console
from nrt_cli.commands import completion

if TYPE_CHECKING:
    from nrt_cli.config import RunConfig

app = typer.Typer(help="Show, check and compare configurations.", no_args_is_help=True)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", autocompletion=completion.settings, help="Override a key: --set rollout.group_size=4."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
TrainData = Annotated[
    str | None, typer.Option("--data", autocompletion=completion.parquet, help="Parquet made by `nrt data prepare`.")
]
HeldOutData = Annotated[
    str | None, typer.Option("--validation", autocompletion=completion.parquet, help="Parquet for held-out scores.")
]


def flags(**given: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {key: value for key, value in given.items() if value is not None}


def section(name: str, /, **given: Any) -> dict[str, Any]:
    """The flags of one config section, nested under its name; nothing where none was given."""
    found = flags(**given)
    return {name: found} if found else {}


@app.command(epilog="Example: nrt config show train/quickstart --set rollout.group_size=4")
def show(
    name: Annotated[
        str | None,
        typer.Argument(autocompletion=completion.presets_and_configs, help="YAML file, shipped config or preset."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print the resolved configuration: preset, file and overrides put together."""
    from nrt_cli import config  # pydantic: a third of the time that `nrt --help` may take

    resolved = _load(name, overrides)
    console.result(resolved.model_dump(mode="json"), as_json, lambda _: console.write(config.to_yaml(resolved)))


@app.command(epilog="Example: nrt config check my-run.yaml")
def check(
    name: Annotated[
        str, typer.Argument(autocompletion=completion.presets_and_configs, help="YAML file, shipped config or preset.")
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a configuration is valid; unknown keys and contradictions are errors."""
    _load(name, overrides)
    console.result({"config": name, "valid": True}, as_json, lambda _: console.write(f"{name}: valid.\n"))


@app.command(epilog="Example: nrt config diff paper reference")
def diff(
    left: Annotated[
        str, typer.Argument(autocompletion=completion.presets_and_configs, help="YAML file, shipped config or preset.")
    ],
    right: Annotated[
        str, typer.Argument(autocompletion=completion.presets_and_configs, help="What to compare it with.")
    ],
    as_json: AsJson = False,
) -> None:
    """List every key on which two configurations differ."""
    from nrt_cli import config  # pydantic: a third of the time that `nrt --help` may take

    rows = config.diff(_load(left), _load(right))

    def render(_: object) -> None:
        table = Table("key", left, right)
        for key, a, b in rows:
            table.add_row(key, console.plain(str(a)), console.plain(str(b)))
        console.stdout.print(table if rows else "no differences")

    console.result([{"key": key, "left": a, "right": b} for key, a, b in rows], as_json, render)


def _load(name: str | None, overrides: list[str] | None = None) -> "RunConfig":
    """A config by file, shipped name or preset name."""
    from nrt_cli import config  # pydantic: a third of the time that `nrt --help` may take

    if name and (config.configs_dir() / "presets" / f"{name}.yaml").is_file():
        return config.load(None, [f"preset={name}", *(overrides or [])])
    return config.load(name, overrides or [])
