"""What `prepare` does, the type policy, memory, and the description of the machine."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest

from chuk_lib import runtime
from chuk_lib.runtime import device
from chuk_lib.runtime.memory_use import machine_memory

on_cpu = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="the policy of the CPU")


def test_prepare_is_done_once() -> None:
    assert runtime.prepare() is runtime.prepare()


def test_trained_weights_are_float32_everywhere() -> None:
    assert runtime.default_dtype(trained=True) == mx.float32


@on_cpu
def test_frozen_weights_are_float32_on_a_cpu() -> None:
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
