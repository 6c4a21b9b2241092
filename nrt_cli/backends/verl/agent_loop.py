"""Sampling on verl: its agent loop over our traces, and a pool of its workers that hands them back.

Run in verl's agent-loop workers, which ask the vLLM servers for tokens.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopManager, AgentLoopOutput, AgentLoopWorker

from nrt_cli.backends.local.decoding import rollout_of
from nrt_cli.records import Example, Rollout
from nrt_cli.text.tokens import ThinkTokens

NAME = "nrt"
"""What `agent_loop.yaml` calls the loop."""


class NativeReasoning(AgentLoopBase):
    """One trace: sampled until a token that ends one or the cap, then t_end and y* appended, all as token ids; or an
    answer, where the opening that it goes on from has a trace and t_end.

    Its output is verl's: the prompt x, the response t_start z t_end y*, and the sampler's log-probabilities, else 0.
    """

    async def run(self, sampling_params: dict[str, Any], **request: Any) -> AgentLoopOutput:
        example: Example = request["example"]
        tokens: ThinkTokens = request["tokens"]
        opening: tuple[int, ...] = request["opening"]
        asked = {"max_tokens": request["max_trace_tokens"], "seed": request["seed"], "logprobs": True}
        # The list has every token that ends a trace; vLLM's own rule knows only the tokenizer's eos.
        ends = {"stop_token_ids": list(tokens.trace_ends), "ignore_eos": True}
        # verl sends what has the same id to the same server, which computes a prompt once for all its traces.
        output = await self.server_manager.generate(
            request_id=request["group"], prompt_ids=list(opening), sampling_params=sampling_params | asked | ends
        )
        rollout = rollout_of(list(output.token_ids), list(output.log_probs), tokens)
        start = opening[len(example.prompt_ids) :]
        response = [*start, *rollout.trace_ids, tokens.end_id, *example.answer_ids]
        # What was said of an eos is not what is said of the t_end in its place.
        sampled = len(rollout.trace_ids) + (not rollout.forced)
        logprobs = [0.0] * len(start) + list(rollout.sampler_logprobs[:sampled])
        return AgentLoopOutput(
            prompt_ids=list(example.prompt_ids),
            response_ids=response,
            response_mask=[1] * len(response),
            response_logprobs=logprobs + [0.0] * (len(response) - len(logprobs)),
            reward_score=0.0,  # the trainer's business: it is the policy's own probability of y*
            num_turns=2,
            metrics={},
            extra_fields={"rollout": rollout},
        )


class TraceWorker(AgentLoopWorker):
    """verl's agent-loop worker, asked directly: traces come back with the call, and so does whatever went wrong."""

    async def sample(self, requests: Sequence[dict[str, Any]], temperature: float) -> list[Rollout]:
        """A trace for each request, all at once."""
        sampling = {"temperature": temperature, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
        about = [{"step": 0, "sample_index": r["example"].index, "rollout_n": 0, "validate": False} for r in requests]
        pairs = zip(about, requests, strict=True)
        runs = (self._run_agent_loop(dict(sampling), a, agent_name=NAME, trace=False, **r) for a, r in pairs)
        return [output.extra_fields["rollout"] for output in await asyncio.gather(*runs)]

    async def _agent_loop_postprocess(self, output: AgentLoopOutput, validate: bool, **_: Any) -> Any:
        """As it is: verl would pad it to the caps of prompt and response."""
        return output


class TraceManager(AgentLoopManager):
    """The workers of all nodes."""

    agent_loop_workers_class: Any = ray.remote(TraceWorker)

    def sample(self, requests: Sequence[dict[str, Any]], temperature: float, seconds: float) -> list[Rollout]:
        """A trace for each request, in their order. Raises ray's GetTimeoutError after so many seconds."""
        share = -(-len(requests) // len(self.agent_loop_workers))
        parts = [requests[start : start + share] for start in range(0, len(requests), share)]
        workers: list[Any] = self.agent_loop_workers
        asked = [worker.sample.remote(part, temperature) for worker, part in zip(workers, parts, strict=False)]
        return [rollout for part in ray.get(asked, timeout=seconds) for rollout in part]
