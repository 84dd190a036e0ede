"""Kernels seen before they are compiled: what MLX gives the compiler is kept, and what it gets back
loads."""

from __future__ import annotations

import ctypes

import pytest

from chuk_lib.runtime import nvrtc, on_cpu
from chuk_lib.runtime.elf import ElfError

TEXT = ctypes.c_char_p


def given(
    calls: dict[str, object], name: bytes, wanted: list[bytes], options: list[bytes]
) -> tuple[list[bytes], bytes]:
    """What MLX does with a kernel; returns the names and the image that it gets."""
    call = {key.removeprefix("nvrtc"): function for key, function in calls.items()}
    handle, size, lowered = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_void_p()
    texts, names = (TEXT * 2)(b"one", b"two"), (TEXT * 2)(b"a.h", b"b.h")
    assert call["CreateProgram"](ctypes.byref(handle), b"source", name, 2, texts, names) == 0
    for one in wanted:
        assert call["AddNameExpression"](handle, one) == 0
    assert call["CompileProgram"](handle, len(options), (TEXT * len(options))(*options)) == 0
    found = []
    for one in wanted:
        assert call["GetLoweredName"](handle, one, ctypes.byref(lowered)) == 0
        found.append(ctypes.string_at(lowered.value or 0))
    call["GetCUBINSize"](handle, ctypes.byref(size))
    image = ctypes.create_string_buffer(size.value)
    call["GetCUBIN"](handle, ctypes.cast(image, ctypes.c_void_p))
    assert call["DestroyProgram"](ctypes.byref(handle)) == 0
    return found, image.raw


def test_the_source_is_kept_and_mlx_gets_an_empty_kernel_of_each_name() -> None:
    seen: list[nvrtc.Program] = []
    calls = nvrtc._Empty(seen.append).calls
    options = [b"--gpu-architecture=sm_90a", b"--include-path=/x"]
    names, image = given(calls, b"K.cu", [b"f<1>", b"f<2>"], options)
    assert len(set(names)) == 2
    assert all(b".visible .entry " + name + b"() { ret; }" in image for name in names)
    assert image.endswith(b"\0")
    headers = {b"a.h": b"one", b"b.h": b"two"}
    assert seen == [nvrtc.Program(b"K.cu", b"source", headers, [b"f<1>", b"f<2>"], options)]
    assert seen[0].module == "K"
    assert seen[0].is_native
    again, _ = given(calls, b"L.cu", [b"g"], [b"--gpu-architecture=compute_90"])
    assert not set(again) & set(names)
    assert not seen[1].is_native


def test_a_library_without_nvrtc_is_left_as_it_is() -> None:
    if not on_cpu():
        pytest.skip("MLX for CUDA has it")
    with pytest.raises(ElfError), nvrtc.intercepted(lambda program: None):
        pass
    with pytest.raises(ElfError):
        nvrtc.compiler()
