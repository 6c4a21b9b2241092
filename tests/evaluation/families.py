"""Models that say what they are told to, with tokenizers as Llama 2's, Qwen's and Gemma's are."""

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nrt_cli.models.prepare import prepare_model


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
