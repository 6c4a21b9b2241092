"""How an LLM judges traces."""

from typing import Annotated

from pydantic import Field, field_validator

from nrt_cli.config.validation import Section, Seed

Price = Annotated[float, Field(ge=0)]


class JudgeSection(Section):
    """Settings of `nrt judge`; none changes what training does. The defaults are Appendix H's where it names one."""

    models: tuple[str, ...] = Field(
        ("grok-4.1-fast",), min_length=1, description="The judges, by the names that the endpoint knows them by."
    )
    template: str = Field(
        "judge/trace-quality",
        description="What a judge is asked: a YAML like the shipped one, or one prompt as text, such as Table 8's.",
    )
    n: int = Field(100, ge=1, description="Held-out examples judged per checkpoint, the same for all of them.")
    seed: Seed = Field(0, description="Decides which examples.")
    temperature: float | None = Field(0.0, ge=0, description="null: not sent, as to judges that refuse one.")
    max_output_tokens: int = Field(2048, ge=1, description="Cap on a judge's reply.")
    concurrency: int = Field(8, ge=1, description="Requests under way at a time.")
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for a reply.")
    retries: int = Field(6, ge=0, description="Tries after a first one that the endpoint could not serve.")
    prices: dict[str, tuple[Price, Price]] = Field(
        {"grok-4.1-fast": (0.20, 0.50)},
        description="US dollars per million tokens in and out, by judge. They change: check them with the provider.",
    )

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) < len(models):
            raise ValueError("a judge is named twice, which would count as agreement; name each once")
        return models
