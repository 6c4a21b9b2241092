"""Failures of workers as one sentence, from the exceptions that Ray and Python really make."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from nrt_cli.backends.verl import facts
from nrt_cli.backends.verl.facts import failure
from nrt_cli.errors import ConfigError, TrainingError

LOG = Path("runs/a/logs/verl.log")

TRACEBACK = """ray::SftRank.train_batch() (pid=7, ip=10.0.0.1)
  File "worker.py", line 3, in train_batch
    x = table[3]
KeyError: 'position_ids'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "worker.py", line 9, in train_batch
    raise ValueError("rows differ in length")
ValueError: rows differ in length"""


def raised(error: BaseException) -> BaseException:
    """An exception that has been raised from another."""
    try:
        try:
            raise error
        except BaseException as inner:
            raise RuntimeError("the step failed") from inner
    except RuntimeError as outer:
        return outer


def one_sentence(error: BaseException) -> str:
    told = failure(error, LOG)
    assert isinstance(told, TrainingError)
    text = str(told)
    assert "\n" not in text
    assert text.endswith(f"Its output is in {LOG}.")
    return text


def test_what_verl_finds_set_is_not_set_for_what_comes_after_the_run(tiny_config, tmp_path, monkeypatch) -> None:
    """Such as an upload, which HF_HUB_OFFLINE forbids."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    within = {}
    monkeypatch.setattr(
        facts, "open_backend", lambda *_: within.update(os.environ) or SimpleNamespace(close=lambda: None)
    )
    before = dict(os.environ)
    with facts.opening(tiny_config("engine.name=verl"), tmp_path, 1):
        pass
    assert (within["HF_HUB_OFFLINE"], within["TOKENIZERS_PARALLELISM"]) == ("1", "false")
    assert dict(os.environ) == before


def test_what_started_it_is_told() -> None:
    assert "ValueError: 3 is no length" in one_sentence(raised(ValueError("3 is no length\nand more")))


def test_text_of_a_traceback_is_read_at_its_end() -> None:
    assert "a worker of verl failed: ValueError: rows differ in length. " in one_sentence(RuntimeError(TRACEBACK))


def test_an_exception_without_words_has_its_name() -> None:
    assert "AssertionError" in one_sentence(AssertionError())


def test_it_is_short_and_ends_with_one_full_stop() -> None:
    text = one_sentence(ValueError("long " * 1000 + "."))
    assert len(text) < 450
    assert ".." not in text


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 GiB.", "lower train.micro_batch_tokens"),
        ("No available memory for the cache blocks.", "gpu_memory_utilization"),
        ("Total available GPUs 1 is less than total desired GPUs 8", "`ray status`"),
        ("Could not find any running Ray instance. Please specify the one to connect to", "ray start --head"),
        ("[Errno 28] No space left on device: 'x'", "the disk is full"),
        ("The actor died unexpectedly before finishing this task.", "a process died"),
    ],
)
def test_common_causes_come_with_what_to_do(said: str, remedy: str) -> None:
    text = one_sentence(raised(RuntimeError(said)))
    assert remedy in text
    assert said.split("\n")[0].rstrip(".")[:40] in text


def test_what_is_ours_stays_as_it_is() -> None:
    ours = ConfigError("train.batch_size is wrong.")
    assert failure(raised(ours), LOG) is ours


def test_without_a_log_it_names_none() -> None:
    assert str(failure(ValueError("x"))) == "a worker of verl failed: ValueError: x."


def test_rays_own_exceptions() -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="Ray is not installed")
    task = exceptions.RayTaskError("train_batch", TRACEBACK, ValueError("rows differ in length"))
    assert "ValueError: rows differ in length" in one_sentence(task)
    assert "ValueError: rows differ in length" in one_sentence(task.as_instanceof_cause())
    # A worker that fails while it is made leaves no exception, only text.
    assert "ValueError: rows differ in length" in one_sentence(exceptions.ActorDiedError(task))
    assert "a process died" in one_sentence(exceptions.ActorDiedError())
