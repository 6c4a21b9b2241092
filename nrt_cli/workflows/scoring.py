"""Answers scored under models, as the run that made them would: its think tokens, objective and rollout settings.

First models opened for it; then the reward under a microscope: one question and answer, some traces, every scheme,
token by token (Table 9); probabilities of ground-truth tokens under an SFT model and under models that think first
(Sec. 4.4, Figure 3); and every scheme on one stored bank of rollouts, without a model. What is scored example by
example is stored part by part, so that memory is that of one model and one part, and what an interruption left is not
done again.

Shapes: K traces of one group, T answer tokens, eos included.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nrt_cli import config as configs
from nrt_cli import console, methods
from nrt_cli.backends.local.decoding import sample_groups
from nrt_cli.backends.local.policy import Policy
from nrt_cli.backends.machine import use_processor
from nrt_cli.config import DataSection, ModelSection, ObjectiveSection, RolloutSection
from nrt_cli.config.titles import run_label, run_title
from nrt_cli.data.examples import load_examples
from nrt_cli.data.sources import file_sha256
from nrt_cli.errors import ConfigError, DataError, ModelError
from nrt_cli.models.loading import load_model, load_tokenizer, load_tokens, positions
from nrt_cli.models.metadata import read_metadata
from nrt_cli.models.sources import model_fingerprint
from nrt_cli.objective.losses import SchemeView, half_agreement
from nrt_cli.objective.rows import Layout, Row, trace_prompt
from nrt_cli.records import Example, Rollout, RolloutGroup, TraceRow
from nrt_cli.store import Run
from nrt_cli.store.tables import bank_rows, bank_tables, table_columns, write_table
from nrt_cli.text.pieces import pieces
from nrt_cli.text.prompts import encode_answer, render_prompt
from nrt_cli.text.questions import ending_in
from nrt_cli.training.locate import locate_model

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done and how much there is."""

SCORING_STREAM = 2
"""First part of the random streams' key, after the seed: training and held-out scoring have 0 and 1."""


class Scorer:
    """A loaded model folder, which says how probable a reference answer is given a trace, the null trace, or nothing.

    Without `think_start` a trace follows the prompt directly; `bare_null`: nor has the null trace one (decision 12).
    """

    def __init__(self, section: ModelSection, think_start: str | None, think_end: str, bare_null: bool = False) -> None:
        self.folder = section.path
        self.tokenizer, self.tokens = load_tokens(section.path, think_start, think_end)
        self.policy = Policy(load_model(section), self.tokens.pad_id, packing=True)
        self.layout = Layout(self.tokens, bare_null)
        self.limit = positions(section.path)

    def sample(
        self, examples: Sequence[Example], group_size: int, settings: RolloutSection, key: Sequence[int]
    ) -> list[RolloutGroup]:
        """K traces for each example, each from a random stream of its own (`key`, example, k)."""
        for example in examples:
            self._check_room(example, settings.max_trace_tokens + 2)  # with t_start and t_end
        return sample_groups(self.policy.model, examples, self.tokens, settings, group_size, key)

    def score(self, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
        """For each row, per answer token: log c, natural, and the entropy of the distribution it came from, in nats."""
        return self.policy.score_without_gradient(rows)

    def row(self, example: Example, trace_ids: Sequence[int]) -> Row:
        """x [t_start] z t_end y*, of which y* is scored."""
        self._check_room(example, len(trace_ids) + 2)
        before = (*trace_prompt(example, self.tokens), *trace_ids, self.tokens.end_id)
        return Row((*before, *example.answer_ids), len(before), prompt=len(example.prompt_ids))

    def direct_row(self, example: Example) -> Row:
        """x y*: how a model answers that does not think."""
        self._check_room(example, 0)
        return self.layout.direct_row(example)

    def _check_room(self, example: Example, trace: int) -> None:
        need = len(example.prompt_ids) + trace + len(example.answer_ids)
        if self.limit is not None and need > self.limit:
            raise ModelError(
                f"{self.folder}: example {example.index} needs {need} positions (prompt {len(example.prompt_ids)}, "
                f"trace {trace}, answer {len(example.answer_ids)}), but the model has {self.limit}; shorten them."
            )


class Subject:
    """The model that DIR, RUN, RUN@STEP or builtin:NAME means, to look into, not loaded yet.

    `config` is its run's, or the paper's defaults where there is no run. Raises ModelError or StoreError.
    """

    def __init__(self, ref: str | Path) -> None:
        self.located = locate_model(ref)
        about = read_metadata(self.located.folder)
        self.marks, self.thinks = (about.think_start, about.think_end), about.thinks
        if self.located.run is None:
            self.config = configs.resolve({"rollout": {"max_trace_tokens": 256}})
        else:
            self.config = Run.open(self.located.run).config()
            # What the run used, which may be less than what its starting model was prepared with.
            tokens = self.config.tokens
            self.marks, self.thinks = (tokens.think_start, tokens.think_end), self.config.thinks
        self.section = self.located.section()  # with the dtype that it is computed in

    def open(self) -> Scorer:
        """Load it, on as many threads as its run had."""
        use_processor(self.config)
        scorer = Scorer(self.section, *self.marks, self.config.objective.null_trace == "bare")
        if reason := scorer.policy.no_packing:
            console.note(f"{self.located.ref}: nothing is packed, since {reason}")
        return scorer

    def rollout(self, max_trace_tokens: int | None = None, temperature: float | None = None) -> RolloutSection:
        """How its traces are sampled: as in its run, unless told otherwise."""
        given = {"max_trace_tokens": max_trace_tokens, "temperature": temperature}
        return self.config.rollout.model_copy(update={key: value for key, value in given.items() if value is not None})


def data_file(of: Subject, given: Path | None) -> Path:
    """The pairs to score: a file, or the held-out ones of the subject's run."""
    if given is None and of.located.run is None:
        raise ConfigError(f"{of.located.ref}: is no run, so its held-out data is unknown; name some with --data FILE.")
    if given is None and of.config.data.validation is None:
        raise ConfigError(f"{of.located.run}: was trained without held-out data; name some with --data FILE.")
    path = given or Path(str(of.config.data.validation))
    if not path.is_file():
        raise DataError(f"{path}: no such file; name one made by `nrt data prepare` with --data.")
    return path


def pick_examples(path: Path, count: int, seed: int, limits: DataSection, tokenizer: object) -> list[Example]:
    """`count` examples of a file at random, in the file's order; all of them where there are fewer.

    A larger count adds to the examples of a smaller one.
    """
    examples = load_examples(path, tokenizer, limits.max_prompt_tokens, limits.max_answer_tokens, limits.strict)
    for text in examples.left_out(f"of {path}"):
        console.note(text)
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[int(i)] for i in sorted(order[:count])]


def default_folder(ref: str | Path, analysis: str) -> Path:
    """Where an analysis of a model goes: into its run, else below the working directory."""
    return (locate_model(ref).run or Path()) / "analysis" / analysis


def score_answer(
    ref: str,
    question: str,
    answer: str,
    traces: Sequence[str] = (),
    samples: int | None = None,
    max_trace_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    schemes: Sequence[str] = (),
) -> dict[str, Any]:
    """One model's numbers, as JSON has them; logarithms are natural.

    A model that answers directly has no traces of its own: without any, it is scored on y* given x alone.

    Args:
        traces: as text; without any, `samples` of the model's own, None the group size of its run.

    Returns:
        `model`, `folder`, `method` and `title` (None without a run), `question`, `answer`, its `tokens`, `token_ids`,
        and `objective`; where there is such, `direct`, of a model that answers directly, `null` and `traces`. Each of
        these has `logprobs` and `c` of the answer's tokens, and of all of it `logprob` and `probability`; each trace
        also its text (`trace`, `trace_tokens`), why it stopped (`stop`: `given`, or as sampled), what it adds in nats
        (`gains` by token, `gain`), and by name what `schemes` make of it: a single trace has no advantage but `raw`.
    """
    of = Subject(ref)
    built = methods.schemes(schemes, of.config.objective, of.config.method)
    example = asked_example(of, question, answer)
    scorer, objective, trained = of.open(), of.config.objective, of.located.run is not None
    tokenizer = scorer.tokenizer
    sampled: list[tuple[tuple[int, ...], str]] = []
    if traces:
        if samples or max_trace_tokens or temperature or seed is not None:
            raise ConfigError(
                "give either --trace or how to sample traces (--samples, --max-trace-tokens, --temperature, --seed): "
                "sampled traces and others are no group."
            )
        sampled = [(ids, "given") for ids in given_traces(tokenizer, traces)]
    elif of.thinks:
        rollout = of.rollout(max_trace_tokens, temperature)
        (group,) = scorer.sample([example], samples or rollout.group_size, rollout, (seed or 0, SCORING_STREAM))
        sampled = [(one.trace_ids, one.stop) for one in group.rollouts]
    scored: dict[str, Any] = {}
    if not of.thinks:
        scored["direct"] = _answer(scorer.score([scorer.direct_row(example)])[0][0].double())
    if sampled:
        rows = [scorer.layout.null_row(example), *(scorer.row(example, ids) for ids, _ in sampled)]
        null_T, *known = (logprobs_T.double() for logprobs_T, _ in scorer.score(rows))
        found: list[dict[str, Any]] = []
        scored |= {"null": _answer(null_T), "traces": found}
        for (ids, stop), logprobs_T in zip(sampled, known, strict=True):
            texts, whole, gains_T = pieces(tokenizer, ids), _answer(logprobs_T), logprobs_T - null_T
            about = {"trace": "".join(texts), "trace_tokens": len(ids), "stop": stop}
            gains = {"gains": gains_T.tolist(), "gain": float(gains_T.sum())}
            found.append({**about, **whole, **gains, "schemes": {}})
        alone = len(known) == 1 and objective.advantage != "raw"
        for name, method in built.items():
            view = SchemeView(method, torch.stack(known), null_T, objective)
            for k, trace in enumerate(found):
                trace["schemes"][name] = {
                    "reward": float(view.reward.reward_K[k]),
                    "log_reward": float(view.log_reward_K[k]),
                    "reward_base": float(view.reward.base),
                    "clipped": float(view.clipped_K[k]),
                    "advantage": None if alone else float(view.advantage.advantage_K[k]),
                    "dead_group": None if alone else view.advantage.dead,
                    "weights": view.weight_KT[k].tolist(),
                    "token_signals": view.reward.token_KT[k].tolist(),
                }
    keys = ("baseline", "advantage", "std_floor", "weighted_sum", "weight_cap", "null_trace")
    return {
        "model": of.located.name,
        "folder": str(of.located.folder),
        "method": of.config.method if trained else None,
        "title": run_title(of.config.method, of.config.model_dump()) if trained else None,
        "question": ending_in(question, of.located.suffix),
        "answer": answer,
        "tokens": pieces(tokenizer, example.answer_ids),
        "token_ids": list(example.answer_ids),
        "objective": {key: getattr(objective, key) for key in keys},
        **scored,
    }


def asked_example(of: Subject, question: str, answer: str) -> Example:
    """A question, which ends as those of the model's training did, and its answer. Raises ConfigError."""
    if not question.strip() or not answer.strip():
        raise ConfigError("the question or the answer is empty; give both.")
    tokenizer = load_tokenizer(of.located.folder)
    prompt = render_prompt(tokenizer, [{"role": "user", "content": ending_in(question, of.located.suffix)}])
    return Example(0, "asked", tuple(prompt), tuple(encode_answer(tokenizer, answer)))


def given_traces(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Traces as token ids; what spells a special token stays text."""
    return [tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) for text in texts]


def _answer(logprobs_T: Tensor) -> dict[str, Any]:
    """An answer's tokens and its whole: log c, c, log P and P."""
    total, c = logprobs_T.sum(), logprobs_T.exp().tolist()
    return {"logprobs": logprobs_T.tolist(), "c": c, "logprob": float(total), "probability": float(total.exp())}


TOKENS_PART = 16
"""Examples that are scored and stored together."""


def fill(
    of: Subject,
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    columns: Mapping[str, str],
    what: str,
    total: int,
    size: int,
    rows: Callable[[Scorer, slice], list[dict[str, Any]]],
    report: Report,
) -> list[Path]:
    """The tables of a model's rows, `size` to a part, in a folder named by all that they depend on.

    Parts that are not there are made, the model opened where there are any.
    """
    whole = {**settings, "model": model_fingerprint(of.located.folder), "dtype": of.section.dtype}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    scorer: Scorer | None = None
    parts: list[Path] = []
    for start in range(0, total, size):
        stop = min(start + size, total)
        parts.append(folder / "scored" / f"{name}-{digest[:12]}" / f"part-{len(parts):06d}.parquet")
        if not parts[-1].is_file():
            scorer = scorer or of.open()
            write_table(parts[-1], columns, rows(scorer, slice(start, stop)))
        report(what, stop, total)
    return parts


TOKEN_COLUMNS = {
    **dict.fromkeys(("example", "position", "token_id"), "int64"),
    "token": "string", "logprob": "double", "entropy": "double", "trace_tokens": "int64", "stop": "string",
}  # fmt: skip
"""One row per token of y*, its eos included; the last two are null where the model answered directly."""


def score_tokens(
    baseline: str,
    models: Sequence[str],
    folder: Path,
    report: Report,
    data: Path | None = None,
    count: int = 200,
    seed: int = 0,
    max_trace_tokens: int | None = None,
) -> list[tuple[str, list[Path]]]:
    """Score the same examples with the baseline, which comes first, and with each model: its label and its tables.

    Args:
        folder: where the rows go, each model's in a folder of its own.
        data: None is the held-out data of the baseline's run.
        max_trace_tokens: None is what each model's run had.

    Raises ConfigError where the baseline thinks or has nothing beside it, ModelError where the tokenizers differ.
    """
    subjects = [Subject(ref) for ref in (baseline, *models)]
    first, *others = subjects
    if not others:
        raise ConfigError("name at least one model to compare with the baseline: --runs RUN.")
    if first.thinks:
        raise ConfigError(
            f"{first.located.ref}: the baseline is to answer directly, but this model thinks; name a run of "
            f"`nrt train --method {methods.SUPERVISED.name}` (P_SFT and H_SFT are an SFT model's)."
        )
    file, tokenizer = data_file(first, data), load_tokenizer(first.located.folder)
    for other in others:
        if reason := tokenizer_difference(tokenizer, load_tokenizer(other.located.folder)):
            raise ModelError(
                f"{other.located.ref} and {first.located.ref} have different tokenizers ({reason}), so that they "
                "give no probabilities to the same tokens; compare models that began from the same one."
            )
    limits = first.config.data
    examples = pick_examples(file, count, seed, limits, tokenizer)
    lengths = [limits.max_prompt_tokens, limits.max_answer_tokens]
    asked = {"data": file_sha256(file), "count": count, "seed": seed, "limits": lengths}
    # A short, unique name for each: its method, or where two share that, its folder's name.
    called = [run_label(s.config.method, s.config.model_dump()) if s.located.run else s.located.name for s in subjects]
    names = [s.located.name if called.count(m) > 1 else m for s, m in zip(subjects, called, strict=True)]
    labels = [s.located.ref if names.count(name) > 1 else name for s, name in zip(subjects, names, strict=True)]
    scored = []
    for label, of in zip(labels, subjects, strict=True):
        rollout = of.rollout(max_trace_tokens) if of.thinks else None
        settings = asked | {"thinks": of.thinks}
        settings |= {"cap": rollout.max_trace_tokens, "temperature": rollout.temperature} if rollout else {}

        def rows(scorer: Scorer, part: slice, rollout: RolloutSection | None = rollout) -> list[dict[str, Any]]:
            """Of some examples, each given a sampled trace of the model's own; directly where `rollout` is None."""
            traces: list[Rollout | None] = [None] * len(examples[part])
            if rollout:
                groups = scorer.sample(examples[part], 1, rollout, (seed, SCORING_STREAM))
                traces = [group.rollouts[0] for group in groups]
            pairs, table = list(zip(examples[part], traces, strict=True)), []
            asked = [scorer.direct_row(e) if z is None else scorer.row(e, z.trace_ids) for e, z in pairs]
            for (example, trace), scores in zip(pairs, scorer.score(asked), strict=True):
                texts, numbers = (
                    pieces(scorer.tokenizer, example.answer_ids),
                    (scored_T.tolist() for scored_T in scores),
                )
                about = {} if trace is None else {"trace_tokens": len(trace.trace_ids), "stop": trace.stop}
                for position, cells in enumerate(zip(example.answer_ids, texts, *numbers, strict=True)):
                    row = dict(zip(("token_id", "token", "logprob", "entropy"), cells, strict=True))
                    table.append({"example": example.index, "position": position, **row, **about})
            return table

        name = re.sub(r"[^\w.@-]", "-", label)
        parts = fill(of, folder, name, settings, TOKEN_COLUMNS, label, len(examples), TOKENS_PART, rows, report)
        scored.append((label, parts))
    return scored


def tokenizer_difference(first: Any, second: Any) -> str | None:
    """Why two tokenizers do not make the same tokens of a question and an answer; None where they do."""
    a, b = first.get_vocab(), second.get_vocab()
    if len(a) != len(b):
        return f"{len(a):,} and {len(b):,} tokens"
    for token in sorted(a.keys() | b.keys()):
        if a.get(token) != b.get(token):
            return f"{token!r} is {a.get(token, 'unknown')} in one and {b.get(token, 'unknown')} in the other"
    probe = "The 1,234 naïve cafés — 中文 don't cost $5.67!\n\n  x = y**2  "
    if first.encode(probe) != second.encode(probe):
        return "the same vocabulary, but they cut a text differently"
    if first.chat_template != second.chat_template:
        return "the same tokens, but other chat templates, so that prompts differ"
    return None


def score_schemes(
    bank: Path, report: Report, schemes: Sequence[str] = (), count: int = 500
) -> tuple[list[dict[str, Any]], str | None]:
    """Rows of traces (`kind: trace`) and of groups (`kind: group`) under each scheme, and the method of the bank's run.

    A method that brings settings of its own has them, all others the run's; a bank that is no run but tables has the
    paper's objective. The `count` groups are evenly spaced over those there.
    """
    config = Run.open(bank).config() if (bank / "manifest.json").is_file() else None
    objective = config.objective if config else ObjectiveSection()
    tables, numbers = bank_tables(bank), itertools.count()
    there = set.intersection(*(table_columns(table) for table in tables))
    given = frozenset({"traces"} if there.issuperset(OF_TRACES) else ())
    built = methods.schemes(schemes, objective, config.method if config else "", given)
    if len(built) < 2:
        raise ConfigError("name at least two schemes: what one would reward is seen beside another.")
    own = [methods.loaded(config.method)] if config else []
    brought = any(method.defaults for method in (*built.values(), *own))
    objectives = dict.fromkeys(built, objective)
    for name in built if brought else ():
        if config is None or name != config.method:
            asked = {"preset": config.preset if config else "paper", "method": name}
            objectives[name] = configs.resolve(asked, origin=str(bank)).objective
    found: list[dict[str, Any]] = []

    def groups(table: Path, *columns: str) -> list[list[TraceRow]]:
        rows = bank_rows(table, ("step", "example", *columns))
        return [list(group) for _, group in itertools.groupby(rows, key=lambda row: (row.step, row.example))]

    total = sum(len(groups(table)) for table in tables)
    chosen = set(np.linspace(0, total - 1, min(count, total)).astype(int).tolist())
    for done, table in enumerate(tables, 1):
        needed = ("k", "trace", "trace_ids", "trace_entropies", "answer_logprobs", "null_logprobs")
        for group, number in zip(groups(table, *needed, *(OF_TRACES if given else ())), numbers, strict=False):
            if number not in chosen or len(group) < 2:
                continue
            logprobs_KT = torch.tensor([row.answer_logprobs for row in group], dtype=torch.float64)
            null_T = torch.tensor(group[0].null_logprobs, dtype=torch.float64)
            where = {"group": number, "step": group[0].step, "example": group[0].example}
            hardest = int(null_T.argmin())
            for name, scheme in built.items():
                settings, known = objectives[name], _traces_of(group) if scheme.asks else {}
                view = SchemeView(scheme, logprobs_KT, null_T, settings, **known)
                agreement = half_agreement(scheme, logprobs_KT, null_T, settings, **known)
                dead = {"dead_group": view.advantage.dead, "agreement": agreement}
                found.append(where | {"kind": "group", "scheme": name, **dead})
                signal_T = view.reward.token_KT.abs().mean(0)
                for k, row in enumerate(group):
                    scored = {
                        "kind": "trace",
                        "scheme": name,
                        "k": row.k,
                        # The log orders rewards alike and does not underflow.
                        "rank_by": float(view.log_reward_K[k] if scheme.in_log else view.reward.scaled_K[k]),
                        "scaled": float(view.reward.scaled_K[k]),
                        "reward": float(view.reward.reward_K[k]),
                        "reward_base": float(view.reward.base),
                        # Nothing is, where no baseline is taken off.
                        "clipped": float(view.clipped_K[k]) if settings.baseline == "clip" else np.nan,
                        "advantage": float(view.advantage.advantage_K[k]),
                        "hardest_signal": float(signal_T[hardest] / signal_T.sum()),
                        "gain": float(logprobs_KT[k].sum() - null_T.sum()),
                        "hardest_gain": float(logprobs_KT[k, hardest] - null_T[hardest]),
                        "trace_length": len(row.trace_ids or ()),
                        "entropy": float(np.mean(row.trace_entropies)) if row.trace_entropies else np.nan,
                        "trace": row.trace,
                    }
                    found.append(where | scored)
        report("trace tables", done, len(tables))
    return found, config.method if config else None


OF_TRACES = ("trace_logprobs", "sampled", "stop")
"""Columns of a bank that say what a method that asks for "traces" has to know."""


def _traces_of(group: Sequence[TraceRow]) -> dict[str, Tensor]:
    """The fields of `Group` that a method gets which asks for "traces", from a stored group."""
    longest = max(len(row.sampled or ()) for row in group)
    logprobs_KZ = torch.zeros(len(group), longest, dtype=torch.float64)
    mask_KZ = torch.zeros(len(group), longest, dtype=torch.bool)
    for k, row in enumerate(group):
        length = len(row.sampled or ())
        mask_KZ[k, :length] = torch.tensor(row.sampled or (), dtype=torch.bool)
        logprobs_KZ[k, :length] = torch.tensor(row.trace_logprobs or (), dtype=torch.float64)
    return {
        "trace_logprobs_KZ": torch.where(mask_KZ, logprobs_KZ, 0.0),
        "trace_mask_KZ": mask_KZ,
        "lengths_K": torch.tensor([len(row.trace_ids or ()) for row in group]),
        "closed_K": torch.tensor([row.stop == "end" for row in group]),
    }
