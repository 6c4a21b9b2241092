"""Models and tokenizers from prepared folders: quietly, whole, and without a stranger's code."""

import contextlib
import copy
import io
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from nrt_cli.config import ModelSection
from nrt_cli.errors import ModelError, NrtError
from nrt_cli.models.metadata import read_metadata
from nrt_cli.models.sources import METADATA, check_files, read_json
from nrt_cli.text.tokens import ThinkTokens, think_tokens


def pick_device(asked: str) -> torch.device:
    """`auto` is a GPU where there is one."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device=cuda, but torch sees no GPU here; set model.device=cpu or auto.")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


AUTO_DTYPE = "NRT_AUTO_DTYPE"
"""Environment variable that says what `auto` is, so that what other hardware computes can be tried on any."""


def pick_dtype(asked: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware multiplies it: emulated, it is several times slower than float32."""
    if asked != "auto":
        return asked
    chosen = os.environ.get(AUTO_DTYPE) or ("bfloat16" if native_bfloat16(device) else "float32")
    if chosen not in ("float32", "bfloat16"):
        raise ModelError(f"{AUTO_DTYPE}={chosen}: set it to float32 or bfloat16, or unset it.")
    return chosen


def native_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16: a T4 and a V100 only emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def resolved(section: ModelSection) -> ModelSection:
    """The section with its dtype as what it means here, so that a record says what was computed."""
    return section.model_copy(update={"dtype": pick_dtype(section.dtype, pick_device(section.device))})


def positions(path: str | Path) -> int | None:
    """How many positions the model of a folder has; None where it does not say."""
    return getattr(read_config(path).get_text_config(), "max_position_embeddings", None)


def read_config(path: str | Path) -> PreTrainedConfig:
    """The config of a prepared model folder."""
    return from_folder(AutoConfig, require_model(path), str(path))


def require_model(path: str | Path) -> Path:
    """The folder, if a model is in it."""
    if not str(path):
        raise ModelError(
            "no model given; set model.path to a folder made by `nrt model prepare`, or to builtin:digits."
        )
    if not Path(path, "config.json").is_file():
        raise ModelError(f"{path}: no model there (config.json is missing); make one with `nrt model prepare`.")
    return Path(path)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a prepared model folder.

    What ends a trace or an answer is special in it: of added tokens, only those can be left text where a text spells
    them (`encode_answer`). In the folder they may be plain, as Qwen 3's <think> is, and ours once they are pushed.
    """
    about = ((file.name, file.stat()) for file in sorted(require_model(path).iterdir()))
    # A copy of its settings: whoever changes the chat template changes his own.
    return copy.copy(_read_tokenizer(str(path), tuple((name, of.st_mtime_ns, of.st_size) for name, of in about)))


@lru_cache(maxsize=1)
def _read_tokenizer(path: str, _files: tuple[tuple[str, int, int], ...]) -> PreTrainedTokenizerBase:
    """Read once for a start, which asks for it three times, half a second each, as long as the files are the same."""
    tokenizer = from_folder(AutoTokenizer, Path(path), path)
    about = read_metadata(Path(path)) if Path(path, METADATA).is_file() else None
    marks = {about.think_start, about.think_end} if about else set()
    stops = _stops(path)
    for number, token in tokenizer.added_tokens_decoder.items():
        if not token.special and (number in stops or token.content in marks):
            token.special = True
            tokenizer.add_tokens([token], special_tokens=True)
    return tokenizer


def load_tokens(
    path: str | Path, think_start: str | None, think_end: str
) -> tuple[PreTrainedTokenizerBase, ThinkTokens]:
    """The tokenizer of a prepared model folder, and the ids of its think tokens and of what ends its answers.

    Raises ModelError where one is missing, or cannot be told from another.
    """
    tokenizer = load_tokenizer(path)
    return tokenizer, think_tokens(tokenizer, think_start, think_end, _stops(path))


def _stops(path: str | Path) -> tuple[int, ...]:
    """The tokens that end a model's answers, as its folder declares them."""
    file = Path(path, "generation_config.json")
    generation = read_json(file).get("eos_token_id") if file.is_file() else None
    return declared_stops(read_config(path), generation)


def declared_stops(config: PreTrainedConfig, generation: int | list[int] | None) -> tuple[int, ...]:
    """The tokens that end a model's answers by its config, and by the `eos_token_id` of its generation config.

    Either may name one, several or none; what has no row in the embedding cannot be sampled.
    """
    of_text = config.get_text_config()
    named = [generation, *(getattr(one, "eos_token_id", None) for one in (config, of_text))]
    ids = [i for one in named for i in (one if isinstance(one, list) else [one]) if isinstance(i, int)]
    return tuple(dict.fromkeys(i for i in ids if 0 <= i < of_text.vocab_size))


def load_model(section: ModelSection) -> PreTrainedModel:
    """The model of a prepared folder, in the compute dtype, on the device, without dropout."""
    device, dtype = pick_device(section.device), getattr(torch, resolved(section).dtype)
    with quiet():
        model = whole_model(require_model(section.path), section.path, dtype)
        if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
            # transformers' fused attention leaves the cap on attention scores out; eager applies it.
            model.set_attn_implementation("eager")
    for module in model.modules():
        # Rewards must not depend on chance beyond the trace, also where checkpointing needs train mode. Attention
        # layers keep a copy of the config's rate.
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train(section.gradient_checkpointing)
    model.to(device)  # type: ignore[arg-type]
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off a person's terminal."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # The bar over a GGUF file's tensors has no switch; what goes wrong is raised, so nothing is lost.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)


def whole_model(folder: Path, name: str, dtype: torch.dtype | str, **where: str) -> PreTrainedModel:
    """A folder's causal language model. Raises ModelError, under `name`, also where weights are missing."""
    config, held = from_folder(AutoConfig, folder, name, **where), check_files(name, folder, **where)
    with torch.device("meta"):
        needed = of_strangers(name, AutoModelForCausalLM.from_config, config, trust_remote_code=False).num_parameters()
    if held is None or needed > 2 * held:  # what is missing would be made up, in any size
        raise ModelError(f"{name}: its config is of {needed:,} numbers, its files hold {held or 0:,}.")
    # Newer versions would keep a GGUF file's weights packed, to compute with but not to save.
    packing = getattr(transformers, "GgufConfig", None) if "gguf_file" in where else None
    unpacked = {"quantization_config": packing(dequantize=True)} if packing else {}
    model, report = from_folder(
        AutoModelForCausalLM, folder, name, dtype=dtype, use_safetensors=True, output_loading_info=True,
        ignore_mismatched_sizes=True, **unpacked, **where
    )  # fmt: skip
    if wrong := sorted(report["mismatched_keys"]):
        key, found, wanted = wrong[0]
        raise ModelError(f"{name}: {key} is of {list(found)} in its files and of {list(wanted)} in its config.")
    # transformers would make them up at random and only warn.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name}: its files lack {len(missing)} weights, such as {missing[0]}.")
    return model


def from_folder(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    """What one of transformers' Auto classes makes of a local folder. Raises ModelError, under `name`."""
    check_files(name, folder, options.get("gguf_file"))
    # Said outright, since transformers would otherwise ask on the terminal whether to run a folder's own code.
    options |= {"local_files_only": True, "trust_remote_code": False}
    return of_strangers(name, kind.from_pretrained, str(folder), **options)


def of_strangers(name: str, load: Callable[..., Any], *what: object, **how: object) -> Any:
    """What another's code makes of a model's files. Raises ModelError for whatever it raises."""
    try:
        return load(*what, **how)
    except BaseException as error:
        # A panic of tokenizers' is no Exception.
        if isinstance(error, NrtError) or not (
            isinstance(error, Exception) or type(error).__name__ == "PanicException"
        ):
            raise
        told = " ".join(str(error).split())[:300].rstrip(".:") or type(error).__name__
        raise ModelError(f"{name}: cannot be loaded ({told}).") from None
