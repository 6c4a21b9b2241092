"""Native reasoning, token by token: prompt, t_start, a trace up to its cap, t_end, an answer up to its end.

No model in here: an engine asks a draft what comes next and gives it the tokens that the model chose.
"""

import math
from enum import StrEnum
from typing import Any, Literal

from nrt_cli.records import Reply, Request, Stop
from nrt_cli.text.pieces import text_within
from nrt_cli.text.tokens import ThinkTokens

ThinkMode = Literal["on", "off", "forced"]


class Part(StrEnum):
    """What a piece of generated text belongs to."""

    trace = "trace"
    answer = "answer"


PARTS = (Part.trace, Part.answer)
"""In their order, which also numbers their random streams."""


def thinking(mode: ThinkMode, trained: bool) -> tuple[bool, int]:
    """`think` and `min_trace_tokens` of a request to a model that was `trained` to think, or to answer directly.

    - on: as it was trained; an SFT model answers directly.
    - off: every model answers directly, and cannot open a trace.
    - forced: every model thinks, and none may skip it: no token that ends a trace can be its first.
    """
    if mode == "forced":
        return True, 1
    return mode == "on" and trained, 0


class Draft:
    """A request on its way to a reply.

    Args:
        positions: how many the model has; None where that is unknown. Of what the prompt leaves of them, the trace's
            cap gets what the answer's cap leaves, or half if that is more; the answer what the trace has left. Nothing
            is dropped in silence: a lowered cap shows in the reply as a forced t_end or as a cut answer, and a prompt
            without room for an answer gets none, which counts as cut.
    """

    def __init__(self, request: Request, tokens: ThinkTokens, tokenizer: Any, positions: int | None) -> None:
        self.request = request
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.trace_ids: list[int] = list(request.trace_ids or ())
        self.answer_ids: list[int] = []
        self.stop: Stop | None = None
        self.cut = False
        thinks = request.think and request.trace_ids is None
        self.part: Part | None = Part.trace if thinks else Part.answer
        marks = (tokens.start_id is not None) + 1 if request.think else 0
        # What the prompt, the think tokens and the answer's given beginning leave to trace and answer.
        self.room: float = math.inf if positions is None else positions - len(request.prompt_ids) - marks
        self.room -= len(request.prefill_ids)
        left = max(self.room - request.max_answer_tokens, self.room / 2)
        self.trace_cap = int(min(request.max_trace_tokens, max(left, 0))) if thinks else 0
        if self.answer_cap < 1:
            self.part, self.cut = None, True
        # Characters have at most four bytes and tokens of text at least one, so a stop string ends within so many.
        self._window = max((4 * len(text) + 8 for text in request.stop), default=0)

    @property
    def done(self) -> bool:
        """True once there is nothing more to generate."""
        return self.part is None

    @property
    def answer_cap(self) -> int:
        """How many tokens the answer may have after the trace as it is."""
        return int(min(self.request.max_answer_tokens, max(self.room - len(self.trace_ids), 0)))

    @property
    def context(self) -> list[int]:
        """What the next token follows: x t_start z, or x t_start z t_end y, or x y; y with its given beginning."""
        ids = list(self.request.prompt_ids)
        if self.request.think:
            ids += [] if self.tokens.start_id is None else [self.tokens.start_id]
            ids += self.trace_ids
            if self.part is not Part.trace:
                ids.append(self.tokens.end_id)
        return ids if self.part is Part.trace else [*ids, *self.request.prefill_ids, *self.answer_ids]

    @property
    def position(self) -> int:
        """The next token's place in its part."""
        return len(self.trace_ids if self.part is Part.trace else self.answer_ids)

    @property
    def left(self) -> int:
        """How many more tokens the part may have."""
        return (self.trace_cap if self.part is Part.trace else self.answer_cap) - self.position

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends the part, as in training."""
        return self.tokens.trace_ends if self.part is Part.trace else self.tokens.stop_ids

    @property
    def least(self) -> int:
        """How many tokens the part has at least."""
        return min(self.request.min_trace_tokens, self.trace_cap) if self.part is Part.trace else 0

    @property
    def banned(self) -> tuple[int, ...]:
        """Tokens that may not come next: what would end a trace too early, and think tokens in an answer.

        A model that was trained to think would otherwise open a trace where it is to answer, and graders would read it.
        """
        if self.part is Part.answer:
            return tuple(token for token in (self.tokens.start_id, self.tokens.end_id) if token is not None)
        return self.stop_ids if self.position < self.least else ()

    def take(self, token: int) -> int:
        """Accept what the model chose; what it is to read next, which is t_end where the trace is over."""
        if self.part is Part.answer:
            if token in self.tokens.stop_ids:
                self.part = None
                return token
            self.answer_ids.append(token)
            if self._window:
                # As much of the answer as a stop string can be in that ends with its last token. Cut off inside a
                # letter, some tokenizers read none of the bytes that follow it.
                words = self.text(Part.answer, self._window)
                if self._said(self.text(Part.answer) if "\ufffd" in words else words):
                    self.part = None
                    return token
            if self.left <= 0:
                self.part, self.cut = None, True
            return token
        if self.left <= 0:
            # The cap is on what is sampled, so a t_end chosen one token later would have come too late as well.
            self.close()
            return self.tokens.end_id
        if token == self.tokens.end_id:
            self.stop = "end"
        elif token in self.tokens.trace_ends:
            self.stop = "eos"
        else:
            self.trace_ids.append(token)
            return token
        self.part = Part.answer
        return self.tokens.end_id

    def close(self) -> None:
        """End the part where an engine has stopped, though no token says so: at the cap, or at a stop string."""
        if self.part is Part.trace:
            self.stop, self.part = "cap", Part.answer
        else:
            self.part = None

    def _said(self, text: str) -> list[int]:
        """Where in a text stop strings begin."""
        return [at for stop in self.request.stop if (at := text.find(stop)) >= 0]

    def text(self, part: Part, last: int = 0) -> str:
        """The part's text so far without special tokens, or that of its `last` tokens."""
        ids = self.trace_ids if part is Part.trace else self.answer_ids
        return text_within(self.tokenizer, ids[-last:], special=False)

    def reply(self) -> Reply:
        """What has been generated. The answer ends before the first stop string in it."""
        answer = self.text(Part.answer)
        return Reply(
            trace=self.text(Part.trace),
            answer=answer[: min(self._said(answer), default=None)],
            trace_tokens=len(self.trace_ids),
            answer_tokens=len(self.answer_ids),
            stop=self.stop,
            cut=self.cut,
            trace_ids=tuple(self.trace_ids),
        )
