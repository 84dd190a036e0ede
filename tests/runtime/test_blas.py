"""The fast BLAS: in, out, the same numbers, and never a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.runtime import blas, elf, prepare
from tests.conftest import chuk_environment

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or mx.default_device() != mx.cpu,
    reason="concerns products on a Linux CPU",
)


@pytest.fixture(autouse=True)
def fast_blas(cpu: None) -> Iterator[None]:
    """In before each test, and in again after it."""
    prepare()
    blas.install("auto", 1)
    yield
    blas.install("auto", 1)


def slot_values() -> list[int]:
    return [
        elf.read_pointer(slot)
        for slot in elf.import_slots(elf.loaded_library("libmlx.so"), blas.FUNCTIONS).values()
    ]


def product(dtype: mx.Dtype, shape: tuple[int, int, int] = (130, 257, 65)) -> np.ndarray:
    m, k, n = shape
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(m, k)), generator.normal(size=(k, n))
    return np.array(mx.array(a, dtype=dtype) @ mx.array(b, dtype=dtype))


def in_a_new_process(code: str, **environment: str) -> dict[str, object]:
    script = f"import json\nimport mlx.core as mx\nfrom chuk_lib import runtime\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=chuk_environment(environment),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


STATUS = "from dataclasses import asdict\nprint(json.dumps(asdict(runtime.prepare().blas)))"


def test_it_is_in_and_says_what_it_is() -> None:
    status = blas.status()
    assert status.fast
    assert status.swapped
    assert status.name == "OpenBLAS"
    assert status.version
    assert status.threads == 1
    assert not status.reason


def test_the_slots_change_and_change_back() -> None:
    fast = slot_values()
    with blas.wheel_blas():
        assert not set(slot_values()) & set(fast)
    assert slot_values() == fast
    blas.remove()
    assert not set(slot_values()) & set(fast)
    assert not blas.status().fast
    assert blas.install("auto", 1).fast
    assert slot_values() == fast


@pytest.mark.parametrize("dtype", [mx.float32, mx.float64, mx.complex64], ids=str)
def test_both_give_the_same_products(dtype: mx.Dtype) -> None:
    with mx.stream(mx.cpu):
        fast = product(dtype)
        with blas.wheel_blas():
            slow = product(dtype)
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4 if dtype != mx.float64 else 1e-12)


def test_the_same_product_twice_is_the_same_to_the_bit() -> None:
    assert np.array_equal(product(mx.float32), product(mx.float32))


def test_threads_are_set() -> None:
    blas.set_threads(2)
    assert blas.status().threads == 2
    blas.set_threads(1)
    assert blas.status().threads == 1


def test_it_can_be_switched_off() -> None:
    found = in_a_new_process(STATUS, CHUK_BLAS="off")
    assert not found["fast"]
    assert "CHUK_BLAS=off" in str(found["reason"])


@pytest.mark.parametrize(
    "library", ["/nowhere/libopenblas.so", "libc.so.6", __file__], ids=["gone", "other", "text"]
)
def test_a_library_that_will_not_do_is_a_reason_not_a_crash(library: str) -> None:
    found = in_a_new_process(STATUS, CHUK_BLAS=library)
    assert not found["fast"]
    assert found["reason"]


def test_a_library_can_be_named() -> None:
    path = blas.status().library
    found = in_a_new_process(STATUS, CHUK_BLAS=path)
    assert found["fast"]
    assert found["library"] == path


def test_it_can_come_after_the_first_product() -> None:
    code = (
        "a = mx.arange(12.0).reshape(3, 4)\nbefore = (a @ a.T).tolist()\nstatus ="
        " runtime.prepare().blas\nprint(json.dumps({'fast': status.fast, 'same': before == (a @"
        " a.T).tolist()}))"
    )
    assert in_a_new_process(code) == {"fast": True, "same": True}


def test_the_number_of_threads_can_be_given() -> None:
    assert in_a_new_process(STATUS, CHUK_BLAS_THREADS="2")["threads"] == 2
    assert in_a_new_process(STATUS, OPENBLAS_NUM_THREADS="2")["threads"] == 2
