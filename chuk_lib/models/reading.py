"""Read the tensors of a model's files one at a time, in NumPy, and packed weights as what they
stand for.

A `Weight` is what a user means by one: a plain tensor, or MLX's triple of packed `weight`, `scales`
and `biases`, which has the shape and the values of the matrix that it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib.errors import ModelError
from chuk_lib.models.components import mlx_quantization
from chuk_lib.models.headers import ADAPTER_FILES, TensorHeader, read_headers, weight_files

if TYPE_CHECKING:
    import numpy as np

CHUNK = 1 << 20  # numbers in one piece of a tensor
_NUMPY = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "u2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U64": "u8",
    "U32": "u4",
    "U16": "u2",
    "U8": "u1",
    "BOOL": "u1",
}
FLOATS = ("F64", "F32", "F16", "BF16")
BESIDE = ("optimizer.safetensors", "memory.safetensors", "score.safetensors")
"""Files of a checkpoint or a reward model beside its weights."""


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies: its file and what the file's header says of it."""

    path: Path
    header: TensorHeader

    def chunks(self, size: int = CHUNK) -> Iterator[np.ndarray]:
        """The numbers in pieces of `size`, in order: floats as float32 (F64 as float64), others as
        they are. Raises ModelError for a type that NumPy cannot hold."""
        import numpy as np

        dtype, left = np.dtype(f"<{self._numpy_word()}"), self.header.elements
        with self.path.open("rb") as stream:
            stream.seek(self.header.begin)
            while left > 0:
                piece = np.fromfile(stream, dtype, min(left, size))
                if not len(piece):
                    raise self._cut_short()
                left -= len(piece)
                yield _widened(piece, self.header.dtype)

    def raw(self) -> np.ndarray:
        """The whole tensor in its shape and its stored type, which for BF16 is uint16. Raises as
        `chunks` does."""
        import numpy as np

        header = self.header
        dtype = np.dtype(f"<{self._numpy_word()}")
        whole = np.fromfile(self.path, dtype, header.elements, offset=header.begin)
        if len(whole) < header.elements:
            raise self._cut_short()
        return (whole.astype(bool) if header.dtype == "BOOL" else whole).reshape(header.shape)

    def _numpy_word(self) -> str:
        if self.header.dtype not in _NUMPY:
            raise ModelError(
                f"`{self.path}`: `{self.header.name}` is {self.header.dtype}, which chuk cannot"
                " compute with"
            )
        return _NUMPY[self.header.dtype]

    def _cut_short(self) -> ModelError:
        return ModelError(f"`{self.path}` ended while it was read", "fetch or save the file again")

    def read(self) -> np.ndarray:
        """The whole tensor in its shape, with the types of `chunks`."""
        import numpy as np

        parts = list(self.chunks())
        whole = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return whole.reshape(self.header.shape)


def _widened(piece: np.ndarray, kind: str) -> np.ndarray:
    import numpy as np

    if kind == "BF16":
        return (piece.astype(np.uint32) << 16).view(np.float32)
    return piece.astype(np.float32) if kind == "F16" else piece


@dataclass(frozen=True)
class Weight:
    """A weight by its full name. `dtype` is safetensors' word, or for packed ones such as `4-bit
    affine/64`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    parts: tuple[Stored, ...]
    packing: dict[str, Any] | None = None

    @property
    def file(self) -> str:
        """Name of the file that it is in."""
        return self.parts[0].path.name

    @property
    def elements(self) -> int:
        """Numbers that it stands for."""
        return prod(self.shape)

    @property
    def is_number(self) -> bool:
        """Whether it is made of floating-point numbers, packed or not."""
        return self.packing is not None or self.dtype in FLOATS

    def chunks(self, size: int = CHUNK) -> Iterator[np.ndarray]:
        """Its values in order, `size` at a time; packed ones are unpacked whole first."""
        if self.packing is None:
            yield from self.parts[0].chunks(size)
        else:
            yield from pieces(self._unpacked(), size)

    def read(self) -> np.ndarray:
        """All its values in its shape."""
        return self.parts[0].read() if self.packing is None else self._unpacked()

    def _unpacked(self) -> np.ndarray:
        import mlx.core as mx
        import numpy as np

        assert self.packing is not None
        weight, scales, *biases = (mx.array(part.read()) for part in self.parts)
        unpacked = mx.dequantize(weight, scales, biases[0] if biases else None, **self.packing)
        return np.array(unpacked.astype(mx.float32))


def pieces(whole: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The numbers of an array in order, `size` at a time."""
    flat = whole.reshape(-1)
    yield from (flat[start : start + size] for start in range(0, flat.size, size))


def stored_tensors(path: Path) -> list[Stored]:
    """The tensors of one safetensors file, in its order. Raises ModelError when it is damaged."""
    return [Stored(path, header) for header in read_headers(path)]


def tensor_files(folder: Path) -> list[Path]:
    """Every safetensors file that belongs to a model, adapter or checkpoint folder: weights, then
    what is beside. Raises ModelError when the index names a file that is missing."""
    own = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    files = own or [path for path in weight_files(folder) if path.name not in BESIDE]
    return files + [folder / name for name in BESIDE if (folder / name).is_file()]


def weights_of(tensors: Sequence[Stored], config: dict[str, Any]) -> list[Weight]:
    """Weights of stored tensors: MLX's packed ones put together as the config's `quantization`
    says."""
    settings = mlx_quantization(config)
    by_name = {stored.header.name: stored for stored in tensors}
    found, taken = [], set[str]()
    for name, stored in by_name.items():
        module, _, leaf = name.rpartition(".")
        is_packed = (
            settings
            and leaf == "weight"
            and stored.header.dtype == "U32"
            and f"{module}.scales" in by_name
        )
        if is_packed:
            names = [
                name,
                f"{module}.scales",
                *([f"{module}.biases"] if f"{module}.biases" in by_name else []),
            ]
            taken.update(names[1:])
            found.append(_packed(module, [by_name[part] for part in names], settings))
        else:
            header = stored.header
            found.append(Weight(name, header.shape, header.dtype, header.n_bytes, (stored,)))
    return [weight for weight in found if weight.name not in taken]


def _packed(module: str, parts: list[Stored], settings: dict[str, Any]) -> Weight:
    own = settings.get(module)
    chosen = {**settings, **own} if isinstance(own, dict) else settings
    packing = {
        "group_size": chosen.get("group_size", 64),
        "bits": chosen.get("bits", 4),
        "mode": chosen.get("mode", "affine"),
    }
    packed = parts[0].header
    shape = (*packed.shape[:-1], packed.shape[-1] * 32 // int(packing["bits"]))
    label = f"{packing['bits']}-bit {packing['mode']}/{packing['group_size']}"
    n_bytes = sum(part.header.n_bytes for part in parts)
    return Weight(packed.name, shape, label, n_bytes, tuple(parts), packing)


def by_block(name: str) -> str:
    """A tensor's name with the number of its block taken out:
    `model.layers.#.mlp.up_proj.weight`."""
    return re.sub(r"(^|\.)(layers|h|blocks|blk)\.\d+\.", r"\1\2.#.", name)
