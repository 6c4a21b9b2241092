"""A model for others: a folder that thinks by default, with its weights as they are; as GGUF; and on the hub.

Nothing here goes to the hub unasked.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from nrt_cli.errors import ConfigError, EndpointError, ModelError, first_line
from nrt_cli.files import record_text
from nrt_cli.models.loading import load_tokenizer, load_tokens, quiet
from nrt_cli.models.metadata import Metadata
from nrt_cli.models.sources import METADATA, WEIGHT_FILES, model_files, read_json
from nrt_cli.text.prompts import prompt_text, thinking_template
from nrt_cli.text.rendering import rendered

SERVING = "nrt_vllm.py"
"""What vLLM loads from the folder, so that a trace ends there as it did in training."""

FIELD_MARKS = ("<think>", "</think>")
"""The marks that parsers of servers and clients look for."""

CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
"""What llama.cpp's converter is called where it is installed."""


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
    _write(folder / "config.json", config_for_all(read_json(source / "config.json")))
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
        # Nothing is renamed where a mark is no added token, or a name is taken.
        asked: dict[str | None, str] = dict(zip((about.think_start, about.think_end), FIELD_MARKS, strict=True))
        asked.pop(None, None)
        added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        taken = (tokenizer.get_vocab().keys() - asked.keys()) & set(asked.values())
        names = asked if asked.keys() <= added and not taken else {}
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
    file = folder / "tokenizer_config.json"
    _write(file, tokenizer_for_all(read_json(file)))
    marks = {about.think_start, about.think_end} if about.thinks else set()
    file = folder / "tokenizer.json"
    # Servers leave special tokens out of a reply; trace and answer would be glued together.
    stored = read_json(file)
    for token in stored["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
        if token["content"] in marks:
            token["special"] = False
    model = stored["model"]
    if model["type"] == "BPE" and '"ByteLevel"' in json.dumps(stored["pre_tokenizer"]):
        # A BPE over bytes, as transformers reads it out of a GGUF file, claims to fall back on bytes too, and
        # llama.cpp's converter would take it for SentencePiece.
        model |= {"byte_fallback": False, "fuse_unk": False}
        stored["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    elif vocabulary:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    _write(file, stored)
    if about.thinks:
        # The written template is the old one plus what opens a trace, whatever its own last lines do with white space.
        before, after, start = load_tokenizer(source), load_tokenizer(folder), about.think_start or ""
        said = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
        conversation = [{"role": role, "content": content} for role, content in said]
        for turns in (conversation[:1], conversation):
            how: dict[str, Any] = {"add_generation_prompt": True}
            text = prompt_text(before, turns)
            direct = rendered(after, turns, **how, enable_thinking=False)
            found = {
                "thinking": (rendered(after, turns, **how), start),
                "not thinking": (direct, start + about.think_end),
            }
            wrong = [name for name, (said, added) in found.items() if said != text + added]
            if wrong or prompt_text(after, turns) != text:
                raise ModelError(
                    f"the chat template, made to open a trace, renders something else ({', '.join(wrong) or 'bare'}); "
                    "prepare the model with a simpler chat template."
                )
    metadata = without_paths(read_json(source / METADATA))
    for mark in filter(None, metadata["tokens"].values()):
        mark["token"] = names.get(mark["token"], mark["token"])
    metadata["files"] = model_files(folder)
    metadata.pop("fingerprint", None)  # of what it was before
    (folder / METADATA).write_text(record_text(METADATA, metadata), encoding="utf-8")
    return about


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
    own = ("backend", "is_local", "local_files_only", "model_type")
    kept = {key: value for key, value in config.items() if key not in own}
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    # The class that takes tokenizer.json as it is, in both versions.
    return kept | {"tokenizer_class": "PreTrainedTokenizerFast"}


def without_paths(value: Any) -> Any:
    """A value in which every absolute path has become its last part: where it lay is nobody's business."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith(("~", ".."))):
        return PurePath(value).name
    return value


def find_converter(given: Path | None) -> list[str]:
    """The command that begins a conversion.

    Args:
        given: the converter; where it is a Python file, this Python runs it. None looks for an installed one.

    Raises:
        ConfigError: there is none.
    """
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"--converter {given}: no such file; llama.cpp's sources have {CONVERTERS[0]}.")
        return [sys.executable, str(given)] if given.suffix == ".py" else [str(given.resolve())]
    if found := next(filter(None, map(shutil.which, CONVERTERS)), None):
        return [found]
    raise ConfigError(
        f"--gguf needs llama.cpp's {CONVERTERS[0]}, which is not on the PATH; name it with --converter FILE (it lies "
        "in llama.cpp's sources, github.com/ggml-org/llama.cpp, and needs the packages of its requirements)."
    )


def convert(converter: list[str], folder: Path, file: Path) -> None:
    """Write a folder's model to a GGUF file. Raises ModelError, with what the converter said last, where it fails."""
    try:
        done = subprocess.run(
            [*converter, str(folder), "--outfile", str(file)], capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise ModelError(f"{converter[0]}: cannot be run ({error.strerror}).") from None
    if done.returncode or not file.is_file() or file.stat().st_size == 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = said[-1] if said else f"it ended with {done.returncode} and said nothing"
        raise ModelError(f"{converter[-1]}: wrote no GGUF file ({reason}); nothing was pushed.")


def card_metadata(
    name: str, scores: Sequence[Mapping[str, Any]], license: str | None, base_model: str | None, tags: Sequence[str]
) -> str:
    """The YAML that heads a model card.

    Args:
        scores: each with `benchmark`, `title`, `metric` and `score`, a share.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score["benchmark"],
            dataset_name=score["title"],
            metric_type=score["metric"],
            metric_value=round(100 * score["score"], 2),
        )
        for score in scores
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(tags),
        license=license,
        base_model=base_model,
        model_name=name,
        eval_results=results or None,
    )
    text: str = data.to_yaml()
    return text


def upload(folder: Path, repo: str, private: bool, message: str) -> str:
    """Create the repository where it is missing and commit the folder to it; returns its address.

    The token is the hub library's own matter: `hf auth login`, or HF_TOKEN.

    Raises:
        ConfigError: the name is none the hub takes.
        EndpointError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        # False is the hub's default too, but would make an existing private repository's call fail.
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
    except HFValidationError as error:
        raise ConfigError(f"--repo {repo}: {error}") from None
    except OfflineModeIsEnabled:
        raise EndpointError(
            "HF_HUB_OFFLINE is set, so nothing was uploaded; unset it, or write a folder with --out."
        ) from None
    except LocalTokenNotFoundError:
        raise EndpointError("the hub does not know you; log in with `hf auth login`, or set HF_TOKEN.") from None
    except (HTTPError, OSError) as error:
        hint = "log in with `hf auth login` as someone who may write there, or write a folder with --out"
        raise EndpointError(
            f"{repo}: the hub took nothing ({type(error).__name__}: {first_line(error)}); {hint}."
        ) from None
    return str(address)
