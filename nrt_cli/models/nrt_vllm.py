r"""What a pushed model does in vLLM at the end of a trace. `nrt push` copies this file beside the weights.

    PYTHONPATH=FOLDER python -m vllm.entrypoints.openai.api_server --model FOLDER --reasoning-parser qwen3 \
        --logits-processors nrt_vllm:TraceEnd

In training and in `nrt generate`, a token that ends a text, or would open a second trace, ends a trace too, and the
mark that closes traces takes its place. vLLM by itself would end the reply there, without an answer. This file needs
nothing but vLLM.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class TraceEnd(AdapterLogitsProcessor):
    """Closes every trace by its mark, at the latest at the cap that the model was trained with; an answer follows."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        folder = Path(__file__).parent
        about = json.loads((folder / "nrt.json").read_text(encoding="utf-8"))
        eos = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
        self.start, self.end = about["tokens"]["think_start"]["id"], about["tokens"]["think_end"]["id"]
        self.marks = [token for token in (self.start, self.end) if token is not None]
        self.ends = [*self.marks, *eos]
        self.cap: int | None = about.get("training", {}).get("max_trace_tokens")

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], list[int], Tensor], Tensor]:
        """What is to be done to the logits of one request before each of its tokens."""
        temperature = params.temperature

        def follow(prompt_ids: list[int], output_ids: list[int], logits_V: Tensor) -> Tensor:
            last = prompt_ids[-1]
            # A model without a mark that opens traces begins one with every prompt that does not close it.
            opened = last == self.start if self.start is not None else last != self.end
            if not opened or self.end in output_ids:
                first = [*prompt_ids, *output_ids[-1:]][-1] == self.end
                # No second trace in an answer, and no answer without a word.
                logits_V[self.ends if first else self.marks] = -torch.inf
            elif self.cap is not None and len(output_ids) >= self.cap:
                logits_V.fill_(-torch.inf)[self.end] = 0.0
            else:
                ends = logits_V[self.ends]
                # The mark gets the probability of all that ends a trace: exactly, at the request's temperature.
                mark = temperature * (ends / temperature).logsumexp(0) if temperature else ends.max()
                logits_V[self.ends] = -torch.inf
                logits_V[self.end] = mark
            return logits_V

        return follow
