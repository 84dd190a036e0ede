"""Read what safetensors files say about themselves: names, types and shapes, without touching the
weights.

A file is 8 bytes of header length (little endian), a JSON header, then the tensors. Plain Python,
so that it costs nothing to ask."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError

_LARGEST_HEADER = 32 << 20  # bytes; 200,000 tensors
ADAPTER_FILES = ("adapters.safetensors", "adapter_model.safetensors")
"""What MLX-LM and PEFT call an adapter's weights."""
_NOT_MODELS = ("optimizer.safetensors", *ADAPTER_FILES)
EMBEDDINGS = ("embed_tokens", "wte", "embed_in")
"""What families call their token embeddings, at the end of a module's path."""
HEADS = ("lm_head", "embed_out")
"""What they call their output head."""
BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits of one stored number, by safetensors' word for its type."""


def is_embedding(name: str) -> bool:
    """Whether a tensor of this name holds the token embeddings."""
    return name.endswith(tuple(f"{path}.weight" for path in EMBEDDINGS))


@dataclass(frozen=True)
class TensorHeader:
    """One tensor as its file declares it. `dtype` in safetensors' words (`F32`, `BF16`, `U32`);
    `begin` is where its bytes begin in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    begin: int = 0

    @property
    def elements(self) -> int:
        """Stored numbers; packed weights hold several in one."""
        return prod(self.shape)


def read_headers(path: Path) -> list[TensorHeader]:
    """The tensors of one file, in its order. Raises ModelError when the file is cut short or no
    safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length < 2 or length > 1000 * size:
                raise _broken(path, "is not a safetensors file")
            if length + 8 > size:
                raise _cut_short(path, size, length + 8)
            if length > _LARGEST_HEADER:
                raise _broken(path, f"has a header of {length:,} bytes, which no model needs")
            raw = json.loads(stream.read(length), object_pairs_hook=_without_doubles)
    except OSError as error:
        raise ModelError(f"cannot read `{path}`: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise _broken(path, "is not a safetensors file") from None
    tensors, end = _parse(path, raw, 8 + length)
    if size < 8 + length + end:
        raise _cut_short(path, size, 8 + length + end)
    if size > 8 + length + end:
        raise _broken(
            path,
            f"contradicts itself: {size - 8 - length - end:,} bytes at its end belong to no tensor",
        )
    return tensors


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _parse(path: Path, raw: Any, data: int) -> tuple[list[TensorHeader], int]:
    """Tensors, and where the last one ends after the header, which takes `data` bytes."""
    tensors, last = [], 0
    taken: list[tuple[int, int]] = []
    try:
        for name, entry in raw.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if any(
                type(number) is not int or number < 0 for number in (begin, end, *entry["shape"])
            ):
                raise _broken(path, f"contradicts itself about tensor `{name}`")
            tensor = TensorHeader(
                name, str(entry["dtype"]), tuple(entry["shape"]), end - begin, data + begin
            )
            bits = BITS.get(tensor.dtype)
            if bits is not None and -(-tensor.elements * bits // 8) != tensor.n_bytes:
                raise _broken(path, f"contradicts itself about tensor `{name}`")
            if bits is None:
                raise _broken(path, f"holds tensor `{name}` of the unknown type `{tensor.dtype}`")
            tensors.append(tensor)
            taken.append((begin, end))
            last = max(last, end)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise _broken(path, "has a header that cannot be read") from None
    taken.sort()
    if any(
        begin < former
        for (begin, _), former in zip(taken, [0, *(end for _, end in taken)], strict=False)
    ):
        raise _broken(path, "contradicts itself: two tensors lie in the same place")
    return tensors, last


def _broken(path: Path, what: str) -> ModelError:
    return ModelError(f"`{path}` {what}", "fetch or save the file again")


def _cut_short(path: Path, size: int, promised: int) -> ModelError:
    what = f"`{path}` is cut short: it has {size:,} bytes and its header promises {promised:,}"
    return ModelError(what, "fetch or save the file again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, those an index names first of all.

    Empty when there are none. Raises ModelError when the index names a file that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(read_weight_map(index).values()))]
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise ModelError(
                f"`{folder}` lacks {len(missing)} of {len(files)} weight files, such as"
                f" {missing[0]}",
                "fetch or copy the model again",
            )
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    return sorted(path for path in folder.glob("*.safetensors") if path.name not in _NOT_MODELS)


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, from `model.safetensors.index.json`. Raises ModelError when it is
    damaged."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"`{index}` has no weight_map", "fetch or copy the model again")
    names = {str(name): str(file) for name, file in weight_map.items()}
    outside = next(
        (file for file in names.values() if Path(file).name != file or "\\" in file), None
    )
    if outside is not None:
        raise ModelError(
            f"`{index}` names `{outside}`, which is no file of its folder",
            "do not trust this model",
        )
    return names


def read_tensors(folder: Path) -> tuple[list[Path], list[TensorHeader]]:
    """Weight files and all tensors of a model folder. Raises ModelError when a tensor of the index
    is in no file."""
    files = weight_files(folder)
    tensors = [tensor for path in files for tensor in read_headers(path)]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        lost = set(read_weight_map(index)) - {tensor.name for tensor in tensors}
        if lost:
            raise ModelError(
                f"`{folder}`: {len(lost)} tensors of the index are in no file, such as {min(lost)}",
                "fetch or copy the model again",
            )
    return files, tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError with the reason."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read `{path}`: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{path}` is not JSON: {error}", "fetch or save the file again") from None
    if not isinstance(value, dict):
        raise ModelError(f"`{path}` should hold a JSON object", "fetch or save the file again")
    return value
