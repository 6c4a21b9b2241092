"""`nrt generate` and `nrt chat`: questions to a run or a model, answered as it was trained to."""

import dataclasses
import sys
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nrt_cli.backends.reasoning import Reasoner
from nrt_cli.errors import ModelError
from nrt_cli.records import Reply, Request
from nrt_cli.text.prompts import render_prompt
from nrt_cli.text.questions import ending_in
from nrt_cli.text.reasoning import Part, ThinkMode, thinking
from nrt_cli.training.locate import locate_model

USUAL_CAP = 256
"""Most tokens of a trace, and of an answer, where nobody says how many."""


class Generator:
    """RUN, RUN@STEP, a model folder or builtin:NAME, that thinks, or answers directly, as it was trained to.

    `suffix`: a question gets the last line that those of the model's training had. Raises ModelError or StoreError.
    """

    def __init__(self, model: str | Path, suffix: bool = True) -> None:
        located = locate_model(model)
        section = located.section()
        self.folder, self.suffix = section.path, located.suffix if suffix else None
        self.reasoner = Reasoner(Path(section.path), section, batch_rows=1)

    def thinks(self, mode: ThinkMode) -> bool:
        return thinking(mode, self.reasoner.about.thinks)[0]

    def stream(self, question: str, mode: ThinkMode = "on", *settings: Any, **named: Any) -> Iterator[tuple[Part, str]]:
        """Pieces of text as decoded, each with its part; joined, the part's whole text. Takes what `request` takes."""
        return self.reasoner.stream(self.request(question, mode, *settings, **named))

    def reply(self, question: str, max_trace_tokens: int, max_answer_tokens: int) -> Reply:
        """What is said greedily, at once, with how trace and answer ended."""
        caps: dict[str, Any] = {"max_trace_tokens": max_trace_tokens, "max_answer_tokens": max_answer_tokens}
        ((_, reply),) = self.reasoner.run([dataclasses.replace(self.request(question, "on", 1, 1), **caps)])
        return reply

    def request(
        self,
        question: str,
        mode: ThinkMode = "on",
        max_trace_tokens: int | None = None,
        max_answer_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        earlier: Sequence[dict[str, str]] = (),
    ) -> Request:
        """A question as the engine takes it.

        Args:
            mode: as in `nrt_cli.text.reasoning.thinking`.
            max_trace_tokens: None is `USUAL_CAP`, or what the model has room for; so is it for the answer.
            temperature: 0 is greedy.
            earlier: the turns before the question.

        Raises ModelError where turns and caps do not fit the model's positions.
        """
        think, min_trace_tokens = thinking(mode, self.reasoner.about.thinks)
        turns = [*earlier, {"role": "user", "content": ending_in(question, self.suffix)}]
        request = Request(
            key="question",
            prompt_ids=tuple(render_prompt(self.reasoner.tokenizer, turns)),
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
        # An evaluation would lower the caps and say so.
        if trace + answer > self.reasoner.draft(request).room:
            raise ModelError(
                f"{self.folder}: the question ({len(request.prompt_ids)} tokens) and the caps "
                f"({' + '.join(str(cap) for cap in (trace, answer) if cap)}) do not fit the model's "
                f"{self.reasoner.positions} positions; shorten the question or lower the caps."
            )
        return request

    def collect(self, question: str, mode: ThinkMode, pieces: Iterable[tuple[Part, str]]) -> dict[str, str | None]:
        """A question and its streamed reply as a whole. One that answers directly has the trace None."""
        said = {"question": question, "trace": "" if self.thinks(mode) else None, "answer": ""}
        for part, text in pieces:
            said[part] = (said[part] or "") + text
        return said


class Conversation:
    """Questions that follow one another. Of earlier replies the answers stay, the traces do not, as stock templates do.

    `settings` are caps and temperature, as `Generator.request` takes them.
    """

    def __init__(self, generator: Generator, mode: ThinkMode = "on", seed: int = 0, **settings: Any) -> None:
        self.generator, self.mode, self.seed, self.settings = generator, mode, seed, settings
        self.turns: list[dict[str, str]] = []
        self.forgotten = 0
        """Earlier questions that the last one left no room for."""
        self._asked = 0

    def ask(self, question: str) -> abc.Generator[tuple[Part, str], None, None]:
        """The reply, as `Generator.stream` has it. One that is not read to its end is no part of the conversation.

        Raises ModelError where the question alone does not fit the model.
        """
        seed = self.seed + self._asked
        self._asked += 1
        request = alone = self.generator.request(question, self.mode, seed=seed, **self.settings)
        room = alone.max_trace_tokens + alone.max_answer_tokens
        self.forgotten = 0
        while self.turns:  # as many of the latest as leave it half of the room that it would have alone
            try:
                request = self.generator.request(question, self.mode, seed=seed, earlier=self.turns, **self.settings)
                if request.max_trace_tokens + request.max_answer_tokens >= room / 2:
                    break
            except ModelError:  # caps that were asked for do not fit
                pass
            del self.turns[:2]
            self.forgotten += 1
        else:
            request = alone
        answer = ""
        for part, text in self.generator.reasoner.stream(request):
            answer += text if part == Part.answer else ""
            yield part, text
        asked = ending_in(question, self.generator.suffix)
        self.turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def generate_cases(
    models: Mapping[str, str],
    questions: Sequence[str],
    max_trace_tokens: int,
    max_answer_tokens: int,
    say: Callable[[str], None],
) -> list[dict[str, str | None]]:
    """What each model (label -> RUN, RUN@STEP or folder) thinks and answers, greedily; one is in memory at a time.

    Returns rows of `question`, `run`, `trace` (None where it does not think), `answer`, and `cut`: which of the two ran
    into its cap.
    """
    rows: list[dict[str, str | None]] = []
    for label, model in models.items():
        say(f"{label}: {len(questions)} questions")
        generator = Generator(model)
        for question in questions:
            reply = generator.reply(question, max_trace_tokens, max_answer_tokens)
            trace = reply.trace if generator.thinks("on") else None
            cut = ", ".join(["trace"] * (reply.stop == "cap") + ["answer"] * reply.cut)
            rows.append({"question": question, "run": label, "trace": trace, "answer": reply.answer, "cut": cut})
    return sorted(rows, key=lambda row: questions.index(str(row["question"])))
