"""Fixtures shared by the rooms: a small real tokenizer and a tiny model that `nrt model prepare` has been through."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of huggingface_hub: no test may reach the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import functools
import shutil
import sys
import time
from collections.abc import Iterator

import pytest
import torch
import yaml
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nrt_cli.models.prepare import prepare_model
from nrt_cli.text.prompts import DEFAULT_CHAT_TEMPLATE

torch.set_num_threads(1)
for room in ("backends", "training", "crash", "evaluation", "viewer"):  # helpers beside the tests
    sys.path.append(str(Path(__file__).parent / room))

from nursery import Nrt, opened  # noqa: E402  of a room

# The same examples at every run, so that what passes here passes everywhere; `HYPOTHESIS_PROFILE=fuzz` looks further.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_configure(config: pytest.Config) -> None:
    """A GPU is there for `make test-gpu` alone: every other test means a CPU, whatever the machine has."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("markexpr") != "gpu":
        for item in filter(lambda item: item.get_closest_marker("gpu"), items):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))


CORPUS = ["What is 3 plus 4? The answer is 7.", "Tom has 12 apples and eats 5. How many are left? 12 - 5 = 7.\n\n"]
ALPHABET = [chr(c) for c in range(32, 127)] + ["\n"]


def _tokenizer(chat_template: str | None = DEFAULT_CHAT_TEMPLATE, **special: str) -> PreTrainedTokenizerFast:
    """A character-level BPE with some merges; reproduces printable ASCII and newlines exactly. ~140 tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    named = {"unk_token": "<unk>", "eos_token": "<eos>", **special}
    trainer = trainers.BpeTrainer(
        vocab_size=140,
        initial_alphabet=ALPHABET,
        special_tokens=list(dict.fromkeys(named.values())),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    fast.chat_template = chat_template
    return fast


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A small fast tokenizer with eos `<eos>`, unk and a chat template; no pad, BOS or think tokens."""
    return _tokenizer()


@pytest.fixture(scope="session")
def make_tiny_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Makes tiny tokenizers: `make_tiny_tokenizer(chat_template=None, bos_token="<bos>")`."""
    return _tokenizer


def _model_folder(folder: Path, tokenizer: Any, tied: bool = False, spare_rows: int = 0, **config: Any) -> Path:
    """A tiny seeded Llama and its tokenizer, saved the way a hub model is; `spare_rows` pad its vocabulary."""
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer) + spare_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **config,
    )
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_tiny_source() -> Callable[..., Path]:
    """Makes unprepared model folders: `make_tiny_source(folder, tokenizer, tied=True, spare_rows=8)`."""
    return _model_folder


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny prepared Llama in float32: 2 layers, hidden 32, with think tokens and pad. Read it, do not write to it."""
    root = tmp_path_factory.mktemp("tiny")
    source = _model_folder(root / "source", _tokenizer())
    prepare_model(str(source), root / "prepared", dtype="float32")
    return root / "prepared"


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 8 held-out pairs of small sums, through `nrt data prepare`."""
    from nrt_cli.data.prepare import Settings, prepare

    folder = tmp_path_factory.mktemp("data") / "sums"
    prepare(["generated:sums?size=48&seed=0"], folder, Settings(validation=8))
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_model_dir: Path, tiny_data_dir: Path) -> Callable[..., Any]:
    """Makes run configs over the tiny model and data: `tiny_config("method=am", "train.steps=3")`."""
    from nrt_cli.config import RunConfig, resolve
    from nrt_cli.config import parse_override as parse

    base = {
        "model": {"path": str(tiny_model_dir), "dtype": "float32", "device": "cpu"},
        "data": {
            "train": str(tiny_data_dir / "train.parquet"),
            "validation": str(tiny_data_dir / "validation.parquet"),
        },
        "rollout": {"group_size": 4, "max_trace_tokens": 6},
        "optimiser": {"lr": 1e-3},
        "train": {"steps": 3, "batch_size": 4, "minibatch_size": None, "checkpoint_every": 1, "threads": 1},
    }

    def make(*overrides: str) -> RunConfig:
        return resolve(base, *map(parse, overrides))

    return make


# --- commands as processes ------------------------------------------------------------


@pytest.fixture(scope="session")
def nursery() -> Iterator[Callable[[dict[str, Any]], str]]:
    """Sends an order to the process that forks commands; returns its answer."""
    with opened() as ask:
        yield ask


@pytest.fixture(scope="session")
def nrt_in(nursery: Callable[[dict[str, Any]], str]) -> Callable[[Path], Nrt]:
    """The command, in any folder."""
    return functools.partial(Nrt, nursery)


@pytest.fixture
def nrt(nrt_in: Callable[[Path], Nrt], tmp_path: Path) -> Nrt:
    """The command, in the test's own folder."""
    return nrt_in(tmp_path)


@pytest.fixture
def tiny_yaml(tiny_config: Callable[..., Any], tmp_path: Path) -> Path:
    """The tiny config as a file: method am, 3 steps of 4 prompts."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config("method=am").model_dump(mode="json")))
    return path


def _trainer(tiny_config: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    from nrt_cli.progress import Progress
    from nrt_cli.store import Run
    from nrt_cli.workflows.train import train

    count = 0

    def make(*overrides: str) -> Run:
        nonlocal count
        count += 1
        path = folder / f"run-{count}"
        train(path, tiny_config(*overrides), False, Progress)
        return Run.open(path)

    return make


@pytest.fixture
def train_run(tiny_config: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Trains in this process: `train_run("method=gm")` -> its Run."""
    return _trainer(tiny_config, tmp_path)


@pytest.fixture(scope="module")
def shared_run(tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The same, once per module for the same settings: to read, not to write to."""
    return functools.cache(_trainer(tiny_config, tmp_path_factory.mktemp("shared")))


@pytest.fixture(scope="session")
def untimed() -> Callable[..., list[dict[str, Any]]]:
    """A run's metrics without what depends on the clock: of `kinds`, or of both."""
    return lambda run, *kinds: [
        {key: value for key, value in record.items() if "second" not in key and key != "mfu"}
        for kind in kinds or ("train", "held_out")
        for record in run.metrics(kind)
    ]


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Waits for a condition by looking again and again; fails after a minute."""

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 180  # on a busy machine
        while time.monotonic() < end:
            if found := condition():
                return found
        raise AssertionError("what the test waited for did not happen")

    return wait


# --- a browser -----------------------------------------------------------------------

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless browser with an empty profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser's driver is the package selenium")
    from selenium.webdriver.chrome.service import Service

    binary = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not (binary and chromedriver):
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield browser
    browser.quit()
