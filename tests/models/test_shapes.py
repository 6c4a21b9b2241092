"""Shapes of models: known ones against transformers' own modules, folders against the loaded model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from nrt_cli.errors import ModelError
from nrt_cli.models.shapes import KNOWN, model_shape
from nrt_cli.records import ModelShape


@pytest.mark.parametrize("shape", KNOWN.values(), ids=lambda shape: shape.name)
def test_known_shapes_have_the_parameters_of_such_a_model(shape: ModelShape) -> None:
    # Qwen 2's queries, keys and values have biases; all others are like Llama.
    kind = (Qwen2Config, Qwen2ForCausalLM) if shape.name.startswith("qwen2") else (LlamaConfig, LlamaForCausalLM)
    config = kind[0](
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = kind[1](config)
    model.tie_weights()
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert model_shape(f"models/{shape.name}") == shape  # by name, where no folder is


def test_a_folder_is_read(tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    shape = model_shape(str(tiny_model_dir))
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert (shape.layers, shape.hidden, shape.intermediate, shape.heads, shape.kv_heads) == (2, 32, 64, 4, 2)
    assert (shape.head_dim, shape.vocab, shape.tied) == (8, model.config.vocab_size, False)


def test_a_model_that_is_neither_there_nor_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model there.*llama-3\.1-8b"):
        model_shape(str(tmp_path / "mine"))


def test_a_folder_without_weights_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    with pytest.raises(ModelError, match="has no weights"):
        model_shape(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be loaded"):
        model_shape(str(tmp_path))
