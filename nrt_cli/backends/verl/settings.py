"""Our config as verl's: the one place that knows verl's keys. Importing this needs no verl.

`RL` and `SFT` say which of verl's settings each of our keys decides; `_..._defaults` what else differs from what verl
ships. A user's `verl.KEY` comes last. It may name any setting that verl has, but none that one of our keys decides: the
run's record would say one thing and the run do another.
"""

import importlib.resources
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nrt_cli
from nrt_cli.backends.verl.keys import RAY, require_known, shipped
from nrt_cli.config import RunConfig, flatten
from nrt_cli.errors import ConfigError


class Setting(NamedTuple):
    """Which of verl's settings takes which value, and the key of ours that decides it."""

    verl: str
    ours: str
    value: Callable[[RunConfig], Any]


class Place(NamedTuple):
    """Where a run writes and what it computes on, which no key says."""

    run_dir: Path
    steps: int
    gpu: bool
    flash: bool
    """Whether flash-attn is installed: without it, verl can neither drop padding nor split a row over GPUs."""


CPU_SHIMS = "nrt_cli.backends.verl.cpu"


def environment(gpu: bool) -> dict[str, str]:
    """What every process of verl needs to find set, this one included, before it imports verl."""
    common = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # The working directory, from which a user's scheme is imported.
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")])),
        # Workers of a Ray that was started elsewhere inherit nothing from here, and import torch before us.
        **{name: os.environ[name] for name in nrt_cli.OPENMP_WAIT if name in os.environ},
    }
    if gpu:
        return common
    import torch

    return common | {
        "VERL_USE_EXTERNAL_MODULES": CPU_SHIMS,
        "VERL_PLATFORM": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(torch.get_num_threads()),
        # A tiny model's processes share the machine with whatever else runs there.
        "RAY_memory_monitor_refresh_ms": "0",
    }


def plumbing(gpu: bool) -> dict[str, Any]:
    """Settings of verl that name parts of this engine."""
    ours = {
        "actor_rollout_ref.rollout.agent.agent_loop_config_path": str(
            importlib.resources.files("nrt_cli.backends.verl") / "agent_loop.yaml"
        ),
        "actor_rollout_ref.rollout.agent.default_agent_loop": "nrt",
        "actor_rollout_ref.model.external_lib": "nrt_cli.backends.verl.ranks",
        # Rewards are the policy's own probabilities.
        "reward.num_workers": 0,
    }
    if not gpu:
        worker = "nrt_cli.backends.verl.sampler_worker.CpuSamplerWorker"
        ours["actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls"] = worker
    return ours


def longest_prompt(config: RunConfig) -> int:
    """Tokens before the first that is generated, or trained on."""
    return config.data.max_prompt_tokens


def longest_response(config: RunConfig) -> int:
    """Tokens of t_start, a trace, t_end and y*; of y* alone for SFT."""
    longest = config.longest_answer
    return config.longest_response if config.samples else longest


def token_budget(config: RunConfig) -> int:
    """Tokens of a forward pass on one rank. verl refuses a budget below the longest row, which local passes go over."""
    row = longest_prompt(config) + longest_response(config)
    return max(config.train.micro_batch_tokens, math.ceil(row / config.parallel.sequence))


def _precision(config: RunConfig) -> dict[str, str]:
    """Weights as they are multiplied; the master weights, moments and sums of gradients are float32 in any case."""
    return {"param_dtype": config.model.dtype, "reduce_dtype": "float32", "buffer_dtype": "float32"}


# What both trainers have, under names of their own: see PARTS.
SHARED = (
    Setting("{model}.path", "model.path", lambda c: str(Path(c.model.path).absolute())),
    Setting(
        "{model}.enable_gradient_checkpointing",
        "model.gradient_checkpointing",
        lambda c: c.model.gradient_checkpointing,
    ),
    Setting("{fsdp}.dtype", "model.dtype", lambda c: c.model.dtype),
    Setting("{fsdp}.mixed_precision", "model.dtype", _precision),
    Setting("{fsdp}.ulysses_sequence_parallel_size", "parallel.sequence", lambda c: c.parallel.sequence),
    Setting("{fsdp}.param_offload", "parallel.offload", lambda c: c.parallel.offload),
    Setting("{fsdp}.optimizer_offload", "parallel.offload", lambda c: c.parallel.offload),
    Setting("{fsdp}.seed", "seed", lambda c: c.seed),
    Setting("{optim}.lr", "optimiser.lr", lambda c: c.optimiser.lr),
    Setting("{optim}.betas", "optimiser.betas", lambda c: list(c.optimiser.betas)),
    Setting("{optim}.override_optimizer_config.eps", "optimiser.eps", lambda c: c.optimiser.eps),
    Setting("{optim}.weight_decay", "optimiser.weight_decay", lambda c: c.optimiser.weight_decay),
    Setting("{optim}.clip_grad", "optimiser.clip_norm", lambda c: c.optimiser.clip_norm),
    # The rate of every update is sent with it, so verl's own schedule stays out of the way.
    Setting("{optim}.lr_warmup_steps", "optimiser.warmup", lambda c: 0),
    Setting("{optim}.lr_warmup_steps_ratio", "optimiser.warmup", lambda c: 0.0),
    Setting("{optim}.lr_scheduler_type", "optimiser.schedule", lambda c: "constant"),
    Setting("data.train_batch_size", "train.batch_size", lambda c: c.train.batch_size),
    Setting("trainer.nnodes", "parallel.nodes", lambda c: c.parallel.nodes),
    Setting("trainer.n_gpus_per_node", "parallel.gpus_per_node", lambda c: c.parallel.gpus_per_node),
)

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
RAY_CPUS = 16
SAVED = ["model", "optimizer", "extra", "hf_model"]
"""What verl's checkpoints hold: for the ranks to go on, and the weights as a Hugging Face folder for everybody else."""

RL = (
    *SHARED,
    Setting(
        f"{ACTOR}.ppo_mini_batch_size", "train.minibatch_size", lambda c: c.train.minibatch_size or c.train.batch_size
    ),
    Setting(f"{ACTOR}.ppo_max_token_len_per_gpu", "train.micro_batch_tokens", token_budget),
    Setting(f"{ACTOR}.ulysses_sequence_parallel_size", "parallel.sequence", lambda c: c.parallel.sequence),
    Setting(f"{ACTOR}.grad_clip", "optimiser.clip_norm", lambda c: c.optimiser.clip_norm),
    Setting(f"{ACTOR}.use_kl_loss", "objective.kl_weight", lambda c: c.objective.kl_weight > 0),
    Setting(f"{ACTOR}.clip_ratio_low", "objective.clip_low", lambda c: c.objective.clip_low),
    Setting(f"{ACTOR}.clip_ratio_high", "objective.clip_high", lambda c: c.objective.clip_high),
    Setting("data.max_prompt_length", "data.max_prompt_tokens", longest_prompt),
    Setting(
        "data.max_response_length",
        "rollout.max_trace_tokens and rollout.max_response_tokens and data.max_answer_tokens",
        longest_response,
    ),
    Setting(f"{ROLLOUT}.n", "rollout.group_size", lambda c: c.rollout.group_size),
    Setting(f"{ROLLOUT}.temperature", "rollout.temperature", lambda c: c.rollout.temperature),
    Setting(f"{ROLLOUT}.dtype", "model.dtype", lambda c: c.model.dtype),
    Setting(f"{ROLLOUT}.seed", "seed", lambda c: c.seed),
    Setting(f"{ROLLOUT}.tensor_model_parallel_size", "parallel.tensor", lambda c: c.parallel.tensor),
    Setting(f"{ROLLOUT}.max_model_len", "data.* and rollout.*", lambda c: longest_prompt(c) + longest_response(c)),
)
SFT = (
    *SHARED,
    Setting("data.max_token_len_per_gpu", "train.micro_batch_tokens", token_budget),
    Setting(
        "data.max_length",
        "data.max_prompt_tokens and data.max_answer_tokens",
        lambda c: longest_prompt(c) + longest_response(c),
    ),
    Setting("trainer.seed", "seed", lambda c: c.seed),
)
PARTS = {
    "ppo_trainer": {"model": "actor_rollout_ref.model", "fsdp": f"{ACTOR}.fsdp_config", "optim": f"{ACTOR}.optim"},
    "sft_trainer_engine": {"model": "model", "fsdp": "engine", "optim": "optim"},
}


def _places(config: RunConfig, place: Place) -> dict[str, Any]:
    """What says where a run writes, how far it goes, and that nothing is resumed, logged or fetched unasked."""
    return {
        "trainer.default_local_dir": str((place.run_dir / "verl").absolute()),
        "trainer.project_name": "nrt",
        "trainer.experiment_name": place.run_dir.name,
        "trainer.total_training_steps": place.steps,
        "trainer.logger": ["console"],
        "trainer.save_freq": -1,
        "trainer.test_freq": -1,
        "trainer.resume_mode": "disable",
        # It moves rows between minibatches, whose composition is part of the method.
        "trainer.balance_batch": False,
        "trainer.device": "cuda" if place.gpu else "cpu",
    }


def _engine_defaults(place: Place) -> dict[str, Any]:
    """FSDP2, and what the machine allows of flash-attn and compilation."""
    defaults: dict[str, Any] = {
        "{fsdp}.strategy": "fsdp2",
        "{fsdp}.use_torch_compile": place.gpu,
        # Exact entropies are asked for in every update; at once, they would take as much as the logits again.
        "{fsdp}.entropy_from_logits_with_chunking": place.gpu,
        "{fsdp}.entropy_checkpointing": place.gpu,
        "{model}.use_remove_padding": place.flash,
    }
    if not place.flash:
        defaults["{model}.override_config.attn_implementation"] = "sdpa"
    return defaults


def _rl_defaults(config: RunConfig, place: Place) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        # Any estimator without a critic: advantages come from our own functions.
        "algorithm.adv_estimator": "grpo",
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.checkpoint.save_contents": SAVED,
        f"{ACTOR}.use_torch_compile": place.gpu,
        f"{ACTOR}.entropy_from_logits_with_chunking": place.gpu,
        f"{ACTOR}.entropy_checkpointing": place.gpu,
        f"{ROLLOUT}.name": "vllm",
        f"{ROLLOUT}.calculate_log_probs": True,
        f"{ROLLOUT}.gpu_memory_utilization": 0.6,
        "trainer.val_before_train": False,
    }
    return defaults if place.gpu else defaults | _cpu_defaults()


def _ray(config: RunConfig, place: Place) -> dict[str, Any]:
    """How Ray starts: one node has a Ray of its own, more than one join the cluster that was started for them."""
    if config.parallel.nodes > 1:
        return {f"{RAY}.address": "auto"}
    # Ray counts CPUs by name only. With as few as a laptop has, or a server with a core per GPU, verl's many actors
    # wait for ever.
    cpus = max(os.cpu_count() or 1, RAY_CPUS * config.parallel.ranks)
    start: dict[str, Any] = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
    if not place.gpu:
        start |= {"num_gpus": config.parallel.ranks, "object_store_memory": 400_000_000}
    return {f"{RAY}.{key}": value for key, value in start.items()}


def _cpu_defaults() -> dict[str, Any]:
    """What verl's defaults, made for servers with GPUs, are on a machine without one."""
    return {
        f"{ROLLOUT}.enforce_eager": True,
        f"{ROLLOUT}.free_cache_engine": False,
        f"{ROLLOUT}.enable_sleep_mode": False,
        f"{ROLLOUT}.max_num_seqs": 16,
        f"{ROLLOUT}.agent.num_workers": 1,
        f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": 64,
    }


def _sft_defaults(place: Place) -> dict[str, Any]:
    return {
        "data.use_dynamic_bsz": True,
        "data.pad_mode": "no_padding",
        "data.num_workers": 0,
        "checkpoint.save_contents": SAVED,
    }


def trainer_of(config: RunConfig) -> str:
    """The name of the config that verl's trainer for this method is driven by."""
    return "ppo_trainer" if config.samples else "sft_trainer_engine"


def overrides(
    config: RunConfig, run_dir: Path, steps: int, plumbing: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """verl's settings for a run, by key: the defaults, our table, the engine's `plumbing`, and the user's own last.

    Raises ConfigError where the config asks for what verl does not have, or sets a key of verl's that is ours.
    """
    _require_possible(config)
    place = Place(run_dir, steps, _has_gpu(config), _has("flash_attn"))
    trainer = trainer_of(config)
    rl = trainer == "ppo_trainer"
    defaults = _places(config, place) | _ray(config, place) | _engine_defaults(place)
    defaults |= _rl_defaults(config, place) if rl else _sft_defaults(place)
    table = {setting.verl: setting.value(config) for setting in (RL if rl else SFT)}
    ours = {key.format(**PARTS[trainer]): value for key, value in (defaults | table).items()}
    return ours | dict(plumbing or {}) | _users(config)


def _users(config: RunConfig) -> dict[str, Any]:
    """The user's verl keys. Raises ConfigError for one that a key of ours decides."""
    trainer = trainer_of(config)
    ours = {
        setting.verl.format(**PARTS[trainer]): setting.ours for setting in (RL if trainer == "ppo_trainer" else SFT)
    }
    users = flatten(config.verl)
    for key in users:
        for taken, decided_by in ours.items():
            if key == taken or key.startswith(f"{taken}.") or taken.startswith(f"{key}."):
                raise ConfigError(f"verl.{key} is decided by {decided_by} of our own config; set that instead.")
    return users


def _require_possible(config: RunConfig) -> None:
    """Raises ConfigError for settings of ours that verl's engine has nothing for."""
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


def _has_gpu(config: RunConfig) -> bool:
    import torch

    return config.model.device != "cpu" and torch.cuda.is_available()


# --- verl's own config -----------------------------------------------------------------------------------------------


def compose(config: RunConfig, run_dir: Path, steps: int, plumbing: Mapping[str, Any] | None = None) -> Any:
    """verl's config for a run, as an OmegaConf DictConfig. Raises ConfigError for a key that verl does not have."""
    from omegaconf import OmegaConf

    values = overrides(config, run_dir, steps, plumbing)
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
