"""The shape of a model: from its folder, or by name for the paper's models, which a plan may precede."""

from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from nrt_cli.errors import ModelError
from nrt_cli.models.loading import from_folder, of_strangers, quiet
from nrt_cli.models.sources import check_files, fetched_config, find_source
from nrt_cli.records import ModelShape

KNOWN = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3.2-3b", 3_212_749_824, 28, 3072, 8192, 24, 8, 128, 128256, tied=True),
        ModelShape("mistral-7b-v0.3", 7_248_023_552, 32, 4096, 14336, 32, 8, 128, 32768, tied=False),
        ModelShape("llama-3.1-8b", 8_030_261_248, 32, 4096, 14336, 32, 8, 128, 128256, tied=False),
        ModelShape("qwen2.5-coder-0.5b-instruct", 494_032_768, 24, 896, 4864, 14, 2, 64, 151936, tied=True),
        ModelShape("smollm2-135m", 134_515_008, 30, 576, 1536, 9, 3, 64, 49152, tied=True),
    )
}
"""By the folder names that README and configs/ give them."""


def model_shape(path: str) -> ModelShape:
    """The shape of the model in a folder or, where that is not made yet, of the known model it is named after.

    Raises ModelError where there is neither.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return _read(folder)
    if known := KNOWN.get(folder.name.lower()):
        return known
    raise ModelError(
        f"{path or 'model.path'}: no model there (config.json is missing), and its name is not one of a known shape "
        f"({', '.join(KNOWN)}); make it with `nrt model prepare`."
    )


def source_shape(name: str) -> ModelShape:
    """The shape of what a model is to be made from, before it is: a folder, a GGUF file, a built-in model or a hub id.

    Of the hub only the config is fetched, unless the shape is known by name. Raises ModelError.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return _read(path)
    if known := KNOWN.get(name.rpartition("/")[2].removeprefix("builtin:").lower()):
        return known
    if path.exists() or name.startswith("builtin:"):
        source = find_source(name)
        with quiet():
            config = from_folder(AutoConfig, source.folder, name, **source.where)
    else:
        config = from_folder(AutoConfig, fetched_config(name), name)
    return of_strangers(name, _shape, path.stem, config, None)


def _read(folder: Path) -> ModelShape:
    config, count = from_folder(AutoConfig, folder, str(folder)), check_files(str(folder), folder)
    if not count:
        raise ModelError(f"{folder}: has no weights (*.safetensors); make it again with `nrt model prepare`.")
    return of_strangers(str(folder), _shape, folder.name, config, count)


def _shape(name: str, config: PreTrainedConfig, parameters: int | None) -> ModelShape:
    """As a config has it; without a count of the parameters, that of a Llama of this shape."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    shape = ModelShape(
        name=name,
        parameters=parameters or 0,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )
    if parameters is not None:
        return shape
    width, inner = shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads), 3 * shape.intermediate
    rows = shape.vocab * (1 if shape.tied else 2)
    return replace(shape, parameters=shape.hidden * (shape.layers * (width + inner) + rows))
