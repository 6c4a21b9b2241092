"""The work that every side is given: the model, prompts and answers of exact lengths, our engine's settings.

Shapes: K traces per prompt.
"""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import WORK, Figures, Job, say
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from nrt_cli.backends.local.decoding import PACKED, prepacked
from nrt_cli.backends.vllm_engine import CPU_BLOCK
from nrt_cli.config import ModelSection, RunConfig
from nrt_cli.files import draft
from nrt_cli.models.loading import load_model, quiet, resolved
from nrt_cli.models.prepare import prepare_model
from nrt_cli.records import Example, Rollout, RolloutGroup
from nrt_cli.training.trainer import LocalTrainer

SOURCE = "builtin:smollm2-135m"
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
"""vLLM's environment: in this process, on the threads that all sides have."""
VLLM_ENGINE: dict[str, Any] = {"enforce_eager": True, "block_size": CPU_BLOCK}
NEVER_SAMPLED = ("<repo_name>", "<file_sep>")
"""Tokens that SmolLM2 gives next to no probability: they take the roles of t_end and eos, and t_start has eos's row,
so that every trace runs into the cap, on all sides."""
NAMES = ("Tom", "Ana", "Ben", "Emma", "Grace", "Leo", "Hugo", "Ines")
GOODS = ("apples", "pens", "mugs", "stickers", "oranges", "candles")


def model_folder() -> Path:
    """SmolLM2-135M as `nrt model prepare` makes it, but for the tokens that end a trace; made once."""
    folder = WORK / "model"
    if folder.is_dir():
        return folder
    say("preparing the model")
    end, eos = NEVER_SAMPLED
    prepared = prepare_model(SOURCE, WORK / "smollm2", init_start=eos, init_end=end).folder
    model = load_model(ModelSection(path=str(prepared), dtype="float32", device="cpu"))
    tokenizer = AutoTokenizer.from_pretrained(prepared)
    tokenizer.eos_token = eos
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
    with quiet(), draft(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return folder


def wide_model(vocabulary: int) -> Path:
    """The same body with random weights and as many tokens as asked; its tokenizer knows but the special ones."""
    folder = WORK / f"vocabulary-{vocabulary}"
    if folder.is_dir():
        return folder
    special = ["<unk>", "<pad>", "<eos>", "<|think_start|>", "<|think_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({token: i for i, token in enumerate(special)}, unk_token="<unk>")),
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=special[3:],
    )
    config = AutoConfig.from_pretrained(model_folder(), vocab_size=vocabulary, pad_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    with quiet(), draft(folder) as new:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(new)
        tokenizer.save_pretrained(new)
    return folder


def set_up(job: Job) -> Figures:
    """Threads and the dtype that `auto` means here: what every side starts with."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    return {"dtype": resolved(ModelSection(dtype=job["dtype"], device="cpu")).dtype}


def load(job: Job) -> PreTrainedModel:
    """The bench model, for a peer."""
    return load_model(ModelSection(path=job["model"], dtype=job["dtype"], device="cpu"))


def engine(job: Job, **overrides: dict[str, Any]) -> LocalTrainer:
    """Our engine with the bench model, scheme `am` and every group of the batch in one minibatch."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": job["model"], "dtype": job["dtype"], "device": "cpu"},
        # Unclipped, so that no group is dead and no gradient vanishes.
        "objective": {"baseline": "none"},
        # Next to nothing, so that all rounds compute the same.
        "optimiser": {"lr": 1e-9, "weight_decay": 0.0},
        "rollout": {"group_size": job.get("K", 8), "max_trace_tokens": job.get("trace", 64)},
        "train": {"minibatch_size": None, "micro_batch_tokens": job.get("budget", 4096), "threads": job["threads"]},
    }
    for name, values in overrides.items():
        sections[name] = sections.get(name, {}) | values
    return LocalTrainer(RunConfig(method="am", **sections), updates=1000)


def story(seed: int) -> str:
    """Small word problems with their solutions, one after another: about 20,000 tokens."""
    dice = torch.Generator().manual_seed(seed)
    a, b, name, thing = (torch.randint(2, 99, (400,), generator=dice).tolist() for _ in range(4))
    return " ".join(
        f"{NAMES[n % len(NAMES)]} has {x + y} {GOODS[t % len(GOODS)]} and gives {y} of them away. How many "
        f"{GOODS[t % len(GOODS)]} are left? There were {x + y}, and {x + y} - {y} = {x}, so the answer is {x}."
        for x, y, n, t in zip(a, b, name, thing, strict=True)
    )


def text_of(tokenizer: Any, length: int, seed: int) -> str:
    """Text of exactly `length` tokens, which encodes to the same ids again."""
    ids = tokenizer.encode(story(seed), add_special_tokens=False)
    for start in range(len(ids) - length):
        text: str = tokenizer.decode(ids[start : start + length])
        if tokenizer.encode(text, add_special_tokens=False) == ids[start : start + length]:
            return text
    raise ValueError(f"no piece of {length} tokens")


def pairs(tokenizer: Any, count: int, prompt: int, answer: int, seed: int = 0) -> list[tuple[str, str]]:
    """Prompts of `prompt` tokens and answers of `answer` tokens, eos not counted in."""
    return [
        (text_of(tokenizer, prompt, seed + 2 * i), text_of(tokenizer, answer, seed + 2 * i + 1)) for i in range(count)
    ]


def examples(tokenizer: Any, texts: list[tuple[str, str]]) -> list[Example]:
    """The same for our engine: y* gets its eos."""

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    return [Example(i, "bench", encode(x), (*encode(y), tokenizer.eos_token_id)) for i, (x, y) in enumerate(texts)]


def group(prompt: int, trace: int, answer: int, K: int, vocabulary: int, seed: int = 0) -> RolloutGroup:
    """One group of random tokens: every trace is `trace` tokens long and ran into the cap; `answer` includes eos."""
    dice = torch.Generator().manual_seed(seed)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary // 10, vocabulary, (length,), generator=dice).tolist())

    example = Example(seed, "bench", draw(prompt), draw(answer))
    return RolloutGroup(example, tuple(Rollout(draw(trace), (-10.0,) * trace, "cap") for _ in range(K)))


def packed_tokens(job: Job) -> int:
    """Tokens of one packed group: x t_start, K branches of z t_end y*, and the null branch t_end y*."""
    branch = job["trace"] + 1 + job["answer"]
    return int(job["prompt"] + 1 + job["K"] * branch + 1 + job["answer"])


def model_flops(job: Job) -> float:
    """Floating-point operations of the matrix products of one update, if nothing is computed twice.

    One packed group; forward and backward are 3 forwards, but the head of the null branch is run forward only.
    Attention counts what a token attends to.
    """
    config = json.loads(Path(job["model"], "config.json").read_text())
    D, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, shared, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    weights = layers * D * (width * (2 * heads + 2 * shared) + 3 * config["intermediate_size"])
    head = D * config["vocab_size"]
    opening, branch, null = job["prompt"] + 1, job["trace"] + 1 + job["answer"], 1 + job["answer"]
    attended = opening**2 / 2 + job["K"] * branch * (opening + branch / 2) + null * (opening + null / 2)
    body = 2 * weights * packed_tokens(job) + 4 * layers * heads * width * attended
    scored = 1 + job["K"] * branch
    return 3 * (body + 2 * head * scored) + 2 * head * job["answer"]


@torch.no_grad()
def products_alone(trainer: LocalTrainer, groups: list[RolloutGroup]) -> float:
    """Seconds of the products at each position after the prompts, as rollouts compute them and nothing else."""
    model = trainer.backend.policy.model
    lengths = [len(one.sampler_logprobs) for group in groups for one in group.rollouts]
    positions = Counter(sum(length > position for length in lengths) for position in range(1, max(lengths)))
    seconds = 0.0
    with prepacked(model):
        packed = [layer for layer in model.modules() if isinstance(vars(layer).get("forward"), PACKED)]
        # Of an attention, that of queries, keys and values together.
        layers: list[Any] = [
            (getattr(each.forward, "product", each.forward), getattr(each, "q_proj", each).in_features)
            for each in packed
        ]
        for rows, times in positions.items():
            given = {size: torch.randn(rows, size, dtype=model.dtype) for size in {size for _, size in layers}}
            taken = []
            for _ in range(3):
                start = time.perf_counter()
                for product, size in layers:
                    product(given[size])
                taken.append(time.perf_counter() - start)
            seconds += times * min(taken)
    return seconds
