"""Sampling traces: our engine against transformers' `generate()` and vLLM's CPU build, in tokens a second.

    python tests/bench/rollouts.py [--sequences 16 32] [--quick]

Equal on all sides: model, dtype, threads, malloc settings, prompts of 100 tokens with 8 traces each, temperature 1
without truncation, exactly 64 new tokens for every trace (its end tokens are never sampled, or are ignored).

Not equal: ours draws each trace from a random stream of its own and returns log-probs as training uses them; `generate`
returns tokens only; `generate, log-probs` keeps the scores of every step and reads them off; vLLM returns log-probs.
Weights do not change between rounds, so what an engine does to take over new ones is not in here, but in `step.py`.
Ours also says how long its products take by themselves, one after another: the rest is attention, norms, sampling
and Python.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch
from common import NAN, Figures, Goal, Job, Side, Turn, against, cell, ratio, shown
from transformers import AutoTokenizer
from workload import VLLM, VLLM_ENGINE, engine, examples, load, model_folder, pairs, products_alone, set_up

GROUP = 8
GOALS: dict[tuple[str, int], Goal] = {
    **{("generate", 16): (2.0, 3.0), ("generate", 32): (2.2, 3.7)},
    **{("vllm", 16): 1.1, ("vllm", 32): 1.1},
}
HEADER = (
    "sequences, engine",
    "tokens/s",
    "seconds",
    "ours is faster, times",
    "by processor time",
    "products alone s",
    "peak GiB",
)


def prompts(job: Job) -> tuple[Any, list[tuple[str, str]]]:
    """The tokenizer, and (prompt, answer) texts, a prompt for each group; the answers play no part."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    return tokenizer, pairs(tokenizer, job["sequences"] // GROUP, job["prompt"], answer=8)


def rounds(turn: Turn, figures: Figures, sample: Callable[[], int]) -> None:
    """Sample again and again; `sample` returns how many tokens it made."""
    while True:
        turn(figures)
        start = time.perf_counter()
        tokens = sample()
        seconds = time.perf_counter() - start
        figures = figures | {"seconds": seconds, "rate": tokens / seconds, "tokens": tokens, "peak": common.peak_gib()}


def ours(job: Job, turn: Turn) -> None:
    figures = set_up(job)
    made = engine(job, rollout={"group_size": GROUP, "batch_rows": job["sequences"]})
    batch = examples(*prompts(job))
    figures["products"] = products_alone(made, made.sample(batch, step=0))

    def sample() -> int:
        groups = made.sample(batch, step=0)
        return sum(len(rollout.sampler_logprobs) for group in groups for rollout in group.rollouts)

    rounds(turn, figures, sample)


def generate(job: Job, turn: Turn, logprobs: bool = False) -> None:
    figures = set_up(job)
    model: Any = load(job)
    tokenizer, texts = prompts(job)
    # t_start is where a trace begins. All prompts are equally long, so there is no padding.
    ids = torch.tensor([tokenizer.encode(f"{x}<|think_start|>") for x, _ in texts for _ in range(GROUP)])
    options = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": job["trace"],
        "eos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
    }

    @torch.inference_mode()
    def sample() -> int:
        if not logprobs:
            return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :].numel()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), output_scores=True, return_dict_in_generate=True, **options
        )
        return model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True).numel()

    rounds(turn, figures, sample)


def vllm(job: Job, turn: Turn) -> None:
    os.environ |= VLLM
    from vllm import LLM, SamplingParams

    figures = set_up(job)
    tokenizer, texts = prompts(job)
    made = LLM(job["model"], dtype=figures["dtype"], max_model_len=512, max_num_seqs=job["sequences"], **VLLM_ENGINE)
    inputs = [{"prompt_token_ids": tokenizer.encode(f"{x}<|think_start|>")} for x, _ in texts]
    settings = SamplingParams(
        n=GROUP, temperature=1.0, max_tokens=job["trace"], ignore_eos=True, logprobs=0, detokenize=False
    )

    def sample() -> int:
        made.reset_prefix_cache()  # as new weights would: a prompt is shared by its samples, not by rounds
        outputs = made.generate(inputs, settings, use_tqdm=False)
        return sum(len(trace.logprobs) for output in outputs for trace in output.outputs)

    rounds(turn, figures, sample)


PEERS: dict[str, Side] = {"generate": generate, "generate, log-probs": partial(generate, logprobs=True), "vllm": vllm}


def main() -> None:
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--sequences", type=int, nargs="+", default=[16, 32])
    args = parser.parse_args()
    base = common.start(args) | {"model": str(model_folder()), "prompt": 100, "trace": 64}
    if args.quick:
        args.sequences, base = [8], base | {"trace": 8}
    peers = {name: side for name, side in PEERS.items() if name != "vllm" or importlib.util.find_spec("vllm")}
    rows: list[list[str]] = []
    measured: list[Figures] = []
    for sequences in args.sequences:
        figures = common.part("rollouts", {"ours": ours} | peers, base | {"sequences": sequences}, args)
        measured += figures.values()
        rows += [row(sequences, name, figures[name], figures["ours"]) for name in figures]
    common.report(f"Rollouts, {measured[0]['dtype']}", args, common.table(HEADER, rows), measured)


def row(sequences: int, name: str, figures: Figures, ours: Figures) -> list[str]:
    return [
        f"{sequences}, {name}",
        cell(figures, "rate", 0),
        cell(figures, "seconds"),
        "" if name == "ours" else against(ratio(ours, figures, "rate"), GOALS.get((name, sequences), NAN), ours),
        "" if name == "ours" else shown(ratio(figures, ours, "processor")),
        cell(figures, "products"),
        cell(figures, "peak"),
    ]


if __name__ == "__main__":
    main()
