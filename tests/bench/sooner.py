"""How soon a model has learned: minutes of training until so many held-out questions are answered right.

    python tests/bench/sooner.py [--rounds 3] [--quick]                             90 % of the digits' sums
    python tests/bench/sooner.py --model models/qwen-coder --rounds 1 --threads 2   80 % of shopping's word problems

Ours against TRL's GRPOTrainer, twice: with the reward alone, and with our whole loss written into it, as a user would.
A round is a seed. Equal on all sides: the model that ships with the program and the recipe `quickstart`, or `--model`
and the recipe `real` (rows in their order, questions and traces a step, cap, low-rank updates, learning rate,
clipping), dtype, threads, malloc settings; after every second step all are scored by our evaluation, greedily, on the
same held-out questions, and the clock stands still meanwhile. It ends at the second score in a row that reaches the
goal, or after `--steps` steps.

TRL gets what its users can set: all rows of a step in one pass, no old log-probs, the constant divisor (`dr_grpo`),
rewards over the group's deviation, both ends of a trace as end tokens, logits where a token is scored; and our
adapters, since peft's copy a whole table at every use for its two trained rows. A real model is updated question by
question, which memory asks for and padding likes, under glibc's own malloc settings on all sides. (TRL's fused head
passes over trained rows of the head, so `reward` trains those of the embedding alone.)

`reward`: R' = max(0, R - R_base) of `ws-neg-log-p`, null traces scored once for each question. `loss`: besides, one
pass over x z t_end y* for the policy gradient, the answer's shared token signals and their balance, and the think
tokens, in place of TRL's own pass.
"""

import math
import os
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import common
import torch
from common import WORK, Figures, Job, Side, Turn, cell, ratio, shown
from torch import Tensor
from transformers import TrainerCallback
from workload import set_up

from nrt_cli import config as configs
from nrt_cli.config import RunConfig
from nrt_cli.grading import accuracies
from nrt_cli.grading.accuracies import Question
from nrt_cli.models.loading import load_model
from nrt_cli.models.lora import adapt
from nrt_cli.records import Example
from nrt_cli.training.locate import locate_inputs
from nrt_cli.training.start import Inputs, load_inputs
from nrt_cli.training.trainer import LocalTrainer
from nrt_cli.workflows.train import batch_for

EVERY, WARM_UP = 2, 99
SHARE, FORMAT = 0.1, 0.3  # of `balance: auto`, and objective.weights.format
HEADER = ("side", "minutes", "each seed, seconds", "steps", "seconds a step", "last seed's scores, %", "times ours")


class Race:
    """One seed of one side: its inputs, and how far it is."""

    def __init__(self, job: Job, seed: int) -> None:
        set_up(job)
        overrides = [f"model.dtype={job['dtype']}", f"train.threads={job['threads']}"]
        overrides += [f"model.path={job['model']}"] if job["model"] else []
        recipe = "real" if job["model"] else "quickstart"
        self.config: RunConfig = locate_inputs(configs.load(recipe, overrides, seed=seed))
        self.inputs: Inputs = load_inputs(self.config)
        self.ours = LocalTrainer(self.config, job["steps"])
        self.last, self.goal = 2 * EVERY if seed == WARM_UP else job["steps"], job["goal"]
        self.step, self.seconds, self.scores = 0, 0.0, [0.0]

    def batch(self, step: int) -> list[Example]:
        return batch_for(self.inputs.train, self.config, step)

    def stepped(self, seconds: float, model: torch.nn.Module | None = None) -> bool:
        """Count a step, score the policy, ours or a peer's, and say whether that was the last one."""
        self.step, self.seconds = self.step + 1, self.seconds + seconds
        if self.step % EVERY == 0:
            if model is not None:
                self.ours.backend.policy.model.load_state_dict(model.state_dict())
            self.scores.append(self.accuracy())
            common.say(f"    step {self.step}, {self.seconds:.1f} s: {self.scores[-1]:.0%}")
        return self.step >= self.last or min(self.scores[-2:]) >= self.goal

    def accuracy(self) -> float:
        """Share of the held-out questions whose greedy answer after a greedy trace is right."""
        held_out, pairs = self.inputs.held_out, self.inputs.pairs
        questions = [Question(str(i), e.prompt_ids, pairs[i]) for i, e in enumerate(held_out)]
        cap = accuracies.answer_cap(max(len(e.answer_ids) for e in held_out), self.config.longest_answer)
        asked = (questions, ["thinking"], self.config.rollout.max_trace_tokens, cap)
        return accuracies.mean_scores(accuracies.answer_all(self.ours.backend.reasoner(), *asked))["thinking"]

    def figures(self) -> Figures:
        reached = min(self.scores[-2:]) >= self.goal
        return {
            "dtype": self.config.model.dtype,
            "seconds": self.seconds if reached else math.inf,
            "steps": self.step,
            "step": self.seconds / self.step,
            "scores": self.scores[1:],
        }


def seeds(job: Job, turn: Turn) -> Iterator[Race]:
    """A race for each round, the first of which warms up where there are several."""
    figures: Figures = {}
    for seed in chain([WARM_UP] * job["warm"], count()):
        turn(figures)
        race = Race(job, seed)
        yield race
        figures = race.figures()


def ours(job: Job, turn: Turn) -> None:
    for race in seeds(job, turn):
        while True:
            start = time.perf_counter()
            race.ours.train_step(race.batch(race.step + 1), race.step + 1)
            if race.stepped(time.perf_counter() - start):
                break


# --- TRL


def trl_reward(job: Job, turn: Turn) -> None:
    _trl(job, turn, whole=False)


def trl_loss(job: Job, turn: Turn) -> None:
    _trl(job, turn, whole=True)


def _trl(job: Job, turn: Turn, whole: bool) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class WithAnswers(GRPOTrainer):
        """Our loss, in one pass of its own."""

        def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
            return policy.loss(model, inputs)

    for race in seeds(job, turn):
        config, size = race.config, race.config.rollout.group_size
        rows = config.train.batch_size * size
        policy = Policy(race)
        tokenizer, model = policy.tokenizer, policy.model
        asked = [example for step in range(1, race.last + 1) for example in race.batch(step)]
        texts = [tokenizer.decode(example.prompt_ids) + config.tokens.think_start for example in asked]
        assert [tuple(tokenizer.encode(text)) for text in texts] == [policy.opening(example) for example in asked]
        optimiser = config.optimiser
        trainer = (WithAnswers if whole else GRPOTrainer)(
            model=model,
            reward_funcs=policy.rewards,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=tokenizer,
            args=GRPOConfig(
                output_dir=str(WORK / "trl"),
                use_cpu=True,
                bf16=False,
                seed=config.seed,
                shuffle_dataset=False,
                per_device_train_batch_size=size if job["model"] and not whole else rows,
                gradient_accumulation_steps=rows // size if job["model"] and not whole else 1,
                num_generations=size,
                max_completion_length=config.rollout.max_trace_tokens,
                temperature=1.0,
                beta=0.0,
                loss_type="dr_grpo",
                epsilon=config.objective.clip_low,
                epsilon_high=config.objective.clip_high,
                learning_rate=optimiser.lr * job["rates"]["loss" if whole else "reward"],
                adam_beta1=optimiser.betas[0],
                adam_beta2=optimiser.betas[1],
                weight_decay=optimiser.weight_decay,
                max_grad_norm=optimiser.clip_norm,
                lr_scheduler_type="constant",
                max_steps=race.last,
                gradient_checkpointing=False,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
        )
        trainer.add_callback(Clock(race, model))
        trainer.train()


class Policy:
    """The model as TRL's users would train it: rewards, and our loss."""

    def __init__(self, race: Race) -> None:
        self.tokenizer = race.ours.backend.tokenizer
        self.tokenizer.padding_side = "left"
        self.tokens, self.objective = race.ours.backend.tokens, race.config.objective
        self.cap, self.size = race.config.rollout.max_trace_tokens, race.config.rollout.group_size
        self.model: Any = load_model(race.config.model)
        if race.config.model.lora.rank is not None:
            self.model = adapt(self.model, race.config.model.lora, self.tokens, race.config.seed)
            self.model.get_output_embeddings().bias = None  # TRL asks a head for one
        self.apart = race.config.model.lora.rank is not None
        self.model.generation_config.eos_token_id = sorted(self.tokens.trace_ends)
        self.by_opening = {self.opening(e): e for step in range(1, race.last + 1) for e in race.batch(step)}

    def opening(self, example: Example) -> tuple[int, ...]:
        return (*example.prompt_ids, self.tokens.start_id or 0)

    def row(self, opening: tuple[int, ...], completion: list[int]) -> tuple[list[int], list[int], int]:
        """x t_start z t_end y*; y*; and what ended z, or t_end."""
        ended = completion[-1] if completion and completion[-1] in self.tokens.trace_ends else None
        answer = [*self.by_opening[opening].answer_ids]
        trace = completion if ended is None else completion[:-1]
        return [*opening, *trace, self.tokens.end_id, *answer], answer, ended or self.tokens.end_id

    def logprobs(self, model: Any, rows: list[list[int]], most: int) -> tuple[Tensor, Tensor]:
        """Log-probs at the last tokens of rows, padded on the left, and their ids."""
        batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = model(**batch, position_ids=positions, use_cache=False, logits_to_keep=most + 1).logits[:, :-1]
        return logits.float().log_softmax(-1), batch["input_ids"][:, -most:]

    @torch.no_grad()
    def rewards(self, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """max(0, R - R_base), R = -sum_j c_j log c_base,j."""
        openings = [tuple(self.tokenizer.encode(prompt)) for prompt in prompts]
        firsts = openings[:: self.size]  # A question's completions lie side by side.
        rows = [self.row(opening, [])[0] for opening in firsts]
        rows += [self.row(*pair)[0] for pair in zip(openings, completion_ids, strict=True)]
        answers = [len(self.by_opening[opening].answer_ids) for opening in (*firsts, *openings)]
        said, ids = self.logprobs(self.model, rows, max(answers))
        chosen = said.gather(-1, ids[..., None])[..., 0]
        logprobs = [row[-n:] for row, n in zip(chosen, answers, strict=True)]
        base, given = logprobs[: len(firsts)], logprobs[len(firsts) :]
        bases = [b for b in base for _ in range(self.size)]
        return [max(0.0, float((b.exp() - row.exp()) @ b)) for row, b in zip(given, bases, strict=True)]

    def loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Eq. 8 to 11 under the preset `nrt`: policy gradient, shared token signals in balance, think tokens."""
        ids = [row[mask.bool()].tolist() for row, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)]
        openings = [tuple(row) for row in ids]
        pairs = zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)
        completions = [row[mask.bool()].tolist() for row, mask in pairs]
        if not self.apart:
            return self.part(model, openings, completions, inputs["advantages"]) / (len(openings) * self.cap)
        total = torch.zeros((), requires_grad=True)
        for opening in dict.fromkeys(openings):
            at = [k for k, other in enumerate(openings) if other == opening]
            part = self.part(model, [opening] * len(at), [completions[k] for k in at], inputs["advantages"][at])
            part = part / (len(openings) * self.cap)
            part.backward()
            total = total + part.detach()
        return total

    def part(self, model: Any, openings: list[Any], completions: list[list[int]], advantages: Tensor) -> Tensor:
        rows, answers, ends = zip(*map(self.row, openings, completions), strict=True)
        # From t_start on, which is a token of the loss.
        most = 1 + max(len(row) - len(opening) for row, opening in zip(rows, openings, strict=True))
        said, targets = self.logprobs(model, list(rows), most)
        chosen = said.gather(-1, targets[..., None])[..., 0]
        total = chosen.new_zeros(())
        traces, answered = [], []
        for k, (row, answer, completion) in enumerate(zip(chosen, answers, completions, strict=True)):
            end = len(row) - len(answer) - 1  # where t_end is predicted
            start = end - (len(rows[k]) - len(openings[k]) - len(answer) - 1)
            # What the policy chose: z, and what ended it if it did.
            own = [row[start:end], said[k, end, ends[k]][None]][: 1 + (completion[-1:] == [ends[k]])]
            traces.append(torch.cat(own))
            answered.append(row[-len(answer) :])
            total = total + advantages[k] * traces[-1].sum() + FORMAT * (row[end] + row[start - 1])
        for opening in dict.fromkeys(openings):
            group = [k for k, other in enumerate(openings) if other == opening]
            given = torch.stack([answered[k] for k in group])
            signal = given.detach().softmax(0) * len(group)
            undecided = sum(max(1.0, float(-torch.expm1(traces[k].detach()).sum())) for k in group)
            push = float((signal * -torch.expm1(given.detach())).sum())
            total = total + (signal * given).sum() * (SHARE * undecided / max(push, SHARE * undecided))
        return -total


class Clock(TrainerCallback):
    """Counts the seconds of steps, scores between them, and ends the training."""

    def __init__(self, race: Race, model: Any) -> None:
        self.race, self.model = race, model

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = self.race.stepped(time.perf_counter() - self.start, self.model)


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.set_defaults(threads=1)
    parser.add_argument("--model", default="", help="a prepared folder of a real model, for word problems")
    parser.add_argument("--steps", type=int, default=80, help="given up after so many")
    parser.add_argument("--reward-rate", type=float, default=1.0, help="times the recipe's learning rate, for `reward`")
    parser.add_argument("--loss-rate", type=float, default=1.0, help="times the recipe's learning rate, for `loss`")
    args = parser.parse_args()
    if not args.model and args.dtype == "auto":
        args.dtype = "float32"  # the smallest products, in which nobody's bfloat16 pays
    job = common.start(args) | {"steps": 2 * EVERY if args.quick else args.steps, "warm": args.rounds > 1}
    if args.model:  # a heap that keeps what it was given had run out of 24 GiB in TRL's side
        del os.environ["GLIBC_TUNABLES"]
    job |= {"model": args.model and str(Path(args.model).resolve()), "goal": 0.8 if args.model else 0.9}
    job["rates"] = {"reward": args.reward_rate, "loss": args.loss_rate}
    sides: dict[str, Side] = {"ours": ours, "TRL, our loss": trl_loss, "TRL, the reward": trl_reward}
    if job["warm"]:
        figures = common.part("sooner", sides, job, args)
    else:  # There are no turns to take, and not the memory for three large models.
        figures = {}
        for name, side in sides.items():
            figures |= common.part(f"sooner-{side.__name__}", {name: side}, job, args, warm=0)
    rows = [row(name, of, figures["ours"]) for name, of in figures.items()]
    title = "Minutes to 80 % of the held-out word problems" if args.model else "Minutes to 90 % of the held-out sums"
    common.report(title, args, common.table(HEADER, rows), list(figures.values()))


def row(name: str, of: Figures, ours: Figures) -> list[str]:
    never = f"never in {of.get('steps', 0):.0f} steps"
    each = ", ".join("never" if math.isinf(s) else shown(s, 1) for s in of.get("all_seconds", []))
    reached = math.isfinite(of.get("seconds", math.nan))
    return [
        name,
        shown(of["seconds"] / 60) if reached else never,
        each,
        cell(of, "steps", 0),
        cell(of, "step"),
        ", ".join(f"{score:.0%}".rstrip("%") for score in of.get("scores", [])),
        shown(ratio(of, ours)) if reached else "-",
    ]


if __name__ == "__main__":
    main()
