"""Our config as verl's: the one place that knows verl's keys. Importing this needs no verl.

`RL` and `SFT` say which of verl's settings each of our keys decides; `overrides.yaml` what else differs from what verl
ships. A user's `verl.KEY` comes last. It may name any setting that verl has, but none that one of our keys decides: the
run's record would say one thing and the run do another. What verl has is composed from the YAML that it ships.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import nrt_cli
from nrt_cli.backends.machine import GPU_ROWS, on_gpu
from nrt_cli.config import RunConfig, flatten, read_yaml
from nrt_cli.errors import ConfigError

INSTALL = "pip install -c constraints.txt 'nrt-cli[verl]'"
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
RAY = "ray_kwargs.ray_init"
CPU_ROWS = 16
"""Traces that a server of vLLM's decodes together without a GPU where nothing else is asked."""
PASSED_ON = (RAY,)
"""Mappings that verl hands on as keyword arguments, so that they may have more keys than it lists."""


def environment(gpu: bool) -> dict[str, str]:
    """What every process of verl needs to find set, this one included, before it imports verl."""
    common = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # The working directory, from which a user's method is imported.
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
        # Workers of a Ray that was started elsewhere inherit nothing from here, and import torch before us.
        **{name: os.environ[name] for name in nrt_cli.OPENMP_WAIT if name in os.environ},
    }
    if gpu:
        return common
    import torch

    return common | {
        "VERL_USE_EXTERNAL_MODULES": "nrt_cli.backends.verl.cpu",
        "VERL_PLATFORM": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(torch.get_num_threads()),
        # A tiny model's processes share the machine with whatever else runs there.
        "RAY_memory_monitor_refresh_ms": "0",
    }


class Setting(NamedTuple):
    """One of verl's settings, and the key of ours that decides it: with its value, or with what `value` makes of it."""

    verl: str
    ours: str
    value: Callable[[RunConfig], Any] | None = None


def _longest_response(config: RunConfig) -> int:
    """Tokens of t_start, a trace, t_end and y*; of y* alone for SFT."""
    return config.longest_response if config.samples else config.longest_answer


def _longest_row(config: RunConfig) -> int:
    return config.data.max_prompt_tokens + config.more_than_prompt + _longest_response(config)


def _token_budget(config: RunConfig) -> int:
    """Tokens of a forward pass on one rank. verl refuses a budget below the longest row, which local passes go over."""
    return max(config.train.micro_batch_tokens, math.ceil(_longest_row(config) / config.parallel.sequence))


# What both trainers have, under names of their own: see PARTS.
SHARED = (
    Setting("{model}.path", "model.path", lambda c: str(Path(c.model.path).absolute())),
    Setting("{model}.enable_gradient_checkpointing", "model.gradient_checkpointing"),
    Setting("{fsdp}.dtype", "model.dtype"),
    Setting(
        "{fsdp}.mixed_precision",
        "model.dtype",
        # Weights as they are multiplied; master weights, moments and sums of gradients are float32 in any case.
        lambda c: {"param_dtype": c.model.dtype, "reduce_dtype": "float32", "buffer_dtype": "float32"},
    ),
    Setting("{fsdp}.ulysses_sequence_parallel_size", "parallel.sequence"),
    Setting("{fsdp}.param_offload", "parallel.offload"),
    Setting("{fsdp}.optimizer_offload", "parallel.offload"),
    Setting("{fsdp}.seed", "seed"),
    Setting("{optim}.lr", "optimiser.lr"),
    Setting("{optim}.betas", "optimiser.betas", lambda c: list(c.optimiser.betas)),
    Setting("{optim}.override_optimizer_config.eps", "optimiser.eps"),
    Setting("{optim}.weight_decay", "optimiser.weight_decay"),
    Setting("{optim}.clip_grad", "optimiser.clip_norm"),
    # The rate of every update is sent with it, so verl's own schedule stays out of the way.
    Setting("{optim}.lr_warmup_steps", "optimiser.warmup", lambda c: 0),
    Setting("{optim}.lr_warmup_steps_ratio", "optimiser.warmup", lambda c: 0.0),
    Setting("{optim}.lr_scheduler_type", "optimiser.schedule", lambda c: "constant"),
    Setting("data.train_batch_size", "train.batch_size"),
    Setting("trainer.nnodes", "parallel.nodes"),
    Setting("trainer.n_gpus_per_node", "parallel.gpus_per_node"),
)
RL = (
    *SHARED,
    Setting(
        f"{ACTOR}.ppo_mini_batch_size", "train.minibatch_size", lambda c: c.train.minibatch_size or c.train.batch_size
    ),
    Setting(f"{ACTOR}.ppo_max_token_len_per_gpu", "train.micro_batch_tokens", _token_budget),
    Setting(f"{ACTOR}.ulysses_sequence_parallel_size", "parallel.sequence"),
    Setting(f"{ACTOR}.grad_clip", "optimiser.clip_norm"),
    Setting(f"{ACTOR}.use_kl_loss", "objective.kl_weight and method", lambda c: "reference" in c.asks),
    Setting(f"{ACTOR}.clip_ratio_low", "objective.clip_low"),
    Setting(f"{ACTOR}.clip_ratio_high", "objective.clip_high"),
    Setting("data.max_prompt_length", "data.max_prompt_tokens"),
    Setting(
        "data.max_response_length",
        "rollout.max_trace_tokens and rollout.max_response_tokens and data.max_answer_tokens",
        _longest_response,
    ),
    Setting(f"{ROLLOUT}.n", "rollout.group_size"),
    Setting(
        f"{ROLLOUT}.max_num_seqs",
        "rollout.batch_rows",
        lambda c: c.rollout.batch_rows or (GPU_ROWS if on_gpu(c) else CPU_ROWS),
    ),
    Setting(f"{ROLLOUT}.temperature", "rollout.temperature"),
    Setting(f"{ROLLOUT}.dtype", "model.dtype"),
    Setting(f"{ROLLOUT}.seed", "seed"),
    # Every trace has a seed of its own; verl's way would take the id that the traces of a prompt share for a trace's.
    Setting(f"{ROLLOUT}.full_determinism", "seed", lambda c: False),
    Setting(f"{ROLLOUT}.tensor_model_parallel_size", "parallel.tensor"),
    Setting(f"{ROLLOUT}.max_model_len", "data.* and rollout.*", _longest_row),
)
SFT = (
    *SHARED,
    Setting("data.max_token_len_per_gpu", "train.micro_batch_tokens", _token_budget),
    Setting("data.max_length", "data.max_prompt_tokens and data.max_answer_tokens", _longest_row),
    Setting("trainer.seed", "seed"),
)
PARTS = {
    "ppo_trainer": {"model": "actor_rollout_ref.model", "fsdp": f"{ACTOR}.fsdp_config", "optim": f"{ACTOR}.optim"},
    "sft_trainer_engine": {"model": "model", "fsdp": "engine", "optim": "optim"},
}


def trainer_of(config: RunConfig) -> str:
    """The name of the config that verl's trainer for this method is driven by."""
    return "ppo_trainer" if config.samples else "sft_trainer_engine"


def overrides(config: RunConfig, run_dir: Path, steps: int) -> dict[str, Any]:
    """verl's settings for a run, by key: what we want otherwise than verl, our tables, and the user's own last.

    Raises ConfigError where the config asks for what verl does not have, or sets a key of verl's that is ours.
    """
    _require_possible(config)
    gpu = on_gpu(config)
    here, now = Path(__file__).parent, {"always", trainer_of(config), "gpu" if gpu else "cpu"}
    ours: dict[str, Any] = {}
    for when, settings in read_yaml(here / "overrides.yaml").items():
        ours |= settings if now >= {*when.split()} else {}
    # Without flash-attn, verl can neither drop padding nor split a row over GPUs.
    flash = _has("flash_attn")
    ours |= {
        "trainer.default_local_dir": str((run_dir / "verl").absolute()),
        "trainer.experiment_name": run_dir.name,
        "trainer.total_training_steps": steps,
        "{model}.use_remove_padding": flash,
    }
    if not flash:
        ours["{model}.override_config.attn_implementation"] = "sdpa"
    if config.samples:
        ours[f"{ROLLOUT}.agent.agent_loop_config_path"] = str(here / "agent_loop.yaml")
    # One node has a Ray of its own, more than one join the cluster that was started for them.
    if config.parallel.nodes > 1:
        ours[f"{RAY}.address"] = "auto"
    else:
        # Ray counts CPUs by name only. With as few as a laptop has, verl's many actors wait for ever.
        cpus = max(os.cpu_count() or 1, 16 * config.parallel.ranks)
        ours |= {f"{RAY}.address": "local", f"{RAY}.include_dashboard": False, f"{RAY}.num_cpus": cpus}
        if not gpu:
            ours |= {f"{RAY}.num_gpus": config.parallel.ranks, f"{RAY}.object_store_memory": 400_000_000}
    for setting in RL if config.samples else SFT:
        ours[setting.verl] = (setting.value or attrgetter(setting.ours))(config)
    parts_of = {"actor": ACTOR, "rollout": ROLLOUT, **PARTS[trainer_of(config)]}
    return {key.format(**parts_of): value for key, value in ours.items()} | _users(config)


def _users(config: RunConfig) -> dict[str, Any]:
    """The user's verl keys. Raises ConfigError for one that a key of ours decides."""
    parts = PARTS[trainer_of(config)]
    users = flatten(config.verl)
    for key in users:
        for setting in RL if config.samples else SFT:
            taken = setting.verl.format(**parts)
            if key == taken or key.startswith(f"{taken}.") or taken.startswith(f"{key}."):
                raise ConfigError(f"verl.{key} is decided by {setting.ours} of our own config; set that instead.")
    return users


def _require_possible(config: RunConfig) -> None:
    """Raises ConfigError for settings of ours that verl has nothing for."""
    if config.optimiser.states != "float32":
        raise ConfigError(
            f"optimiser.states={config.optimiser.states} is the local engine's; with verl, parallel.offload=true saves "
            "the memory of the moments."
        )
    if config.model.lora.rank is not None:
        raise ConfigError(
            f"model.lora.rank={config.model.lora.rank} is the local engine's; what verl saves of such an update is not "
            "read here yet. Leave it out, or set engine.name=local."
        )
    if config.rollout.cache_share is not None:
        raise ConfigError(
            f"rollout.cache_share is the local engine's; set verl.{ROLLOUT}.gpu_memory_utilization instead, the share "
            "of a GPU that vLLM takes for weights and cache together."
        )
    if config.parallel.sequence > 1 and not _has("flash_attn"):
        raise ConfigError(
            f"parallel.sequence={config.parallel.sequence} needs flash-attn, which is not installed; pip install "
            "flash-attn, or set it to 1."
        )


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# --- verl's own config -----------------------------------------------------------------------------------------------


def compose(config: RunConfig, run_dir: Path, steps: int) -> Any:
    """verl's config for a run, as an OmegaConf DictConfig. Raises ConfigError for a key that verl does not have."""
    from omegaconf import OmegaConf

    values = overrides(config, run_dir, steps)
    composed = shipped(trainer_of(config))
    require_known(composed, _users(config))
    OmegaConf.set_struct(composed, False)
    for key, value in values.items():
        OmegaConf.update(composed, key, value, force_add=True)
    return composed


def check_keys(config: RunConfig) -> None:
    """Raises ConfigError where the user sets a key that verl does not have, or that is ours to decide."""
    _require_possible(config)
    if users := _users(config):
        require_known(shipped(trainer_of(config)), users)


def shipped(trainer: str) -> Any:
    """One of verl's own configs as it ships. Raises ConfigError where verl is not installed."""
    found = importlib.util.find_spec("verl")
    if not found or not found.submodule_search_locations:
        raise ConfigError(f"engine.name=verl needs verl, which is not installed; {INSTALL}.")
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    folder = Path(next(iter(found.submodule_search_locations)), "trainer", "config")
    with initialize_config_dir(str(folder), version_base=None):
        composed = hydra_compose(trainer)
    # The SFT trainer's has none, as it leaves starting Ray to others.
    OmegaConf.update(composed, RAY, OmegaConf.select(composed, RAY) or {}, force_add=True)
    return composed


def require_known(composed: Any, users: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first key that verl does not have, or whose value is of another kind."""
    from omegaconf import DictConfig, OmegaConf

    kinds = {bool: "true or false", int: "a number", float: "a number"}
    for key, value in users.items():
        node, leaf = _parent(composed, key)
        if node is None:
            known: Any = OmegaConf.to_container(composed, resolve=False)
            close = difflib.get_close_matches(key, flatten(known), n=1, cutoff=0.5)
            nearest = f" (did you mean 'verl.{close[0]}'?)" if close else ""
            raise ConfigError(f"verl.{key}: verl {metadata.version('verl')} has no such setting{nearest}.")
        there = node.get(leaf) if leaf in node else None
        if isinstance(there, DictConfig):
            if there:
                raise ConfigError(
                    f"verl.{key} is a section of verl's config; name one of {', '.join(map(str, there))}."
                )
            continue
        expected = kinds.get(type(there))
        if expected and value is not None and kinds.get(type(value)) != expected:
            raise ConfigError(f"verl.{key}={value!r}: verl has {there!r} there, so give {expected}.")


def _parent(composed: Any, key: str) -> tuple[Any, str]:
    """The mapping that holds a key, and the key's last part; None for the mapping where verl has no such key."""
    from omegaconf import DictConfig, OmegaConf

    node, path = composed, ""
    *above, leaf = key.split(".")
    for part in above:
        path = f"{path}.{part}".lstrip(".")
        inner = None if part not in node or OmegaConf.is_missing(node, part) else node[part]
        if path in PASSED_ON or inner == {} or (inner is None and "dict" in _fields(node).get(part, "")):
            return {}, leaf  # keys that verl hands on and does not list
        if not isinstance(inner, DictConfig):
            return None, leaf
        node = inner
    return (node, leaf) if leaf in node or leaf in _fields(node) else (None, leaf)


def _fields(node: Any) -> dict[str, str]:
    """Keys, with their types, of the dataclass that verl makes of a mapping: more than are written in its YAML.

    Looking them up imports verl, which takes a while, so only rare keys do.
    """
    from hydra.utils import get_class

    target = node.get("_target_")
    return {field.name: str(field.type) for field in dataclasses.fields(get_class(target))} if target else {}
