"""Loading prepared folders: what must be refused, and what must not be left to chance."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from nrt_cli.backends.local.policy import Policy
from nrt_cli.config import ModelSection
from nrt_cli.errors import ModelError
from nrt_cli.models.loading import load_model, load_tokenizer, pick_dtype, positions
from nrt_cli.objective.rows import Row


@pytest.fixture
def folder(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def section(folder, **changes):
    return ModelSection(path=str(folder), dtype="float32", device="cpu", **changes)


def test_a_strangers_code_is_never_run(folder, tmp_path, monkeypatch):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # even if transformers asked and somebody agreed
    for load in (lambda: load_model(section(folder)), lambda: positions(folder)):
        with pytest.raises(ModelError, match="cannot be loaded"):
            load()
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weights, such as model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(section(folder))


def test_a_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(section(folder))


def test_no_dropout_is_left_where_checkpointing_needs_train_mode(folder):
    change_config(folder, attention_dropout=0.5)
    model = load_model(section(folder, gradient_checkpointing=True))
    assert model.training
    policy = Policy(model, load_tokenizer(folder).pad_token_id, packing=True)
    row = [Row((5, 6, 7, 8, 9), 1)]
    torch.testing.assert_close(policy.score(row)[0], policy.score(row)[0], rtol=0, atol=0)


def test_weights_that_are_not_finite_are_said_to_be_so(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        Policy(load_model(section(folder)), 0)


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_asks_the_hardware_and_a_named_dtype_does_not(native, dtype, monkeypatch):
    monkeypatch.delenv("NRT_AUTO_DTYPE", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    cpu = torch.device("cpu")
    assert pick_dtype("auto", cpu) == dtype
    assert [pick_dtype(name, cpu) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize(("generation", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16")], ids=["T4", "A100"])
def test_auto_does_not_take_a_gpus_emulation_for_the_hardware(generation, dtype, monkeypatch):
    about = SimpleNamespace(major=generation[0], minor=generation[1])
    monkeypatch.delenv("NRT_AUTO_DTYPE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert pick_dtype("auto", torch.device("cuda")) == dtype


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
def test_a_variable_says_what_auto_is_on_any_processor(chosen, monkeypatch):
    monkeypatch.setenv("NRT_AUTO_DTYPE", chosen)
    cpu = torch.device("cpu")
    assert [pick_dtype(name, cpu) for name in ("auto", "float32", "bfloat16")] == [chosen, "float32", "bfloat16"]
    monkeypatch.setenv("NRT_AUTO_DTYPE", "half")
    with pytest.raises(ModelError, match="NRT_AUTO_DTYPE=half: set it to float32 or bfloat16"):
        pick_dtype("auto", cpu)


def test_a_tokenizer_is_read_once_and_anew_when_its_folder_changes(folder, tmp_path, monkeypatch):
    copied = shutil.copytree(folder, tmp_path / "copied")
    read = []
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", partial(_noted, AutoTokenizer.from_pretrained, read))
    first, second = load_tokenizer(copied), load_tokenizer(copied)
    first.chat_template = "another"
    assert second.chat_template != "another"
    assert len(read) == 1
    settings = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    assert load_tokenizer(copied).model_max_length == 77


def _noted(load, read, *of, **how):
    read.append(of)
    return load(*of, **how)
