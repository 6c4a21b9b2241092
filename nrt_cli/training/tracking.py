"""Experiment trackers, through accelerate's adapters: TensorBoard, Weights & Biases, MLflow, trackio."""

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Collection
from operator import attrgetter
from pathlib import Path
from typing import Any

from nrt_cli import config as configs
from nrt_cli.config import RunConfig
from nrt_cli.errors import ConfigError, first_line


def require_trackers(config: RunConfig) -> None:
    for name in config.track.to:
        if lacks := next((each for each in ("accelerate", name) if importlib.util.find_spec(each) is None), None):
            raise ConfigError(f"track.to has {name!r}, which needs the package {lacks}: pip install 'nrt-cli[track]'.")


class Trackers(contextlib.AbstractContextManager["Trackers"]):
    """The trackers that a config asks for; none by default. Nothing is imported or contacted unless asked.

    A tracker that fails while the run goes on is named through `complain` and dropped: no dashboard is worth a run.

    A resumed run goes on after step `done` (None: it is a new one) in the tracker's own run. It takes some steps again,
    which come out as they did before: what earlier processes `logged`, by kind and step, is not logged twice.
    """

    def __init__(
        self,
        config: RunConfig,
        run_path: Path,
        complain: Callable[[str], None] = print,
        done: int | None = None,
        logged: Collection[tuple[str, int]] = (),
    ) -> None:
        self.complain, self.logged = complain, logged
        # Each holds the name of the tracker's own run.
        files = {name: run_path / "trackers" / f"{name}.id" for name in config.track.to}
        self.continued = {name for name, file in files.items() if done is not None and file.is_file()}
        self.trackers = {
            name: _open(name, config, run_path, done, file, name in self.continued) for name, file in files.items()
        }

    def __exit__(self, *_: object) -> None:
        # trackio's adapter ends the run but not trackio's notion of it, which would end it again, aloud, at exit.
        self._each(lambda name, tracker: (importlib.import_module(name) if name == "trackio" else tracker).finish())

    def log(self, record: dict[str, Any]) -> None:
        """One metrics record, its kind as prefix: `train/gain`, `held_out/gain`."""
        values = {f"{record['kind']}/{k}": v for k, v in record.items() if k not in ("kind", "step")}
        again = (record["kind"], record["step"]) in self.logged

        def send(name: str, tracker: Any) -> None:
            # TensorBoard was told from which step on to forget what it has.
            if not (again and name in self.continued and name != "tensorboard"):
                tracker.log(values, step=record["step"])

        self._each(send)

    def _each(self, act: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                # What a client library has to say goes to stderr: stdout may be JSON lines.
                with contextlib.redirect_stdout(sys.stderr):
                    act(name, tracker)
            except Exception as error:  # whatever a client library raises
                del self.trackers[name]
                self.complain(f"tracker {name} failed and gets no more records of this run: {first_line(error)}")


def _open(name: str, config: RunConfig, run_path: Path, done: int | None, file: Path, continued: bool) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    project, run, folder = config.track.project, run_path.absolute().name, run_path.absolute() / "trackers" / name
    PartialState()  # accelerate's adapters ask it which process may write
    if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
        # Its own default is a database that the light package cannot open, in whatever folder one stands in.
        os.environ["MLFLOW_TRACKING_URI"] = folder.as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    known = file.read_text(encoding="utf-8").strip() if continued else None
    again = {"resume": "allow"} if continued else {}
    purge = None if done is None else done + 1
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": known or run, "logging_dir": folder, "purge_step": purge},
        "wandb": {"run_name": project, "name": run, "dir": folder, **({"id": known} | again if continued else {})},
        "mlflow": {"experiment_name": project, "run_name": run, **({"run_id": known} if continued else {})},
        "trackio": {"run_name": project, "name": known or run, **again},
    }
    try:
        with contextlib.redirect_stdout(sys.stderr):
            os.makedirs(folder, exist_ok=True)
            tracker = LOGGER_TYPE_TO_CLASS[name](**arguments[name])
            if hasattr(tracker, "start"):
                tracker.start()
            if not continued:
                flat = configs.flatten(config.model_dump(mode="json")).items()
                kinds = int | float | str | bool  # what trackers accept
                tracker.store_init_configuration({key: x if isinstance(x, kinds) else str(x) for key, x in flat})
                where = {"wandb": "run.id", "mlflow": "active_run.info.run_id", "trackio": "run.name"}
                identity = attrgetter(where[name])(tracker) if name in where else run
                file.write_text(f"{identity}\n", encoding="utf-8")
    except Exception as error:
        raise ConfigError(f"track.to has {name!r}, which cannot start: {first_line(error)}") from None
    return tracker
