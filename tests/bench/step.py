"""A whole training step: ours against TRL's GRPOTrainer on the same job.

    python tests/bench/step.py [--prompts 100 512 1500] [--quick]

Equal on both sides: model, dtype, threads, malloc settings, 2 prompts a step (the same ones every time, of exactly so
many tokens) with K = 8 traces each, temperature 1, exactly 64 trace tokens (end tokens are never sampled), answers of
64 tokens, AdamW, bound on the gradient's norm, one optimiser step, no KL term, no old log-probs (TRL skips them too).

TRL gets the verifier-free reward as its users write it, with the trainer's own policy: mean probability of y*'s tokens
after the trace, minus the same after the null trace, which is scored once for each prompt. Logits are only made for the
answer. Its micro-batches hold at most `--trl-tokens` tokens of prompt and trace, since a whole batch of long prompts
does not fit into memory.

Not equal, in TRL's favour: ours also trains y* (token signals) and the format tokens, so it goes forward and back
through the answers and TRL does not; it returns the sampler's log-probs; in bfloat16 it keeps float32 master weights.

Ours also says how long its products take by themselves: those of rollouts one after another, and those of the update at
the rate of a large one. The rest is prompts, the weights' layout, attention, norms, softmax, AdamW and Python.
"""

import time
from typing import Any

import common
import torch
from common import NAN, WORK, Figures, Goal, Job, Turn, against, cell, ratio, shown
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, TrainerCallback
from workload import engine, examples, load, model_folder, pairs, products_alone, set_up

from nrt_cli.backends.local.throughput import matmul_ceiling

BATCH, K = 2, 8
GOALS: dict[int, Goal] = {100: (1.9, 2.1), 512: (4.2, 4.5), 1500: 6.0}
HEADER = (
    "prompt",
    "ours s",
    "TRL s",
    "times",
    "by processor time",
    "rollout",
    "update",
    "products alone",
    "TRL generate",
    "TRL reward",
    "ours, TRL peak GiB",
)


def ours(job: Job, turn: Turn) -> None:
    figures = set_up(job)
    made = engine(job, train={"batch_size": BATCH})
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    batch = examples(tokenizer, pairs(tokenizer, BATCH, job["prompt"], job["answer"] - 1))
    step = 0
    while True:
        turn(figures)
        start = time.perf_counter()
        update, groups = made.train_step(batch, step)
        seconds, policy = time.perf_counter() - start, made.backend.policy
        # Anew, since the machine's rate changes.
        rate = matmul_ceiling.__wrapped__(policy.device, policy.model.dtype, torch.get_num_threads())
        figures = figures | {
            "seconds": seconds,
            "products": made.backend.work / rate + products_alone(made, groups),
            "rollout": update.metrics["seconds_rollout"],
            "update": update.metrics["seconds_update"],
            "trace_tokens": sum(len(rollout.trace_ids) for group in groups for rollout in group.rollouts),
            "peak": common.peak_gib(),
        }
        step += 1


# --- TRL


def trl(job: Job, turn: Turn) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    figures = set_up(job)
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    texts = pairs(tokenizer, BATCH, job["prompt"], job["answer"] - 1)
    rows = micro_batch(job)
    reward = Reward(tokenizer)
    trainer = GRPOTrainer(
        model=load(job),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": f"{x}<|think_start|>", "answer": y} for x, y in texts]),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(WORK / "trl"),
            use_cpu=True,
            bf16=False,  # The model is in its dtype already; this would turn autocast on.
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=BATCH * K // rows,
            num_generations=K,
            max_completion_length=job["trace"],
            temperature=1.0,
            beta=0.0,
            learning_rate=1e-9,
            max_steps=10_000,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    reward.model = trainer.model
    generating = common.clock(trainer, "_generate")
    scoring = common.clock(trainer, "_calculate_rewards")
    trainer.add_callback(TakesTurns(turn, figures, {"generate": generating, "reward": scoring}, reward))
    trainer.train()


def micro_batch(job: Job) -> int:
    """The most rows, a power of two, within the token limit."""
    rows = BATCH * K
    while rows > 1 and rows * (job["prompt"] + 1 + job["trace"]) > job["trl_tokens"]:
        rows //= 2
    return rows


class Reward:
    """Probability of y* under the policy in training, over that with the null trace."""

    __name__ = "answer_probability"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.model: PreTrainedModel | None = None
        self.trace_tokens = 0

    def __call__(self, prompts: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        (end,) = self.tokenizer.encode("<|think_end|>")
        eos = self.tokenizer.eos_token_id
        self.trace_tokens = sum(map(len, completion_ids))
        opening = [self.tokenizer.encode(prompt) for prompt in prompts]
        closing = [[end, *self.tokenizer.encode(text), eos] for text in answer]
        firsts = range(0, len(prompts), K)  # A prompt's K completions lie side by side.
        base = self.mean_probability([opening[i] for i in firsts], [closing[i] for i in firsts])
        with_trace = [x + z for x, z in zip(opening, completion_ids, strict=True)]
        given_trace = self.mean_probability(with_trace, closing)
        return [probability - base[i // K] for i, probability in enumerate(given_trace)]

    @torch.no_grad()
    def mean_probability(self, before: list[list[int]], closing: list[list[int]]) -> list[float]:
        """Of the tokens after t_end, for each row."""
        assert self.model is not None
        rows = [x + y for x, y in zip(before, closing, strict=True)]
        batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")  # on the left
        kept = max(map(len, closing))
        logits = self.model(**batch, use_cache=False, logits_to_keep=kept).logits[:, :-1]
        targets = batch["input_ids"][:, 1 - kept :]
        probs: Tensor = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0].exp()
        return [float(row[1 - len(y) :].mean()) for row, y in zip(probs, closing, strict=True)]


class TakesTurns(TrainerCallback):
    """Lets the trainer wait before each step until it is its turn."""

    def __init__(self, turn: Turn, figures: Figures, clocks: dict[str, list[float]], reward: Reward) -> None:
        self.turn, self.figures, self.clocks, self.reward = turn, figures, clocks, reward

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.turn(self.figures)
        for seconds in self.clocks.values():
            seconds.clear()
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        whole = time.perf_counter() - self.start
        parts = {name: sum(seconds) for name, seconds in self.clocks.items()}
        counted = {"trace_tokens": self.reward.trace_tokens, "peak": common.peak_gib()}
        self.figures = self.figures | {"seconds": whole} | parts | counted


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 512, 1500])
    parser.add_argument("--trl-tokens", type=int, default=4096, help="of a micro-batch of TRL's")
    args = parser.parse_args()
    base = common.start(args) | {
        "model": str(model_folder()),
        "trace": 64,
        "answer": 64,
        "trl_tokens": args.trl_tokens,
    }
    if args.quick:
        args.prompts, base = [32], base | {"trace": 8, "answer": 8}
    rows: list[list[str]] = []
    measured: list[Figures] = []
    for prompt in args.prompts:
        figures = common.part("step", {"ours": ours, "TRL": trl}, base | {"prompt": prompt}, args)
        measured += figures.values()
        rows.append(row(prompt, figures["ours"], figures["TRL"]))
    common.report(f"Whole step against TRL, {measured[0]['dtype']}", args, common.table(HEADER, rows), measured)


def row(prompt: int, ours: Figures, trl: Figures) -> list[str]:
    counts = {side["trace_tokens"] for side in (ours, trl) if "trace_tokens" in side}
    if len(counts) > 1:
        raise ValueError(f"prompt {prompt}: the sides sampled unequal numbers of trace tokens, {counts}")
    return [
        str(prompt),
        cell(ours, "seconds"),
        cell(trl, "seconds"),
        against(ratio(trl, ours), GOALS.get(prompt, NAN), ours),
        shown(ratio(trl, ours, "processor")),
        cell(ours, "rollout"),
        cell(ours, "update"),
        cell(ours, "products"),
        cell(trl, "generate"),
        cell(trl, "reward"),
        f"{cell(ours, 'peak', 1)}, {cell(trl, 'peak', 1)}",
    ]


if __name__ == "__main__":
    main()
