"""The trained policy as a Hugging Face folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nrt_cli.config import RunConfig
from nrt_cli.errors import StoreError
from nrt_cli.files import read_record, record_text
from nrt_cli.models.loading import load_model, load_tokens, quiet
from nrt_cli.models.lora import adapt, merged_weights
from nrt_cli.models.sources import METADATA, model_files
from nrt_cli.text.tokens import ThinkTokens

RANKS = "actor"
"""Where the ranks of a verl run write inside a checkpoint; `huggingface` below it has the weights, whole."""


def ranks_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a verl run's checkpoint under the names of `Optimiser.state`."""
    files = sorted((checkpoint / RANKS / "huggingface").glob("*.safetensors"))
    return {f"weight.{name}": tensor for file in files for name, tensor in load_file(file).items()}


@torch.no_grad()
def export_checkpoint(tensors: Mapping[str, Tensor], config: RunConfig, base: Path, folder: Path) -> None:
    """The same of a checkpoint: its master weights, rounded to the compute dtype as the policy's are.

    Args:
        tensors: what `Optimiser.state` returned, by name.
        base: a model of this architecture, with its tokenizer: the one the run began from, or its export.

    Raises:
        StoreError: the tensors are not this model's.
    """
    model = load_model(config.model.model_copy(update={"path": str(base), "device": "cpu"}))
    tokenizer, tokens = load_tokens(base, config.tokens.think_start, config.tokens.think_end)
    if config.model.lora.rank is not None:
        model = adapt(model, config.model.lora, tokens, config.seed)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if missing := sorted(name for name in weights if f"weight.{name}" not in tensors):
        raise StoreError(f"{base}: the checkpoint is of another architecture (it has no weight {missing[0]}).")
    for name, weight in weights.items():
        weight.copy_(tensors[f"weight.{name}"])
    export_model(model, tokenizer, tokens, config, base, folder)


@torch.no_grad()
def export_model(model: Any, tokenizer: Any, tokens: ThinkTokens, config: RunConfig, base: Path, folder: Path) -> None:
    """Weights (safetensors, compute dtype), tokenizer, and `nrt.json` saying how the model was trained and thinks."""
    with quiet():
        # As a model of its own, without an adapter that a reader would need peft for.
        model.save_pretrained(folder, state_dict=dict(merged_weights(model)))
        tokenizer.save_pretrained(folder)
    source = base / METADATA
    known = read_record(source) if source.is_file() else {}
    # A model may have think tokens that this run did not use.
    names = {"think_start": config.tokens.think_start, "think_end": config.tokens.think_end}
    ids = {"think_start": tokens.start_id, "think_end": tokens.end_id}
    named = known.get("tokens", {}) | {role: {"token": names[role], "id": ids[role]} for role in names}
    # The fingerprint is of the weights that training began with; an export tells it on.
    began = known.pop("fingerprint", None) or known.get("training", {}).get("from_fingerprint")
    trained = {
        "method": config.method,
        "thinks": config.thinks,
        "seed": config.seed,
        "max_trace_tokens": config.rollout.max_trace_tokens,
        "temperature": config.rollout.temperature,
        "from_fingerprint": began,
    }
    generation = base / "generation_config.json"
    if generation.is_file():
        shutil.copy(generation, folder / generation.name)
    about = known | {"tokens": named, "training": trained, "files": model_files(folder)}
    (folder / METADATA).write_text(record_text(METADATA, about), encoding="utf-8")
