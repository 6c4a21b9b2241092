"""Our backend beside OLMES itself, where NRT_OLMES_PYTHON names an interpreter that has it: document by document."""

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nrt_cli import config as configs
from nrt_cli.config.suite import ORDER
from nrt_cli.evaluation.evaluate import evaluate
from nrt_cli.evaluation.importing import import_results
from nrt_cli.evaluation.session import Job
from nrt_cli.models.prepare import prepare_model
from nrt_cli.progress import EvalProgress
from nrt_cli.store.evals import Evaluation

PYTHON = os.environ.get("NRT_OLMES_PYTHON")
DATA = Path(__file__).parents[1] / "eval_data"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(PYTHON is None, reason="NRT_OLMES_PYTHON names no interpreter of an OLMES environment"),
]


def both_ways(model, benchmark, tmp_path, think, tokens, limit=2):
    """The documents by what was asked: as our backend left them, and as `nrt eval import` reads OLMES's."""
    found = []
    for backend in ("lm-eval", "olmes"):
        given = [f"eval.olmes.python={PYTHON}", "eval.olmes.gpus=0", f"eval.data_dir={DATA}", "eval.max_samples=2"]
        settings = configs.load(None, [*given, f"eval.max_answer_tokens={tokens}", "eval.max_trace_tokens=8"])
        job = Job(str(model), (benchmark,), limit, backend, think=think, out=tmp_path / backend)
        (row,) = evaluate(job, settings, EvalProgress())["benchmarks"]
        assert row["failed"] is None
        if backend == "olmes":
            (folder,) = (tmp_path / "olmes" / "olmes").iterdir()
            (row,) = import_results(folder, None, tmp_path / "imported", print)["benchmarks"]
        documents = Evaluation(Path(row["folder"])).documents().values()
        found.append({tuple(turn["content"] for turn in each.messages): each for each in documents})
    assert found[0].keys() == found[1].keys()  # prompts, to the byte
    return [(found[0][asked], found[1][asked]) for asked in found[0]]


@pytest.mark.parametrize("benchmark", ORDER)
def test_the_nine_are_asked_and_graded_alike(benchmark, tmp_path):
    for ours, theirs in both_ways(scripted(tmp_path, "qwen"), benchmark, tmp_path, "off", 6):
        assert (ours.subset, len(ours.replies)) == (theirs.subset, len(theirs.replies))
        if benchmark == "truthfulqa":
            # OLMES counts the line end before an answer in, which is the same for all.
            logprobs = [sorted(reply.logprob for reply in each.replies) for each in (ours, theirs)]
            ours_rest, theirs_rest = ([value - values[0] for value in values] for values in logprobs)
            assert ours_rest == pytest.approx(theirs_rest, abs=1e-3)
            assert ours.scores["mc2"] == pytest.approx(theirs.scores["mc2"], abs=1e-3)
        elif benchmark not in ("math", "humaneval"):  # which are sampled
            assert [reply.answer for reply in ours.replies] == [reply.answer for reply in theirs.replies]
            assert ours.scores["olmes"] == theirs.scores["olmes"]


def family(name):
    """A tokenizer as that family's is: how it marks spaces, its template, and tokens that end a turn."""
    marks = {
        "llama-2": ["<s>", "</s>", "<|eot|>"],
        "qwen": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        "gemma": ["<bos>", "<end_of_turn>", "<eos>", "<start_of_turn>"],
    }[name]
    if name == "qwen":
        letters = pre_tokenizers.ByteLevel.alphabet()
        bare = Tokenizer(models.BPE({token: i for i, token in enumerate([*sorted(letters), *marks])}, []))
        bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127)), "\u25814"]
        vocabulary = {token: i for i, token in enumerate([*letters, *marks])}
        bare = Tokenizer(
            models.BPE(vocabulary, [("\u2581", "4")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        prepend = [normalizers.Prepend("\u2581")] if name == "llama-2" else []
        strip = [decoders.Strip(" ", 1, 0)] if name == "llama-2" else []
        bare.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "\u2581")])
        texts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        bare.decoder = decoders.Sequence([*texts, *strip])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=marks[1], additional_special_tokens=marks)
    turns = {
        "llama-2": ("<s>[INST] ", " [/INST]", " ", " </s>"),
        "qwen": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|>\n"),
        "gemma": ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "", "<end_of_turn>\n"),
    }[name]
    asked, begins, says, ends = (part.replace("\n", "\\n") for part in turns)
    tokenizer.chat_template = (
        ("{{ '<bos>' }}" if name == "gemma" else "")
        + f"{{% for m in messages %}}{{% if m['role'] == 'user' %}}{{{{ '{asked}' + m['content'] + '{begins}' }}}}"
        + f"{{% else %}}{{{{ '{says}' + m['content'] + '{ends}' }}}}{{% endif %}}{{% endfor %}}"
    )
    return tokenizer, marks


def scripted(folder, name):
    """A model that thinks "so" and answers " 42", whatever it is asked, and ends with the second of its end tokens."""
    tokenizer, marks = family(name)
    tokenizer.save_pretrained(folder / "source")
    size = len(tokenizer)
    config = {"hidden_size": 512, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
    made = LlamaConfig(vocab_size=size, max_position_embeddings=8192, eos_token_id=tokenizer.eos_token_id, **config)
    model = LlamaForCausalLM(made)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(mark) for mark in marks[1:3]]
    model.save_pretrained(folder / "source")
    prepare_model(str(folder / "source"), folder / "prepared", dtype="float32")
    tokenizer, model = (
        kind.from_pretrained(folder / "prepared") for kind in (PreTrainedTokenizerFast, LlamaForCausalLM)
    )
    size = len(tokenizer)

    def ids(*tokens):
        return [tokenizer.convert_tokens_to_ids(token) for token in tokens]

    four = ids("\u0120", "4") if name == "qwen" else ids("\u25814")
    trace, answer = ids("<|think_start|>", "s", "o", "<|think_end|>"), [*four, *ids("2", marks[2])]
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight[:size, :size] = torch.eye(size)
        following = dict.fromkeys(range(size), answer[0])  # whatever a prompt ends with
        following |= dict(zip([*trace[:-1], *answer[:-1]], [*trace[1:], *answer[1:]], strict=True))
        for token, after in following.items():
            model.lm_head.weight[after, token] = 0.05  # little more probable than the others, but the first choice
    model.save_pretrained(folder / "prepared")
    return folder / "prepared"


@pytest.mark.parametrize("think", ["on", "off"])
@pytest.mark.parametrize("name", ["llama-2", "qwen", "gemma"])
def test_tokenizers_of_every_kind_are_cut_and_graded_alike(name, think, tmp_path):
    for ours, theirs in both_ways(scripted(tmp_path, name), "gsm8k", tmp_path, think, 6):
        (our,), (their,) = ours.replies, theirs.replies
        assert (our.trace, our.answer, our.cut) == ("so" * (think == "on"), " 42", False)
        # Llama 2's tokenizer drops the space that a text begins with, and OLMES, left alone, decodes an answer so.
        assert (their.trace, their.answer) == (our.trace, "42" if (name, think) == ("llama-2", "off") else " 42")
        assert (their.stop, their.cut) == (our.stop, False)
        assert ours.scores["exact_match"] == theirs.scores["exact_match"]
