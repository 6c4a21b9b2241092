"""`nrt push`: a trained model as others load it, and a card that says how it came to be, read off the run."""

import tempfile
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from nrt_cli import __version__, console
from nrt_cli import config as configs
from nrt_cli.commandline import nrt
from nrt_cli.errors import ConfigError, StoreError
from nrt_cli.evaluation.comparison import results_of
from nrt_cli.methods import FORMULAS
from nrt_cli.models.metadata import read_metadata
from nrt_cli.models.prepare import model_folder
from nrt_cli.models.publish import (
    FIELD_MARKS,
    card_metadata,
    convert,
    find_converter,
    upload,
    without_paths,
    write_for_others,
)
from nrt_cli.store import Run
from nrt_cli.store.evals import find_evaluations
from nrt_cli.training.locate import locate_model

CONFIG = "nrt-config.yaml"
"""A run's config beside its model, without places of the machine."""

NOT_SHOWN = (
    "method", "seed", "model.path", "data.train", "data.validation", "train.threads", "track.", "eval.", "judge.",
)  # fmt: skip
"""Settings that the card states elsewhere, or that change no result."""


def push(
    model: str,
    out: Path | None = None,
    repo: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    gguf: bool = False,
    converter: Path | None = None,
) -> dict[str, Any]:
    """Write model, tokenizer, card and config to a folder, or upload them to a repository of the hub.

    Returns `model`, where `to` (a folder or an address), the names of the `files`, and whether it `thinks`.

    Raises ConfigError for not exactly one destination, ModelError where there is no such model or its chat template
    cannot be made to think, EndpointError where the hub refuses or cannot be reached.
    """
    if (out is None) == (repo is None):
        raise ConfigError("say where to: --out FOLDER or --repo OWNER/NAME, one of the two.")
    if converter and not gguf:
        raise ConfigError("--converter has no effect without --gguf.")
    program = find_converter(converter) if gguf else None
    located = locate_model(model)
    metadata = read_metadata(located.folder)
    if out and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not overwrite:
            raise StoreError(f"{out}: exists; choose another --out, or add --overwrite.")
        if not (out / "config.json").is_file():
            raise StoreError(f"{out}: holds something that is not a model; remove it yourself or choose another --out.")
    run = None if located.run is None else Run.open(located.run)
    config, training = run.config() if run else None, None
    if run and config:  # what the card says of it
        manifest, scored = run.manifest(), run.metrics("held_out")
        formula = FORMULAS.get(config.method)
        plain = configs.resolve({"preset": config.preset, "method": config.method})
        began, pairs = PurePath(config.model.path).name, PurePath(config.data.train).name
        validation = PurePath(config.data.validation or "").name
        data = manifest.get("data") or {}
        inputs = {"--model": began, "--data": pairs} | ({"--validation": validation} if validation else {})
        training = {
            "command": nrt("train", CONFIG, *(word for key, file in inputs.items() for word in (key, Path(file)))),
            "method": config.method,
            "formula": formula.reward.text if formula else None,
            "preset": config.preset,
            "seed": config.seed,
            "step": located.step,
            "model": began,
            "data": pairs,
            "validation": validation,
            "examples": data.get("examples"),
            "dropped": {reason: count for reason, count in (data.get("dropped") or {}).items() if count},
            "fingerprints": manifest.get("fingerprints") or {},
            "versions": {name: value for name, value in (manifest.get("versions") or {}).items() if value},
            "device": (manifest.get("device") or {}).get("name"),
            "unlike": [each for each in configs.diff(plain, config) if not each[0].startswith(NOT_SHOWN)],
            "held_out": [scored[0], *scored[1:][-1:]] if scored else [],  # before and after
        }
    with tempfile.TemporaryDirectory(prefix="nrt-push-") if out is None else model_folder(out) as made:
        folder = Path(made)
        metadata = write_for_others(located.folder, folder, metadata)
        if config:
            # Without sections that training does not read, and that may name what is only here.
            values = config.model_dump(mode="json", exclude={"eval", "judge", "track"})
            (folder / CONFIG).write_text(configs.dump_yaml(without_paths(values)), encoding="utf-8")
        evaluations = (found.scores() for found in find_evaluations(results_of(model)))
        measured = [found for found in evaluations if found and found["score"] == found["score"]]
        scores = list({score["benchmark"]: score for score in measured}.values())
        name = (repo or str(out)).rstrip("/").rpartition("/")[2] or located.name
        if program:
            console.note("converting to GGUF ...")
            convert(program, folder, folder / f"{name}.gguf")
        method = [] if config is None else [config.method.replace(":", ".")]
        tags = ["native-reasoning-training", *method, *(["reasoning"] if metadata.thinks else [])]
        loader = PackageLoader("nrt_cli.workflows", ".")
        jinja = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        place = repo or (out.name if out else "")
        card = jinja.get_template("card.md.jinja").render(
            metadata=card_metadata(name, scores, license, base_model, tags).strip(),
            name=name,
            address=place,
            thinks=metadata.thinks,
            start=metadata.think_start or "",
            end=metadata.think_end,
            folder=place.rpartition("/")[2],
            gguf=gguf,
            suffix=metadata.suffix,
            parsed=(metadata.think_start, metadata.think_end) == FIELD_MARKS,
            training=training,
            scores=scores,
            license=license,
            version=__version__,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = sorted(path.name for path in folder.iterdir())
        address = str(out)
        if repo is not None:
            console.note(f"uploading {', '.join(files)} ...")
            address = upload(folder, repo, private, f"Push {name} with nrt {__version__}")
    return {"model": model, "to": address, "files": files, "thinks": metadata.thinks}
