"""`nrt model`: make a pretrained model ready for training."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commandline import nrt, settings
from nrt_cli.commands.config import no_effect

USUAL = {"think_start": "<|think_start|>", "think_end": "<|think_end|>"}

app = typer.Typer(help="Make a pretrained model ready for training.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Make a pretrained model ready for training."""


@app.command(epilog="Example: nrt model prepare builtin:smollm2-135m --out models/smollm2")
def prepare(
    source: Annotated[
        str, Argument(help="Model folder, .gguf file, builtin:smollm2-135m, or a hub id (owner/name) to download.")
    ],
    out: Annotated[Path, Option("--out", help="Folder to write the prepared model to.")],
    think_start: Annotated[
        str, Option(help="Token that opens a trace; 'null': a trace follows the prompt directly.")
    ] = USUAL["think_start"],
    think_end: Annotated[str, Option(help="Token that closes a trace.")] = USUAL["think_end"],
    init_start: Annotated[
        str,
        Option(help="Text whose tokens' row think-start starts from, or mean (of all rows).", show_default="'\\n\\n'"),
    ] = "\n\n",
    init_end: Annotated[
        str, Option(help="Text whose tokens' row think-end starts from, or mean.", show_default="'\\n'")
    ] = "\n",
    init_noise: Annotated[
        float, Option(min=0.0, help="Gaussian noise on new rows, as a share of the rows' standard deviation.")
    ] = 0.01,
    dtype: Annotated[str, Option(help="auto (rounds nothing), float32 or bfloat16.")] = "auto",
    seed: Annotated[int, Option(min=0, help="Seed of the noise.")] = 0,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a model that stands at --out.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Add think tokens, a pad token and a chat template to a model, check it, and write it as safetensors."""
    if think_start == "null":
        no_effect("where a trace follows the prompt directly", init_start=init_start != "\n\n")
    # torch and transformers take seconds to import: only when there is work for them.
    from nrt_cli.models.prepare import HALFWAY, MEAN, prepare_model, same_start, start_text

    if not as_json:
        console.note(f"Preparing {source} ...")
    # As shells pass them on.
    unescaped = [text.replace("\\n", "\n").replace("\\t", "\t") for text in (init_start, init_end)]
    prepared = prepare_model(
        source, out, think_start=None if think_start == "null" else think_start, think_end=think_end,
        init_start=unescaped[0], init_end=unescaped[1], noise=init_noise, dtype=dtype, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    data = {"folder": str(out), "unchanged": prepared.unchanged, **prepared.metadata}
    if console.result(data, as_json):
        return
    tokens = data["tokens"]
    # A config expects the usual think tokens unless it says otherwise.
    words = settings(
        {f"tokens.{key}": tokens[key]["token"] for key, usual in USUAL.items() if tokens[key]["token"] != usual}
    )
    named = [f"{role} {t['token']} = {t['id']}" for role, t in tokens.items() if t["id"] is not None]
    # A folder that was prepared before these were recorded has none.
    named += [f"stop {t['token']} = {t['id']}" for t in data.get("stop_tokens", [])[1:]]
    new = ["none: the model had every token"]
    if data["new_ids"]:
        asked = data["settings"]
        starts = {"think_start": asked["init_start"], "think_end": asked["init_end"], "pad": MEAN}
        recorded = data.get("new_rows", {})
        # A folder that was prepared before these were recorded has the one token that was asked for.
        rows = {role: recorded.get(tokens[role]["token"], [text]) for role, text in starts.items()}
        new = [
            f"{role} from {start_text(text, rows[role])}"
            for role, text in starts.items()
            if tokens[role]["id"] in data["new_ids"]
        ]
        new[0] += HALFWAY if same_start(list(recorded.values())) else ""
        new[-1] += f"; noise {asked['noise']:g}"
    console.say(
        f"{data['folder']}: {'already prepared, nothing to do' if data['unchanged'] else 'written and verified'}\n"
        f"  parameters   {data['parameters']:,} ({data['dtype']}), head {'tied' if data['tied_head'] else 'not tied'}\n"
        f"  vocabulary   {data['vocabulary']:,} tokens in {data['embedding_rows']:,} rows\n"
        f"  tokens       {', '.join(named)}\n"
        f"  new rows     {', '.join(new)}\n"
        f"  template     {data['chat_template']}\n"
        f"Next: {nrt('train', 'laptop', '--model', out, '--data', 'DATA.parquet', *words)}"
    )
