"""Model folders that mean harm, or are damaged: each is one sentence, at once, and nothing of theirs runs."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file

from nrt_cli.config import ModelSection
from nrt_cli.errors import ModelError, NrtError
from nrt_cli.models.loading import load_model, load_tokenizer
from nrt_cli.models.prepare import prepare_model, prompt_problems
from nrt_cli.models.shapes import model_shape
from nrt_cli.text import rendering
from nrt_cli.text.prompts import prompt_text

Change = Callable[[Path], object]


RUNS = b"cbuiltins\nopen\n(S'ran'\nS'w'\ntR."
"""A pickle that leaves a file behind when it is read."""


def said(file: str, **values: Any) -> Change:
    """Other values in a JSON file."""

    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))

    return change


def config(**values: Any) -> Change:
    return said("config.json", **values)


def text(file: str, content: str | bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def template(source: str) -> Change:
    return text("chat_template.jinja", source)


def index(**weight_map: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "evil.bin").write_bytes(RUNS)
        names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names | weight_map}))
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model-1.safetensors").rename(folder / "model.safetensors")

    return change


def pickled(name: str, only: bool = True) -> Change:
    def change(folder: Path) -> None:
        if only:
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(RUNS)

    return change


def header(values: dict[str, Any] | bytes, length: int | None = None, rest: bytes = b"") -> Change:
    """A safetensors file of this header."""
    content = values if isinstance(values, bytes) else json.dumps(values).encode()
    size = struct.pack("<Q", len(content) if length is None else length)
    return text("model.safetensors", size + content + rest)


def weights(**changed: Callable[[Any], Any] | None) -> Change:
    """Tensors of other shapes, or none."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        for name, make in changed.items():
            full = next(one for one in tensors if name in one)
            tensor = tensors.pop(full)
            if make:
                tensors[full] = make(tensor)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def linked(name: str, to: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return change


def pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def tokenizer(**changed: Any) -> Change:
    return said("tokenizer.json", **changed)


def gguf(*keys: tuple[str, int, bytes], tensors: int = 0, count: int | None = None, rest: bytes = b"") -> Change:
    """A GGUF file of these keys: name, type and the bytes of the value."""
    made = b"".join(string(name) + struct.pack("<I", kind) + value for name, kind, value in keys)
    return text(
        "m.gguf", struct.pack("<4sIQQ", b"GGUF", 3, tensors, len(keys) if count is None else count) + made + rest
    )


def string(value: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value.encode()


def tensor(side: int) -> bytes:
    """What says of a square matrix of float32 that it begins where the others end."""
    return string("a") + struct.pack("<IQQIQ", 2, side, side, 0, 0)


def array(kind: int, length: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + values


ADDED = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False) | {"content": "<eos>"}
ARCHITECTURE = ("general.architecture", 8, string("llama"))
DEEP = "[" * 10_000 + "]" * 10_000
LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
HOSTILE: dict[str, Change] = {
    # Weights that are no weights.
    "index-names-pickle": index(**{"model.norm.weight": "evil.bin"}),
    "index-names-outside": index(**{"model.norm.weight": "../source/model.safetensors"}),
    "index-names-absolute": index(**{"model.norm.weight": "/etc/passwd"}),
    "index-names-missing": index(**{"model.norm.weight": "model-2.safetensors"}),
    "index-names-number": index(**{"model.norm.weight": 7}),
    "index-names-list": index(**{"model.norm.weight": ["model.safetensors"]}),
    "index-no-map": text("model.safetensors.index.json", '{"weight_map": ["evil.bin"]}'),
    "index-deep": text("model.safetensors.index.json", DEEP),
    "pickle-only": pickled("pytorch_model.bin"),
    "pickle-pt": pickled("consolidated.00.pth"),
    "pickle-called-safetensors": pickled("model.safetensors"),
    "adapter": said("adapter_config.json", base_model_name_or_path="other/model", peft_type="LORA"),
    # Files that say more of themselves than they hold.
    "header-2^62": header({}, length=2**62),
    "header-100-MB": header({}, length=10**8),
    "header-not-json": header(b"x" * 64),
    "header-deep": header(DEEP.encode()),
    "header-empty": header({}),
    "header-beyond": header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "header-negative": header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, rest=b"1234"),
    "header-overflow": header({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 0]}}),
    "header-overlap": header(
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, rest=b"1234"
    ),
    "header-dtype": header({"a": {"dtype": "EVIL", "shape": [1], "data_offsets": [0, 4]}}, rest=b"1234"),
    "weights-empty": text("model.safetensors", b""),
    "weights-cut": lambda folder: os.truncate(folder / "model.safetensors", 5000),
    "weights-missing-one": weights(norm=None),
    "weights-other-shape": weights(embed_tokens=lambda tensor: tensor[:, :8].copy()),
    "weights-fewer-rows": weights(embed_tokens=lambda tensor: tensor[:5].copy()),
    "weights-nan": weights(norm=lambda tensor: tensor * float("nan")),
    # Configs.
    "layers-million": config(num_hidden_layers=10**6),
    "layers-10^400": config(num_hidden_layers=10**400),
    "layers-4000": config(num_hidden_layers=4000),
    "layers-text": config(num_hidden_layers="two"),
    "layers-negative": config(num_hidden_layers=-1),
    "layers-none": config(num_hidden_layers=None),
    "heads-zero": config(num_attention_heads=0),
    "heads-odd": config(num_attention_heads=5),
    "experts-million": config(model_type="mixtral", num_local_experts=10**6),
    "hidden-2^40": config(hidden_size=2**40),
    "hidden-zero": config(hidden_size=0),
    "inner-2^50": config(intermediate_size=2**50),
    "vocabulary-2^60": config(vocab_size=2**60),
    "vocabulary-billion": config(vocab_size=10**9),
    "activation": config(hidden_act="__import__('os').system"),
    "rope": config(rope_parameters={"rope_type": "evil", "rope_theta": 1.0}),
    "rope-list": config(rope_parameters=[[[]]]),
    "dtype": config(dtype="evil", torch_dtype="evil"),
    "type-unknown": config(model_type="evil"),
    "type-list": config(model_type=["llama"]),
    "own-code": config(model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
    "hub-kernel": config(attn_implementation="evil/kernel"),
    "hub-kernel-inside": config(_attn_implementation="evil/kernel"),
    "quantised": config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "config-list": text("config.json", "[1, 2]"),
    "config-deep": text("config.json", DEEP),
    "config-empty": text("config.json", ""),
    "config-binary": text("config.json", bytes(range(256))),
    "config-digits": text("config.json", '{"vocab_size": ' + "9" * 5000 + "}"),
    "config-zero-device": linked("config.json", "/dev/zero"),
    "config-loop": linked("config.json", "config.json"),
    "config-pipe": pipe("config.json"),
    "weights-pipe": pipe("model.safetensors"),
    "weights-zero-device": linked("model.safetensors", "/dev/zero"),
    "eos-list": config(eos_token_id=["a", {}]),
    "generation-list": text("generation_config.json", "[]"),
    "generation-deep": text("generation_config.json", DEEP),
    # Tokenizers.
    "tokenizer-deep": text("tokenizer.json", DEEP),
    "tokenizer-empty": text("tokenizer.json", ""),
    "tokenizer-list": text("tokenizer.json", "[]"),
    "tokenizer-no-model": tokenizer(model={"type": "Evil"}),
    "tokenizer-no-vocabulary": tokenizer(model={"type": "BPE", "vocab": {}, "merges": []}),
    "tokenizer-ids": tokenizer(model={"type": "BPE", "vocab": {"a": 2**31}, "merges": []}),
    "tokenizer-id-2^70": tokenizer(model={"type": "BPE", "vocab": {"a": 2**70}, "merges": []}),
    "tokenizer-regex": tokenizer(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
    "tokenizer-added": tokenizer(added_tokens=[ADDED | {"id": 2**31}]),
    "tokenizer-added-beside": text("added_tokens.json", '{"<more>": 4000000000}'),
    "tokenizer-pipe": pipe("tokenizer.json"),
    "tokenizer-zero-device": linked("tokenizer.json", "/dev/zero"),
    "tokenizer-config-deep": text("tokenizer_config.json", DEEP),
    "tokenizer-config-list": text("tokenizer_config.json", "[]"),
    "eos-unknown": said("tokenizer_config.json", eos_token=None),
    "eos-mapping": said("tokenizer_config.json", eos_token={"a": 1}),
    # Templates.
    "template-loops": template(LOOPS),
    "template-grows": template(
        "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
    ),
    "template-times": template("{{ 'a' * 10**12 }}"),
    "template-power": template("{{ 9**(9**9) }}"),
    "template-range": template("{{ range(10**12) | list }}"),
    "template-long": template("{{ 'a' * 10**8 }}"),
    "template-escapes": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template-opens": template("{% include '/etc/passwd' %}"),
    "template-deep": template("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"),
    "template-open-tag": template("{% for a in messages %}"),
    "template-raises": template("{{ raise_exception('no') }}"),
    "template-macro": template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    "template-nothing": template("{# nothing #}"),
    "template-divides": template("{{ 1 // 0 }}"),
    "template-pipe": pipe("chat_template.jinja"),
    # GGUF.
    "gguf-array-2^60": gguf(ARCHITECTURE, ("tokenizer.ggml.tokens", 9, array(0, 2**60, b"abc"))),
    "gguf-array-of-strings-2^60": gguf(ARCHITECTURE, ("tokenizer.ggml.tokens", 9, array(8, 2**60, string("a")))),
    "gguf-string-2^63": gguf(("general.architecture", 8, string("llama", 2**63))),
    "gguf-string-2^64": gguf(("general.architecture", 8, string("llama", 2**64 - 1))),
    "gguf-keys-2^60": gguf(ARCHITECTURE, count=2**60),
    "gguf-tensors-2^60": gguf(ARCHITECTURE, tensors=2**60),
    "gguf-tensor-beyond": gguf(ARCHITECTURE, tensors=1, rest=tensor(2**30)),
    "gguf-tensor-overflow": gguf(ARCHITECTURE, tensors=1, rest=tensor(2**32)),
    "gguf-dimensions-2^31": gguf(ARCHITECTURE, tensors=1, rest=string("a") + struct.pack("<I", 2**31)),
    "gguf-nested": gguf(("a", 9, b"".join(array(9, 1) for _ in range(5000)))),
    "gguf-type": gguf(("a", 99, b"1234")),
    "gguf-not-text": gguf(("general.architecture", 8, struct.pack("<Q", 2) + b"\xff\xfe")),
    "gguf-layers": gguf(ARCHITECTURE, ("llama.block_count", 4, struct.pack("<I", 10**6))),
    "gguf-no-model": gguf(ARCHITECTURE),
    "gguf-unknown": gguf(("general.architecture", 8, string("evil"))),
    "gguf-empty": text("m.gguf", b""),
    "gguf-cut": text("m.gguf", b"GGUF\x03\0"),
    "gguf-version": text("m.gguf", struct.pack("<4sIQQ", b"GGUF", 999, 0, 0)),
}  # fmt: skip


@pytest.fixture
def folder(make_tiny_source: Callable[..., Path], make_tiny_tokenizer: Any, monkeypatch: Any, tmp_path: Path) -> Path:
    """A model as others leave it; a template has half a second, and nothing is unpickled."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(rendering, "CPU_SECONDS", 0.5)
    monkeypatch.setattr(torch, "load", never)
    monkeypatch.chdir(tmp_path)
    return make_tiny_source(tmp_path / "hostile", make_tiny_tokenizer())


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_model_is_one_sentence(kind: str, folder: Path) -> None:
    HOSTILE[kind](folder)
    with pytest.raises(NrtError) as refused:
        prepare_model("hostile/m.gguf" if kind.startswith("gguf") else "hostile", Path("out"))
    assert "\n" not in str(refused.value)
    assert 20 < len(str(refused.value)) < 500
    assert {path.name for path in folder.parent.iterdir()} == {"hostile"}


def test_a_pickle_beside_the_weights_is_left_alone(folder: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "vocab.pkl"):
        pickled(name, only=False)(folder)
    prepare_model("hostile", Path("out"))
    assert not Path("ran").exists()
    assert not list(Path("out").glob("*.bin"))


def test_a_prepared_model_is_not_trusted_more(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "prepared")
    index(**{"model.norm.weight": "evil.bin"})(tmp_path / "prepared")
    for read in (load_tokenizer, model_shape, lambda path: load_model(ModelSection(path=path))):
        with pytest.raises(ModelError, match=r"names 'evil\.bin'"):
            read(str(tmp_path / "prepared"))


@pytest.mark.parametrize("template", ["hello", "{{ messages[0]['role'] }}", "{% if messages %}<|user|>{% endif %}"])
def test_a_template_that_leaves_the_question_out_is_a_problem(tiny_tokenizer: Any, template: str) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    assert not list(prompt_problems(tiny_tokenizer, turns))
    tiny_tokenizer.chat_template = template
    assert list(prompt_problems(tiny_tokenizer, turns)) == ["its chat template leaves the question out"]


def test_a_template_that_is_refused_leaves_others_alone(tiny_tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(rendering, "CPU_SECONDS", 0.5)
    turns = [{"role": "user", "content": "Hi \ud800\n"}]
    before = prompt_text(tiny_tokenizer, turns)
    assert before == "<|user|>\nHi \ud800\n\n<|assistant|>\n"
    kind, tiny_tokenizer.chat_template = tiny_tokenizer.chat_template, LOOPS
    with pytest.raises(ModelError, match=r"takes more than 0\.5 s"):
        prompt_text(tiny_tokenizer, turns)
    tiny_tokenizer.chat_template = kind
    assert prompt_text(tiny_tokenizer, turns) == before
