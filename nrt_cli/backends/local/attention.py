"""One attention function for a model's layers, which attends by a pattern of ours where a forward pass brings one.

transformers hands keyword arguments of a model's forward pass on to the attention function of each of its layers. So a
pass may say `nrt_pattern=...`, and layers, positions, norms and all else remain the architecture's own.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "nrt"


class Pattern(Protocol):
    """Which tokens see which."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """[batch, heads, tokens, channels] to the same; `key` and `value` may have fewer heads than `query`."""


def why_not(model: PreTrainedModel) -> str | None:
    """None where patterns are exact for this architecture; else the reason why they are not."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not take other attention functions"
    if getattr(config, "v_head_dim", None) is not None:
        return "its values may be narrower than its keys"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are capped"
    if kinds - {"full_attention"} or (window is not None and getattr(config, "use_sliding_window", True)):
        return "not all of its layers attend to everything before"
    return None


def enable(model: PreTrainedModel) -> str | None:
    """Let a model attend by patterns where a forward pass is given one; else says why that would not be exact."""
    reason = why_not(model)
    if reason is None:
        model.set_attn_implementation(IMPLEMENTATION)
    return reason


def enabled(model: PreTrainedModel) -> bool:
    """Whether a model takes patterns; without one it attends as ever."""
    return model.config.get_text_config()._attn_implementation == IMPLEMENTATION


def run(model: nn.Module, pattern: Pattern, ids: Tensor, positions: Tensor, **others: Any) -> Any:
    """A forward pass of a model, or of its layers without the head, in which tokens see what `pattern` says."""
    return model(
        input_ids=ids,
        position_ids=positions,
        # Four dimensions: transformers hands such a mask on as it is, and ours is in the pattern.
        attention_mask=torch.zeros(1, 1, 1, 1, device=ids.device),
        use_cache=False,
        nrt_pattern=pattern,
        **others,
    )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    nrt_pattern: Pattern | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers calls it: query [B, H, T, C] to [B, T, H, C]."""
    if nrt_pattern is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    return nrt_pattern.attend(layer, query, key, value, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
