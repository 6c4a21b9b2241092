"""The model card: what a stranger needs to know of a pushed model. Everything in it is read off the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nrt_cli import __version__
from nrt_cli import config as configs
from nrt_cli.commandline import nrt
from nrt_cli.config import RunConfig
from nrt_cli.methods import FORMULAS
from nrt_cli.models.metadata import Metadata
from nrt_cli.models.publish import FIELD_MARKS
from nrt_cli.store import Run
from nrt_cli.training.locate import Located

CONFIG = "nrt-config.yaml"
"""A run's config beside its model, without places of the machine."""

NOT_SHOWN = (
    "method", "seed", "model.path", "data.train", "data.validation", "train.threads", "track.", "eval.", "judge.",
)  # fmt: skip
"""Settings that the card states elsewhere, or that change no result."""


@dataclass(frozen=True)
class Facts:
    """What a card is made of. `run` and `config` are None for a model that is no run's."""

    name: str
    address: str
    about: Metadata
    located: Located
    run: Run | None
    config: RunConfig | None
    scores: tuple[Mapping[str, Any], ...]
    license: str | None
    gguf: bool = False

    @property
    def tags(self) -> list[str]:
        method = [] if self.config is None else [self.config.method.replace(":", ".")]
        return ["native-reasoning-training", *method, *(["reasoning"] if self.about.thinks else [])]


def render_card(metadata: str, facts: Facts) -> str:
    """The card as Markdown, headed by the hub's YAML."""
    environment = Environment(
        loader=PackageLoader("nrt_cli.workflows", "."), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    training = None if facts.run is None or facts.config is None else _training(facts.run, facts.config, facts.located)
    return environment.get_template("card.md.jinja").render(
        metadata=metadata.strip(),
        name=facts.name,
        address=facts.address,
        thinks=facts.about.thinks,
        start=facts.about.think_start or "",
        end=facts.about.think_end,
        folder=facts.address.rpartition("/")[2],
        gguf=facts.gguf,
        suffix=facts.about.suffix,
        parsed=(facts.about.think_start, facts.about.think_end) == FIELD_MARKS,
        training=training,
        scores=[
            {
                **{key: str(score[key]) for key in ("title", "metric", "n", "backend")},
                "score": f"{100 * score['score']:.1f}",
                "error": f"{100 * score['error']:.1f}" if score["error"] == score["error"] else "-",
            }
            for score in facts.scores
        ],
        license=facts.license,
        version=__version__,
    )


def _training(run: Run, config: RunConfig, located: Located) -> dict[str, Any]:
    manifest, scored = run.manifest(), run.metrics("held_out")
    held_out = []  # before and after
    for record in (scored[i] for i in sorted({0, len(scored) - 1}) if scored):
        keys = ("answer_logprob", "null_logprob", "gain")
        texts = {key: f"{record[key]:.2f}" if key in record else "-" for key in keys}
        held_out.append({**texts, "step": record["step"], "examples": record["examples"]})
    formula = FORMULAS.get(config.method)
    plain = configs.resolve({"preset": config.preset, "method": config.method})
    unlike = [(key, value) for key, _, value in configs.diff(plain, config) if not key.startswith(NOT_SHOWN)]
    data = manifest.get("data") or {}
    model, pairs = PurePath(config.model.path).name, PurePath(config.data.train).name
    validation = PurePath(config.data.validation or "").name
    files: list[str | Path] = ["--data", Path(pairs)]
    if validation:
        files += ["--validation", Path(validation)]
    return {
        "command": nrt("train", CONFIG, "--model", Path(model), *files),
        "method": config.method,
        "formula": formula.reward.text if formula else None,
        "preset": config.preset,
        "seed": config.seed,
        "step": located.step,
        "model": model,
        "data": pairs,
        "validation": validation,
        "examples": data.get("examples"),
        "dropped": {reason: count for reason, count in (data.get("dropped") or {}).items() if count},
        "fingerprints": manifest.get("fingerprints") or {},
        "versions": {name: value for name, value in (manifest.get("versions") or {}).items() if value},
        "device": (manifest.get("device") or {}).get("name"),
        "unlike": unlike,
        "held_out": held_out,
    }
