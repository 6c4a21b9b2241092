"""Native reasoning with vLLM, in two phases: the traces of many requests, then their answers."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from nrt_cli.backends.local.reasoning import Reasoner
from nrt_cli.backends.vllm_engine import INSTALL, VllmEngine, VllmRequest, installed
from nrt_cli.backends.vllm_rollouts import stream_seed
from nrt_cli.config import ModelSection
from nrt_cli.errors import ModelError
from nrt_cli.models.loading import pick_device
from nrt_cli.records import Request
from nrt_cli.text.reasoning import PARTS, Draft, Part

LONGEST = 8192
"""Tokens of the longest sequence, prompt included: vLLM reserves its cache before it knows what is asked."""

TURNS = 8
"""Requests handed to vLLM at a time, in multiples of the rows in flight: replies come only when all are finished."""


class VllmReasoner(Reasoner):
    """The same replies as from transformers where decoding is greedy, up to rounding; random streams are vLLM's.

    Raises:
        ModelError: as Reasoner does; or vLLM is not installed.
    """

    def __init__(self, folder: Path, section: ModelSection | None = None, batch_rows: int = 16) -> None:
        if installed() is None:
            raise ModelError(f"vllm is not installed; {INSTALL}, or use --engine hf.")
        super().__init__(folder, section, batch_rows)
        self.longest = self.positions = min(self.positions or LONGEST, LONGEST)

    @cached_property
    def engine(self) -> VllmEngine:
        """The weights, in vLLM."""
        device = pick_device(self.section.device)
        return VllmEngine(self.folder, self.section.dtype, device.type, self.longest, self.batch_rows, tokenizer=True)

    def steps(self, drafts: Sequence[Draft]) -> Iterator[Draft]:
        """As Reasoner does, but many at a time: all traces, then all answers."""
        size = TURNS * self.batch_rows
        for start in range(0, len(drafts), size):
            some = drafts[start : start + size]
            yield from (draft for draft in some if draft.done)
            for part in PARTS:
                yield from self._complete([draft for draft in some if draft.part is part])

    def _complete(self, drafts: Sequence[Draft]) -> Iterator[Draft]:
        """The part that these drafts are at."""
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
