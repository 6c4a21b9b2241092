"""AdamW with float32 master weights, and the gradient norm's bound; a copy of the weights that follows them slowly."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from nrt_cli.config import OptimiserSection
from nrt_cli.errors import ConfigError


class Optimiser:
    """Updates a model's weights; where they are narrower than float32, through float32 copies.

    Each backward pass moves its gradients into float32 sums beside the model: those over micro-batches lose no small
    contributions, and a learning rate of 1e-5 is not rounded away. Copies in the CPU's memory are given the sums once a
    step. Raises ConfigError where bitsandbytes is needed and missing.
    """

    def __init__(self, model: nn.Module, settings: OptimiserSection) -> None:
        self.settings = settings
        # named_parameters lists a tied head once.
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.sums: dict[str, Tensor] = {}
        self.masters = {name: self._master(name, weight) for name, weight in self.weights.items()}
        adamw: Callable[..., torch.optim.Optimizer] = partial(torch.optim.AdamW, fused=True)
        if settings.states == "8bit":
            try:
                from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit
            except ImportError:
                raise ConfigError("optimiser.states=8bit needs bitsandbytes; pip install 'nrt-cli[lora]'.") from None
            # Paged states move to the CPU when the GPU is full; on a CPU there is nowhere to move.
            on_gpu = any(weight.is_cuda for weight in self.weights.values())
            adamw = PagedAdamW8bit if on_gpu else AdamW8bit
        lr, betas, eps, decay = settings.lr, settings.betas, settings.eps, settings.weight_decay
        self.adamw = adamw(self.masters.values(), lr=lr, betas=betas, eps=eps, weight_decay=decay)

    def _apart(self, weight: Tensor) -> bool:
        """Whether a weight's copy, and its moments, are in the CPU's memory and the weight is not."""
        return self.settings.states == "cpu" and weight.is_cuda

    def _master(self, name: str, weight: nn.Parameter) -> nn.Parameter:
        apart, wide = self._apart(weight), torch.promote_types(weight.dtype, torch.float32)
        if weight.dtype == wide and not apart:
            return weight

        def collect(narrow: Tensor) -> None:
            assert narrow.grad is not None
            self.sums[name] = self.sums[name].add_(narrow.grad) if name in self.sums else narrow.grad.to(wide)
            narrow.grad = None

        weight.register_post_accumulate_grad_hook(collect)
        master = weight.detach().to(wide, copy=True)
        return nn.Parameter(pinned(master) if apart else master)

    def _gather(self) -> None:
        """Give the copies the gradients' sums."""
        for name, total in self.sums.items():
            self.masters[name].grad = pinned(total) if self._apart(total) else total
        for device in {total.device for total in self.sums.values() if total.is_cuda}:
            torch.cuda.synchronize(device)

    def step(self, rate: float) -> float:
        """One update from the gradients gathered since the last. Returns their norm: not finite, it changes nothing."""
        self._gather()
        norm = float(nn.utils.clip_grad_norm_(self.masters.values(), self.settings.clip_norm))
        if math.isfinite(norm):
            for group in self.adamw.param_groups:
                group["lr"] = rate
            self.adamw.step()
            self._copy_back()
        self.forget()
        return norm

    def forget(self) -> None:
        self.sums.clear()
        self.adamw.zero_grad()
        for weight in self.weights.values():
            weight.grad = None

    @torch.no_grad()
    def _copy_back(self) -> None:
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name].to(weight.device, non_blocking=True))

    def state(self) -> dict[str, Tensor]:
        """Master weights and moments by name, for a checkpoint."""
        tensors = {f"weight.{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self.adamw.state.get(master, {}).items():
                # bitsandbytes has one table of its 8-bit numbers for all weights; a file holds no tensor twice.
                shared = key.startswith("qmap")
                tensors[f"{key}.{name}"] = value.clone() if shared else torch.as_tensor(value)
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned. Moments are taken over where they lie, not copied."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"weight.{name}"])
            kept = {key.removesuffix(f".{name}"): value for key, value in tensors.items() if key.endswith(f".{name}")}
            if "step" in kept:
                self.adamw.state[master] = {
                    key: self._placed(master, value) for key, value in kept.items() if key != "weight"
                }
        self._copy_back()

    def _placed(self, master: nn.Parameter, value: Tensor) -> Tensor | int:
        """What a checkpoint has of a weight's state, where the optimiser would have it."""
        if self.settings.states == "8bit" and not value.ndim:
            return int(value)  # bitsandbytes counts steps in a plain number
        if self.settings.states == "8bit" and value.shape == master.shape:
            # It pages the moments of large weights out of a full GPU.
            buffer: Tensor = self.adamw.get_state_buffer(master, dtype=value.dtype)  # type: ignore[attr-defined]
            return buffer.copy_(value)
        return value.to(master.device)


def pinned(tensor: Tensor) -> Tensor:
    """A copy, under way at first, in memory that a GPU reads and writes by itself, at several times the rate."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


FOLLOWER = "follower."
"""What the names of its tensors begin with in a checkpoint."""


class Follower:
    """A copy of what an optimiser trains, of LoRA's updates where these are all that is trained, in its precision."""

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser = optimiser
        self.copies = {name: master.detach().clone() for name, master in optimiser.masters.items()}

    @torch.no_grad()
    def move(self, keep: float) -> None:
        """`keep` of itself and the rest of the weights as they are now."""
        for name, copy in self.copies.items():
            copy.mul_(keep).add_(self.optimiser.masters[name], alpha=1 - keep)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with these weights, for passes without gradient."""
        weights = self.optimiser.weights
        own = {name: weight.data for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data = self.copies[name].to(weight.device, weight.dtype)
            yield
        finally:
            for name, weight in weights.items():
                weight.data = own[name]

    def state(self) -> dict[str, Tensor]:
        return {FOLLOWER + name: copy for name, copy in self.copies.items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, copy in self.copies.items():
            copy.copy_(tensors[FOLLOWER + name])
