"""What an evaluation is of and under which settings: the job, its model, and where its results go."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nrt_cli.backends.machine import version
from nrt_cli.backends.reasoning import REASONERS
from nrt_cli.commandline import this_command
from nrt_cli.config import RunConfig
from nrt_cli.data.packaged import PACKAGE
from nrt_cli.models.loading import pick_device
from nrt_cli.models.metadata import Metadata, read_metadata
from nrt_cli.models.sources import model_fingerprint
from nrt_cli.progress import EvalProgress
from nrt_cli.text.reasoning import ThinkMode, thinking
from nrt_cli.training.locate import Located, locate_model


@dataclass(frozen=True)
class Job:
    """What is asked of one `nrt eval`."""

    model: str
    benchmarks: tuple[str, ...] = ("all",)
    limit: int | None = None
    backend: Literal["lm-eval", "olmes"] = "lm-eval"
    engine: Literal["hf", "vllm"] = "hf"
    think: ThinkMode = "on"
    out: Path | None = None
    allow_unsafe_code: bool = False


class Session:
    """A job with its model and settings."""

    def __init__(self, job: Job, config: RunConfig, display: EvalProgress) -> None:
        self.job, self.config, self.display = job, config, display
        self.located = locate_model(job.model)
        self.section = self.located.section(config.model)
        self.root = job.out or results_folder(self.located)
        self.about: Metadata = read_metadata(self.located.folder)
        self.think, self.min_trace_tokens = thinking(job.think, self.about.thinks)

    @cached_property
    def reasoner(self) -> Any:
        """The model behind its engine; weights are loaded at its first request."""
        return REASONERS[self.job.engine](self.located.folder, self.section, self.config.eval.batch_rows)

    @property
    def data_dir(self) -> Path | None:
        return Path(self.config.eval.data_dir).expanduser() if self.config.eval.data_dir else None

    @cached_property
    def fingerprint(self) -> str:
        return model_fingerprint(self.located.folder)

    def settings(self, asked: Mapping[str, Any], thinks: bool) -> dict[str, Any]:
        """Everything that decides answers and grades of what is asked. What is not here changes neither."""
        section = self.config.eval
        # What computes the answers, besides what a benchmark names for itself.
        packages = ("torch", "transformers", "tokenizers", *(["vllm"] if self.job.engine == "vllm" else []))
        return {
            "benchmark": dict(asked),
            "model": self.fingerprint,
            "backend": self.job.backend,
            "engine": self.job.engine,
            "device": pick_device(self.section.device).type,
            "dtype": self.section.dtype,
            "think": thinks,
            "min_trace_tokens": self.min_trace_tokens if thinks else 0,
            "max_trace_tokens": section.max_trace_tokens if thinks else 0,
            "tokens": [self.about.think_start, self.about.think_end] if thinks else [],
            "max_answer_tokens": section.max_answer_tokens,
            "limit": self.job.limit,
            "seed": section.seed,
            "versions": {name: version(name) for name in packages},
        }

    def described(self) -> dict[str, Any]:
        """What is worth knowing beside the settings."""
        return {
            "model": {
                "given": self.job.model,
                "name": self.located.name,
                "run": str(self.located.run) if self.located.run else None,
                "step": self.located.step,
                "fingerprint": self.fingerprint,
            },
            "backend": self.job.backend,
            "think": self.job.think,
            "data": str(self.data_dir) if self.data_dir else PACKAGE if self.config.eval.offline else "hub",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("nrt-cli", "lm_eval")},
            "command": this_command(),
        }


def results_folder(located: Located) -> Path:
    """Where a model's results go: into its run; below `evals/` in the current folder for a model that is no run's."""
    if located.run is None:
        return Path("evals") / located.name
    return located.run / "evals" / ("export" if located.exported else f"step-{located.step:06d}")
