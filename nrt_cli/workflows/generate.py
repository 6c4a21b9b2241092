"""`nrt generate`: one question to a run or a model, answered as it was trained to."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nrt_cli.config import ModelSection
from nrt_cli.engines.local.reasoning import Reasoner
from nrt_cli.errors import ModelError
from nrt_cli.records import Reply, Request
from nrt_cli.text.prompts import render_prompt
from nrt_cli.text.reasoning import Part, ThinkMode, thinking
from nrt_cli.workflows.models import locate_model

USUAL_CAP = 256
"""Most tokens of a trace, and of an answer, where nobody says how many."""


class Generator:
    """A model that thinks, or answers directly, as it was trained to."""

    def __init__(self, section: ModelSection) -> None:
        self.folder = section.path
        self.reasoner = Reasoner(Path(section.path), section, batch_rows=1)

    def thinks(self, mode: ThinkMode) -> bool:
        """Whether there will be a trace."""
        return thinking(mode, self.reasoner.about.thinks)[0]

    def stream(
        self,
        question: str,
        mode: ThinkMode = "on",
        max_trace_tokens: int | None = None,
        max_answer_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[tuple[Part, str]]:
        """Pieces of text as they are decoded, each with its part; joined, they are the whole text of the part.

        Args:
            mode: as in `nrt_cli.text.reasoning.thinking`.
            max_trace_tokens: None is `USUAL_CAP`, or what the model has room for; so is it for the answer.
            temperature: 0 is greedy.

        Raises:
            ModelError: question and caps do not fit the model's positions.
        """
        return self.reasoner.stream(
            self._request(question, mode, max_trace_tokens, max_answer_tokens, temperature, seed)
        )

    def reply(self, question: str, max_trace_tokens: int, max_answer_tokens: int) -> Reply:
        """What is said greedily, at once, with how trace and answer ended."""
        request = self._request(question, "on", max_trace_tokens, max_answer_tokens, 0.0, 0)
        ((_, reply),) = self.reasoner.run([request])
        return reply

    def _request(
        self,
        question: str,
        mode: ThinkMode,
        max_trace_tokens: int | None,
        max_answer_tokens: int | None,
        temperature: float,
        seed: int,
    ) -> Request:
        think, min_trace_tokens = thinking(mode, self.reasoner.about.thinks)
        request = Request(
            key="question",
            prompt_ids=tuple(render_prompt(self.reasoner.tokenizer, [{"role": "user", "content": question}])),
            think=think,
            max_trace_tokens=0,
            max_answer_tokens=sys.maxsize,
            temperature=temperature,
            seed_key=(seed,),
            min_trace_tokens=min_trace_tokens,
        )
        asked = (max_trace_tokens if think else 0, max_answer_tokens)
        left = self.reasoner.draft(request).answer_cap - sum(cap or 0 for cap in asked)
        usual = max(1, min(USUAL_CAP, left // max(1, asked.count(None))))
        trace, answer = (usual if cap is None else cap for cap in asked)
        request = dataclasses.replace(request, max_trace_tokens=trace, max_answer_tokens=answer)
        self._check_room(request)
        return request

    def answer(self, question: str, mode: ThinkMode, *settings: Any) -> dict[str, Any]:
        """What `stream` says, at once: `question`, `trace` and `answer`.

        What was not generated is None: a model that answers directly has no trace, not an empty one.
        """
        record = {"question": question, "trace": "" if self.thinks(mode) else None, "answer": ""}
        for part, text in self.stream(question, mode, *settings):
            record[part] = (record[part] or "") + text
        return record

    def _check_room(self, request: Request) -> None:
        """Refuse what would not fit the model's positions, where an evaluation would lower the caps and say so."""
        caps = (request.max_trace_tokens, request.max_answer_tokens)
        draft = self.reasoner.draft(request)
        if (draft.trace_cap, draft.answer_cap) != caps:
            raise ModelError(
                f"{self.folder}: the question ({len(request.prompt_ids)} tokens) and the caps "
                f"({' + '.join(str(cap) for cap in caps if cap)}) do not fit the model's {self.reasoner.positions} "
                "positions; shorten the question or lower the caps."
            )


def open_generator(model: str | Path) -> Generator:
    """A generator from RUN, RUN@STEP, a model folder or builtin:NAME. Raises ModelError or StoreError."""
    return Generator(locate_model(model).section())
