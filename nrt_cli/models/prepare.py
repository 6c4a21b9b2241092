"""Make a pretrained model ready for training, and prove that nothing but the new tokens changed.

The source is loaded, extended, saved to a draft folder beside the output, reloaded from there as anyone would, and
compared with the source; only then does the draft take the output's name.

Shapes: W_VD a matrix of embedding or head rows, V rows, D hidden size.

What transformers would do by itself and this does not:
- New rows are ours to set. `resize_token_embeddings` draws them from a fitted Gaussian, leaves untouched the padding
  rows that new ids may land in, and treats input and output rows alike whatever was asked.
- A think token starts as a separator that the model knows: a paragraph's end for t_start, a line's end for t_end. From
  the mean of all rows, SmolLM2-135M gives t_end a probability of about 1e-8 per token and reads t_start as noise; from
  one and the same row, t_start is sampled inside traces as often as t_end ends them.
- Any tokenizer has such rows, by one rule (`start_ids`): the rows of what the separator is tokenised to within a text.
  Where both separators are the same (Llama 2's and Mistral's bytes), t_start's lies halfway to the mean of all rows. On
  SmolLM2-135M with one token for both, that took its probability within traces from 6e-3, t_end's own, to 2e-5, and log
  P(y*) after the null trace from -178.9 to -172.7 (-181.0 from the mean; six GSM8K pairs).
- The vocabulary grows by exactly the new tokens. Rounding up would add ids without a token that sampling could draw.
- The generation config keeps token ids only. A model's own top_p or temperature would quietly change the
  distribution that traces are sampled from, and with it the policy gradient.
"""

import contextlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import AddedToken
from tokenizers.models import BPE, Unigram
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig
from transformers.convert_slow_tokenizer import generate_merges

from nrt_cli import __version__
from nrt_cli.config import TokensSection
from nrt_cli.errors import ModelError
from nrt_cli.files import digest_of_digests, draft, record_text
from nrt_cli.models.loading import declared_stops, from_folder, of_strangers, quiet, whole_model
from nrt_cli.models.sources import METADATA, Source, find_source, model_files, read_json, tokenizer_here
from nrt_cli.text.prompts import (
    DEFAULT_CHAT_TEMPLATE,
    closing_id,
    encode_answer,
    encode_within,
    prompt_text,
    render_prompt,
)
from nrt_cli.text.rendering import rendered
from nrt_cli.text.tokens import single_id, think_tokens

PROBE = 'Question: what is 12 + 30?\n\n  It\'s 42, naïve — "yes".\n'
# Same weights, same inputs: only the head's matrix product may be summed in another order once it has more rows.
# bfloat16 keeps 8 significant bits, so its tolerance is four units in the last place.
LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-6}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Names under which families reserve a padding token; the first that a vocabulary has is used before one is added.
PAD_NAMES = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|vision_pad|>")
MEAN = "mean"
HALFWAY = " and the mean, since think_end starts there"


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
    # Two preparations with equal settings and source give the same folder.
    settings = {
        "think_start": think_start, "think_end": think_end, "init_start": init_start, "init_end": init_end,
        "noise": noise, "dtype": dtype, "seed": seed,
    }  # fmt: skip
    found = find_source(source)
    origin = {"source": source, "source_fingerprint": found.fingerprint, "settings": settings}
    if existing := _existing(out, found, origin, overwrite):
        return Prepared(out, existing, unchanged=True)
    with quiet(), model_folder(out) as folder:
        tokenizer = from_folder(AutoTokenizer, found.folder, found.name, **found.where)
        model: Any = whole_model(found.folder, found.name, "auto", **found.where)
        if found.gguf_file:
            _repair_gguf_tokenizer(tokenizer, model.config)
        if tokenizer.eos_token is None:
            raise ModelError(f"{found.name}: its tokenizer has no end-of-sequence token, so answers could never end.")
        # float16 is widened rather than rounded to bfloat16; a GGUF's weights come out of transformers as float32.
        lossless = model.dtype if model.dtype in DTYPES.values() else torch.float32
        model = model.to(DTYPES.get(dtype, lossless)).eval()
        had_template, tied, rows_before = bool(tokenizer.chat_template), is_tied(model), count_rows(model)
        probe_ids = tokenizer.encode(PROBE, add_special_tokens=False)
        logits_before = of_strangers(found.name, _logits, model, probe_ids)

        # Taken before anything is added: the mean must not see padding rows or the new tokens themselves.
        real_ids = sorted(i for i in set(tokenizer.get_vocab().values()) if i < rows_before)
        named = row_starts(tokenizer, {think_start: init_start, think_end: init_end})
        new_rows = {token: tokenizer.convert_ids_to_tokens(list(ids)) for token, ids in named.items()}
        # Its own eos is one of them whatever the configs say, also where another closes the assistant's turn.
        declared = declared_stops(model.config, model.generation_config.eos_token_id)
        stop_ids = tuple(dict.fromkeys((*declared, tokenizer.eos_token_id)))
        for token in named:
            tokenizer.add_tokens(AddedToken(token, special=True, normalized=False), special_tokens=True)
        # The tokenizer's own pad where that is no other token too, else one its family reserves, else a new one.
        taken = {tokenizer.eos_token, tokenizer.bos_token, think_start, think_end}
        free = tokenizer.get_vocab().keys() - taken - set(tokenizer.convert_ids_to_tokens(list(stop_ids)))
        pad = next((token for token in (tokenizer.pad_token, *PAD_NAMES) if token in free), "<|pad|>")
        tokenizer.add_special_tokens({"pad_token": pad})
        if not tokenizer.chat_template:
            tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
        # eos becomes what closes the assistant's turn.
        closing = tokenizer.convert_ids_to_tokens(closing_id(tokenizer, stop_ids))
        if closing != tokenizer.eos_token:
            if isinstance(tokenizer.chat_template, str):
                # A template that also writes eos, such as Phi's at a conversation's end, means the one that it was
                # written for.
                keep = f"{{%- set eos_token = {tokenizer.eos_token!r} -%}}"
                tokenizer.chat_template = keep + tokenizer.chat_template
            tokenizer.eos_token = closing
        # Also the tokens of a source whose embedding was never grown for them.
        new_ids = sorted(set(tokenizer.get_vocab().values()) - set(real_ids))
        # Padding is never to be sampled: the mean row makes it improbable wherever the think tokens start from.
        starts = {i: named.get(tokenizer.convert_ids_to_tokens(i), ()) for i in new_ids}
        halfway = single_id(tokenizer, str(think_start)) if same_start(list(named.values())) else None
        if starts:
            # Every new id gets a row in the input embedding and in the head; they grow where ids lie beyond their end.
            if max(starts) >= rows_before:
                model.resize_token_embeddings(max(starts) + 1, mean_resizing=False)
            generator = torch.Generator().manual_seed(seed)
            head = model.get_output_embeddings()
            matrices = [model.get_input_embeddings().weight, *([] if tied else [head.weight])]
            if getattr(head, "bias", None) is not None:
                matrices.append(head.bias.unsqueeze(1))
            for W_VD in matrices:
                init_rows(W_VD, real_ids, starts, halfway, noise, generator)
        set_token_ids(model, tokenizer, stop_ids)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        stops = declared_stops(model.config, model.generation_config.eos_token_id)
        ids = think_tokens(tokenizer, think_start, think_end, stops)
        facts = {
            "tokens": {
                "think_start": {"token": think_start, "id": ids.start_id},
                "think_end": {"token": think_end, "id": ids.end_id},
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
            "chat_template": "kept" if had_template else "added",
            "new_ids": new_ids,
            "new_rows": new_rows,
            "embedding_rows_before": rows_before,
        }
        del model  # so that verifying never holds a large model twice

        old_ids = [i for i in range(rows_before) if i not in new_ids]
        # Reloaded as anyone would, it has to be the source plus the new tokens.
        tokenizer = from_folder(AutoTokenizer, folder, "the prepared model")
        model = whole_model(folder, "the prepared model", "auto")
        problems = []
        if tokenizer.encode(PROBE, add_special_tokens=False) != probe_ids:
            problems.append("plain text is tokenised differently")
        if is_tied(model) != tied:
            problems.append(f"the head {'is no longer' if tied else 'became'} tied to the embedding")
        more = token_problems(tokenizer, model.config, think_start, think_end)
        for problem in chain(problems, more, prompt_problems(tokenizer, [{"role": "user", "content": "Hi"}])):
            raise ModelError(f"The prepared model did not survive saving and loading: {problem}; nothing was written.")
        logits_after, tolerance = _logits(model, probe_ids)[:, old_ids], LOGIT_TOLERANCE[model.dtype]
        if not torch.allclose(logits_after, logits_before[:, old_ids], rtol=tolerance, atol=tolerance):
            gap = (logits_after - logits_before[:, old_ids]).abs().max().item()
            raise ModelError(
                f"The prepared model's logits differ from the source's by up to {gap:.3g}; nothing was written."
            )
        files = model_files(folder)
        metadata = origin | facts | {"fingerprint": digest_of_digests(files.items()), "files": files}
        (folder / METADATA).write_text(record_text(METADATA, metadata), encoding="utf-8")
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
        tokenizer = from_folder(AutoTokenizer, found.folder, found.name, **found.where)
    usual = TokensSection()
    tokens = {"think_start": str(usual.think_start), "think_end": usual.think_end}
    starts = row_starts(tokenizer, {token: asked[role] for role, token in tokens.items()})
    names = {role: tokenizer.convert_ids_to_tokens(list(starts[new])) for role, new in tokens.items() if new in starts}
    halfway = {"think_start": HALFWAY if same_start(list(names.values())) else ""}
    new_rows = (f"{role} from {start_text(asked[role], names[role])}{halfway.get(role, '')}" for role in names)
    return ", ".join(new_rows) or "none: the model has both think tokens"


def row_starts(tokenizer: Any, asked: Mapping[str | None, str]) -> dict[str, tuple[int, ...]]:
    """Each think token that the tokenizer lacks, with the tokens whose rows its own starts from (`start_ids`).

    Args:
        asked: think tokens, None for none, and the texts that their rows are to start from.
    """
    starts = {}
    for token, text in asked.items():
        if token is not None:
            try:
                single_id(tokenizer, token)
            except ModelError:
                starts[token] = start_ids(tokenizer, text)
    return starts


def start_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens whose mean row a new row starts from; none stand for the mean of all rows.

    They are what `text` is tokenised to within a text: of line ends, one token with Llama 3, <0x0A> once or twice with
    Llama 2 and Mistral, nothing where a tokenizer drops them or does not know them. What no text is tokenised to alone,
    such as <0x0A> itself, is named as the vocabulary has it.
    """
    if text == MEAN:
        return ()
    ids = tuple(int(i) for i in encode_within(tokenizer, text) if i != tokenizer.unk_token_id)
    if len(ids) != 1 and text in (vocabulary := tokenizer.get_vocab()):
        return (int(vocabulary[text]),)
    return ids


def same_start(starts: Sequence[Sequence[Any]]) -> bool:
    """Whether both think tokens are new and would start from one and the same token's row."""
    return len(starts) == 2 and len({token for ids in starts for token in ids}) == 1 and all(starts)


def start_text(asked: str, names: Sequence[str]) -> str:
    """What a new row starts from, in words.

    Args:
        asked: the text that was asked for.
        names: the tokens that it is, as the vocabulary has them.
    """
    if asked == MEAN:
        return repr(MEAN)
    if not names:
        return f"{MEAN!r}: {asked!r} is no token of this tokenizer"
    return repr(asked) if [asked] == list(names) else f"{asked!r} ({' '.join(names)})"


@torch.no_grad()
def init_rows(
    W_VD: Tensor,
    real_ids: list[int],
    starts: dict[int, tuple[int, ...]],
    halfway: int | None,
    noise: float,
    generator: torch.Generator,
) -> None:
    """Set each row in `starts` in place to the mean of the rows it names (of `real_ids` for none), plus noise.

    The row `halfway` lies between the two.

    The noise is `noise` times each coordinate's standard deviation over the real rows. It only has to tell apart
    tokens that start from one row, which would otherwise stay one and the same as input.
    """
    real_RD = W_VD[real_ids].float()
    mean_D, std_D = real_RD.mean(0), real_RD.std(0, correction=0)
    for new_id, ids in starts.items():
        centre_D = W_VD[list(ids)].float().mean(0) if ids else mean_D
        if new_id == halfway:
            centre_D = (centre_D + mean_D) / 2
        noise_D = noise * std_D * torch.randn(W_VD.shape[1], generator=generator)
        W_VD[new_id] = (centre_D + noise_D).to(W_VD.dtype)


def set_token_ids(model: Any, tokenizer: Any, stop_ids: Sequence[int]) -> None:
    """Make config and generation config agree with the tokenizer; whatever else ends the model's answers is kept."""
    ids: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad", "bos")}
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.update(ids)
    stops = list(dict.fromkeys((tokenizer.eos_token_id, *stop_ids)))
    model.generation_config = GenerationConfig(**ids | {"eos_token_id": stops})


def is_tied(model: Any) -> bool:
    """Whether the head is the input embedding itself."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def count_rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


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


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    """Logits [T, V] in float32."""
    return model(input_ids=torch.tensor([ids])).logits[0].float()


# --- what a prepared model folder must hold to be trained: its special tokens and its chat template, as sentences


def token_problems(tokenizer: Any, config: Any, start: str | None, end: str) -> Iterator[str]:
    """What is wrong with a model's think tokens, pad and eos; nothing where all is well.

    Args:
        config: the model's, as transformers reads it.

    Raises:
        ModelError: a token is missing, is several, or two of them are the same.
    """
    ids = think_tokens(tokenizer, start, end)
    for token, token_id in ((start, ids.start_id), (end, ids.end_id)):
        if token is None:
            continue
        if tokenizer.encode(f"Why?{token}So 1.", add_special_tokens=False).count(token_id) != 1:
            yield f"{token!r} is not one token inside text"
        if tokenizer.decode([token_id]) != token:
            yield f"{token!r} decodes to {tokenizer.decode([token_id])!r}"
    if config.pad_token_id != ids.pad_id or ids.eos_id not in declared_stops(config, None):
        yield "the config's pad or eos differs from the tokenizer's"
    highest, rows = max(ids.end_id, ids.eos_id, ids.pad_id, ids.start_id or 0), config.get_text_config().vocab_size
    if highest >= rows:
        yield f"token {highest} has no row in the embedding, which has {rows}"


def prompt_problems(tokenizer: Any, messages: Sequence[dict[str, str]]) -> Iterator[str]:
    """What is wrong with what the chat template makes of some messages."""
    ids = render_prompt(tokenizer, messages)
    if not ids or ids[:2] == [tokenizer.bos_token_id] * 2:
        yield "its chat template renders nothing, or two BOS tokens"
    *before, last = messages
    if ids == render_prompt(tokenizer, [*before, last | {"content": f"1 {last['content']} 1"}]):
        yield "its chat template leaves the question out"


def prompt_doubts(tokenizer: Any, messages: Sequence[dict[str, str]], answer: str) -> Iterator[str]:
    """What is odd about a rendered prompt and its answer, though training works: loss of text, another turn's form."""
    # Text beside text: some tokenizers decode a space after BOS that nobody wrote.
    ids, text = render_prompt(tokenizer, messages), prompt_text(tokenizer, messages)
    if tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) != ids:
        yield "the prompt's text does not encode back to the prompt"
    if lost := [turn["content"] for turn in messages if turn["content"].strip() not in text]:
        yield f"the chat template changed or left out {lost[0][:60]!r}"
    answer_ids = encode_answer(tokenizer, answer)
    if answer.strip() not in tokenizer.decode(answer_ids):
        yield "the answer's text does not come back from its tokens"
    turns = [*messages, {"role": "assistant", "content": answer}]
    if not rendered(tokenizer, turns).startswith(text):
        yield (
            "a whole conversation is rendered with another beginning of the assistant's turn than a prompt, so the "
            "model may meet both"
        )


def _existing(out: Path, source: Source, origin: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The metadata of a folder that already is what is asked for; None where it can be written. Raises ModelError."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    metadata = read_json(out / METADATA) if (out / METADATA).is_file() else {}
    old, new = metadata.get("settings", {}), origin["settings"]
    changed = [] if metadata.get("source_fingerprint") == origin["source_fingerprint"] else ["source"]
    changed += [key for key in new if old.get(key) != new[key]]
    if source.gguf_file is None and out.samefile(source.folder):
        if metadata and not {"think_start", "think_end"} & set(changed):
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
    if changed:
        raise ModelError(
            f"{out}: was prepared with another {', '.join(changed)}; choose another --out or add --overwrite."
        )
    if metadata.get("fingerprint") != digest_of_digests(model_files(out).items()):
        raise ModelError(f"{out}: its files were changed since they were prepared; add --overwrite to make it anew.")
    return metadata


@contextlib.contextmanager
def model_folder(out: Path) -> Iterator[Path]:
    """A draft of `out`; what the operating system refuses is one sentence, and leaves `out` as it was."""
    try:
        with draft(out) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out}: cannot be written ({getattr(error, 'strerror', None) or error}).") from None
