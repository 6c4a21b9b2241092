"""What others compute for one group: K padded rows, each with a copy of the prompt. Used by `update.py`.

Shapes: K traces of the group, S positions of a row, Z trace tokens, T answer tokens.
"""

import torch
from common import Job
from torch import Tensor
from workload import load

from nrt_cli.models.loading import load_tokenizer
from nrt_cli.records import RolloutGroup
from nrt_cli.text.tokens import think_tokens


class PaddedUpdate:
    """`recipe`: with the passes of the released code, and logits only where a token is scored; else naive."""

    def __init__(self, job: Job, recipe: bool) -> None:
        self.model = load(job)
        self.tokens = think_tokens(load_tokenizer(job["model"]), "<|think_start|>", "<|think_end|>")
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-9, weight_decay=0.0, fused=True)
        self.recipe = recipe

    def update(self, group: RolloutGroup) -> dict[str, float]:
        """Gradient and optimiser step; the loss and the gradient's norm."""
        rows_KS, null_1S = self._rows(group)
        scored = rows_KS.shape[1] - len(group.example.prompt_ids)
        answer = len(group.example.answer_ids)
        with torch.no_grad():
            old_KS = self._logprobs(rows_KS, scored) if self.recipe else None
            # The recipe scores a null row for each trace; they are all the same.
            self._logprobs(null_1S.expand(len(rows_KS), -1) if self.recipe else null_1S, answer)
        loss = self._loss(self._logprobs(rows_KS, scored), old_KS, answer)
        loss.backward()
        return {"loss": float(loss.detach()), "grad_norm": self.step()}

    def step(self) -> float:
        """Bound the gradient's norm, update the weights, free the gradient; returns the norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(norm)

    def _rows(self, group: RolloutGroup) -> tuple[Tensor, Tensor]:
        """x t_start z t_end y* of each trace, and x t_start t_end y*. All traces are equally long."""
        opening = (*group.example.prompt_ids, self.tokens.start_id)
        closing = (self.tokens.end_id, *group.example.answer_ids)
        rows = [(*opening, *rollout.trace_ids, *closing) for rollout in group.rollouts]
        return torch.tensor(rows), torch.tensor([(*opening, *closing)])

    def _logprobs(self, ids_KS: Tensor, scored: int) -> Tensor:
        """Log-probs of the last `scored` tokens of each row."""
        if self.recipe:
            logits = self.model(ids_KS, use_cache=False, logits_to_keep=scored + 1).logits[:, :-1]
            return logits.float().log_softmax(-1).gather(-1, ids_KS[:, -scored:, None])[..., 0]
        logits = self.model(ids_KS, use_cache=False).logits[:, :-1]
        return logits.float().log_softmax(-1).gather(-1, ids_KS[:, 1:, None])[:, -scored:, 0]

    @staticmethod
    def _loss(logprobs_KS: Tensor, old_KS: Tensor | None, answer: int) -> Tensor:
        """Scheme `am`: policy gradient on z, token signals c / T on y*, 0.3 times the format loss."""
        K, Z = len(logprobs_KS), logprobs_KS.shape[1] - 2 - answer
        start_K1, trace_KZ, end_K1, answer_KT = logprobs_KS.split([1, Z, 1, answer], -1)
        probs_KT = answer_KT.detach().exp()
        reward_K = probs_KT.mean(-1, keepdim=True)
        advantage_K1 = (reward_K - reward_K.mean()) / reward_K.std(correction=0)
        old_KZ = trace_KZ.detach() if old_KS is None else old_KS[:, 1 : 1 + Z]
        ratio_KZ = (trace_KZ - old_KZ).exp()
        surrogate_KZ = torch.minimum(ratio_KZ * advantage_K1, ratio_KZ.clamp(0.8, 1.28) * advantage_K1)
        total = surrogate_KZ.sum() + (probs_KT / answer * answer_KT).sum() + 0.3 * (start_K1 + end_K1).sum()
        return -total / (K * Z)
