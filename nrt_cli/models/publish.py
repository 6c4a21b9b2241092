"""A model folder as others load it: its weights as they are, and a tokenizer whose chat template thinks by default."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from nrt_cli.errors import ModelError
from nrt_cli.models.loading import load_tokenizer, load_tokens, quiet
from nrt_cli.models.metadata import Metadata
from nrt_cli.models.sources import METADATA, WEIGHT_FILES, read_json
from nrt_cli.text.prompts import prompt_text, thinking_template

SERVING = "nrt_vllm.py"
"""What vLLM loads from the folder, so that a trace ends there as it did in training."""

FIELD_MARKS = ("<think>", "</think>")
"""The marks that parsers of servers and clients look for."""

OURS = {"backend", "is_local", "local_files_only", "model_type"}
"""Keys that transformers 5 leaves in a tokenizer's config, of no use to anyone else."""

CONVERSATIONS = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}],
)


def write_for_others(source: Path, folder: Path, about: Metadata) -> Metadata:
    """Fill `folder` with the model of `source`, as transformers 4.57 and 5, vLLM and llama.cpp's converter read it.

    A model that thinks gets a chat template that does, and its marks get the field's names where these are free. Ids
    and weights stay. A model that answers directly keeps its template and its names.

    Returns:
        What the written model's marks are called.

    Raises:
        ModelError: the template cannot be made to think.
    """
    for pattern in WEIGHT_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    _edit(source / "config.json", folder, config_for_all)
    tokenizer, tokens = load_tokens(source, about.think_start, about.think_end)
    generation: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(tokens.stop_ids),
        "pad_token_id": tokens.pad_id,
    }
    if about.thinks:
        # What was trained is what is sampled: some readers would cut the distribution off by defaults of their own.
        temperature = read_json(source / METADATA).get("training", {}).get("temperature", 1.0)
        generation |= {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    _write(folder / "generation_config.json", generation)
    names: dict[str | None, str] = {}
    if about.thinks:
        if not isinstance(tokenizer.chat_template, str):
            raise ModelError(f"{source}: has no chat template, or several; give it one and prepare it anew.")
        names = _new_names(tokenizer, about)
        about = replace(
            about,
            think_start=names.get(about.think_start, about.think_start),
            think_end=names.get(about.think_end, about.think_end),
        )
        tokenizer.chat_template = thinking_template(tokenizer.chat_template, about.think_start, about.think_end)
        # Copied, not imported: it needs vLLM.
        shutil.copyfile(Path(__file__).with_name(SERVING), folder / SERVING)
    with quiet():
        tokenizer.save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", folder, tokenizer_for_all)
    marks = {about.think_start, about.think_end} if about.thinks else set()
    _edit(folder / "tokenizer.json", folder, lambda values: _tokens_for_all(values, names, marks))
    if about.thinks:
        _check_template(load_tokenizer(source), load_tokenizer(folder), about.think_start or "", about.think_end)
    _edit(source / METADATA, folder, lambda values: _renamed(without_paths(values), names))
    return about


def _edit(file: Path, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write a JSON file, changed, to the folder."""
    _write(folder / file.name, change(read_json(file)))


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config_for_all(config: dict[str, Any]) -> dict[str, Any]:
    """A model's config under the names of transformers 4 and 5: 4 reads past `rope_parameters`, without a word."""
    config = dict(config)
    if "text_config" in config:
        config["text_config"] = config_for_all(config["text_config"])
    if dtype := config.get("dtype"):
        config["torch_dtype"] = dtype
    rope = config.get("rope_parameters") or {}
    if "sliding_attention" in rope:  # Gemma 3: a base of its own for each kind of layer
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            config[key] = rope[key]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return config


def tokenizer_for_all(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's config without what only transformers 5 knows: its classes, and a list of extra special tokens."""
    kept = {key: value for key, value in config.items() if key not in OURS}
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    # The class that takes tokenizer.json as it is, in both versions.
    return kept | {"tokenizer_class": "PreTrainedTokenizerFast"}


def _new_names(tokenizer: Any, about: Metadata) -> dict[str | None, str]:
    """What each mark is to be called from now on; nothing where a mark is no added token, or a name is taken."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    names: dict[str | None, str] = dict(zip((about.think_start, about.think_end), FIELD_MARKS, strict=True))
    names.pop(None, None)
    taken = set(tokenizer.get_vocab()) - names.keys()
    return names if names.keys() <= added and not taken & set(names.values()) else {}


def _tokens_for_all(
    tokenizer: dict[str, Any], names: Mapping[str | None, str], marks: set[str | None]
) -> dict[str, Any]:
    """tokenizer.json with the marks under their new names, as plain tokens, for readers of every kind.

    Servers leave special tokens out of a reply; trace and answer would be glued together.
    """
    for token in tokenizer["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
        if token["content"] in marks:
            token["special"] = False
    if tokenizer["model"]["type"] == "BPE" and '"ByteLevel"' in json.dumps(tokenizer["pre_tokenizer"]):
        # A BPE over bytes, as transformers reads it out of a GGUF file, claims to fall back on bytes too, and
        # llama.cpp's converter would take it for SentencePiece.
        tokenizer["model"] |= {"byte_fallback": False, "fuse_unk": False}
        tokenizer["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    vocabulary = tokenizer["model"].get("vocab")
    if isinstance(vocabulary, dict):
        tokenizer["model"]["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    elif vocabulary:
        tokenizer["model"]["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    return tokenizer


def _renamed(about: dict[str, Any], names: Mapping[str | None, str]) -> dict[str, Any]:
    """nrt.json with the marks' new names."""
    for mark in about["tokens"].values():
        if mark:
            mark["token"] = names.get(mark["token"], mark["token"])
    return about


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
