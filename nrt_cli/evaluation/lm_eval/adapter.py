"""Our generation behind lm-eval's own loop: `lm_eval.evaluate(lm=ReasonerLM(...), apply_chat_template=True, ...)`.

Prompts pass through lm-eval as turns of a chat in JSON; they are rendered by the model's own template here, as
everywhere else. What lm-eval sees of a reply is its answer; the trace never reaches a scorer.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from nrt_cli.evaluation.lm_eval.tasks import as_json, to_request
from nrt_cli.records import Reply, Request


class Engine(Protocol):
    """What answers requests, such as a `Reasoner`."""

    tokenizer: Any

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[Request, Reply]]:
        """Each request with its reply, in any order."""
        ...


class ReasonerLM(LM):
    """An engine as one of lm-eval's models. Needs `apply_chat_template=True`; sampling follows the suite's settings.

    Args:
        think: whether a trace comes before every generated answer.
    """

    def __init__(self, engine: Engine, think: bool, max_trace_tokens: int, seed: int = 0) -> None:
        super().__init__()
        self.engine, self.seed, self.think = engine, seed, think
        self.max_trace_tokens = max_trace_tokens if think else 0

    @property
    def tokenizer_name(self) -> str:
        return ""  # it would only name a cache of prompts, and ours do not depend on the tokenizer

    def chat_template(self, chat_template: bool | str = False) -> str:
        return ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns as JSON, rendered once a request is made."""
        return as_json(chat_history)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer for each instance; lm-eval repeats an instance that is to be sampled more than once."""
        return [reply.answer for reply in self._replies(requests)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, False): whether the continuation is the greedy one is not computed."""
        replies = self._replies(requests)
        return [(float("nan") if reply.logprob is None else reply.logprob, False) for reply in replies]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Not a part of the suite."""
        raise NotImplementedError("no benchmark of the suite asks for the likelihood of whole documents")

    def _replies(self, instances: Sequence[Instance]) -> list[Reply]:
        seen: Counter[int] = Counter()
        made = []
        for number, instance in enumerate(instances):
            request = to_request(instance, self.engine.tokenizer, str(number), self.seed, seen[id(instance)])
            seen[id(instance)] += 1
            if request.mode == "generate":
                request = replace(request, think=self.think, max_trace_tokens=self.max_trace_tokens)
            made.append(request)
        replies = {request.key: reply for request, reply in self.engine.run(made)}
        return [replies[request.key] for request in made]
