"""The pattern of a packed row as one kernel, for GPUs: FlexAttention with a mask of blocks, not a call for each tail.

Shapes: G tokens of the packed row.

This project's tests do not run it on a GPU; they compare its forward pass with `Segments` on a CPU, where FlexAttention
has no backward pass. On a GPU, `Policy` compares packed with padded log-probabilities at its start and takes `Segments`
where this fails.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from nrt_cli.backends.local.packing import Segments


class FlexSegments:
    """`Segments`, in one call (an `attention.Pattern`)."""

    def __init__(self, pattern: Segments, length: int, device: torch.device) -> None:
        segment_G = torch.zeros(length, dtype=torch.long, device=device)
        # Which tail of its segment a token belongs to; 0 is the prefix.
        tail_G = torch.zeros(length, dtype=torch.long, device=device)
        for number, segment in enumerate(pattern.segments):
            end = segment.tails[-1][1] if segment.tails else segment.prefix[1]
            segment_G[segment.prefix[0] : end] = number
            for k, (start, stop) in enumerate(segment.tails, 1):
                tail_G[start:stop] = k

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            # Within a prefix, and within a tail, earlier is to the left; a prefix is left of its tails.
            own = (tail_G[key] == 0) | (tail_G[key] == tail_G[query])
            return (segment_G[key] == segment_G[query]) & (key <= query) & own

        self.mask = create_block_mask(sees, None, None, length, length, device=str(device))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The batch is the one packed row."""
        attend = _compiled() if query.is_cuda else flex_attention
        out: Tensor = attend(query, key, value, block_mask=self.mask, scale=scaling, enable_gqa=True)
        return out


@cache
def _compiled() -> Any:
    """Compiled once; lengths differ from pass to pass."""
    return torch.compile(flex_attention, dynamic=True)
