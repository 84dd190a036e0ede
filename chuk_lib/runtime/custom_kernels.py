"""Kernels of `mx.fast.cuda_kernel`, kept on the disk.

MLX's cache leaves them out: each process compiles anew what it decodes with, a second and a half
for each of ten kernels. `keep_custom` stands between MLX and NVRTC (see `nvrtc`) and answers for
those that a folder has; everything else goes through."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from chuk_lib.runtime.nvrtc import KINDS, Program, callable_by_mlx, compiler, redirect, store

Find = Callable[[str], tuple[dict[bytes, bytes], bytes] | None]
"""From a file name to a kernel that is kept: the compiled names of its C++ names, and its image."""
Keep = Callable[[str, Callable[[Path], None]], object]
"""Keeps a kernel under a file name; the function writes NAME.txt and NAME.ptx."""


def keep_custom(find: Find, keep: Keep) -> None:
    """From here on, custom kernels that `find` knows are not compiled, and `keep` gets those that
    are. Raises ElfError where MLX's library cannot be redirected; then nothing has changed."""
    redirect(_Kept(ctypes.CDLL(compiler()), find, keep).calls)


class _Kept:
    """NVRTC itself, but for custom kernels that are kept already. Handles are NVRTC's. Whatever
    goes wrong on the way to a kept one, NVRTC compiles."""

    def __init__(self, nvrtc: Any, find: Find, keep: Keep) -> None:
        self._nvrtc, self._find, self._keep = nvrtc, find, keep
        self._programs: dict[int, Program] = {}
        self._found: dict[int, tuple[dict[bytes, Any], bytes]] = {}
        does: dict[str, Callable[..., int]] = {
            name: partial(self._call, f"nvrtc{name}") for name in KINDS
        }
        does |= {
            "CreateProgram": self._create,
            "AddNameExpression": self._add,
            "CompileProgram": self._compile,
            "GetLoweredName": self._name,
            "DestroyProgram": self._destroy,
        }
        for kind in ("CUBIN", "PTX"):
            does[f"Get{kind}Size"] = partial(self._size, f"nvrtcGet{kind}Size")
            does[f"Get{kind}"] = partial(self._copy, f"nvrtcGet{kind}")
        self.calls = callable_by_mlx(does)
        for name, kinds in KINDS.items():
            getattr(nvrtc, f"nvrtc{name}").argtypes = kinds

    def _call(self, name: str, *arguments: Any) -> int:
        return int(getattr(self._nvrtc, name)(*arguments))

    def _create(
        self, handle: Any, source: bytes, name: bytes, count: int, texts: Any, names: Any
    ) -> int:
        failed = self._call("nvrtcCreateProgram", handle, source, name, count, texts, names)
        headers = {names[at]: texts[at] for at in range(count)}
        program = Program(name, source, headers)
        if not failed and program.is_custom:
            self._programs[handle[0]] = program
        return failed

    def _add(self, handle: int, name: bytes) -> int:
        if handle in self._programs:
            self._programs[handle].wanted.append(name)
        return self._call("nvrtcAddNameExpression", handle, name)

    def _compile(self, handle: int, count: int, options: Any) -> int:
        program = self._programs.get(handle)
        if program is None:
            return self._call("nvrtcCompileProgram", handle, count, options)
        program.options = [options[at] for at in range(count)]
        found = self._find(program.file_name)
        if found is not None and set(program.wanted) <= set(found[0]):
            names = {name: ctypes.create_string_buffer(low) for name, low in found[0].items()}
            self._found[handle] = names, found[1]
            return 0
        failed = self._call("nvrtcCompileProgram", handle, count, options)
        if not failed:
            self._keep(
                program.file_name,
                lambda stem: store(self._nvrtc, ctypes.c_void_p(handle), program, stem),
            )
        return failed

    def _name(self, handle: int, name: bytes, lowered: Any) -> int:
        if handle not in self._found:
            return self._call("nvrtcGetLoweredName", handle, name, lowered)
        lowered[0] = ctypes.addressof(self._found[handle][0][name])
        return 0

    def _size(self, call: str, handle: int, size: Any) -> int:
        if handle not in self._found:
            return self._call(call, handle, size)
        size[0] = len(self._found[handle][1])
        return 0

    def _copy(self, call: str, handle: int, target: int) -> int:
        if handle not in self._found:
            return self._call(call, handle, target)
        image = self._found[handle][1]
        ctypes.memmove(target, image, len(image))
        return 0

    def _destroy(self, handle: Any) -> int:
        self._programs.pop(handle[0], None)
        self._found.pop(handle[0], None)
        return self._call("nvrtcDestroyProgram", handle)
