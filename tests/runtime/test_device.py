"""What `prepare` does, the type policy, memory, and the description of the machine."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest

from chuk_lib import runtime
from chuk_lib.runtime import device, hardware, memory_use
from chuk_lib.runtime.memory_use import machine_memory

on_cpu = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="the policy of the CPU")


def test_prepare_is_done_once() -> None:
    assert runtime.prepare() is runtime.prepare()


def test_trained_weights_are_float32_everywhere() -> None:
    assert runtime.default_dtype(trained=True) == mx.float32


@on_cpu
def test_frozen_weights_are_float32_on_a_cpu(cpu: None) -> None:
    assert runtime.default_dtype(trained=False) == mx.float32
    assert runtime.prepare().backend == "cpu"


def test_threads_stay_where_they_are_unless_adaptive() -> None:
    status = runtime.prepare()
    assert not status.adaptive
    assert (
        runtime.adapt_threads()
        == runtime.adapt_threads()
        == device.thread_choice({}, device.threads.count_cores()).threads
    )


def test_description_is_plain_data() -> None:
    found = json.loads(json.dumps(runtime.describe()))
    assert found["versions"]["mlx"]
    assert found["device"]["backend"] in ("cpu", "metal", "cuda")
    assert found["blas"]["name"]
    assert found["memory_bytes"] > 0


def test_memory_sees_an_array_come_and_go() -> None:
    runtime.reset_peak()
    before = runtime.memory()
    held = mx.zeros((1024, 1024))
    mx.eval(held)
    during = runtime.memory()
    assert during.active >= before.active + held.nbytes
    del held
    assert runtime.memory().active < during.active
    assert runtime.memory().peak >= during.active
    assert during.resident > 0


def test_memory_limit_returns_the_one_before() -> None:
    before = runtime.set_memory_limit(1 << 34)
    assert runtime.set_memory_limit(before) == 1 << 34


def test_machine_memory() -> None:
    total, available = machine_memory()
    assert 0 <= available <= total


GIB = 1 << 30
CUDA = {
    "device_name": "NVIDIA H100 80GB HBM3",
    "architecture": "sm_90",
    "compute_capability_major": 9,
    "total_memory": 80 * GIB,
    "free_memory": 70 * GIB,
}
METAL = {
    "device_name": "Apple M4",
    "architecture": "applegpu_g16g",
    "resource_limit": 499000,
    "max_buffer_length": 9 * GIB,
    "max_recommended_working_set_size": 12 * GIB,
    "memory_size": 16 * GIB,
}
"""What `mx.device_info` tells on either."""


def as_if_on(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    known: dict[str, object],
    active: int = 0,
    cached: int = 0,
) -> None:
    """MLX computes on a GPU that tells `known`."""
    monkeypatch.setattr(hardware, "device", lambda: hardware.Device(backend, "a GPU", known))
    monkeypatch.setattr(mx, "get_active_memory", lambda: active)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: cached)


def sizes(memory: runtime.DeviceMemory) -> tuple[int, int, int]:
    return memory.total, memory.free, memory.usable


def test_a_card_has_what_all_processes_leave_and_what_mlx_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_if_on(monkeypatch, "cuda", CUDA, active=7 * GIB, cached=3 * GIB)
    assert sizes(runtime.device_memory()) == (80 * GIB, 73 * GIB, 72 * GIB)
    as_if_on(monkeypatch, "cuda", CUDA | {"free_memory": 20 * GIB}, active=7 * GIB, cached=3 * GIB)
    assert sizes(runtime.device_memory()) == (80 * GIB, 23 * GIB, 27 * GIB)


def test_a_mac_s_gpu_has_its_working_set_not_the_machine_s_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_if_on(monkeypatch, "metal", METAL, active=2 * GIB, cached=3 * GIB)
    assert sizes(runtime.device_memory()) == (12 * GIB, 10 * GIB, int(10.8 * GIB))


def test_a_device_that_tells_nothing_has_what_mlx_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = mx.set_memory_limit(1 << 40)
    mx.set_memory_limit(limit)
    as_if_on(monkeypatch, "cuda", {"device_name": "new"}, active=1, cached=0)
    assert sizes(runtime.device_memory())[:2] == (limit, limit - 1)


@on_cpu
def test_a_cpu_has_the_machine_s_memory_or_its_container_s(
    cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_use, "machine_memory", lambda: (64 * GIB, 40 * GIB))
    monkeypatch.setattr(memory_use, "container_memory", lambda: (0, 0))
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)
    assert sizes(runtime.device_memory()) == (64 * GIB, 40 * GIB, 32 * GIB)
    monkeypatch.setattr(memory_use, "container_memory", lambda: (8 * GIB, 5 * GIB))
    assert sizes(runtime.device_memory()) == (8 * GIB, 5 * GIB, 4 * GIB)
    monkeypatch.undo()
    found = runtime.device_memory()
    assert 0 < found.free <= found.total <= machine_memory()[0]


def test_mlx_tells_the_sizes_this_reads() -> None:
    if mx.default_device() == mx.cpu:
        pytest.skip("a CPU's memory is not asked of MLX")
    known = mx.device_info(mx.default_device())
    assert "total_memory" in known or "max_recommended_working_set_size" in known
