"""`nrt push`: share a trained model."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from nrt_cli import console
from nrt_cli.commands import completion
from nrt_cli.commands.config import AsJson, no_effect

EXAMPLE = "Example: nrt push runs/mine --repo me/smollm2-nrt --private\n\nOr: nrt push runs/mine@20 --out shared/model"


def push(
    model: Annotated[
        str,
        Argument(
            metavar="MODEL", autocompletion=completion.models, help="RUN, RUN@STEP, RUN@best, folder or builtin:NAME."
        ),
    ],
    out: Annotated[Path | None, Option(help="Folder to write.")] = None,
    repo: Annotated[str | None, Option(help="Repository on the Hugging Face hub, OWNER/NAME.")] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    license: Annotated[str | None, Option(help="The licence you give it, such as apache-2.0.")] = None,
    base_model: Annotated[str | None, Option(help="Hub id of the starting model, for the card.")] = None,
    gguf: Annotated[
        bool, Option("--gguf", help="Add a GGUF file for llama.cpp, made by its convert_hf_to_gguf.py.")
    ] = False,
    converter: Annotated[Path | None, Option(help="That converter, where it is not on the PATH.")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a model that stands at --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Share a model: weights, tokenizer, a chat template that thinks by default, config, and a card made from the run.

    It loads with transformers 4.57 and 5, vLLM and llama.cpp's converter; its card has the lines that serve it.
    """
    if out is not None:
        no_effect("on a folder", private=private)
    if repo is not None:
        no_effect("on a repository, to which a commit is added", overwrite=overwrite)

    from nrt_cli.workflows.push import push as run_push

    done = run_push(model, out, repo, private, overwrite, license, base_model, gguf, converter)
    thinks = "its chat template opens a trace" if done["thinks"] else "it answers directly"
    told = f"{done['to']}: {', '.join(done['files'])}; {thinks}. Read README.md before you share it."
    console.result(done, as_json, lambda _: console.note(told))
