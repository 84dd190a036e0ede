"""Kernels seen before they are compiled: what MLX gives the compiler is kept, and what it gets back
loads."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from chuk_lib.runtime import custom_kernels, nvrtc, on_cpu
from chuk_lib.runtime.elf import ElfError
from chuk_lib.runtime.kernel_cache import KernelCache

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
    with pytest.raises(ElfError):
        custom_kernels.keep_custom(lambda name: None, lambda name, write: None)


def test_what_mlx_calls_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[nvrtc._Empty]] = []

    class Empty(nvrtc._Empty):
        def __init__(self, take: Callable[[nvrtc.Program], object]) -> None:
            super().__init__(take)
            made.append(weakref.ref(self))

    monkeypatch.setattr(nvrtc, "_Empty", Empty)
    for name, gives in (("loaded_library", None), ("read_pointer", 0), ("write_pointers", None)):
        monkeypatch.setattr(nvrtc.elf, name, lambda _, gives=gives: gives)
    monkeypatch.setattr(nvrtc.elf, "import_slots", lambda _, names: dict.fromkeys(names, 0))
    with nvrtc.intercepted(lambda program: None):
        gc.collect()
        assert made[0]() is not None


def test_a_custom_kernel_is_compiled_once_and_then_kept(tmp_path: Path) -> None:
    """MLX keeps all others itself; what differs in anything is another kernel."""
    cache = KernelCache(tmp_path / "shared", tmp_path / "own")
    cache.shared.mkdir()
    cache.own.mkdir()
    compiled: list[str] = []

    def process() -> dict[str, object]:
        below = nvrtc._Empty(lambda program: compiled.append(program.module)).calls
        return custom_kernels._Kept(SimpleNamespace(**below), cache.find, cache.keep).calls

    name, wanted, options = (
        b"custom_kernel_draw.cu",
        [b"f<1>", b"f<2>"],
        [b"--gpu-architecture=sm_90"],
    )
    first = given(process(), name, wanted, options)
    assert [path.suffix for path in sorted(cache.own.iterdir())] == [".ptx", ".txt"]
    assert given(process(), name, wanted, options) == first
    assert compiled == ["custom_kernel_draw"]
    cache.publish()
    other = KernelCache(cache.shared, tmp_path / "other")
    other.own.mkdir()
    other.fetch()
    assert len(other.modules()) == 1
    assert other.find(other.modules().pop()) == cache.find(cache.modules().pop())
    for changed in ((b"custom_kernel_lower.cu", wanted, options), (name, wanted, [b"-x"])):
        given(process(), *changed)
    given(process(), b"gather.cu", wanted, options)
    given(process(), b"gather.cu", wanted, options)
    assert compiled[1:] == ["custom_kernel_lower", "custom_kernel_draw", "gather", "gather"]
    for path in cache.own.glob("*.txt"):
        path.write_text("")  # names are missing
    assert given(process(), name, wanted, options) == first
    assert compiled[-1] == "custom_kernel_draw"
