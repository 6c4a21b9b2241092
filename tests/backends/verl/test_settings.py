"""Our config as verl's: against the config that the installed verl really has."""

from pathlib import Path
from typing import Any

import needs_verl  # noqa: F401
import pytest

from nrt_cli.backends.verl import settings
from nrt_cli.config import RunConfig, flatten, resolve, sentences
from nrt_cli.config import parse_override as parse
from nrt_cli.errors import ConfigError

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
RUN = Path("runs/a")


def config(*overrides: str) -> Any:
    base = {"engine": {"name": "verl"}, "model": {"path": "models/m", "dtype": "float32", "device": "cpu"}}
    return resolve(base, *map(parse, overrides))


def given(*overrides: str) -> dict[str, Any]:
    return settings.overrides(config(*overrides), RUN, 10)


@pytest.fixture(scope="module")
def verls() -> dict[str, Any]:
    """Both of verl's configs as they ship."""
    return {trainer: settings.shipped(trainer) for trainer in ("ppo_trainer", "sft_trainer_engine")}


@pytest.mark.parametrize("method", ["am", "sft"])
@pytest.mark.parametrize("gpu", [True, False])
def test_verl_has_every_key_that_is_set(
    verls: dict[str, Any], method: str, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "on_gpu", lambda _: gpu)
    set_here = given(f"method={method}")
    assert len(set_here) > 20
    # Values too: a word where verl has a number, or a value for a whole section, would be refused.
    settings.require_known(verls[settings.trainer_of(config(f"method={method}"))], set_here)


def test_the_table_names_keys_that_our_config_has() -> None:
    ours = list(sentences(RunConfig))
    for setting in (*settings.RL, *settings.SFT):
        for key in setting.ours.split(" and "):
            assert key in ours or (key.endswith(".*") and key[:-2] in ours), setting


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.batch_size=128", "data.train_batch_size", 128),
        ("train.minibatch_size=32", f"{ACTOR}.ppo_mini_batch_size", 32),
        ("train.minibatch_size=null", f"{ACTOR}.ppo_mini_batch_size", 256),
        ("train.micro_batch_tokens=20000", f"{ACTOR}.ppo_max_token_len_per_gpu", 20_000),
        ("optimiser.lr=3e-6", f"{ACTOR}.optim.lr", 3e-6),
        ("optimiser.betas=[0.8, 0.9]", f"{ACTOR}.optim.betas", [0.8, 0.9]),
        ("optimiser.eps=1e-15", f"{ACTOR}.optim.override_optimizer_config.eps", 1e-15),
        ("optimiser.weight_decay=0.2", f"{ACTOR}.optim.weight_decay", 0.2),
        ("optimiser.clip_norm=0.5", f"{ACTOR}.optim.clip_grad", 0.5),
        ("optimiser.clip_norm=0.5", f"{ACTOR}.grad_clip", 0.5),
        ("optimiser.schedule=linear", f"{ACTOR}.optim.lr_scheduler_type", "constant"),
        ("objective.kl_weight=0.1", f"{ACTOR}.use_kl_loss", True),
        ("rollout.group_size=5", f"{ROLLOUT}.n", 5),
        ("rollout.batch_rows=300", f"{ROLLOUT}.max_num_seqs", 300),
        ("rollout.temperature=0.7", f"{ROLLOUT}.temperature", 0.7),
        # t_start, and then what a response may have: by its own cap, or by those of its parts with t_end between.
        ("rollout.max_response_tokens=3000", "data.max_response_length", 1 + 3000),
        ("data.max_answer_tokens=1000", "data.max_response_length", 1 + 2048 + 1 + 1000),
        ("data.max_prompt_tokens=50", f"{ROLLOUT}.max_model_len", 50 + 1 + 4096),
        ("parallel.nodes=2", "trainer.nnodes", 2),
        ("parallel.nodes=2", "ray_kwargs.ray_init.address", "auto"),
        ("parallel.gpus_per_node=4", "trainer.n_gpus_per_node", 4),
        ("parallel.gpus_per_node=4", "ray_kwargs.ray_init.num_gpus", 4),
        ("parallel.offload=true", f"{ACTOR}.fsdp_config.param_offload", True),
        ("parallel.offload=true", f"{ACTOR}.fsdp_config.optimizer_offload", True),
        ("model.gradient_checkpointing=true", "actor_rollout_ref.model.enable_gradient_checkpointing", True),
        ("model.dtype=bfloat16", f"{ACTOR}.fsdp_config.mixed_precision.param_dtype", "bfloat16"),
        ("model.dtype=bfloat16", f"{ROLLOUT}.dtype", "bfloat16"),
        ("seed=7", f"{ROLLOUT}.seed", 7),
    ],
)
def test_a_key_of_ours_reaches_verl(override: str, key: str, value: Any) -> None:
    default, set_here = (flatten(given(*extra)) for extra in ((), (override,)))
    assert set_here[key] == value
    if key not in (f"{ACTOR}.optim.lr_scheduler_type", f"{ACTOR}.ppo_mini_batch_size"):
        assert default[key] != value


def test_the_token_budget_is_never_below_the_longest_row() -> None:
    short = ("data.max_prompt_tokens=100", "data.max_answer_tokens=50", "rollout.max_trace_tokens=200")
    budget = f"{ACTOR}.ppo_max_token_len_per_gpu"
    assert given(*short, "train.micro_batch_tokens=64")[budget] == 100 + 200 + 2 + 50
    sft = given("method=sft", *short, "train.micro_batch_tokens=64")
    assert sft["data.max_token_len_per_gpu"] == 100 + 50


def test_sft_sets_the_same_under_the_names_of_its_trainer() -> None:
    told = flatten(given("method=sft", "optimiser.lr=3e-6", "parallel.offload=true", "seed=3"))
    assert (told["optim.lr"], told["engine.param_offload"], told["trainer.seed"]) == (3e-6, True, 3)
    assert not [key for key in told if key.startswith("actor_rollout_ref")]


def test_nothing_is_resumed_logged_or_saved_unasked() -> None:
    told = given()
    assert told["trainer.logger"] == ["console"]
    assert (told["trainer.resume_mode"], told["trainer.save_freq"], told["trainer.test_freq"]) == ("disable", -1, -1)
    assert told["trainer.balance_batch"] is False


def test_composing_puts_defaults_table_plumbing_and_user_on_top_of_each_other() -> None:
    utilisation = f"verl.{ROLLOUT}.gpu_memory_utilization"
    composed = settings.compose(
        config(f"{utilisation}=0.7", f"verl.{ROLLOUT}.engine_kwargs.vllm.seed=1", "train.batch_size=64"),
        RUN,
        10,
    )
    rollout = composed.actor_rollout_ref.rollout
    assert (rollout.gpu_memory_utilization, rollout.agent.default_agent_loop, rollout.name) == (0.7, "nrt", "vllm")
    assert rollout.engine_kwargs.vllm.seed == 1
    assert composed.data.train_batch_size == 64
    assert rollout.response_length == composed.data.max_response_length  # verl's own references still hold
    assert composed.actor_rollout_ref.actor.ppo_epochs == 1  # what nobody sets is verl's


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            f"{ROLLOUT}.gpu_memory_utilisation=0.6",
            f"no such setting (did you mean 'verl.{ROLLOUT}.gpu_memory_utilization'?)",
        ),
        ("actor_rollout_ref.rolout.name=vllm", "no such setting (did you mean"),
        (f"{ROLLOUT}.name.x=1", "no such setting"),
        ("algorithm.use_pf_ppo.x=1", "no such setting"),
        ("zebra=1", "no such setting."),
        (f"{ROLLOUT}.agent=3", "is a section of verl's config"),
        ("trainer.balance_batch=perhaps", "so give true or false"),
        ("trainer.ray_wait_register_center_timeout=long", "so give a number"),
        (f"{ACTOR}.optim.lr=1e-3", "decided by optimiser.lr"),
        ("data=3", "decided by train.batch_size"),
        (f"{ACTOR}.fsdp_config.mixed_precision.param_dtype=fp16", "decided by model.dtype"),
    ],
)
def test_what_a_user_may_not_set_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings.check_keys(config(f"verl.{override}"))
    assert said in str(error.value)
    assert f"verl.{override.partition('=')[0]}" in str(error.value)


@pytest.mark.parametrize(
    "override",
    [
        f"{ROLLOUT}.enable_sleep_mode=false",  # in the dataclass, not in the YAML
        f"{ROLLOUT}.engine_kwargs.vllm.compilation_config.level=0",  # handed on to vLLM
        f"{ACTOR}.optim.override_optimizer_config.amsgrad=true",
        "actor_rollout_ref.model.override_config.rope_theta=1",
        "ray_kwargs.ray_init.namespace=mine",
        f"{ACTOR}.fsdp_config.reshard_after_forward=false",
    ],
)
def test_any_setting_that_verl_has_can_be_set(override: str) -> None:
    settings.check_keys(config(f"verl.{override}"))
    key, _, value = override.partition("=")
    assert str(flatten(given(f"verl.{override}"))[key]).lower() == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimiser.states=8bit", "parallel.offload=true"),
        ("rollout.cache_share=0.2", "gpu_memory_utilization"),
        ("model.lora.rank=8", "engine.name=local"),
    ],
)
def test_what_verl_has_nothing_for_is_refused(override: str, said: str) -> None:
    needed = {"rollout.cache_share=0.2": ["rollout.engine=vllm"]}
    with pytest.raises(ConfigError, match=said):
        settings.check_keys(config(override, *needed.get(override, [])))


def test_splitting_rows_needs_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = ("parallel.gpus_per_node=2", "parallel.sequence=2")
    monkeypatch.setattr(settings, "_has", lambda module: False)
    with pytest.raises(ConfigError, match="flash-attn"):
        given(*spread)
    monkeypatch.setattr(settings, "_has", lambda module: True)
    told = given(*spread)
    assert told[f"{ACTOR}.ulysses_sequence_parallel_size"] == 2
    assert told["actor_rollout_ref.model.use_remove_padding"] is True
    assert "actor_rollout_ref.model.override_config.attn_implementation" not in told


def test_without_verl_the_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install .*nrt-cli\[verl"):
        settings.check_keys(config("verl.trainer.nnodez=2"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine.name=local", "parallel.nodes=2"], "parallel has no effect on engine.name=local"),
        (["engine.name=local", "verl.trainer.nnodes=2"], "verl has no effect on engine.name=local"),
        (["rollout.engine=native"], "rollout.engine=native has no effect on engine.name=verl"),
        (["engine.packing=off"], "engine.packing has no effect on engine.name=verl"),
        (["parallel.gpus_per_node=4", "parallel.tensor=3"], "parallel.tensor=3 does not divide the 4 GPUs of 1 x 4"),
        (["parallel.gpus_per_node=3"], "a minibatch of 64 prompts cannot be shared equally by 3 ranks"),
    ],
)
def test_contradictions_between_engine_and_settings(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    assert said in str(error.value)
