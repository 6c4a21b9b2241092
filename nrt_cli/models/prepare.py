"""Make a pretrained model ready for training, and prove that nothing but the new tokens changed.

The source is loaded, extended (`vocabulary.py`), saved to a draft folder beside the output, reloaded from there as
anyone would, and compared with the source; only then does the draft take the output's name.
"""

import contextlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers.models import BPE, Unigram
from torch import Tensor
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import generate_merges

from nrt_cli import __version__
from nrt_cli.config import TokensSection
from nrt_cli.errors import ModelError
from nrt_cli.files import draft
from nrt_cli.models.loading import declared_stops, from_folder, quiet, whole_model
from nrt_cli.models.problems import prompt_problems, token_problems
from nrt_cli.models.sources import METADATA, Source, find_source, model_fingerprint, read_json, tokenizer_here
from nrt_cli.models.vocabulary import (
    HALFWAY,
    Settings,
    count_rows,
    extend_rows,
    extend_tokenizer,
    is_tied,
    row_starts,
    same_start,
    set_token_ids,
    start_text,
)
from nrt_cli.text.tokens import single_id, think_tokens

PROBE = 'Question: what is 12 + 30?\n\n  It\'s 42, naïve — "yes".\n'
# Same weights, same inputs: only the head's matrix product may be summed in another order once it has more rows.
# bfloat16 keeps 8 significant bits, so its tolerance is four units in the last place.
LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-6}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Prepared:
    """The folder, its metadata (`nrt.json`), and whether it was there already."""

    folder: Path
    metadata: dict[str, Any]
    unchanged: bool


def prepare_model(
    source: str,
    out: Path,
    think_start: str | None = "<|think_start|>",
    think_end: str = "<|think_end|>",
    init_start: str = "\n\n",
    init_end: str = "\n",
    noise: float = 0.01,
    dtype: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
) -> Prepared:
    """Write `source`, ready for training, to the folder `out`; the same call again changes nothing.

    The think tokens' rows start as the mean row of the tokens that `init_start` and `init_end` are tokenised to, or as
    the mean of all rows ("mean"), plus Gaussian noise of `noise` times the rows' standard deviation.
    dtype "auto" rounds nothing: bfloat16 where the source is, else float32.
    Raises ModelError, and then leaves `out` as it was.
    """
    if dtype not in ("auto", *DTYPES):
        raise ModelError(f"dtype {dtype!r} is unknown; choose auto, {' or '.join(DTYPES)}.")
    settings = Settings(think_start, think_end, init_start, init_end, noise, dtype, seed)
    found = find_source(source)
    origin = {"source": source, "source_fingerprint": found.fingerprint, "settings": asdict(settings)}
    if existing := _existing(out, found, origin, overwrite):
        return Prepared(out, existing, unchanged=True)
    with quiet(), model_folder(out) as folder:
        metadata = origin | _prepare(found, folder, settings) | {"fingerprint": model_fingerprint(folder)}
        (folder / METADATA).write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Prepared(out, metadata, unchanged=False)


def planned_rows(source: str, init_start: str, init_end: str) -> str:
    """What the think tokens' rows of a source will start from, in words. Downloads and writes nothing.

    Raises ModelError where the source's tokenizer is here and cannot be loaded.
    """
    asked = {"think_start": init_start, "think_end": init_end}
    with quiet(), tokenizer_here(source) as found:
        if found is None:
            texts = ", ".join(f"{role} from what {text!r} is tokenised to" for role, text in asked.items())
            return f"{texts}; the tokenizer of {source} is not on this machine, so it is not known which tokens"
        tokenizer = _load_tokenizer(found)
    usual = TokensSection()
    tokens = {"think_start": str(usual.think_start), "think_end": usual.think_end}
    settings = Settings(**tokens, init_start=init_start, init_end=init_end, noise=0.0, dtype="auto", seed=0)
    starts = row_starts(tokenizer, settings)
    names = {role: tokenizer.convert_ids_to_tokens(list(starts[new])) for role, new in tokens.items() if new in starts}
    halfway = {"think_start": HALFWAY if same_start(list(names.values())) else ""}
    new_rows = (f"{role} from {start_text(asked[role], names[role])}{halfway.get(role, '')}" for role in names)
    return ", ".join(new_rows) or "none: the model has both think tokens"


def _prepare(source: Source, folder: Path, settings: Settings) -> dict[str, Any]:
    """Load, extend, save to `folder` and verify; returns what was done, as metadata."""
    tokenizer, model = _load(source, settings.dtype)
    had_template, tied, rows_before = bool(tokenizer.chat_template), is_tied(model), count_rows(model)
    probe_ids = tokenizer.encode(PROBE, add_special_tokens=False)
    logits_before = _logits(model, probe_ids)

    # Taken before anything is added: the mean must not see padding rows or the new tokens themselves.
    real_ids = sorted(i for i in set(tokenizer.get_vocab().values()) if i < rows_before)
    named = row_starts(tokenizer, settings)
    new_rows = {token: tokenizer.convert_ids_to_tokens(list(ids)) for token, ids in named.items()}
    # The tokenizer's own eos is one of them whatever the configs say, also where another closes the assistant's turn.
    declared = declared_stops(model.config, model.generation_config.eos_token_id)
    stop_ids = tuple(dict.fromkeys((*declared, tokenizer.eos_token_id)))
    extend_tokenizer(tokenizer, settings, stop_ids)
    # Also the tokens of a source whose embedding was never grown for them.
    new_ids = sorted(set(tokenizer.get_vocab().values()) - set(real_ids))
    # Padding is never to be sampled: the mean row makes it improbable wherever the think tokens start from.
    starts = {i: named.get(tokenizer.convert_ids_to_tokens(i), ()) for i in new_ids}
    halfway = single_id(tokenizer, str(settings.think_start)) if same_start(list(named.values())) else None
    extend_rows(model, real_ids, starts, halfway, settings)
    set_token_ids(model, tokenizer, stop_ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = _facts(tokenizer, model, settings)
    del model  # so that verifying never holds a large model twice

    old_ids = [i for i in range(rows_before) if i not in new_ids]
    _verify(folder, settings, tied, probe_ids, old_ids, logits_before)
    template = "kept" if had_template else "added"
    about = {"new_ids": new_ids, "new_rows": new_rows, "embedding_rows_before": rows_before}
    return facts | {"chat_template": template} | about


def _facts(tokenizer: Any, model: Any, settings: Settings) -> dict[str, Any]:
    """What the prepared model is, for people and for the run's manifest."""
    stop_ids = declared_stops(model.config, model.generation_config.eos_token_id)
    ids = think_tokens(tokenizer, settings.think_start, settings.think_end, stop_ids)
    return {
        "tokens": {
            "think_start": {"token": settings.think_start, "id": ids.start_id},
            "think_end": {"token": settings.think_end, "id": ids.end_id},
            "eos": {"token": tokenizer.eos_token, "id": ids.eos_id},
            "pad": {"token": tokenizer.pad_token, "id": ids.pad_id},
        },
        "stop_tokens": [{"token": tokenizer.convert_ids_to_tokens(i), "id": i} for i in ids.stop_ids],
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "embedding_rows": count_rows(model),
        "tied_head": is_tied(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "nrt": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


# --- loading


def _load(source: Source, dtype: str) -> tuple[Any, Any]:
    """Tokenizer and model, the model in the dtype it will be saved in. Raises ModelError."""
    tokenizer = _load_tokenizer(source)
    model: Any = whole_model(source.folder, source.name, "auto", **_where(source))
    if source.gguf_file:
        _repair_gguf_tokenizer(tokenizer, model.config)
    if tokenizer.eos_token is None:
        raise ModelError(f"{source.name}: its tokenizer has no end-of-sequence token, so answers could never end.")
    # float16 is widened rather than rounded to bfloat16; a GGUF's weights come out of transformers as float32.
    lossless = model.dtype if model.dtype in DTYPES.values() else torch.float32
    return tokenizer, model.to(DTYPES.get(dtype, lossless)).eval()


def _load_tokenizer(source: Source) -> Any:
    return from_folder(AutoTokenizer, source.folder, source.name, **_where(source))


def _where(source: Source) -> dict[str, str]:
    return {"gguf_file": source.gguf_file} if source.gguf_file else {}


def _repair_gguf_tokenizer(tokenizer: Any, config: Any) -> None:
    """Put right what transformers makes of a GGUF file's tokenizer.

    It guesses the names of bos, eos and unk, and takes SmolLM2's eos for its bos: the file has their ids. It reads
    Gemma's pieces as a unigram model, which cuts words elsewhere than the model was trained on; they are
    SentencePiece's BPE, whose merges are the pieces that two others make, the best score first.
    """
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.model, Unigram):
        model = json.loads(backend.to_str())["model"]
        ids: dict[str, int] = {}
        for i, (piece, _) in enumerate(model["vocab"]):
            if piece in ids:
                # The byte 9 is given to us as a tabulator, which is a piece of its own further on.
                ids["<0x09>"] = ids[piece]
            ids[piece] = i
        backend.model = BPE(
            ids,
            generate_merges(ids, model["vocab"]),
            unk_token=model["vocab"][model["unk_id"]][0],
            byte_fallback=model["byte_fallback"],
            fuse_unk=True,
        )
    for role in ("bos", "eos", "unk"):
        token_id = getattr(config, f"{role}_token_id", None)
        if isinstance(token_id, int) and 0 <= token_id < len(tokenizer):
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(token_id))
    # A BPE decoder restores spaces exactly; the clean-up is meant for WordPiece and would eat those before "." and ",".
    tokenizer.clean_up_tokenization_spaces = False


# --- verification


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    """Logits [T, V] in float32."""
    return model(input_ids=torch.tensor([ids])).logits[0].float()


def _verify(
    folder: Path, settings: Settings, tied: bool, probe_ids: list[int], old_ids: list[int], logits_before_TV: Tensor
) -> None:
    """Reload what was written, as anyone would, and refuse it unless it is the source plus the new tokens."""
    tokenizer = from_folder(AutoTokenizer, folder, "the prepared model")
    model = whole_model(folder, "the prepared model", "auto")
    for problem in _problems(tokenizer, model, settings, tied, probe_ids):
        raise ModelError(f"The prepared model did not survive saving and loading: {problem}; nothing was written.")
    logits_TV = _logits(model, probe_ids)
    tolerance = LOGIT_TOLERANCE[model.dtype]
    if not torch.allclose(logits_TV[:, old_ids], logits_before_TV[:, old_ids], rtol=tolerance, atol=tolerance):
        gap = (logits_TV[:, old_ids] - logits_before_TV[:, old_ids]).abs().max().item()
        raise ModelError(
            f"The prepared model's logits differ from the source's by up to {gap:.3g}; nothing was written."
        )


def _problems(tokenizer: Any, model: Any, settings: Settings, tied: bool, probe_ids: list[int]) -> Iterator[str]:
    """Sentences about what a reloaded model and tokenizer got wrong, logits apart."""
    if tokenizer.encode(PROBE, add_special_tokens=False) != probe_ids:
        yield "plain text is tokenised differently"
    if is_tied(model) != tied:
        yield "the head is no longer tied to the embedding" if tied else "the head became tied to the embedding"
    yield from token_problems(tokenizer, model.config, settings.think_start, settings.think_end)
    yield from prompt_problems(tokenizer, [{"role": "user", "content": "Hi"}])


# --- the output folder


def _existing(out: Path, source: Source, origin: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The metadata of a folder that already is what is asked for; None where it can be written. Raises ModelError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    metadata = read_json(out / METADATA) if (out / METADATA).is_file() else {}
    if source.gguf_file is None and out.samefile(source.folder):
        if metadata and not _differences(metadata, origin, ("think_start", "think_end")):
            return metadata
        raise ModelError(f"{out}: the output is the source itself; choose another folder for --out.")
    if overwrite:
        if not (out / "config.json").is_file():
            raise ModelError(f"{out}: holds something that is not a model; remove it yourself or choose another --out.")
        return None
    if not metadata:
        raise ModelError(
            f"{out}: exists and was not made by `nrt model prepare`; choose another --out or add --overwrite."
        )
    if changed := _differences(metadata, origin):
        raise ModelError(
            f"{out}: was prepared with another {', '.join(changed)}; choose another --out or add --overwrite."
        )
    if metadata.get("fingerprint") != model_fingerprint(out):
        raise ModelError(f"{out}: its files were changed since they were prepared; add --overwrite to make it anew.")
    return metadata


def _differences(metadata: dict[str, Any], origin: dict[str, Any], keys: Sequence[str] = ()) -> list[str]:
    """Names of the settings on which a folder differs from what is asked: `keys`, or all of them and the source."""
    old, new = metadata.get("settings", {}), origin["settings"]
    changed = [key for key in (keys or new) if old.get(key) != new[key]]
    if not keys and metadata.get("source_fingerprint") != origin["source_fingerprint"]:
        changed.insert(0, "source")
    return changed


@contextlib.contextmanager
def model_folder(out: Path) -> Iterator[Path]:
    """A draft of `out`; what the operating system refuses is one sentence, and leaves `out` as it was."""
    try:
        with draft(out) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error}).") from None
