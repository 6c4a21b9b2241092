"""What OLMES asks a model, as its requests are."""

from dataclasses import dataclass


@dataclass
class GenerateUntilRequest:
    context: object = ""
    stop_sequences: list | None = None
    generation_kwargs: dict | None = None
