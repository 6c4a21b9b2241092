"""How models are evaluated."""

from pydantic import Field

from nrt_cli.config.validation import Section, Seed


class OlmesSection(Section):
    """Where OLMES is, which cannot share this environment, and what it may use."""

    python: str | None = Field(
        None, description="The Python interpreter of the environment that OLMES is installed in."
    )
    max_length: int = Field(
        8192, ge=1, description="Most tokens of prompt and generation; OLMES's own default is 2048."
    )
    batch_size: int = Field(8, ge=1, description="For model type hf; vllm batches by itself.")
    gpus: int = Field(1, ge=0, description="GPUs that OLMES may use; 0: the CPU.")


class EvalSection(Section):
    """Settings of `nrt eval`; none changes what training does."""

    data_dir: str | None = Field(
        None, description="Folder of local benchmark rows, one folder per benchmark; null: the hub's datasets."
    )
    seed: Seed = Field(0, description="Seed of --limit's sample of documents and of sampled answers.")
    max_trace_tokens: int = Field(2048, ge=1, description="Think budget; then t_end is forced.")
    max_answer_tokens: int | None = Field(None, ge=1, description="Lowers every benchmark's own cap, for smoke tests.")
    batch_rows: int = Field(16, ge=1, description="Answers generated together; results do not depend on it.")
    olmes: OlmesSection = OlmesSection()
