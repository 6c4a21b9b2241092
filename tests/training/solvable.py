"""A backend that can be solved: a policy that is a table of logits over five tokens, a row for every prefix.

It runs through the real trainer. Every trace can be enumerated, and a gradient is exact: float64, plain SGD. Below it
stand traces that are given, for it and for models.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from nrt_cli.records import Example, Rollout, RolloutGroup, SampledAnswer, Verdict
from nrt_cli.text.tokens import ThinkTokens

A, B, START, END, EOS = range(5)
"""Two words, and the tokens that hold a sequence together; eos pads, too."""


class Solvable:
    """The verbs of `training.trainer.Backend`; a row of the table is made, from the seed, when it is first read."""

    device, exact_sampler, tokenizer, work = torch.device("cpu"), True, None, 0.0

    def __init__(self, config, seed=0, scale=1.0):
        self.config, self.seed, self.scale, self.tokens = config, seed, scale, ThinkTokens(START, END, EOS, EOS, (EOS,))
        if config.tokens.think_start is None:
            self.tokens = ThinkTokens(None, END, EOS, EOS, (EOS,))
        self.table, self.slow, self.units, self.calls = {}, {}, [], []

    def logits(self, prefix, whose="policy"):
        """What comes after a prefix, [V]; the starting model is the table as it was made, and the slow copy follows."""
        generator = torch.Generator().manual_seed(self.seed + hash(tuple(prefix)) % 2**31)
        made = self.scale * torch.randn(5, dtype=torch.float64, generator=generator)
        if whose == "policy":
            return self.table.setdefault(tuple(prefix), made.requires_grad_())
        return self.slow.get(tuple(prefix), made) if whose == "follower" else made

    def follow(self, keep):
        for prefix, weight in self.table.items():
            self.slow[prefix] = keep * self.logits(prefix, "follower") + (1 - keep) * weight.detach()

    def row(self, row, whose="policy"):
        """Log-probabilities and entropies of a row's scored tokens."""
        pairs = []
        for i in range(row.scored_from, len(row.ids)):
            tempered = row.tempered[0] <= i < row.tempered[1]
            temperature = self.config.rollout.temperature if tempered else 1.0
            logprobs_V = (self.logits(row.ids[:i], whose) / temperature).log_softmax(-1)
            pairs.append((logprobs_V[row.ids[i]], -(logprobs_V.exp() * logprobs_V).sum()))
        return tuple(torch.stack(column) for column in zip(*pairs, strict=True))

    def score(self, rows, whose="policy"):
        self.calls.append("score")
        with torch.no_grad():
            return [self.row(row, whose) for row in rows]

    def forward_backward(self, units):
        self.units = units

    def gradient(self):
        """Of what the next step is about to take, by prefix; and what the losses said besides."""
        for weight in self.table.values():
            weight.grad = None
        said = []
        for unit in self.units:
            loss, besides = unit.loss(*(torch.cat(c) for c in zip(*map(self.row, unit.rows), strict=True)))
            loss.backward()
            said.append(besides)
        return {prefix: w.grad for prefix, w in self.table.items() if w.grad is not None}, said

    def step(self, rate):
        self.calls.append("step")
        gradient, said = self.gradient()
        with torch.no_grad():
            for prefix, grad in gradient.items():
                self.table[prefix] -= rate * grad
        return math.sqrt(sum(float(grad.square().sum()) for grad in gradient.values())), said

    def sample(self, examples, group_size, key):
        groups = []
        for example in examples:
            rollouts = []
            for k in range(group_size):
                random, cap = np.random.default_rng((*key, example.index, k)), self.config.rollout.max_trace_tokens
                opening = (*example.prompt_ids, *(() if self.tokens.start_id is None else (START,)))
                ids, said = (), ()
                while len(ids) < cap and (not ids or ids[-1] not in self.tokens.trace_ends):
                    logits_V = self.logits((*opening, *ids)).detach() / self.config.rollout.temperature
                    logprobs_V = logits_V.log_softmax(-1)
                    ids = (*ids, int(random.choice(5, p=logprobs_V.exp().numpy() / float(logprobs_V.exp().sum()))))
                    said = (*said, float(logprobs_V[ids[-1]]))
                rollouts.append(rollout(ids, said, self.tokens))
            groups.append(RolloutGroup(example, tuple(rollouts)))
        return groups

    def answer(self, groups, key):
        """After each trace and t_end, up to the cap or what ends a trace."""
        found = []
        for group in groups:
            cap, answers = self.config.rollout.answer_cap(len(group.example.answer_ids)), []
            for k, trace in enumerate(group.rollouts):
                random, ids, said = np.random.default_rng((*key, group.example.index, k, 1)), (), ()
                opening = (*group.example.prompt_ids, START, *trace.trace_ids, END)
                while len(ids) < cap and (not ids or ids[-1] not in self.tokens.trace_ends):
                    logits_V = self.logits((*opening, *ids)).detach() / self.config.rollout.temperature
                    logprobs_V = logits_V.log_softmax(-1)
                    ids = (*ids, int(random.choice(5, p=logprobs_V.exp().numpy() / float(logprobs_V.exp().sum()))))
                    said = (*said, float(logprobs_V[ids[-1]]))
                answers.append(SampledAnswer(ids, said, ids[-1] == EOS))
            found.append(answers)
        return found

    def state(self):
        return {}

    def save(self):
        tables = {"": self.table, "follower ": self.slow}
        return {
            mark + " ".join(map(str, prefix)): weight.detach().clone()
            for mark, table in tables.items()
            for prefix, weight in table.items()
        }

    def load(self, folder, state, tensors):
        split = {name: name.split() for name in tensors}
        self.table = {
            tuple(map(int, at)): tensors[name].clone().requires_grad_()
            for name, at in split.items()
            if at[0] != "follower"
        }
        self.slow = {tuple(map(int, at[1:])): tensors[name] for name, at in split.items() if at[0] == "follower"}

    fits = lambda self, rows: True  # noqa: E731
    mfu = lambda self, seconds: math.nan  # noqa: E731
    publish = lambda self: None  # noqa: E731


class Judge:
    """A verifier of the solvable policy: `worth` of an answer's ids, of the examples in `only`, or of all."""

    def __init__(self, worth, only=None):
        self.worth, self.only = worth, only

    def judges(self, example):
        return self.only is None or example.index in self.only

    def judged(self, examples, answers):
        verdict = lambda answer: Verdict(self.worth(answer.ids) if answer.finished else 0.0)  # noqa: E731
        return [[replace(answer, verdict=verdict(answer)) for answer in group] for group in answers]


def rollout(ids, logprobs, tokens):
    """A trace as sampled, its last token perhaps what ended it."""
    if ids[-1] not in tokens.trace_ends:
        return Rollout(ids, logprobs, "cap")
    return Rollout(ids[:-1], logprobs, "end" if ids[-1] == tokens.end_id else "eos", ids[-1])


def batch(tokens, vocabulary=100, asks=frozenset()):
    """Four prompts of four traces each: ragged, one empty, ended by t_end, by eos and by the cap.

    Where it is asked for, with answers after them, every second of which is cut, and the latter half of them guided.
    """
    generator = torch.Generator().manual_seed(3)
    draw = lambda n: tuple(torch.randint(4, vocabulary, (n,), generator=generator).tolist())  # noqa: E731
    shapes = [
        ((5, "end"), (0, "end"), (6, "cap"), (3, "eos")),
        ((2, "end"),) * 4,
        ((6, "cap"), (1, "eos")) * 2,
        ((4, "end"),) * 4,
    ]
    groups = []
    for i, (prompt, answer, shape) in enumerate(zip((7, 11, 4, 9), (3, 1, 5, 2), shapes, strict=True)):
        example = Example(i, "made", draw(prompt), (*draw(answer), tokens.eos_id))
        ended_by = {"end": tokens.end_id, "eos": tokens.eos_id, "cap": None}
        rollouts = tuple(Rollout(draw(n), (-4.5,) * (n + (stop != "cap")), stop, ended_by[stop]) for n, stop in shape)
        if "answers" in asks:
            said = [draw(2) if k % 2 else (*draw(k + 1), tokens.eos_id) for k in range(len(rollouts))]
            answers = [SampledAnswer(ids, (-4.5,) * len(ids), ids[-1] == tokens.eos_id) for ids in said]
            rollouts = tuple(replace(r, answer=answer) for r, answer in zip(rollouts, answers, strict=True))
        if "guide" in asks:
            rollouts = tuple(replace(r, guided=k >= len(rollouts) // 2) for k, r in enumerate(rollouts))
        groups.append(RolloutGroup(example, rollouts))
    return groups
