"""The engines that answer requests, behind one interface: transformers in this process, or vLLM."""

from pathlib import Path
from typing import Literal

from nrt_cli.backends.local.reasoning import Reasoner
from nrt_cli.config import ModelSection


def open_reasoner(
    folder: Path, engine: Literal["hf", "vllm"] = "hf", section: ModelSection | None = None, batch_rows: int = 16
) -> Reasoner:
    """A model folder behind an engine; its weights are loaded at the first request.

    Raises:
        ModelError: there is no model, it lacks think tokens, or vLLM is asked for and not installed.
    """
    if engine == "hf":
        return Reasoner(folder, section, batch_rows)
    from nrt_cli.backends.vllm_reasoning import VllmReasoner

    return VllmReasoner(folder, section, batch_rows)
