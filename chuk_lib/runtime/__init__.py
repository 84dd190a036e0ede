"""The machine below MLX: fast BLAS, threads, device, types and memory. Nothing is loaded until a
name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.runtime.blas import BlasStatus as BlasStatus
    from chuk_lib.runtime.cpu_math import fast_math as fast_math
    from chuk_lib.runtime.cpu_math import is_fast as is_fast
    from chuk_lib.runtime.device import RuntimeStatus as RuntimeStatus
    from chuk_lib.runtime.device import adapt_threads as adapt_threads
    from chuk_lib.runtime.device import await_kernels as await_kernels
    from chuk_lib.runtime.device import default_dtype as default_dtype
    from chuk_lib.runtime.device import keep_custom_kernels as keep_custom_kernels
    from chuk_lib.runtime.device import kernel_folder as kernel_folder
    from chuk_lib.runtime.device import kernel_notes as kernel_notes
    from chuk_lib.runtime.device import make_kernels as make_kernels
    from chuk_lib.runtime.device import on_cpu as on_cpu
    from chuk_lib.runtime.device import prepare as prepare
    from chuk_lib.runtime.device import publish_kernels as publish_kernels
    from chuk_lib.runtime.environment import describe as describe
    from chuk_lib.runtime.limits import keeps_wide_head as keeps_wide_head
    from chuk_lib.runtime.limits import prefill_tokens as prefill_tokens
    from chuk_lib.runtime.limits import release_cache as release_cache
    from chuk_lib.runtime.limits import set_tile_bytes as set_tile_bytes
    from chuk_lib.runtime.limits import tile_bytes as tile_bytes
    from chuk_lib.runtime.memory_use import DeviceMemory as DeviceMemory
    from chuk_lib.runtime.memory_use import MemoryUse as MemoryUse
    from chuk_lib.runtime.memory_use import device_memory as device_memory
    from chuk_lib.runtime.memory_use import memory as memory
    from chuk_lib.runtime.memory_use import reset_peak as reset_peak
    from chuk_lib.runtime.memory_use import set_memory_limit as set_memory_limit
    from chuk_lib.runtime.process import computing as computing
    from chuk_lib.runtime.process import has_values as has_values
    from chuk_lib.runtime.process import own_process as own_process
    from chuk_lib.runtime.process import uncompiled as uncompiled
    from chuk_lib.runtime.process import users_own as users_own
    from chuk_lib.runtime.process import without_values as without_values
    from chuk_lib.runtime.world import World as World
    from chuk_lib.runtime.world import this_world as this_world

_HOMES = {
    "BlasStatus": "blas",
    "DeviceMemory": "memory_use",
    "MemoryUse": "memory_use",
    "RuntimeStatus": "device",
    "World": "world",
    "adapt_threads": "device",
    "await_kernels": "device",
    "computing": "process",
    "default_dtype": "device",
    "describe": "environment",
    "device_memory": "memory_use",
    "fast_math": "cpu_math",
    "has_values": "process",
    "is_fast": "cpu_math",
    "keep_custom_kernels": "device",
    "keeps_wide_head": "limits",
    "kernel_folder": "device",
    "kernel_notes": "device",
    "make_kernels": "device",
    "memory": "memory_use",
    "on_cpu": "device",
    "own_process": "process",
    "prefill_tokens": "limits",
    "prepare": "device",
    "publish_kernels": "device",
    "release_cache": "limits",
    "reset_peak": "memory_use",
    "set_memory_limit": "memory_use",
    "set_tile_bytes": "limits",
    "tile_bytes": "limits",
    "uncompiled": "process",
    "users_own": "process",
    "this_world": "world",
    "without_values": "process",
}


def __getattr__(name: str) -> Any:
    return exported(__name__, _HOMES, name)
