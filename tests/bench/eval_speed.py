"""Answering the questions of a benchmark: ours against one at a time, lm-eval's own hf backend, and vLLM.

    python tests/bench/eval_speed.py [--data gsm8k/test.jsonl] [--documents 48] [--rows 16] [--answer 64] [--quick]

Equal on all sides: model (SmolLM2-135M-Instruct unless `--model` names another prepared one), dtype, threads, malloc
settings, prompts (a question through the chat template), greedy answers up to eos or the cap, no trace or stop strings.
Texts are compared: in float32 they agree but for ties that rounding decides. The first round, with the kernels' and
allocator's warm-up, does not count; loading is not measured.

- one at a time: transformers' `generate`, a question after the other.
- lm-eval: `HFLM.generate_until` with `batch_size` rows, as `lm_eval --model hf` runs it: sorted by length, in batches.
- vllm, where it is installed: `LLM.generate` of all questions at once, `max_num_seqs` rows at a time.

Without `--data` (JSON lines with a `question`) the questions are made up, 20 to 200 tokens long.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
from common import WORK, Figures, Job, Turn, against, cell, ratio, say
from workload import NEVER_SAMPLED, SOURCE, VLLM, VLLM_ENGINE, load, set_up, story

from nrt_cli.backends.reasoning import Reasoner
from nrt_cli.config import ModelSection
from nrt_cli.models.loading import load_tokenizer
from nrt_cli.models.prepare import prepare_model
from nrt_cli.records import Request
from nrt_cli.text.prompts import render_prompt

GOALS = {"one at a time": 3.0, "lm-eval": 1.5, "vllm": 1.0}
HEADER = ("peer", "ours documents/s", "peer documents/s", "times", "equal answers", "ours GiB", "peer GiB")
WORDS = (15, 30, 60, 90, 140)


def ours(job: Job, turn: Turn) -> None:
    figures = set_up(job)
    section = ModelSection(dtype=job["dtype"], device="cpu")
    reasoner = Reasoner(Path(job["model"]), section, batch_rows=job["rows"])
    requests = [
        Request(str(i), tuple(ids), max_answer_tokens=job["answer"])
        for i, ids in enumerate(encoded(reasoner.tokenizer, job["questions"]))
    ]

    def answer() -> list[str]:
        replies = {request.key: reply.answer for request, reply in reasoner.run(requests)}
        return [replies[request.key] for request in requests]

    rounds(turn, figures, answer)


def one_at_a_time(job: Job, turn: Turn) -> None:
    import torch

    figures = set_up(job)
    model: Any = load(job)
    tokenizer = load_tokenizer(job["model"])
    prompts = [torch.tensor([ids]) for ids in encoded(tokenizer, job["questions"])]
    settings = {"max_new_tokens": job["answer"], "do_sample": False, "pad_token_id": tokenizer.pad_token_id}

    def answer() -> list[str]:
        with torch.inference_mode():
            made = [model.generate(ids, attention_mask=torch.ones_like(ids), **settings) for ids in prompts]
        return [
            str(tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True))
            for ids, prompt in zip(made, prompts, strict=True)
        ]

    rounds(turn, figures, answer)


def lm_eval(job: Job, turn: Turn) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    figures = set_up(job)
    tokenizer = load_tokenizer(job["model"])
    model = HFLM(pretrained=load(job), tokenizer=tokenizer, batch_size=job["rows"])
    settings = {"until": [], "max_gen_toks": job["answer"], "do_sample": False}
    prompts = [tokenizer.decode(ids) for ids in encoded(tokenizer, job["questions"])]
    instances = [Instance("generate_until", {}, (prompt, settings), i) for i, prompt in enumerate(prompts)]
    rounds(turn, figures, lambda: model.generate_until(instances, disable_tqdm=True))


def vllm(job: Job, turn: Turn) -> None:
    os.environ |= VLLM
    from vllm import LLM, SamplingParams

    figures = set_up(job)
    prompts = [{"prompt_token_ids": ids} for ids in encoded(load_tokenizer(job["model"]), job["questions"])]
    most = max(len(prompt["prompt_token_ids"]) for prompt in prompts) + job["answer"]
    made = LLM(job["model"], dtype=figures["dtype"], max_model_len=most, max_num_seqs=job["rows"], **VLLM_ENGINE)
    settings = SamplingParams(temperature=0.0, max_tokens=job["answer"])

    def answer() -> list[str]:
        made.reset_prefix_cache()
        return [output.outputs[0].text for output in made.generate(prompts, settings, use_tqdm=False)]

    rounds(turn, figures, answer)


def encoded(tokenizer: Any, questions: Sequence[str]) -> list[list[int]]:
    return [render_prompt(tokenizer, [{"role": "user", "content": question}]) for question in questions]


def rounds(turn: Turn, figures: Figures, answer: Callable[[], list[str]]) -> None:
    while True:
        turn(figures)
        start = time.perf_counter()
        texts = answer()
        seconds = time.perf_counter() - start
        figures |= {"seconds": seconds, "rate": len(texts) / seconds, "gib": common.peak_gib(), "texts": texts}


def questions(data: Path | None, count: int) -> list[str]:
    if data is not None:
        lines = data.read_text(encoding="utf-8").splitlines()[:count]
        return [json.loads(line)["question"] for line in lines]
    words = [story(seed).split()[: WORDS[seed % len(WORDS)]] for seed in range(count)]
    return [" ".join([*some, "How many are there in all?"]) for some in words]


def default_model() -> Path:
    """SmolLM2-135M-Instruct as `nrt model prepare` makes it, but for think tokens that no peer has to be forbidden:
    their rows would begin as those of line breaks, whose place they would take. Made once."""
    folder = WORK / "eval-model"
    if not folder.is_dir():
        say("preparing the model")
        start, end = NEVER_SAMPLED
        prepare_model(SOURCE, folder, init_start=start, init_end=end)
    return folder


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--model", type=Path, help="a prepared model")
    parser.add_argument("--data", type=Path, help="JSON lines with a `question`")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch, of ours and of lm-eval")
    parser.add_argument("--answer", type=int, default=64, help="cap of an answer, in tokens")
    args = parser.parse_args()
    base = common.start(args)
    if args.quick:
        args.documents, args.answer = 8, 8
    job = base | {
        "model": str((args.model or default_model()).resolve()),
        "questions": questions(args.data, args.documents),
        "rows": args.rows,
        "answer": args.answer,
    }
    sides = {"ours": ours, "one at a time": one_at_a_time, "lm-eval": lm_eval, "vllm": vllm}
    figures = common.part(
        "eval-speed", {n: side for n, side in sides.items() if n != "vllm" or find_spec(n)}, job, args
    )
    rows = [row(name, figures["ours"], figures[name], GOALS[name]) for name in figures if name != "ours"]
    body = (
        f"{args.documents} questions{f' of {args.data.name}' if args.data else ''}, {args.rows} rows, answers of up to "
        f"{args.answer} tokens.\n\n{common.table(HEADER, rows)}"
    )
    common.report(f"Evaluation: documents per second, {figures['ours']['dtype']}", args, body, list(figures.values()))


def row(name: str, ours: Figures, peer: Figures, goal: float) -> list[str]:
    texts = [figures.get("texts", []) for figures in (ours, peer)]
    equal = sum(mine == its for mine, its in zip(*texts, strict=False))
    return [
        name,
        cell(ours, "rate"),
        cell(peer, "rate"),
        against(ratio(peer, ours), goal, ours),
        f"{equal} of {len(texts[0])}",
        cell(ours, "gib"),
        cell(peer, "gib"),
    ]


if __name__ == "__main__":
    main()
