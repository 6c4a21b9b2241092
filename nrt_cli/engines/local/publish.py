"""A model folder as others load it: its weights as they are, and a tokenizer whose chat template thinks by default."""

import json
import shutil
from pathlib import Path, PurePath
from typing import Any

from nrt_cli.engines.local.loading import load_tokenizer, quiet
from nrt_cli.engines.local.sources import METADATA, WEIGHT_FILES
from nrt_cli.errors import ModelError
from nrt_cli.text.prompts import prompt_text, thinking_template

CONFIGS = ("config.json", "generation_config.json")
CONVERSATIONS = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}],
)


def write_for_others(source: Path, folder: Path, think_start: str | None, think_end: str, thinks: bool) -> None:
    """Fill `folder` with the model of `source`. A model that answers directly keeps its template.

    Raises ModelError where the template cannot be made to think.
    """
    for pattern in (*WEIGHT_FILES, *CONFIGS):
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    tokenizer = load_tokenizer(source)
    if thinks:
        if not isinstance(tokenizer.chat_template, str):
            raise ModelError(f"{source}: has no chat template, or several; give it one and prepare it anew.")
        tokenizer.chat_template = thinking_template(tokenizer.chat_template, think_start, think_end)
    with quiet():
        tokenizer.save_pretrained(folder)
    if thinks:
        _check_template(load_tokenizer(source), load_tokenizer(folder), think_start or "", think_end)
    about = json.loads((source / METADATA).read_text(encoding="utf-8"))
    (folder / METADATA).write_text(json.dumps(without_paths(about), indent=2) + "\n", encoding="utf-8")


def _check_template(before: Any, after: Any, start: str, end: str) -> None:
    """The written template is the old one plus what opens a trace, whatever its own last lines do with white space."""
    for turns in CONVERSATIONS:
        text = prompt_text(before, turns)
        rendered = {
            "thinking": (after.apply_chat_template(turns, add_generation_prompt=True, tokenize=False), start),
            "not thinking": (
                after.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, enable_thinking=False),
                start + end,
            ),
        }
        wrong = [name for name, (found, added) in rendered.items() if found != text + added]
        if wrong or prompt_text(after, turns) != text:
            raise ModelError(
                f"the chat template, made to open a trace, renders something else ({', '.join(wrong) or 'bare'}); "
                "prepare the model with a simpler chat template."
            )


def without_paths(value: Any) -> Any:
    """A value in which every absolute path has become its last part: where it lay is nobody's business."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith(("~", ".."))):
        return PurePath(value).name
    return value
