"""Native reasoning with transformers: many requests at once, whose rows are refilled as they finish.

Shapes: R rows in flight, V vocabulary.

Every request has random streams of its own, for its trace and its answer: what it samples depends on no other.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nrt_cli.backends.local import attention
from nrt_cli.backends.local.decoding import decoded, evaluating, open_batch, pick, prepacked, random_stream
from nrt_cli.backends.local.policy import Policy
from nrt_cli.backends.machine import GPU_ROWS
from nrt_cli.backends.samplers import stream_seed
from nrt_cli.backends.vllm_engine import INSTALL, VllmEngine, VllmRequest, installed
from nrt_cli.config import ModelSection
from nrt_cli.errors import ModelError
from nrt_cli.models.loading import load_model, load_tokens, pick_device, positions, resolved
from nrt_cli.models.metadata import read_metadata
from nrt_cli.objective.rows import Row
from nrt_cli.records import Reply, Request
from nrt_cli.text.reasoning import PARTS, Draft, Part
from nrt_cli.text.tokens import ThinkTokens

ROWS = 16
"""Requests in flight where nothing else is asked."""


class Reasoner:
    """A model folder that answers requests, in one implementation for `nrt eval` and `nrt generate`.

    Tokenizer and think tokens are there at once; the weights are loaded at the first request. Of `section` dtype and
    device are used; replies do not depend on `batch_rows`, the rows in flight. Raises ModelError where there is no
    model, or it lacks think tokens, eos or pad, and where vLLM is asked for and not installed.
    """

    def __init__(self, folder: Path, section: ModelSection | None = None, batch_rows: int | None = None) -> None:
        self.folder, self.batch_rows = folder, batch_rows or ROWS
        self.section = resolved(section or ModelSection()).model_copy(update={"path": str(folder)})
        self.about = read_metadata(folder)
        self.tokenizer, self.tokens = load_tokens(folder, self.about.think_start, self.about.think_end)
        self.positions = positions(folder)

    @cached_property
    def model(self) -> Any:
        model = load_model(self.section)
        # Where this is not exact for the architecture, `open_batch` does without.
        attention.enable(model)
        return model

    @cached_property
    def _policy(self) -> Policy:
        return Policy(self.model, self.tokens.pad_id, packing=True)

    def draft(self, request: Request) -> Draft:
        """A request before its first token."""
        return Draft(request, self.tokens, self.tokenizer, self.positions)

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Each request with its reply as it finishes, in any order; more at once keep more rows busy."""
        asked = list(requests)
        # Log-probabilities of continuations; NaN for those that do not fit the model.
        scored = [request for request in asked if request.mode == "loglikelihood"]
        fits = lambda r: self.positions is None or len(r.prompt_ids) + len(r.continuation_ids) <= self.positions  # noqa: E731
        yield from ((request, Reply(logprob=math.nan, cut=True)) for request in scored if not fits(request))
        # Neighbours that share a prompt share its computation.
        fitting = sorted(filter(fits, scored), key=lambda r: (len(r.prompt_ids), r.prompt_ids))
        yield from ((request, Reply(logprob=logprob)) for request, logprob in self._logprobs(fitting))
        for draft in self.steps([self.draft(request) for request in asked if request.mode == "generate"]):
            if draft.done:
                yield draft.request, draft.reply()

    def stream(self, request: Request) -> Iterator[tuple[Part, str]]:
        """A request's text as it is decoded, each piece with its part, in whole letters."""
        draft = self.draft(request)
        part, said = draft.part, ""
        for _ in self.steps([draft]):
            if part is None:
                return
            text, over = draft.text(part), draft.part is not part
            # A replacement character at the end is half of a letter: wait for the rest of its bytes.
            if over or not text.endswith("\ufffd"):
                yield part, text[len(said) :]
                said = text
            if over:
                part, said = draft.part, ""

    def steps(self, drafts: Sequence[Draft]) -> Iterator[Draft]:
        """Complete drafts; each is yielded whenever it has got a token, and once where there is no room for any."""
        yield from (draft for draft in drafts if draft.done)
        # Prompts with the same worked examples join together, so that these are read once; then the long ones first.
        beginning = lambda draft: (draft.request.prompt_ids[:128], -len(draft.request.prompt_ids))  # noqa: E731
        waiting = sorted((draft for draft in drafts if not draft.done), key=beginning)
        if not waiting:
            return
        with prepacked(self.model):
            batch = open_batch(self.model, self.tokens.pad_id)
            for rows, logits_RV in decoded(batch, map(_Row, waiting), self.batch_rows):
                for row, token in zip(rows, choose(logits_RV, rows), strict=True):
                    if row.live:
                        row.take(token)
                        yield row.draft

    def _logprobs(self, requests: Sequence[Request]) -> Iterator[tuple[Request, float]]:
        if not requests:
            return
        rows = [Row((*r.prompt_ids, *r.continuation_ids), len(r.prompt_ids)) for r in requests]
        waiting = iter(requests)
        for part in self._policy.micro_batches(rows):
            for (logprobs_T, _), request in zip(self._policy.score_without_gradient(part), waiting, strict=False):
                yield request, float(logprobs_T.sum())


class LoadedReasoner(Reasoner):
    """The same over a model that is in memory already, such as one in training."""

    def __init__(self, model: Any, tokenizer: Any, tokens: ThinkTokens, batch_rows: int) -> None:
        self.model, self.tokenizer, self.tokens, self.batch_rows = model, tokenizer, tokens, batch_rows
        self.positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def steps(self, drafts: Sequence[Draft]) -> Iterator[Draft]:
        with evaluating(self.model):
            yield from super().steps(drafts)


class _Row:
    """A draft in a batch: its random streams, the token it reads next, and those that it is given to read after it."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.prompt = draft.context
        self.reads = 0
        self.given = deque[int]()
        request = draft.request
        # Keyed by part, so that how long a trace became does not shift what its answer draws.
        self.uniforms = {
            part: random_stream(cap, *request.seed_key, number) if request.temperature else np.zeros(0)
            for number, (part, cap) in enumerate(zip(PARTS, (draft.trace_cap, draft.answer_cap), strict=True))
        }

    def take(self, token: int) -> None:
        """Accept what the model chose, unless it is still reading."""
        if self.given:
            self.reads = self.given.popleft()
            return
        part = self.draft.part
        self.reads = self.draft.take(token)
        if part is Part.trace and self.draft.part is Part.answer:
            self.given.extend(self.draft.request.prefill_ids)

    @property
    def live(self) -> bool:
        return not self.draft.done

    @property
    def uniform(self) -> float:
        """The random number of the next token; one that is not a matter of chance needs none."""
        part, position = self.draft.part, self.draft.position
        return float(self.uniforms[part][position]) if part and position < len(self.uniforms[part]) else 0.0


@torch.inference_mode()
def choose(logits_RV: Tensor, rows: Sequence[_Row]) -> list[int]:
    """The next token of every row: the likeliest, or one drawn at the request's temperature within its top_p."""
    for i, row in enumerate(rows):
        if row.live and row.draft.banned:
            logits_RV[i, list(row.draft.banned)] = -math.inf
    tokens_R = logits_RV.argmax(-1)
    if drawn := [i for i, row in enumerate(rows) if row.draft.request.temperature]:
        of = [rows[i].draft.request for i in drawn]
        as_column = lambda values: torch.tensor(values, device=logits_RV.device)[:, None]  # noqa: E731
        kept_RV = nucleus(
            logits_RV[drawn].float() / as_column([r.temperature for r in of]), as_column([r.top_p for r in of])
        )
        uniforms_R = torch.tensor([rows[i].uniform for i in drawn], dtype=torch.float64, device=logits_RV.device)
        tokens_R[drawn] = pick(kept_RV, uniforms_R)[0]
    return tokens_R.tolist()


def nucleus(logits_RV: Tensor, top_p_R1: Tensor) -> Tensor:
    """Logits with -inf outside the nucleus: the fewest likeliest tokens whose probability reaches top_p.

    Source: Holtzman et al., 2020, The Curious Case of Neural Text Degeneration, Sec. 3.1.
    """
    if (top_p_R1 >= 1).all():
        return logits_RV
    sorted_RV, order_RV = logits_RV.sort(-1, descending=True)
    probs_RV = sorted_RV.softmax(-1, dtype=torch.float64)
    # A token is out once those before it reach top_p; the likeliest has none before it, and so stays.
    out_RV = probs_RV.cumsum(-1) - probs_RV >= top_p_R1
    return logits_RV.masked_fill(torch.zeros_like(out_RV).scatter(-1, order_RV, out_RV), -math.inf)


# --- with vLLM, in two phases: the traces of many requests, then their answers ---------------------------------------

LONGEST = 8192
"""Tokens of the longest sequence, prompt included: vLLM reserves its cache before it knows what is asked."""

TURNS = 8
"""Requests handed to vLLM at a time, in multiples of the rows in flight: replies come only when all are finished."""


class VllmReasoner(Reasoner):
    """The same replies as from transformers where decoding is greedy, up to rounding; random streams are vLLM's."""

    def __init__(self, folder: Path, section: ModelSection | None = None, batch_rows: int | None = None) -> None:
        if installed() is None:
            raise ModelError(f"vllm is not installed; {INSTALL}, or use --engine hf.")
        super().__init__(folder, section, batch_rows)
        if batch_rows is None and pick_device(self.section.device).type == "cuda":
            self.batch_rows = GPU_ROWS
        self.longest = self.positions = min(self.positions or LONGEST, LONGEST)

    @cached_property
    def engine(self) -> VllmEngine:
        device = pick_device(self.section.device)
        return VllmEngine(self.folder, self.section.dtype, device.type, self.longest, self.batch_rows)

    def steps(self, drafts: Sequence[Draft]) -> Iterator[Draft]:
        """As Reasoner does, but many at a time: all traces, then all answers."""
        size = TURNS * self.batch_rows
        for start in range(0, len(drafts), size):
            some = drafts[start : start + size]
            yield from (draft for draft in some if draft.done)
            for part in PARTS:
                yield from self._complete([draft for draft in some if draft.part is part])

    def _complete(self, drafts: Sequence[Draft]) -> Iterator[Draft]:
        # A trace without room is closed without asking the model.
        asked = [draft for draft in drafts if draft.left > 0]
        answered = self.engine.generate([_request(draft) for draft in asked]) if asked else []
        outputs = dict(zip(map(id, asked), answered, strict=True))
        for draft in drafts:
            part = draft.part
            for token in outputs[id(draft)].ids if id(draft) in outputs else ():
                # vLLM stops where the draft does; what the two read differently must not run into the next part. It
                # bans no tokens, so an answer that opens a trace ends there: no grader may read that trace.
                if draft.part is not part or token in draft.banned:
                    break
                draft.take(token)
                yield draft
            if draft.part is part:
                draft.close()
                yield draft

    def _logprobs(self, requests: Sequence[Request]) -> Iterator[tuple[Request, float]]:
        size = TURNS * self.batch_rows
        for start in range(0, len(requests), size):
            some = requests[start : start + size]
            scores = self.engine.score([(*request.prompt_ids, *request.continuation_ids) for request in some])
            for request, logprobs in zip(some, scores, strict=True):
                # The first token has no score, hence the shift by one to the left.
                yield request, sum(logprobs[len(request.prompt_ids) - 1 :])


def _request(draft: Draft) -> VllmRequest:
    request = draft.request
    return VllmRequest(
        prompt_ids=draft.context,
        max_tokens=draft.left,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=stream_seed(*request.seed_key, PARTS.index(draft.part)) if request.temperature and draft.part else None,
        stop_ids=draft.stop_ids,
        stop=request.stop if draft.part is Part.answer else (),
        min_tokens=draft.least,
    )


REASONERS = {"hf": Reasoner, "vllm": VllmReasoner}
"""By the engine that `nrt eval` is asked for."""
