"""The GGUF container: metadata by key, then tensors. Files are mapped, not read; nothing in one is
believed unchecked.

header    magic, version 2 or 3, number of tensors, number of keys
metadata  key, type, value (numbers, strings, arrays)
tensors   name, dimensions (fastest first), type, offset; then their bytes, each aligned
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from chuk_lib.errors import ModelError
from chuk_lib.models.gguf.quants import BY_CODE, FORMATS, unpack
from chuk_lib.models.reading import CHUNK

_KINDS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT, _NAME_BYTES, _DIMENSIONS = 32, 1024, 4


@dataclass(frozen=True)
class PackedTensor:
    """A tensor of a GGUF file: `shape` as NumPy and Hugging Face have it, `kind` a name of
    `FORMATS`, `file` the file's name."""

    name: str
    kind: str
    shape: tuple[int, ...]
    raw: np.ndarray
    file: str

    @property
    def dtype(self) -> str:
        """The name of its format as llama.cpp writes it, such as `Q4_K`."""
        return self.kind.upper()

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return len(self.raw)

    @property
    def elements(self) -> int:
        """Numbers that it stands for."""
        return prod(self.shape)

    @property
    def is_number(self) -> bool:
        """Whether chuk reads its numbers."""
        return FORMATS[self.kind].unpack is not None

    def chunks(self, size: int = CHUNK) -> Iterator[np.ndarray]:
        """Its numbers in order, float32, about `size` at a time."""
        found = FORMATS[self.kind]
        step = max(1, size // found.block) * found.n_bytes
        for start in range(0, len(self.raw), step):
            yield unpack(self.raw[start : start + step], self.kind)

    def read(self) -> np.ndarray:
        """Its numbers, float32, in its shape. Raises ModelError for a format that chuk cannot
        read."""
        if not self.is_number:
            raise ModelError(
                f"`{self.name}` is stored as {self.dtype}, which chuk does not read",
                "take a Q4_K_M or Q8_0 file",
            )
        return np.reshape(unpack(self.raw, self.kind), self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file that was read: metadata by key, tensors by name in the file's order."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, PackedTensor]

    def own(self, key: str, default: Any = None) -> Any:
        """The metadata of its architecture: `attention.head_count` is `llama.attention.head_count`
        in a Llama."""
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}", default)

    def needed(self, key: str) -> Any:
        """As `own`. Raises ModelError without one."""
        value = self.own(key)
        if value is None:
            raise ModelError(
                f"`{self.path}` does not give `{key}`", "is it a language model's GGUF file?"
            )
        return value


class _Cursor:
    """A place in a file's bytes. Every read is checked against what is left of them."""

    def __init__(self, path: Path, data: Any) -> None:
        self.path, self.data, self.at = path, data, 0

    def fail(self, why: str) -> NoReturn:
        raise ModelError(f"`{self.path}` is damaged: {why}", "fetch or write the file again")

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > len(self.data) - self.at:
            self.fail(f"it ends at {len(self.data):,} bytes, inside what it announces")
        self.at += n_bytes
        return bytes(self.data[self.at - n_bytes : self.at])

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]

    def text(self, most: int | None = None) -> str:
        length = self.number("Q")
        if most is not None and length > most:
            self.fail(f"a name of {length:,} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a string that is not UTF-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _KINDS:
            self.fail(f"a value of unknown type {kind}")
        return self.number(_KINDS[kind])

    def array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING and count * 8 <= len(self.data) - self.at:
            return [self.text() for _ in range(count)]
        if kind not in _KINDS:
            self.fail(f"an array of {count:,} values of type {kind}")
        size = struct.calcsize(_KINDS[kind])
        return np.frombuffer(self.take(size * count), np.dtype(f"<{_KINDS[kind]}")).tolist()


def read_gguf(path: Path) -> GgufFile:
    """Open a GGUF file; tensors stay on the disk until they are read. Raises ModelError when it is
    no GGUF file, of another byte order or version, cut short, or says what cannot be."""
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(
                f"`{path}` is no GGUF file", "name a file that llama.cpp runs, or a model folder"
            )
        cursor = _Cursor(path, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    cursor.at = 4
    if (version := cursor.number("I")) not in (2, 3):
        cursor.fail(f"version {version}; chuk reads 2 and 3")
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    if 24 * n_tensors + 12 * n_keys > len(cursor.data):
        cursor.fail(f"{n_tensors:,} tensors and {n_keys:,} keys in {len(cursor.data):,} bytes")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.text(1 << 16)
        metadata[key] = cursor.value(cursor.number("I"))
    found = [_header(cursor) for _ in range(n_tensors)]
    return GgufFile(
        path, metadata, _placed(cursor, found, metadata.get("general.alignment", _ALIGNMENT))
    )


def _header(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.text(_NAME_BYTES), cursor.number("I")
    if not 1 <= dimensions <= _DIMENSIONS:
        cursor.fail(f"`{name}` has {dimensions:,} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    return name, shape, cursor.number("I"), cursor.number("Q")


def _placed(
    cursor: _Cursor, headers: Sequence[tuple[str, tuple[int, ...], int, int]], alignment: Any
) -> dict[str, PackedTensor]:
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        cursor.fail(f"an alignment of {alignment}")
    begin, whole = cursor.at + -cursor.at % alignment, np.frombuffer(cursor.data, np.uint8)
    tensors: dict[str, PackedTensor] = {}
    for name, shape, code, offset in headers:
        if code not in BY_CODE:
            raise ModelError(
                f"`{cursor.path}`: `{name}` is of type {code}, which chuk does not read",
                "take a Q4_K_M or Q8_0 file",
            )
        kind = BY_CODE[code]
        size, spare = divmod(prod(shape) * kind.n_bytes, kind.block)
        if spare or not size or shape[-1] % kind.block or offset % alignment or name in tensors:
            cursor.fail(
                f"`{name}` of shape {list(shape)} at {offset:,} as {kind.name.upper()} cannot be"
            )
        if begin + offset + size > len(whole):
            cursor.fail(f"`{name}` reaches beyond the file's {len(whole):,} bytes")
        raw = whole[begin + offset : begin + offset + size]
        tensors[name] = PackedTensor(name, kind.name, shape, raw, cursor.path.name)
    return tensors


@dataclass(frozen=True)
class PlannedGguf:
    """A tensor that is about to be written: `make` gives its bytes, flat uint8, when its turn
    comes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def n_bytes(self) -> int:
        """Bytes that it takes in the file, without padding."""
        return prod(self.shape) * FORMATS[self.kind].n_bytes // FORMATS[self.kind].block


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[PlannedGguf]) -> None:
    """Write a GGUF file, one tensor in memory at a time. Whole numbers are written as uint32 (below
    0: int32), floats as float32, lists of numbers as int32 or float32 arrays, of booleans and
    strings as such."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        head += _text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", FORMATS[tensor.kind].code, offset)
        offset += tensor.n_bytes + -tensor.n_bytes % _ALIGNMENT
    with path.open("wb") as stream:
        stream.write(head + bytes(-len(head) % _ALIGNMENT))
        for tensor in tensors:
            raw = tensor.make()
            assert raw.nbytes == tensor.n_bytes, tensor.name
            raw.tofile(stream)
            stream.write(bytes(-raw.nbytes % _ALIGNMENT))


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    kind = _kind_of(value)
    if kind == _STRING:
        return struct.pack("<I", kind) + _text(value)
    if kind != _ARRAY:
        return struct.pack(f"<I{_KINDS[kind]}", kind, value)
    inner = _kind_of(value[0])
    inner = 5 if inner == 4 else inner
    if inner == _STRING:
        items = b"".join(map(_text, value))
    else:
        items = np.asarray(value, np.dtype(f"<{_KINDS[inner]}")).tobytes()
    return struct.pack("<IIQ", kind, inner, len(value)) + items


def _kind_of(value: Any) -> int:
    kinds: tuple[tuple[type, int], ...] = (
        (bool, 7),
        (int, 4),
        (float, 6),
        (str, _STRING),
        (list, _ARRAY),
    )
    code = next(code for kind, code in kinds if isinstance(value, kind))
    return 5 if code == 4 and value < 0 else code
