"""`nrt model`: make a pretrained model ready for training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nrt_cli import console
from nrt_cli.commandline import nrt, settings

USUAL = {"think_start": "<|think_start|>", "think_end": "<|think_end|>"}

app = typer.Typer(help="Make a pretrained model ready for training.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Make a pretrained model ready for training."""


@app.command(epilog="Example: nrt model prepare builtin:smollm2-135m --out models/smollm2")
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="Model folder, .gguf file, builtin:smollm2-135m, or a hub id (owner/name) to download."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the prepared model to.")],
    think_start: Annotated[
        str, typer.Option(help="Token that opens a trace; 'null': a trace follows the prompt directly.")
    ] = USUAL["think_start"],
    think_end: Annotated[str, typer.Option(help="Token that closes a trace.")] = USUAL["think_end"],
    init_start: Annotated[
        str,
        typer.Option(
            help="Text whose tokens' row think-start starts from, or mean (of all rows).", show_default="'\\n\\n'"
        ),
    ] = "\n\n",
    init_end: Annotated[
        str, typer.Option(help="Text whose tokens' row think-end starts from, or mean.", show_default="'\\n'")
    ] = "\n",
    init_noise: Annotated[
        float, typer.Option(min=0.0, help="Gaussian noise on new rows, as a share of the rows' standard deviation.")
    ] = 0.01,
    dtype: Annotated[str, typer.Option(help="auto (rounds nothing), float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that stands at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Add think tokens, a pad token and a chat template to a model, check it, and write it as safetensors."""
    # torch and transformers take seconds to import: only when there is work for them.
    from nrt_cli.models.prepare import prepare_model

    if not as_json:
        console.note(f"Preparing {source} ...")
    prepared = prepare_model(
        source,
        out,
        think_start=None if think_start == "null" else think_start,
        think_end=think_end,
        init_start=_unescape(init_start),
        init_end=_unescape(init_end),
        noise=init_noise,
        dtype=dtype,
        seed=seed,
        overwrite=overwrite,
    )
    data = {"folder": str(out), "unchanged": prepared.unchanged, **prepared.metadata}
    console.result(data, as_json, _render)


def _unescape(text: str) -> str:
    r"""`\n` and `\t` as shells pass them on, as the characters they mean."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _render(data: dict[str, Any]) -> None:
    """The summary for people."""
    tokens = data["tokens"]
    # A config expects the usual think tokens unless it says otherwise.
    words = settings(
        {f"tokens.{key}": tokens[key]["token"] for key, usual in USUAL.items() if tokens[key]["token"] != usual}
    )
    named = [f"{role} {t['token']} = {t['id']}" for role, t in tokens.items() if t["id"] is not None]
    # A folder that was prepared before these were recorded has none.
    named += [f"stop {t['token']} = {t['id']}" for t in data.get("stop_tokens", [])[1:]]
    lines = [
        f"{data['folder']}: {'already prepared, nothing to do' if data['unchanged'] else 'written and verified'}",
        f"  parameters   {data['parameters']:,} ({data['dtype']}), head {'tied' if data['tied_head'] else 'not tied'}",
        f"  vocabulary   {data['vocabulary']:,} tokens in {data['embedding_rows']:,} rows",
        f"  tokens       {', '.join(named)}",
        f"  new rows     {_new_rows(data)}",
        f"  template     {data['chat_template']}",
        f"Next: {nrt('train', 'laptop', '--model', Path(data['folder']), '--data', 'DATA.parquet', *words)}",
    ]
    console.stdout.print(console.plain("\n".join(lines)), soft_wrap=True)


def _new_rows(data: dict[str, Any]) -> str:
    from nrt_cli.models.vocabulary import HALFWAY, MEAN, same_start, start_text

    if not data["new_ids"]:
        return "none: the model had every token"
    settings, tokens = data["settings"], data["tokens"]
    starts = {"think_start": settings["init_start"], "think_end": settings["init_end"], "pad": MEAN}
    # A folder that was prepared before these were recorded has the one token that was asked for.
    rows = {role: data.get("new_rows", {}).get(tokens[role]["token"], [asked]) for role, asked in starts.items()}
    new = [
        f"{role} from {start_text(starts[role], rows[role])}"
        for role in starts
        if tokens[role]["id"] in data["new_ids"]
    ]
    if same_start(list(data.get("new_rows", {}).values())):
        new[0] += HALFWAY
    return f"{', '.join(new)}; noise {settings['noise']:g}"
