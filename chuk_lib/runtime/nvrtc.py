"""See the kernels that MLX is about to compile on CUDA, and compile them on all cores.

MLX hands each kernel to NVRTC when it first meets it, waits, and goes on: three to five seconds
each, twenty to fifty for a training step. `intercepted` redirects these calls of MLX's library (see
`elf`): a caller gets the source of each kernel, and MLX an empty kernel of the same name, so that a
whole step runs through in a moment. What it computes is worthless; its process is there for the
sources. `compile_apart` makes of one the files that MLX's cache would hold.

NVRTC's calls: https://docs.nvidia.com/cuda/nvrtc
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chuk_lib.runtime import elf

_MLX, _NVRTC = "libmlx.so", "libnvrtc.so"
_HANDLE, _TEXT, _COUNT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_TEXTS, _SIZE = ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_size_t)
KINDS: dict[str, tuple[Any, ...]] = {
    "CreateProgram": (ctypes.POINTER(_HANDLE), _TEXT, _TEXT, _COUNT, _TEXTS, _TEXTS),
    "AddNameExpression": (_HANDLE, _TEXT),
    "CompileProgram": (_HANDLE, _COUNT, _TEXTS),
    "GetLoweredName": (_HANDLE, _TEXT, ctypes.POINTER(_HANDLE)),
    "DestroyProgram": (ctypes.POINTER(_HANDLE),),
    "GetCUBINSize": (_HANDLE, _SIZE),
    "GetPTXSize": (_HANDLE, _SIZE),
    "GetCUBIN": (_HANDLE, _HANDLE),
    "GetPTX": (_HANDLE, _HANDLE),
}
"""What MLX uses of NVRTC: names without `nvrtc`, and types of the arguments."""
_HEAD = ".version 7.0\n.target sm_75\n.address_size 64\n"


@dataclass
class Program:
    """A kernel as MLX gives it to NVRTC: `name` with `.cu`, the headers that its source includes by
    name, the C++ names of what is instantiated, and the compiler's options."""

    name: bytes
    source: bytes
    headers: dict[bytes, bytes]
    wanted: list[bytes] = field(default_factory=list)
    options: list[bytes] = field(default_factory=list)

    @property
    def module(self) -> str:
        """MLX's name of it."""
        return self.name.decode().removesuffix(".cu")

    @property
    def is_custom(self) -> bool:
        """Whether it is one of `mx.fast.cuda_kernel`, which MLX's cache leaves out."""
        return self.name.startswith(b"custom_kernel_")

    @property
    def file_name(self) -> str:
        """Under what name a custom one is kept: whatever is compiled is in it."""
        parts = [self.name, self.source, *self.wanted, *self.options]
        parts += [text for pair in sorted(self.headers.items()) for text in pair]
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(b"%d " % len(part) + part)
        return f"custom-{digest.hexdigest()}"

    @property
    def is_native(self) -> bool:
        """Whether machine code is asked for, not PTX."""
        return any(option.startswith(b"--gpu-architecture=sm_") for option in self.options)


@contextmanager
def intercepted(take: Callable[[Program], object]) -> Iterator[None]:
    """Inside, `take` gets what MLX would have compiled, and MLX an empty kernel. Raises ElfError
    where MLX's library cannot be redirected; then nothing has changed."""
    before = redirect(_Empty(take).calls)
    try:
        yield
    finally:
        elf.write_pointers(before)


_lent: list[Mapping[str, Any]] = []


def redirect(calls: Mapping[str, Any]) -> dict[int, int]:
    """Have MLX's library call these; returns what `elf.write_pointers` needs to undo it. They are
    never collected: a call through one that was would end the process."""
    _lent.append(calls)
    slots = elf.import_slots(elf.loaded_library(_MLX), calls)
    before = {slot: elf.read_pointer(slot) for slot in slots.values()}
    elf.write_pointers({slots[name]: _address(call) for name, call in calls.items()})
    return before


def _address(call: Any) -> int:
    return ctypes.cast(call, ctypes.c_void_p).value or 0


def callable_by_mlx(does: Mapping[str, Callable[..., int]]) -> dict[str, Any]:
    """NVRTC's functions by name, as C calls them, each of which does what `does` says."""
    return {
        f"nvrtc{name}": ctypes.CFUNCTYPE(ctypes.c_int, *KINDS[name])(does[name]) for name in KINDS
    }


class _Empty:
    """NVRTC's interface, as far as MLX uses it, whose kernels do nothing. Handles are numbers."""

    def __init__(self, take: Callable[[Program], object]) -> None:
        self._take = take
        self._numbers = itertools.count(1)
        self._programs: dict[int, Program] = {}
        self._names: dict[bytes, ctypes.Array[ctypes.c_char]] = {}  # MLX keeps pointers into them
        does: dict[str, Callable[..., int]] = {
            "CreateProgram": self._create,
            "AddNameExpression": self._add,
            "CompileProgram": self._compile,
            "GetLoweredName": self._name,
            "DestroyProgram": self._destroy,
            "GetCUBINSize": self._size,
            "GetPTXSize": self._size,
            "GetCUBIN": self._copy,
            "GetPTX": self._copy,
        }
        self.calls = callable_by_mlx(does)

    def _create(
        self, handle: Any, source: bytes, name: bytes, count: int, texts: Any, names: Any
    ) -> int:
        handle[0] = number = next(self._numbers)
        self._programs[number] = Program(
            name, source, {names[at]: texts[at] for at in range(count)}
        )
        return 0

    def _add(self, number: int, name: bytes) -> int:
        self._programs[number].wanted.append(name)
        self._names.setdefault(name, ctypes.create_string_buffer(b"k%d" % len(self._names)))
        return 0

    def _compile(self, number: int, count: int, options: Any) -> int:
        program = self._programs[number]
        program.options = [options[at] for at in range(count)]
        self._take(program)
        return 0

    def _name(self, number: int, name: bytes, lowered: Any) -> int:
        lowered[0] = ctypes.addressof(self._names[name])
        return 0

    def _image(self, number: int) -> bytes:
        names = [self._names[name].value.decode() for name in self._programs[number].wanted]
        return (
            _HEAD + "".join(f".visible .entry {name}() {{ ret; }}\n" for name in names)
        ).encode() + b"\0"

    def _size(self, number: int, size: Any) -> int:
        size[0] = len(self._image(number))
        return 0

    def _copy(self, number: int, target: int) -> int:
        image = self._image(number)
        ctypes.memmove(target, image, len(image))
        return 0

    def _destroy(self, handle: Any) -> int:
        self._programs.pop(handle[0], None)
        return 0


def compiler() -> str:
    """The file of the NVRTC that MLX has loaded. Raises ElfError when there is none."""
    paths = {area.path for area in elf.mappings() if os.path.basename(area.path).startswith(_NVRTC)}
    if len(paths) != 1:
        raise elf.ElfError(f"{len(paths)} libraries {_NVRTC} are loaded, expected one")
    return paths.pop()


def compile_apart(library: str, program: Program, stem: Path) -> bool:
    """Compile a program in a process of its own (NVRTC lets one thread of a process work at a time)
    into `stem`.ptx and `stem`.txt, as MLX's cache has them. Returns whether it could be compiled.
    """
    command = [sys.executable, "-m", __name__, library, str(stem)]
    done = subprocess.run(
        command, input=pickle.dumps(program), stdout=subprocess.DEVNULL, check=False
    )
    return done.returncode == 0


def compile_into(nvrtc: Any, program: Program, stem: Path) -> bool:
    """The same in this process, with the loaded library."""
    handle = _HANDLE()
    texts = (_TEXT * len(program.headers))(*program.headers.values())
    names = (_TEXT * len(program.headers))(*program.headers)
    if nvrtc.nvrtcCreateProgram(
        ctypes.byref(handle), program.source, program.name, len(texts), texts, names
    ):
        return False
    try:
        failed = [nvrtc.nvrtcAddNameExpression(handle, name) for name in program.wanted]
        options = (_TEXT * len(program.options))(*program.options)
        if any(failed) or nvrtc.nvrtcCompileProgram(handle, len(options), options):
            return False
        store(nvrtc, handle, program, stem)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(handle))
    return True


def store(nvrtc: Any, handle: ctypes.c_void_p, program: Program, stem: Path) -> None:
    """Write a compiled program as MLX's cache has it: `stem`.txt and `stem`.ptx."""
    kind = "CUBIN" if program.is_native else "PTX"
    size, lines = ctypes.c_size_t(), []
    getattr(nvrtc, f"nvrtcGet{kind}Size")(handle, ctypes.byref(size))
    image = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(handle, image)
    for name in program.wanted:
        lowered = _HANDLE()
        nvrtc.nvrtcGetLoweredName(handle, name, ctypes.byref(lowered))
        lines.append(name + b"\t" + ctypes.string_at(lowered.value or 0) + b"\n")
    stem.with_suffix(".txt").write_bytes(b"".join(lines))
    stem.with_suffix(".ptx").write_bytes(image.raw)


if __name__ == "__main__":
    os.nice(5)  # the run loads its model meanwhile
    given: Program = pickle.load(sys.stdin.buffer)
    sys.exit(not compile_into(ctypes.CDLL(sys.argv[1]), given, Path(sys.argv[2])))
