"""Compile some of the known CUDA kernels, as MLX would, into the folders of a kernel cache. A program of its own, of
the standard library and NVRTC alone, so that it starts at once:

    python kernel_worker.py < JOB.json    {"library", "options", "data", "modules", "folders"}

`modules` are names in `data` (`kernels.json.gz`: {"headers": {name: text}, "modules": {name: {"source", "kernels"}}}).
Each result is written beside and renamed, so that whoever reads finds it whole or not at all.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class _Failed(Exception):
    """NVRTC does not compile this."""


class Compiler:
    """NVRTC with MLX's headers and options."""

    def __init__(self, library: str, headers: Mapping[str, str], options: Sequence[str]) -> None:
        self._nvrtc = ctypes.CDLL(library)
        names, texts = list(headers), list(headers.values())
        self._count = len(names)
        self._names = (ctypes.c_char_p * len(names))(*(name.encode() for name in names))
        self._texts = (ctypes.c_char_p * len(names))(*(text.encode() for text in texts))
        self._options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))

    def __call__(self, name: str, source: str, kernels: Sequence[str]) -> tuple[bytes, str]:
        """The machine code of a module, and a line `kernel TAB its name in there` for each kernel."""
        program = ctypes.c_void_p()
        self._call(
            "CreateProgram", ctypes.byref(program), source.encode(), f"{name}.cu".encode(), self._count, self._texts,
            self._names,
        )  # fmt: skip
        try:
            for kernel in kernels:
                self._call("AddNameExpression", program, kernel.encode())
            self._call("CompileProgram", program, len(self._options), self._options)
            lines = [f"{kernel}\t{self._lowered(program, kernel)}\n" for kernel in kernels]
            size = ctypes.c_size_t()
            self._call("GetCUBINSize", program, ctypes.byref(size))
            code = ctypes.create_string_buffer(size.value)
            self._call("GetCUBIN", program, code)
            return code.raw, "".join(lines)
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _lowered(self, program: ctypes.c_void_p, kernel: str) -> str:
        found = ctypes.c_char_p()
        self._call("GetLoweredName", program, kernel.encode(), ctypes.byref(found))
        return (found.value or b"").decode()

    def _call(self, function: str, *arguments: Any) -> None:
        if getattr(self._nvrtc, f"nvrtc{function}")(*arguments):
            raise _Failed(function)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    os.replace(beside, path)


def main() -> None:
    """Compile what the job on stdin names; what does not compile is left to MLX."""
    job = json.load(sys.stdin)
    data = json.loads(gzip.decompress(Path(job["data"]).read_bytes()))
    compiler = Compiler(job["library"], data["headers"], job["options"])
    folders = [Path(folder) for folder in job["folders"]]
    for name in job["modules"]:
        if all((folder / f"{name}.ptx").exists() for folder in folders):
            continue
        try:
            code, lines = compiler(name, **data["modules"][name])
        except _Failed:
            continue
        for folder in folders:
            write_whole(folder / f"{name}.txt", lines.encode())
            write_whole(folder / f"{name}.ptx", code)


if __name__ == "__main__":
    os.nice(5)
    main()
